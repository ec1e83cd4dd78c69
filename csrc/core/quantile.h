// The normal quantile: from the probability p of the upper tail to x = Q^-1(p), Q(x) = erfc(x / sqrt 2) / 2, by one
// short polynomial a half octave of p (normal_table.h). Neither log nor sqrt, and the relative error is level
// from p = 1/2 to p = 2^-66, since the half octaves shrink with p.
//
// float: degree 6, error at most 1.4e-7 x, or 1.6e-8 where x < 0.1: little more than the rounding of the last step.
// double: degree 14, at most 3e-16 x, or 5e-17 where x < 0.1.
#pragma once

#include "normal_table.h"
#include "scalar_lanes.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

constexpr int kQuantilePowersF32 = 7;
constexpr int kQuantilePowersF64 = 15;
constexpr float kQuantileLeast = 0x1p-66f;  // the least p that the table covers, 9.3 sigma

// The 32 half octaves below 1/2 (and 1/2 itself) are the hot rows: they fit two vector registers a power. A row sits
// at its number modulo 32, so that indexing needs no subtraction. Below kQuantileHot the full table is read.
constexpr float kQuantileHot = 0x1.8p-17f;  // one value in 43 691 lies beyond: 4.24 sigma
constexpr int kQuantileHotRows = 32;

struct QuantileHotRows {
  float power[kQuantilePowersF32][kQuantileHotRows];
};

constexpr QuantileHotRows quantile_hot_rows() {
  QuantileHotRows hot{};
  for (int power = 0; power < kQuantilePowersF32; ++power) {
    for (int row = kQuantileLastRow - kQuantileHotRows + 1; row <= kQuantileLastRow; ++row) {
      hot.power[power][row % kQuantileHotRows] = kQuantileF32[power][row - kQuantileFirstRow];
    }
  }
  return hot;
}

// What the bits of p say: the row, and z in [-0.25, 0.25), exactly.
template <class L>
struct QuantileArgument {
  typename L::U32 row;
  typename L::F32 z;

  FASTINIT_HD explicit QuantileArgument(typename L::F32 p) {
    const typename L::U32 bits = L::bits(p);
    row = L::template shift_right<22>(bits);
    const typename L::U32 fraction = L::bit_and(bits, L::splat(uint32_t{0x003FFFFF}));
    z = L::sub(L::from_bits(L::bit_or(fraction, L::splat(uint32_t{0x3F800000}))), L::splat(1.25f));
  }
};

// The hot rows as registers (or wherever a kind of lane keeps 32 floats).
template <class L>
struct HotQuantile {
  typename L::Table32 power0, power1, power2, power3, power4, power5, power6;

  FASTINIT_HD explicit HotQuantile(const QuantileHotRows& hot)
      : power0(hot.power[0]),
        power1(hot.power[1]),
        power2(hot.power[2]),
        power3(hot.power[3]),
        power4(hot.power[4]),
        power5(hot.power[5]),
        power6(hot.power[6]) {}

  // x[i] from p[i] in [kQuantileHot, 0.75); anything else gives some number. Power by power through the whole group,
  // for each step of one polynomial waits for the step before.
  template <int kGroup>
  FASTINIT_HD void operator()(const typename L::F32 (&p)[kGroup], typename L::F32 (&x)[kGroup]) const {
    typename L::U32 row[kGroup];
    typename L::F32 z[kGroup];
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const QuantileArgument<L> at(p[i]);
      row[i] = at.row;
      z[i] = at.z;
      x[i] = power6[row[i]];
    }
    step(power5, row, z, x);
    step(power4, row, z, x);
    step(power3, row, z, x);
    step(power2, row, z, x);
    step(power1, row, z, x);
    step(power0, row, z, x);
  }

 private:
  template <int kGroup>
  static FASTINIT_HD void step(const typename L::Table32& power, const typename L::U32 (&row)[kGroup],
                               const typename L::F32 (&z)[kGroup], typename L::F32 (&x)[kGroup]) {
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) x[i] = L::fma(x[i], z[i], power[row[i]]);
  }
};

// p in [2^-66, 0.75), one value. Equal to HotQuantile where both apply.
FASTINIT_HD float normal_quantile(float p) {
  const QuantileArgument<ScalarLanes> at(p);
  const int row = static_cast<int>(at.row) - kQuantileFirstRow;
  float x = kQuantileF32[kQuantilePowersF32 - 1][row];
  for (int power = kQuantilePowersF32 - 2; power >= 0; --power) x = exact_fma(x, at.z, kQuantileF32[power][row]);
  return x;
}

// The same in double, with separate products and sums: exactly rounded wherever it runs, with no fma to emulate.
FASTINIT_HD double normal_quantile(double p) {
  const uint64_t bits = bit_cast<uint64_t>(p);
  // A double's exponent is biased by 1023, a float's by 127: the difference of 896 octaves is 1792 half octaves.
  const int row = static_cast<int>(bits >> 51) - 1792 - kQuantileFirstRow;
  const uint64_t fraction = bits & 0x0007FFFFFFFFFFFFu;
  const double z = bit_cast<double>(fraction | 0x3FF0000000000000u) - 1.25;
  double x = kQuantileF64[kQuantilePowersF64 - 1][row];
  for (int power = kQuantilePowersF64 - 2; power >= 0; --power) x = x * z + kQuantileF64[power][row];
  return x;
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
