// From float to the storage types, once, to nearest even. Samples are never NaN; a constant may be the quiet NaN.
#pragma once

#include "scalar_lanes.h"
#include "task.h"

namespace fastinit {

// 16-bit floats as their bits.
struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

// What rounding to an 8-bit float needs to know. Magnitudes beyond `most` are taken for it: for the greatest number
// (E4M3FN), for infinity (E5M2), or for the NaN of the formats with one zero (FNUZ), which has the bits of -0.
struct Float8Format {
  int mantissa_bits;
  bool has_one_zero;
  uint32_t least_normal;  // its bits as a float
  float most;
  float greatest;        // of the numbers
  float negative_below;  // with one zero: values below it get the sign
  uint8_t beyond;        // what `most` and more become, without the sign

  FASTINIT_HD constexpr explicit Float8Format(Dtype dtype)
      : mantissa_bits(dtype == Dtype::kFloat8E5m2 || dtype == Dtype::kFloat8E5m2fnuz ? 2 : 3),
        has_one_zero(dtype == Dtype::kFloat8E4m3fnuz || dtype == Dtype::kFloat8E5m2fnuz),
        least_normal(static_cast<uint32_t>((mantissa_bits == 2 ? 113 : 121) - (has_one_zero ? 1 : 0)) << 23),
        most(mantissa_bits == 2 ? 65536.0f
             : has_one_zero     ? 256.0f
                                : 448.0f),
        greatest(mantissa_bits == 2 ? 57344.0f
                 : has_one_zero     ? 240.0f
                                    : 448.0f),
        negative_below(mantissa_bits == 2 ? -0x1p-18f : -0x1p-11f),
        beyond(has_one_zero         ? 0x80
               : mantissa_bits == 2 ? 0x7C
                                    : 0x7E) {}
};

// An 8-bit float as its bits.
template <Dtype kDtype>
struct Float8 {
  uint8_t bits;
};
using Float8E4m3fn = Float8<Dtype::kFloat8E4m3fn>;
using Float8E5m2 = Float8<Dtype::kFloat8E5m2>;
using Float8E4m3fnuz = Float8<Dtype::kFloat8E4m3fnuz>;
using Float8E5m2fnuz = Float8<Dtype::kFloat8E5m2fnuz>;

inline namespace FASTINIT_ISA {

// The upper half of the sum holds the rounded bits: half an ulp less one, plus one for ties at odd.
template <class L>
FASTINIT_HD typename L::U32 bfloat16_in_upper_half(typename L::F32 x) {
  const typename L::U32 bits = L::bits(x);
  const typename L::U32 odd = L::bit_and(L::template shift_right<16>(bits), L::splat(uint32_t{1}));
  return L::add(L::add(bits, L::splat(uint32_t{0x7FFF})), odd);
}

// The lowest byte of each lane holds the rounded bits, the others zeros. Samples are never NaN.
//
// A power of two is added to the magnitude: at its exponent, a float's mantissa ends where the mantissa of the rounded
// number ends. So the addition rounds. What the sum has beyond that power counts the numbers from the least one of the
// exponent on, or from zero on below the least normal one.
template <class L>
FASTINIT_HD typename L::U32 float8_in_lowest_byte(typename L::F32 x, const Float8Format& format) {
  const typename L::U32 least_normal = L::splat(format.least_normal);
  const typename L::U32 ends_alike = L::splat(static_cast<uint32_t>(23 - format.mantissa_bits) << 23);
  const typename L::F32 size =
      L::min(L::from_bits(L::bit_and(L::bits(x), L::splat(uint32_t{0x7FFFFFFF}))), L::splat(format.most));
  const typename L::F32 power =
      L::max(L::from_bits(L::bit_and(L::bits(size), L::splat(uint32_t{0x7F800000}))), L::from_bits(least_normal));
  const typename L::U32 added = L::add(L::bits(power), ends_alike);
  const typename L::U32 counted = L::sub(L::bits(L::add(size, L::from_bits(added))), added);
  const typename L::U32 above = L::sub(L::bits(power), least_normal);
  const typename L::U32 magnitude = L::add(
      counted, format.mantissa_bits == 3 ? L::template shift_right<20>(above) : L::template shift_right<21>(above));
  const typename L::U32 sign = L::splat(uint32_t{0x80});
  if (!format.has_one_zero) {
    return L::bit_or(magnitude, L::bit_and(L::template shift_right<24>(L::bits(x)), sign));
  }
  const typename L::Mask is_negative = L::less(x, L::splat(format.negative_below));
  return L::bit_or(magnitude, L::bits(L::select(is_negative, L::from_bits(sign), L::splat(0.0f))));
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

// NaN may come, too.
FASTINIT_HD uint8_t rounded_to_float8(float x, const Float8Format& format) {
  if (x != x) return static_cast<uint8_t>(format.has_one_zero ? 0x80 : 0x7F | (bit_cast<uint32_t>(x) >> 24 & 0x80));
  return static_cast<uint8_t>(float8_in_lowest_byte<ScalarLanes>(x, format));
}

template <Dtype kDtype>
FASTINIT_HD void round_to(float x, Float8<kDtype>& rounded) {
  constexpr Float8Format kFormat(kDtype);
  rounded.bits = rounded_to_float8(x, kFormat);
}

// Constants come in double, and go to fewer bits by way of float, as torch.Tensor.fill_ rounds them.
FASTINIT_HD void round_to(double x, double& rounded) { rounded = x; }
template <class Element>
FASTINIT_HD void round_to(double x, Element& rounded) {
  round_to(static_cast<float>(x), rounded);
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
