// One lane and plain stores: ScalarLanes as the portable build uses it, on any processor.
#pragma once

#include "core/distributions.h"
#include "core/rounding.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

struct PortableLanes : ScalarLanes {
  using Doubles = ScalarDoubles;
  using QuantileF64 = ScalarQuantileF64;

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

}  // namespace FASTINIT_ISA
}  // namespace fastinit
