// The normal quantile: from the probability p of the upper tail to x = Q^-1(p), Q(x) = erfc(x / sqrt 2) / 2, by one
// short polynomial a half octave of p (normal_table.h). Neither log nor sqrt, and the relative error is level
// from p = 1/2 to p = 2^-66, since the half octaves shrink with p.
//
// float: c0 + z (c1 + z (c2 + z (c3 + z (c4 + z c5 (1 - 15/32 z))))): of degree 6 with six coefficients a row, since
// the ratio of the last two is nearly the same in all rows. Error at most 1.4e-7 x, or 1.6e-8 where x < 0.1: little
// more than the rounding of the last step. double: degree 14, at most 3e-16 x, or 5e-17 where x < 0.1.
#pragma once

#include "normal_table.h"
#include "scalar_lanes.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

constexpr int kQuantilePowersF32 = 6;
constexpr int kQuantilePowersF64 = 15;
constexpr float kQuantileLeast = 0x1p-66f;  // the least p that the table covers, 9.3 sigma

// The 32 half octaves below 1/2 (and 1/2 itself) are the hot rows: they fit two vector registers a power. A row sits
// at its number modulo 32, so that indexing needs no subtraction. Below kQuantileHot the full table is read.
constexpr float kQuantileHot = 0x1.8p-17f;  // one value in 43 691 lies beyond: 4.24 sigma
constexpr int kQuantileHotRows = 32;
constexpr int kQuantileRowFloats = 8;  // of one row's powers in consecutive memory: a power of two
constexpr int kQuantileFirstHotRow = kQuantileLastRow - kQuantileHotRows + 1;

// What the bits of p say: the row, and z in [-0.25, 0.25), exactly.
template <class L>
struct QuantileArgument {
  typename L::U32 row;
  typename L::F32 z;

  FASTINIT_HD explicit QuantileArgument(typename L::F32 p) {
    const typename L::U32 bits = L::bits(p);
    row = L::template shift_right<22>(bits);
    z = L::sub(L::from_bits(L::template and_or<0x003FFFFF, 0x3F800000>(bits)), L::splat(1.25f));
  }
};

// What the innermost coefficient is multiplied with: 1 - 15/32 z.
template <class L>
FASTINIT_HD typename L::F32 quantile_tip(typename L::F32 z) {
  return L::fma(z, L::splat(kQuantileRatio), L::splat(1.0f));
}

// p in [2^-66, 0.75), one value, by the full table.
FASTINIT_DEVICE float normal_quantile(float p) {
  const QuantileArgument<ScalarLanes> at(p);
  const int row = static_cast<int>(at.row) - kQuantileFirstRow;
  float x = kQuantileF32[kQuantilePowersF32 - 1][row] * quantile_tip<ScalarLanes>(at.z);
  FASTINIT_UNROLL
  for (int power = kQuantilePowersF32 - 2; power >= 0; --power) x = exact_fma(x, at.z, kQuantileF32[power][row]);
  return x;
}

// The same in double, with separate products and sums: exactly rounded wherever it runs, with no fma to emulate.
FASTINIT_DEVICE double normal_quantile(double p) {
  const uint64_t bits = bit_cast<uint64_t>(p);
  // A double's exponent is biased by 1023, a float's by 127: the difference of 896 octaves is 1792 half octaves.
  const int row = static_cast<int>(bits >> 51) - 1792 - kQuantileFirstRow;
  const uint64_t fraction = bits & 0x0007FFFFFFFFFFFFu;
  const double z = bit_cast<double>(fraction | 0x3FF0000000000000u) - 1.25;
  double x = kQuantileF64[kQuantilePowersF64 - 1][row];
  FASTINIT_UNROLL
  for (int power = kQuantilePowersF64 - 2; power >= 0; --power) x = x * z + kQuantileF64[power][row];
  return x;
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
