// What the lanes of a warp do together.
#pragma once

#include <cstdint>

#include "core/orthogonal.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

constexpr uint32_t kAllLanes = 0xFFFFFFFF;

// Returns the value that all threads of the warp have. The compiler learns from it that they do, and keeps what follows
// from the value (round keys, loop bounds) in registers that the warp shares.
FASTINIT_DEVICE int uniform(int value) { return __shfl_sync(kAllLanes, value, 0); }
FASTINIT_DEVICE uint64_t uniform(uint64_t value) {
  const uint32_t low = __shfl_sync(kAllLanes, static_cast<uint32_t>(value), 0);
  const uint32_t high = __shfl_sync(kAllLanes, static_cast<uint32_t>(value >> 32), 0);
  return low | static_cast<uint64_t>(high) << 32;
}

// The sums over all lanes of kCount values (a power of two, 32 at the most), in every lane. The order of the additions
// is that of a butterfly over lanes 16, 8, 4, 2, 1 apart, whatever kCount is.
//
// While several sums are left, a lane passes half of them on and keeps the other half. For 8 sums, 9 values cross
// between lanes, and 8 more to tell all lanes; sum by sum it would be 40.
template <int kCount, class T>
FASTINIT_DEVICE void warp_sums(T (&values)[kCount], int lane) {
  T mine[kCount];
  FASTINIT_UNROLL
  for (int i = 0; i < kCount; ++i) mine[i] = values[i];
  FASTINIT_UNROLL
  for (int stage = 0; stage < 5; ++stage) {
    const int apart = 16 >> stage;
    const int kept = kCount >> (stage + 1);
    const bool upper = (lane & apart) != 0;
    FASTINIT_UNROLL
    for (int i = 0; i < kept; ++i) {
      const T given = upper ? mine[i] : mine[i + kept];
      mine[i] = (upper ? mine[i + kept] : mine[i]) + __shfl_xor_sync(kAllLanes, given, apart);
    }
    if (kept == 0) mine[0] += __shfl_xor_sync(kAllLanes, mine[0], apart);
  }
  // Sum i is now in the kLanes / kCount lanes whose upper bits are i.
  FASTINIT_UNROLL
  for (int i = 0; i < kCount; ++i) {
    values[i] = kCount == 1 ? mine[0] : __shfl_sync(kAllLanes, mine[0], i * (kLanes / kCount));
  }
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
