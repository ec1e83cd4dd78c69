// Vectors of float and of double in AVX2 registers, for orthogonal_body.h. Included inside a target region
// (target.h) only.
#pragma once

#include "core/orthogonal.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

template <class T>
struct Avx2Vector;

template <>
struct Avx2Vector<float> {
  static constexpr int kWidth = 8;
  static constexpr int kSums = 8;  // registers for sums: half of those there are
  static constexpr int64_t kMostTallRows = fastinit::kMostTallRows;
  __m256 value;

  static FASTINIT_HD Avx2Vector load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static FASTINIT_HD Avx2Vector splat(float a) { return {_mm256_set1_ps(a)}; }
  FASTINIT_HD void store(float* to) const { _mm256_storeu_ps(to, value); }
  static FASTINIT_HD Avx2Vector fma(Avx2Vector a, Avx2Vector b, Avx2Vector c) {
    return {_mm256_fmadd_ps(a.value, b.value, c.value)};
  }
  static FASTINIT_HD Avx2Vector add(Avx2Vector a, Avx2Vector b) { return {_mm256_add_ps(a.value, b.value)}; }
  // By pairs 4, 2 and 1 apart.
  FASTINIT_HD float sum() const {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
};

template <>
struct Avx2Vector<double> {
  static constexpr int kWidth = 4;
  static constexpr int kSums = 8;
  static constexpr int64_t kMostTallRows = fastinit::kMostTallRows;
  __m256d value;

  static FASTINIT_HD Avx2Vector load(const double* from) { return {_mm256_loadu_pd(from)}; }
  static FASTINIT_HD Avx2Vector splat(double a) { return {_mm256_set1_pd(a)}; }
  FASTINIT_HD void store(double* to) const { _mm256_storeu_pd(to, value); }
  static FASTINIT_HD Avx2Vector fma(Avx2Vector a, Avx2Vector b, Avx2Vector c) {
    return {_mm256_fmadd_pd(a.value, b.value, c.value)};
  }
  static FASTINIT_HD Avx2Vector add(Avx2Vector a, Avx2Vector b) { return {_mm256_add_pd(a.value, b.value)}; }
  // By pairs 2 and 1 apart.
  FASTINIT_HD double sum() const {
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(value), _mm256_extractf128_pd(value, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
