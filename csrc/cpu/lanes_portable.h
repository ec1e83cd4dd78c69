// One lane and plain stores: ScalarLanes as the portable build uses it, on any processor.
#pragma once

#include "core/distributions.h"
#include "core/rounding.h"
#include "hot_quantile.h"
#include "line_without_fma.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

struct PortableLanes : ScalarLanes {
  using Doubles = ScalarDoubles;
  using QuantileF64 = ScalarQuantileF64;

  // Twice as many as a GPU's thread has: rounds wait for their products less.
  static constexpr int kCounters = 4;
  static constexpr int kCountersOfBytes = kCounters;

  // Rounded twice.
  static FASTINIT_HD F32 fma_in_double(F32 a, F32 b, F32 c) {
    return static_cast<float>(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
  }

  static constexpr int kStreamAlignment = 1;
  static FASTINIT_HD F32 load(const float* from) { return *from; }
  template <bool kStreaming>
  static FASTINIT_HD void store(U32 values, void* out) {
    memcpy(out, &values, sizeof(values));
  }
  template <bool kStreaming, class Element>
  static FASTINIT_HD void store_pair(F32 first, F32 second, Element* out) {
    round_to(first, out[0]);
    round_to(second, out[1]);
  }
};

#if !FASTINIT_HAS_FMA
template <>
class Line<PortableLanes> : public LineWithoutFma<PortableLanes> {
  using LineWithoutFma::LineWithoutFma;
};

// Where two roundings give what one does: in the quantile's polynomial. tests/cpp/without_fma_test.cpp compares every
// p.
struct PortableLanesOfQuantile : PortableLanes {
  static FASTINIT_HD F32 fma(F32 a, F32 b, F32 c) { return fma_in_double(a, b, c); }
};

template <>
class HotQuantile<PortableLanes> : public HotQuantile<PortableLanesOfQuantile> {
  using HotQuantile<PortableLanesOfQuantile>::HotQuantile;
};
#endif

}  // namespace FASTINIT_ISA
}  // namespace fastinit
