// Vectors of float and of double in NEON registers, for orthogonal_body.h. Included in neon.cpp only.
#pragma once

#include "core/orthogonal.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

template <class T>
struct NeonVector;

template <>
struct NeonVector<float> {
  static constexpr int kWidth = 4;
  static constexpr int kSums = 16;  // registers for sums: half of those there are
  static constexpr int64_t kMostTallRows = fastinit::kMostTallRows;
  float32x4_t value;

  static FASTINIT_HD NeonVector load(const float* from) { return {vld1q_f32(from)}; }
  static FASTINIT_HD NeonVector splat(float a) { return {vdupq_n_f32(a)}; }
  FASTINIT_HD void store(float* to) const { vst1q_f32(to, value); }
  static FASTINIT_HD NeonVector fma(NeonVector a, NeonVector b, NeonVector c) {
    return {vfmaq_f32(c.value, a.value, b.value)};
  }
  static FASTINIT_HD NeonVector add(NeonVector a, NeonVector b) { return {vaddq_f32(a.value, b.value)}; }
  // By pairs 2 and 1 apart.
  FASTINIT_HD float sum() const {
    const float32x2_t two = vadd_f32(vget_low_f32(value), vget_high_f32(value));
    return vget_lane_f32(vpadd_f32(two, two), 0);
  }
};

template <>
struct NeonVector<double> {
  static constexpr int kWidth = 2;
  static constexpr int kSums = 16;
  static constexpr int64_t kMostTallRows = fastinit::kMostTallRows;
  float64x2_t value;

  static FASTINIT_HD NeonVector load(const double* from) { return {vld1q_f64(from)}; }
  static FASTINIT_HD NeonVector splat(double a) { return {vdupq_n_f64(a)}; }
  FASTINIT_HD void store(double* to) const { vst1q_f64(to, value); }
  static FASTINIT_HD NeonVector fma(NeonVector a, NeonVector b, NeonVector c) {
    return {vfmaq_f64(c.value, a.value, b.value)};
  }
  static FASTINIT_HD NeonVector add(NeonVector a, NeonVector b) { return {vaddq_f64(a.value, b.value)}; }
  FASTINIT_HD double sum() const { return vgetq_lane_f64(value, 0) + vgetq_lane_f64(value, 1); }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
