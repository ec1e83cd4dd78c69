// From float to the storage types, once, to nearest even. Samples are never NaN; a constant may be the quiet NaN.
#pragma once

#include "scalar_lanes.h"

namespace fastinit {

// 16-bit floats as their bits.
struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

inline namespace FASTINIT_ISA {

// The upper half of the sum holds the rounded bits: half an ulp less one, plus one for ties at odd.
template <class L>
FASTINIT_HD typename L::U32 bfloat16_in_upper_half(typename L::F32 x) {
  const typename L::U32 bits = L::bits(x);
  const typename L::U32 odd = L::bit_and(L::template shift_right<16>(bits), L::splat(uint32_t{1}));
  return L::add(L::add(bits, L::splat(uint32_t{0x7FFF})), odd);
}

FASTINIT_HD float to_float(Bfloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

FASTINIT_HD void round_to(float x, float& rounded) { rounded = x; }

FASTINIT_HD void round_to(float x, Bfloat16& rounded) {
  rounded.bits = static_cast<uint16_t>(bfloat16_in_upper_half<ScalarLanes>(x) >> 16);
}

FASTINIT_HD void round_to(float x, Float16& rounded) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000;
  uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude >= 0x47800000) {  // 65536 and beyond, infinity and NaN included
    magnitude = magnitude > 0x7F800000 ? 0x7E00 : 0x7C00;
  } else if (magnitude < 0x38800000) {
    // Subnormal below 2^-14: adding 0.5 puts a float16 ulp, 2^-24, at the end of the mantissa, and rounds there.
    magnitude = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3F000000;
  } else {
    // Normal: rebias the exponent from 127 to 15, round off 13 bits. 65520 carries over into infinity.
    const uint32_t odd = magnitude >> 13 & 1;
    magnitude = (magnitude - (112u << 23) + 0x0FFF + odd) >> 13;
  }
  rounded.bits = static_cast<uint16_t>(sign | magnitude);
}

// Constants come in double, and go to 16 bits by way of float, as torch.Tensor.fill_ rounds them.
FASTINIT_HD void round_to(double x, double& rounded) { rounded = x; }
template <class Element>
FASTINIT_HD void round_to(double x, Element& rounded) {
  round_to(static_cast<float>(x), rounded);
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
