// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as
// 1, 2, 3" (SC'11). Written once for every kind of lane; used by the samplers and by the derivation of streams.
#pragma once

#include "scalar_lanes.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

constexpr int kPhiloxRounds = 10;  // the paper's conservative choice; 7 is the least that passes BigCrush
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9;  // golden ratio
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85;  // sqrt(3) - 1

// The keys of all rounds. Made once for a stream: a vector loop finds them in memory, ready in every lane.
template <class L>
struct PhiloxKeys {
  typename L::Word round[kPhiloxRounds][2];

  FASTINIT_HD explicit PhiloxKeys(uint64_t key) {
    uint32_t key0 = static_cast<uint32_t>(key);
    uint32_t key1 = static_cast<uint32_t>(key >> 32);
    FASTINIT_UNROLL
    for (int i = 0; i < kPhiloxRounds; ++i) {
      round[i][0] = L::splat_word(key0);
      round[i][1] = L::splat_word(key1);
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
  }
};

// Replaces each of the counters (word 0 first) by the block of four words that belongs to it and to the key. Several
// counters advance together because a round is a chain of dependent steps: one counter, or one register of them, leaves
// most of a core's multipliers idle.
template <class L, int kRounds = kPhiloxRounds, int kCounters>
FASTINIT_HD void philox4x32(typename L::Word (&counter)[kCounters][4], const PhiloxKeys<L>& keys) {
  FASTINIT_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    FASTINIT_UNROLL
    for (int i = 0; i < kCounters; ++i) {
      const typename L::Wide product0 = L::mul_wide(counter[i][0], kPhiloxMultiplier0);
      const typename L::Wide product1 = L::mul_wide(counter[i][2], kPhiloxMultiplier1);
      counter[i][0] = L::xor3(L::high(product1), counter[i][1], keys.round[round][0]);
      counter[i][1] = L::low(product1);
      counter[i][2] = L::xor3(L::high(product0), counter[i][3], keys.round[round][1]);
      counter[i][3] = L::low(product0);
    }
  }
}

// One block, its keys made on the way: small code, for whatever is not done for every value.
FASTINIT_HD void philox4x32(uint32_t (&counter)[4], uint64_t key) {
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = static_cast<uint32_t>(key >> 32);
  FASTINIT_ROLL
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(counter[0]) * kPhiloxMultiplier0;
    const uint64_t product1 = static_cast<uint64_t>(counter[2]) * kPhiloxMultiplier1;
    counter[0] = static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0;
    counter[1] = static_cast<uint32_t>(product1);
    counter[2] = static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1;
    counter[3] = static_cast<uint32_t>(product0);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
