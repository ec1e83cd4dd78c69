// Vectors of float and of double in AVX-512 registers, for orthogonal_body.h. Included inside a target region
// (target.h) only.
#pragma once

#include "core/orthogonal.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

template <class T>
struct Avx512Vector;

template <>
struct Avx512Vector<float> {
  static constexpr int kWidth = 16;
  static constexpr int kSums = 16;  // registers for sums: half of those there are
  static constexpr int64_t kMostTallRows = fastinit::kMostTallRows;
  __m512 value;

  static FASTINIT_HD Avx512Vector load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static FASTINIT_HD Avx512Vector splat(float a) { return {_mm512_set1_ps(a)}; }
  FASTINIT_HD void store(float* to) const { _mm512_storeu_ps(to, value); }
  static FASTINIT_HD Avx512Vector fma(Avx512Vector a, Avx512Vector b, Avx512Vector c) {
    return {_mm512_fmadd_ps(a.value, b.value, c.value)};
  }
  static FASTINIT_HD Avx512Vector add(Avx512Vector a, Avx512Vector b) { return {_mm512_add_ps(a.value, b.value)}; }
  // By pairs 8, 4, 2 and 1 apart.
  FASTINIT_HD float sum() const {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(value),
                                       _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(value), 1)));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
};

template <>
struct Avx512Vector<double> {
  static constexpr int kWidth = 8;
  static constexpr int kSums = 16;
  static constexpr int64_t kMostTallRows = fastinit::kMostTallRows;
  __m512d value;

  static FASTINIT_HD Avx512Vector load(const double* from) { return {_mm512_loadu_pd(from)}; }
  static FASTINIT_HD Avx512Vector splat(double a) { return {_mm512_set1_pd(a)}; }
  FASTINIT_HD void store(double* to) const { _mm512_storeu_pd(to, value); }
  static FASTINIT_HD Avx512Vector fma(Avx512Vector a, Avx512Vector b, Avx512Vector c) {
    return {_mm512_fmadd_pd(a.value, b.value, c.value)};
  }
  static FASTINIT_HD Avx512Vector add(Avx512Vector a, Avx512Vector b) { return {_mm512_add_pd(a.value, b.value)}; }
  // By pairs 4, 2 and 1 apart.
  FASTINIT_HD double sum() const {
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(value), _mm512_extractf64x4_pd(value, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
