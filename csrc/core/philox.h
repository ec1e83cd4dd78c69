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
// most of a core's multipliers idle. Others may make the rounds before kBegin and from kEnd on.
template <class L, int kBegin = 0, int kEnd = kPhiloxRounds, int kCounters>
FASTINIT_HD void philox4x32(typename L::Word (&counter)[kCounters][4], const PhiloxKeys<L>& keys) {
  FASTINIT_UNROLL
  for (int round = kBegin; round < kEnd; ++round) {
    FASTINIT_UNROLL
    for (int i = 0; i < kCounters; ++i) {
      const typename L::Wide product0 = L::mul_wide(counter[i][0], kPhiloxMultiplier0);
      const typename L::Wide product1 = L::mul_wide(counter[i][2], kPhiloxMultiplier1);
      counter[i][0] = L::xor3(L::high(product1), counter[i][1], keys.round[round][0]);
      counter[i][1] = L::low(product1);
      counter[i][2] = L::xor3(L::high(product0), counter[i][3], keys.round[round][1]);
      counter[i][3] = L::low(product0);
      L::settle(counter[i]);
    }
  }
}

// The first rounds of counters that differ in word 0 alone. Each of the first two rounds multiplies a word that all of
// them share; what follows from such words is made once, and xored to what follows from word 0.
template <class L>
class PhiloxStart {
 public:
  static constexpr int kRounds = 3;

  FASTINIT_HD PhiloxStart(uint64_t key, uint32_t word1, uint32_t word2, uint32_t word3) {
    const uint32_t key0 = static_cast<uint32_t>(key);
    const uint32_t key1 = static_cast<uint32_t>(key >> 32);
    const uint64_t product1 = static_cast<uint64_t>(word2) * kPhiloxMultiplier1;  // of round 0
    const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ word1 ^ key0;
    const uint64_t product0 = static_cast<uint64_t>(next0) * kPhiloxMultiplier0;  // of round 1
    round0_word2_ = L::splat_word(word3 ^ key1);
    round1_word0_ = L::splat_word(static_cast<uint32_t>(product1) ^ (key0 + kPhiloxWeyl0));
    round1_word2_ = L::splat_word(static_cast<uint32_t>(product0 >> 32) ^ (key1 + kPhiloxWeyl1));
    round2_word2_ = L::splat_word(static_cast<uint32_t>(product0) ^ (key1 + 2 * kPhiloxWeyl1));
  }

  // Reads word 0 of each counter, and leaves all words as they are after kRounds rounds.
  template <int kCounters>
  FASTINIT_HD void operator()(typename L::Word (&counter)[kCounters][4], const PhiloxKeys<L>& keys) const {
    typename L::Wide product0[kCounters], product1[kCounters];
    FASTINIT_UNROLL
    for (int i = 0; i < kCounters; ++i) {
      product0[i] = L::mul_wide(counter[i][0], kPhiloxMultiplier0);
      const typename L::Word word2 = L::xor2(L::high(product0[i]), round0_word2_);
      product1[i] = L::mul_wide(word2, kPhiloxMultiplier1);
      counter[i][0] = L::xor2(L::high(product1[i]), round1_word0_);
      counter[i][2] = L::xor2(L::low(product0[i]), round1_word2_);
    }
    FASTINIT_UNROLL
    for (int i = 0; i < kCounters; ++i) {
      product0[i] = L::mul_wide(counter[i][0], kPhiloxMultiplier0);
      const typename L::Wide last1 = L::mul_wide(counter[i][2], kPhiloxMultiplier1);
      counter[i][0] = L::xor3(L::high(last1), L::low(product1[i]), keys.round[2][0]);
      counter[i][1] = L::low(last1);
      counter[i][2] = L::xor2(L::high(product0[i]), round2_word2_);
      counter[i][3] = L::low(product0[i]);
    }
  }

 private:
  typename L::Word round0_word2_, round1_word0_, round1_word2_, round2_word2_;  // named after what they are xored to
};

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
