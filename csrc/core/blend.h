// Blending: an element becomes keep * element + scale * value, computed in float (in double for float64) from the
// unrounded value, and rounded once to the dtype (docs/STREAM.md, section 8). Used by all backends.
#pragma once

#include "rounding.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

// Exact.
FASTINIT_HD float widened(float x) { return x; }
FASTINIT_HD double widened(double x) { return x; }
FASTINIT_HD float widened(Bfloat16 x) { return to_float(x); }
FASTINIT_HD float widened(Float16 x) {
  // The exponent is rebiased from 15 to 127 by a product, which makes subnormals normal. Infinity and NaN have the
  // largest exponent in both.
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7FFF) << 13;
  const uint32_t rebiased = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  // We OR in bits instead of choosing between two results: compilers do not vectorise that choice.
  const uint32_t beyond = magnitude >= 0x0F800000 ? 0x7F800000 : 0;
  return bit_cast<float>(rebiased | beyond | static_cast<uint32_t>(x.bits & 0x8000) << 16);
}
FASTINIT_HD float widened_float8(uint32_t bits, const Float8Format& format) {
  const uint32_t sign = (bits & 0x80) << 24;
  const uint32_t magnitude = (bits & 0x7F) << (23 - format.mantissa_bits);
  // As above: 2^(127 - bias) rebiases the exponent.
  const float rebias = bit_cast<float>(((format.least_normal >> 23) - 1 + 127) << 23);
  const float finite = bit_cast<float>(magnitude) * rebias;
  if (format.has_one_zero ? bits == 0x80 : finite > format.greatest) {
    const bool is_infinite = !format.has_one_zero && format.mantissa_bits == 2 && (bits & 3) == 0;
    return bit_cast<float>(sign | (is_infinite ? 0x7F800000u : 0x7FC00000u));
  }
  return bit_cast<float>(sign | bit_cast<uint32_t>(finite));
}
template <Dtype kDtype>
FASTINIT_HD float widened(Float8<kDtype> x) {
  constexpr Float8Format kFormat(kDtype);
  return widened_float8(x.bits, kFormat);
}

// Two products and a sum, each rounded. NaN becomes the positive quiet one: which one comes out of a sum depends on the
// processor.
FASTINIT_HD float blended(float keep, float old, float scale, float value) {
  const float sum = keep * old + scale * value;
  return sum == sum ? sum : bit_cast<float>(uint32_t{0x7FC00000});
}
FASTINIT_HD double blended(double keep, double old, double scale, double value) {
  const double sum = keep * old + scale * value;
  return sum == sum ? sum : bit_cast<double>(uint64_t{0x7FF8000000000000});
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
