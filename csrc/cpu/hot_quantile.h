// The normal quantile of a group of vector registers, from the hot rows of its table wherever a kind of lane keeps
// them. Sits on the lanes of one instruction set; equal to core's normal_quantile, to the bit.
#pragma once

#include "core/quantile.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

// The same coefficients twice, since each kind of lane reads them in its own way: a power's 32 rows, which may fit two
// registers, and a row's powers, which lie in one cache line and are found by one index.
struct QuantileHotRows {
  float power[kQuantilePowersF32][kQuantileHotRows];
  float row[kQuantileHotRows][kQuantileRowFloats];
};

constexpr QuantileHotRows quantile_hot_rows() {
  QuantileHotRows hot{};
  for (int power = 0; power < kQuantilePowersF32; ++power) {
    for (int row = kQuantileFirstHotRow; row <= kQuantileLastRow; ++row) {
      const float coefficient = kQuantileF32[power][row - kQuantileFirstRow];
      hot.power[power][row % kQuantileHotRows] = coefficient;
      hot.row[row % kQuantileHotRows][power] = coefficient;
    }
  }
  return hot;
}

template <class L>
class HotQuantile {
 public:
  FASTINIT_HD explicit HotQuantile(const QuantileHotRows& hot) : rows_(hot) {}

  // x[i] from p[i] in [kQuantileHot, 0.75); anything else gives some number.
  template <int kGroup>
  FASTINIT_HD void operator()(const typename L::F32 (&p)[kGroup], typename L::F32 (&x)[kGroup]) const {
    constexpr int kTogether = L::kRowsTogether < kGroup ? L::kRowsTogether : kGroup;
    static_assert(kGroup % kTogether == 0, "a group is so many times what is looked up together");
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; i += kTogether) evaluate<kTogether>(p + i, x + i);
  }

 private:
  // Power by power through all of them, since each step of one polynomial waits for the step before.
  template <int kTogether>
  FASTINIT_HD void evaluate(const typename L::F32* p, typename L::F32* x) const {
    typename L::HotRows::Row row[kTogether];
    typename L::F32 z[kTogether];
    FASTINIT_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      row[i] = rows_.find(L::bits(p[i]));
      z[i] = QuantileArgument<L>(p[i]).z;
      x[i] = L::mul(rows_.power(kQuantilePowersF32 - 1, row[i]), quantile_tip<L>(z[i]));
    }
    FASTINIT_UNROLL
    for (int power = kQuantilePowersF32 - 2; power >= 0; --power) {
      FASTINIT_UNROLL
      for (int i = 0; i < kTogether; ++i) x[i] = L::fma(x[i], z[i], rows_.power(power, row[i]));
    }
  }

  typename L::HotRows rows_;
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
