// A stream: the words that belong to one name under one seed (stream version 1, docs/STREAM.md). Any word can be
// computed alone, from its index.
#pragma once

#include "philox.h"

namespace fastinit {

constexpr int kStreamVersion = 1;

// Word w of the stream is word w % 4 of the Philox block at counter (low half: w / 4, high half: counter_high).
struct Stream {
  uint64_t key;
  uint64_t counter_high;
};

inline namespace FASTINIT_ISA {

// The name's 128-bit digest as the counter, the seed as the key: for one seed a bijection, so two names share a
// stream only if their digests are equal.
FASTINIT_HD Stream derive_stream(const uint64_t (&name_id)[2], uint64_t seed) {
  uint32_t block[4] = {static_cast<uint32_t>(name_id[0]), static_cast<uint32_t>(name_id[0] >> 32),
                       static_cast<uint32_t>(name_id[1]), static_cast<uint32_t>(name_id[1] >> 32)};
  philox4x32(block, seed);
  return {block[0] | static_cast<uint64_t>(block[1]) << 32, block[2] | static_cast<uint64_t>(block[3]) << 32};
}

// Word `index` of the stream, alone.
FASTINIT_HD uint32_t word_at(const Stream& stream, uint64_t index) {
  uint32_t block[4];
  ScalarLanes::count_blocks(index / 4, block[0], block[1]);
  ScalarLanes::count_blocks(stream.counter_high, block[2], block[3]);
  philox4x32(block, stream.key);
  const uint32_t even = index & 2 ? block[2] : block[0];
  const uint32_t odd = index & 2 ? block[3] : block[1];
  return index & 1 ? odd : even;
}

// A second word for value `index`, asked for by values in the far tail only. It comes from the same key with the
// complement of the counter's high half, which no other value reads.
FASTINIT_HD uint32_t tail_word(const Stream& stream, uint64_t index) {
  return word_at({stream.key, ~stream.counter_high}, index);
}

// A stream ready to be drawn from: kRegisters registers of consecutive words at a time.
template <class L, int kCounters = L::kCounters>
class WordSource {
 public:
  static constexpr int kRegisters = kCounters * L::kRegistersPerWord;
  static constexpr int kWords = kRegisters * L::kWidth;

  FASTINIT_HD explicit WordSource(const Stream& stream)
      : keys_(stream.key),
        start_(stream.key, 0, static_cast<uint32_t>(stream.counter_high),
               static_cast<uint32_t>(stream.counter_high >> 32)),
        counter_high_(stream.counter_high) {
    if constexpr (L::kLastRoundInPlace) {
      for (int i = 0; i < 2; ++i) last_key_[i] = L::high_half(keys_.round[kPhiloxRounds - 1][i]);
    }
  }

  // The words from Philox block `block` on.
  FASTINIT_HD void draw(uint64_t block, typename L::U32 (&words)[kRegisters]) const {
    if (__builtin_expect(block > kLastNear, 0)) {
      const Words far = draw_far</*kInOrder=*/true>(block);
      FASTINIT_UNROLL
      for (int i = 0; i < kRegisters; ++i) words[i] = far.registers[i];
      return;
    }
    typename L::Word counter[kCounters][4];
    FASTINIT_UNROLL
    for (int i = 0; i < kCounters; ++i) {
      L::count_blocks(block + static_cast<uint64_t>(i) * L::kBlocksPerWord, counter[i][0], counter[i][1]);
    }
    start_(counter, keys_);
    if constexpr (L::kLastRoundInPlace) {
      philox4x32<L, PhiloxStart<L>::kRounds, kPhiloxRounds - 1>(counter, keys_);
      FASTINIT_UNROLL
      for (int i = 0; i < kCounters; ++i) {
        typename L::U32 pairs[2];
        L::last_round(counter[i], last_key_, pairs);
        L::interleave_pairs(pairs, words + i * L::kRegistersPerWord);
      }
    } else {
      philox4x32<L, PhiloxStart<L>::kRounds>(counter, keys_);
      FASTINIT_UNROLL
      for (int i = 0; i < kCounters; ++i) L::interleave(counter[i], words + i * L::kRegistersPerWord);
    }
  }

  // The same words where they come to lie with the least work, which L::place_of(register, lane) tells.
  FASTINIT_HD void draw_unordered(uint64_t block, typename L::U32 (&words)[kRegisters]) const {
    if (__builtin_expect(block > kLastNear, 0)) {
      const Words far = draw_far</*kInOrder=*/false>(block);
      FASTINIT_UNROLL
      for (int i = 0; i < kRegisters; ++i) words[i] = far.registers[i];
      return;
    }
    typename L::Word counter[kCounters][4];
    FASTINIT_UNROLL
    for (int i = 0; i < kCounters; ++i) {
      L::count_blocks_unordered(block, i, counter[i][0], counter[i][1]);
    }
    start_(counter, keys_);
    philox4x32<L, PhiloxStart<L>::kRounds, kPhiloxRounds - 1>(counter, keys_);
    FASTINIT_UNROLL
    for (int i = 0; i < kCounters; ++i) L::last_round(counter[i], last_key_, words + i * L::kRegistersPerWord);
  }

 private:
  struct Words {
    typename L::U32 registers[kRegisters];
  };
  // The last block at which a draw stays within block numbers of 32 bits. Up to there, counters differ in word 0 alone.
  static constexpr uint64_t kLastNear = (uint64_t{1} << 32) - kCounters * L::kBlocksPerWord;

  // Blocks of any number, by all rounds.
  template <bool kInOrder>
  FASTINIT_COLD Words draw_far(uint64_t block) const {
    typename L::Word counter[kCounters][4];
    for (int i = 0; i < kCounters; ++i) {
      if constexpr (kInOrder) {
        L::count_blocks(block + static_cast<uint64_t>(i) * L::kBlocksPerWord, counter[i][0], counter[i][1]);
      } else {
        L::count_blocks_unordered(block, i, counter[i][0], counter[i][1]);
      }
      counter[i][2] = L::splat_word(static_cast<uint32_t>(counter_high_));
      counter[i][3] = L::splat_word(static_cast<uint32_t>(counter_high_ >> 32));
    }
    philox4x32<L, 0, kPhiloxRounds - 1>(counter, keys_);
    if constexpr (kInOrder) philox4x32<L, kPhiloxRounds - 1>(counter, keys_);
    Words words;
    for (int i = 0; i < kCounters; ++i) {
      typename L::U32* const out = words.registers + i * L::kRegistersPerWord;
      if constexpr (kInOrder) {
        L::interleave(counter[i], out);
      } else {
        L::last_round(counter[i], last_key_, out);
      }
    }
    return words;
  }

  PhiloxKeys<L> keys_;
  PhiloxStart<L> start_;
  typename L::Word last_key_[2];
  uint64_t counter_high_;
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
