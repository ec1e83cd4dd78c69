// The hot rows of the quantile's table in vector registers (or wherever a kind of lane keeps 32 floats). Sits on the
// lanes of one instruction set; equal to core's normal_quantile, to the bit.
#pragma once

#include "core/quantile.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

struct QuantileHotRows {
  float power[kQuantilePowersF32][kQuantileHotRows];
};

constexpr QuantileHotRows quantile_hot_rows() {
  QuantileHotRows hot{};
  for (int power = 0; power < kQuantilePowersF32; ++power) {
    for (int row = kQuantileFirstHotRow; row <= kQuantileLastRow; ++row) {
      hot.power[power][row % kQuantileHotRows] = kQuantileF32[power][row - kQuantileFirstRow];
    }
  }
  return hot;
}

template <class L>
class HotQuantile {
 public:
  FASTINIT_HD explicit HotQuantile(const QuantileHotRows& hot)
      : power0_(hot.power[0]),
        power1_(hot.power[1]),
        power2_(hot.power[2]),
        power3_(hot.power[3]),
        power4_(hot.power[4]),
        power5_(hot.power[5]) {}

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
      x[i] = L::mul(power5_[row[i]], quantile_tip<L>(z[i]));
    }
    step(power4_, row, z, x);
    step(power3_, row, z, x);
    step(power2_, row, z, x);
    step(power1_, row, z, x);
    step(power0_, row, z, x);
  }

 private:
  template <int kGroup>
  static FASTINIT_HD void step(const typename L::Table32& power, const typename L::U32 (&row)[kGroup],
                               const typename L::F32 (&z)[kGroup], typename L::F32 (&x)[kGroup]) {
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) x[i] = L::fma(x[i], z[i], power[row[i]]);
  }

  typename L::Table32 power0_, power1_, power2_, power3_, power4_, power5_;
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
