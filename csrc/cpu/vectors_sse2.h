// Vectors of float in SSE2 registers, for orthogonal_body.h. Included in sse2.cpp only.
#pragma once

#include "lanes_sse2.h"
#include "vectors_portable.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

struct Sse2FloatVector {
  static constexpr int kWidth = 4;
  static constexpr int kSums = 16;
  static constexpr int64_t kMostTallRows = 128;  // products of larger matrices take less time
  __m128 value;

  static FASTINIT_HD Sse2FloatVector load(const float* from) { return {_mm_loadu_ps(from)}; }
  static FASTINIT_HD Sse2FloatVector splat(float a) { return {_mm_set1_ps(a)}; }
  FASTINIT_HD void store(float* to) const { _mm_storeu_ps(to, value); }
  static FASTINIT_HD Sse2FloatVector fma(Sse2FloatVector a, Sse2FloatVector b, Sse2FloatVector c) {
    return {Sse2Lanes::fma(a.value, b.value, c.value)};
  }
  static FASTINIT_HD Sse2FloatVector add(Sse2FloatVector a, Sse2FloatVector b) {
    return {_mm_add_ps(a.value, b.value)};
  }
  // By pairs 2 and 1 apart.
  FASTINIT_HD float sum() const {
    const __m128 two = _mm_add_ps(value, _mm_movehl_ps(value, value));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
};

// Of doubles no wider number holds the product.
template <class T>
using Sse2Vector = std::conditional_t<sizeof(T) == sizeof(float), Sse2FloatVector, PortableVector<T>>;

}  // namespace FASTINIT_ISA
}  // namespace fastinit
