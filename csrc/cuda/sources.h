// Where a thread's values come from: whole Philox blocks of samples, or numbers that need no sampling. A source draws
// the values of kBlocks blocks at once: `first`, first + kStride, and so on, all with the same upper 32 bits. Where the
// values go is not its business.
#pragma once

#include <type_traits>

#include "core/diagonal.h"
#include "core/distributions.h"
#include "core/rounding.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

// The hot rows of the quantile's table in shared memory, two coefficients of a row side by side: three 8-byte reads a
// value. Row r of each pair of powers lies in banks 2 r and 2 r + 1 modulo 32, so that only lanes whose p are 8 octaves
// apart ever wait for each other. A row below kQuantileFirstHotRow reads zeros or other rows; what comes of them is
// thrown away.
class SharedQuantile {
 public:
  static constexpr int kPairs = kQuantilePowersF32 / 2;
  static constexpr int kEntries = (kPairs - 1) * kQuantileHotRows + kQuantileLastRow + 4;  // rows up to 255

  struct alignas(8) Pair {
    float even, odd;  // of z^(2 k) and z^(2 k + 1)
  };

  // Entry `entry` of the shared array.
  static FASTINIT_DEVICE Pair entry(int entry) {
    const int hot = entry - kQuantileFirstHotRow;
    const int k = hot / kQuantileHotRows;
    if (hot < 0 || k >= kPairs) return {0.0f, 0.0f};
    const int row = kQuantileFirstHotRow + hot % kQuantileHotRows - kQuantileFirstRow;
    return {kQuantileF32[2 * k][row], kQuantileF32[2 * k + 1][row]};
  }

  FASTINIT_HD explicit SharedQuantile(const Pair* pairs) : pairs_(pairs) {}

  template <int kGroup>
  FASTINIT_HD void operator()(const float (&p)[kGroup], float (&x)[kGroup]) const {
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const QuantileArgument<ScalarLanes> at(p[i]);
      const Pair* row = pairs_ + at.row;
      const Pair power45 = row[2 * kQuantileHotRows];
      const Pair power23 = row[kQuantileHotRows];
      const Pair power01 = row[0];
      x[i] = exact_fma(power45.odd * quantile_tip<ScalarLanes>(at.z), at.z, power45.even);
      x[i] = exact_fma(x[i], at.z, power23.odd);
      x[i] = exact_fma(x[i], at.z, power23.even);
      x[i] = exact_fma(x[i], at.z, power01.odd);
      x[i] = exact_fma(x[i], at.z, power01.even);
    }
  }

 private:
  const Pair* pairs_;  // [kEntries]
};

// The words of Philox blocks of one stream.
class BlockWords {
 public:
  FASTINIT_HD explicit BlockWords(const Stream& stream) : keys_(stream.key), counter_high_(stream.counter_high) {}

  template <int kBlocks, int kStride>
  FASTINIT_HD void draw(uint64_t first, uint32_t (&words)[4 * kBlocks]) const {
    uint32_t counter[kBlocks][4];
    FASTINIT_UNROLL
    for (int i = 0; i < kBlocks; ++i) {
      ScalarLanes::count_blocks(first, counter[i][0], counter[i][1]);
      counter[i][0] += static_cast<uint32_t>(i * kStride);
      ScalarLanes::count_blocks(counter_high_, counter[i][2], counter[i][3]);
    }
    philox4x32(counter, keys_);
    FASTINIT_UNROLL
    for (int i = 0; i < kBlocks; ++i) ScalarLanes::interleave(counter[i], words + 4 * i);
  }

 private:
  PhiloxKeys<ScalarLanes> keys_;
  uint64_t counter_high_;
};

template <class DistributionF32>
class FloatSource {
 public:
  using Value = float;
  static constexpr int kBlockValues = 4;

  FASTINIT_HD FloatSource(const Stream& stream, const DistributionF32& distribution)
      : words_(stream), distribution_(distribution) {}

  template <int kBlocks, int kStride>
  FASTINIT_DEVICE void draw(uint64_t first, float (&values)[4 * kBlocks]) {
    uint32_t words[4 * kBlocks];
    words_.template draw<kBlocks, kStride>(first, words);
    const auto index_of = [first](int i, int /*lane*/) {
      return (first + static_cast<uint64_t>(i / 4 * kStride)) * 4 + i % 4;
    };
    distribution_(words, index_of, values);
  }

 private:
  BlockWords words_;
  DistributionF32 distribution_;
};

template <class DistributionF64>
class DoubleSource {
 public:
  using Value = double;
  static constexpr int kBlockValues = 2;

  FASTINIT_HD DoubleSource(const Stream& stream, const DistributionF64& distribution)
      : words_(stream), distribution_(distribution) {}

  template <int kBlocks, int kStride>
  FASTINIT_DEVICE void draw(uint64_t first, double (&values)[2 * kBlocks]) {
    uint32_t words[4 * kBlocks];
    words_.template draw<kBlocks, kStride>(first, words);
    FASTINIT_UNROLL
    for (int i = 0; i < 2 * kBlocks; ++i) {
      values[i] = distribution_(words[2 * i] | static_cast<uint64_t>(words[2 * i + 1]) << 32);
    }
  }

 private:
  BlockWords words_;
  DistributionF64 distribution_;
};

// The value of a constant or a diagonal: the bits of an element, or the number before it is rounded to one.
template <class Value>
FASTINIT_HD Value constant_of(const Sampler& sampler) {
  if constexpr (std::is_same_v<Value, uint64_t>) {
    return sampler.constant_bits;
  } else {
    return static_cast<Value>(sampler.center);
  }
}

// One value everywhere.
template <int kValues, class Number>
class ConstantSource {
 public:
  using Value = Number;
  static constexpr int kBlockValues = kValues;

  FASTINIT_HD explicit ConstantSource(const Task& task) : value_(constant_of<Value>(task.sampler)) {}

  template <int kBlocks, int kStride>
  FASTINIT_HD void draw(uint64_t /*first*/, Value (&values)[kValues * kBlocks]) {
    FASTINIT_UNROLL
    for (int i = 0; i < kValues * kBlocks; ++i) values[i] = value_;
  }

 private:
  Value value_;
};

// One value on a diagonal or everywhere, zeros elsewhere.
template <int kValues, class Number>
class DiagonalSource {
 public:
  using Value = Number;
  static constexpr int kBlockValues = kValues;

  FASTINIT_HD explicit DiagonalSource(const Task& task)
      : diagonal_(task.parameter),
        everywhere_(task.sampler.kind == Distribution::kConstant),
        value_(constant_of<Value>(task.sampler)) {}

  template <int kBlocks, int kStride>
  FASTINIT_HD void draw(uint64_t first, Value (&values)[kValues * kBlocks]) {
    // A 64-bit division is a hundred instructions, so the loop stays a loop. An array in registers cannot be indexed by
    // the loop's variable: each turn writes the last place, and moves the others down by one.
    FASTINIT_UNROLL
    for (int i = 0; i < kValues * kBlocks; ++i) values[i] = 0;
    FASTINIT_ROLL
    for (int i = 0; i < kValues * kBlocks; ++i) {
      const int64_t block = static_cast<int64_t>(first) + i / kValues * kStride;
      const int64_t index = block * kValues + i % kValues;
      FASTINIT_UNROLL
      for (int k = 1; k < kValues * kBlocks; ++k) values[k - 1] = values[k];
      values[kValues * kBlocks - 1] = everywhere_ || diagonal_.next(index) == index ? value_ : Value{0};
    }
  }

 private:
  Diagonal diagonal_;
  bool everywhere_;
  Value value_;
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
