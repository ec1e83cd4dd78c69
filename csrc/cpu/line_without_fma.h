// slope * x + offset on lanes that have no fma: by the cheapest way that rounds as one fma does.
#pragma once

#include "core/distributions.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

// The exponents of the lowest and the highest bit of a number other than zero.
struct BitSpan {
  int lowest, highest;

  FASTINIT_HD explicit BitSpan(float number) {
    const uint32_t bits = bit_cast<uint32_t>(number);
    const int exponent = static_cast<int>(bits >> 23 & 0xFF);
    const uint32_t mantissa = (bits & 0x007FFFFF) | (exponent > 0 ? 0x00800000 : 0);
    const int of_last = (exponent > 0 ? exponent : 1) - 150;
    lowest = of_last + __builtin_ctz(mantissa);
    highest = of_last + 31 - __builtin_clz(mantissa);
  }
};

template <class L>
class LineWithoutFma {
 public:
  FASTINIT_HD LineWithoutFma(float slope, float offset, float step)
      : slope_(L::splat(slope)), offset_(L::splat(offset)), rounds_(where_rounded(slope, offset, step)) {}

  FASTINIT_HD typename L::F32 operator()(typename L::F32 x) const {
    if (rounds_ == kInFloat) return L::add(L::mul(x, slope_), offset_);
    if (rounds_ == kFromDouble) return L::fma_in_double(x, slope_, offset_);
    return L::fma(x, slope_, offset_);
  }

 private:
  enum Rounds { kInFloat, kFromDouble, kWithCare };

  static FASTINIT_HD Rounds where_rounded(float slope, float offset, float step) {
    const float size = slope < 0.0f ? -slope : slope;
    // Most often the product or the sum is exact in float: without an offset, or where the slope is a power of two. No
    // argument but zero is smaller than 2^-50, and none greater than 2^4: products stay clear of subnormals.
    const bool is_power = (bit_cast<uint32_t>(slope) & 0x007FFFFF) == 0;
    if (size == 0.0f || (size > 0x1p-70f && size < 0x1p100f && (is_power || offset == 0.0f))) return kInFloat;
    // A product alone is exact in double. So is a sum between round bounds, where it is often halfway between floats.
    if (offset == 0.0f || (step > 0.0f && is_exact_in_double(slope, offset, step))) return kFromDouble;
    return kWithCare;
  }
  // For arguments that are multiples of `step`, at most 1 in size. Neither number is zero.
  static FASTINIT_HD bool is_exact_in_double(float slope, float offset, float step) {
    const BitSpan of_slope(slope), of_offset(offset);
    const int of_product = of_slope.lowest + BitSpan(step).lowest;
    const int lowest = of_product < of_offset.lowest ? of_product : of_offset.lowest;
    const int highest = of_slope.highest > of_offset.highest ? of_slope.highest : of_offset.highest;
    return highest + 1 - lowest < 53;
  }

  typename L::F32 slope_, offset_;
  Rounds rounds_;
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
