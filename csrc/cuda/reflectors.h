// One orthogonal matrix, by all threads of a block: H_1 H_2 ... H_n diag(d), cut to its first n columns, times the gain
// (docs/STREAM.md, section 7). Knows nothing of other matrices (orthogonal.cu).
//
// The reflectors are sampled into shared memory and only read from then on. A warp computes a group of columns at a
// time, from identity to result in registers, and waits for no other warp.
//
// All arithmetic is exactly rounded, in an order that the matrix's size alone decides: a matrix has the same bits on
// every device, alone and among others.
#pragma once

#include <cmath>
#include <type_traits>

#include "core/distributions.h"
#include "core/orthogonal.h"
#include "core/rounding.h"
#include "sources.h"
#include "stores.h"
#include "warp.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

constexpr int kMatrixThreads = 256;  // of a block
constexpr int kMatrixWarps = kMatrixThreads / kLanes;

// Q^-1 by the table in global memory. Nearly all values are in rows that two cache lines hold.
struct GlobalQuantile {
  template <int kGroup>
  FASTINIT_DEVICE void operator()(const float (&p)[kGroup], float (&x)[kGroup]) const {
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) x[i] = normal_quantile(p[i]);
  }
};

// The vectors and factors of H_j = I - tau_j v_j v_j^T, in shared memory.
template <class T>
class Reflectors {
 public:
  FASTINIT_HD Reflectors(T* memory, int rows, int columns)
      : entries_(memory), taus_(memory + reflector_entries(rows, columns)), rows_(rows), columns_(columns) {}

  FASTINIT_HD int rows() const { return rows_; }
  FASTINIT_HD int columns() const { return columns_; }
  // Its entry of row i, i >= j, is at [i].
  FASTINIT_HD T* vector(int j) const { return entries_ + (j * rows_ - j * (j + 1) / 2); }
  FASTINIT_HD T& tau(int j) const { return taus_[j]; }

 private:
  T* entries_;
  T* taus_;
  int rows_, columns_;
};

// The units in which threads draw the entries of the vectors: Philox blocks along lines, which are columns or rows,
// whichever has consecutive indices; or single values where neither has. A long line and a short one make a pair, and
// all pairs have as many units, so that few threads are without work.
template <int kBlockValues>
class SampledUnits {
 public:
  FASTINIT_HD explicit SampledUnits(const OrthogonalMatrix& tall)
      : by_columns_(tall.row_index_step == 1),
        rows_(static_cast<int>(tall.rows)),
        columns_(static_cast<int>(tall.columns)),
        offset_(static_cast<uint64_t>(tall.global_offset)),
        line_step_(static_cast<uint64_t>(tall.row_index_step) +
                   (by_columns_ ? static_cast<uint64_t>(tall.column_index_step) : 0)),
        step_(static_cast<uint64_t>(by_columns_ ? tall.row_index_step : tall.column_index_step)) {
    lines_ = by_columns_ ? columns_ : rows_;
    // The most entries of a pair of lines, and as many units as units() can give for both lines together.
    const int entries = by_columns_ ? 2 * rows_ - columns_ + 1 : smaller(rows_ + 1, 2 * columns_);
    pair_units_ = step_ == 1 ? (entries + 4 * kBlockValues - 4) / kBlockValues : entries;
  }

  FASTINIT_HD int count() const { return (lines_ + 1) / 2 * pair_units_; }

  // Calls draw(block, values) for a unit, and then put(row, column, value) for those values that are entries.
  template <class T, class Draw, class Put>
  FASTINIT_DEVICE void sample(int unit, const Draw& draw, const Put& put) const {
    int line = unit / pair_units_;
    int place = unit % pair_units_;
    if (place >= units(line)) {
      place -= units(line);
      if (lines_ - 1 - line == line) return;
      line = lines_ - 1 - line;
      if (place >= units(line)) return;
    }
    const uint64_t begin = offset_ + static_cast<uint64_t>(line) * line_step_;  // indices
    const uint64_t own = begin + static_cast<uint64_t>(place) * step_;
    const uint64_t block = step_ == 1 ? begin / kBlockValues + static_cast<uint64_t>(place) : own / kBlockValues;
    T values[kBlockValues];
    draw(block, values);
    FASTINIT_UNROLL
    for (int i = 0; i < kBlockValues; ++i) {
      const uint64_t index = block * kBlockValues + static_cast<uint64_t>(i);
      const int entry = step_ == 1 ? static_cast<int>(index - begin) : index == own ? place : -1;
      if (entry < 0 || entry >= length(line)) continue;
      put(by_columns_ ? line + entry : line, by_columns_ ? line : entry, values[i]);
    }
  }

 private:
  static FASTINIT_HD int smaller(int a, int b) { return a < b ? a : b; }
  FASTINIT_HD int length(int line) const { return by_columns_ ? rows_ - line : smaller(line + 1, columns_); }
  // Units of a line: the most blocks that it can touch, wherever in a block it begins; or its entries.
  FASTINIT_HD int units(int line) const {
    return step_ == 1 ? (length(line) + 2 * kBlockValues - 2) / kBlockValues : length(line);
  }

  bool by_columns_;
  int rows_, columns_, lines_, pair_units_;
  uint64_t offset_, line_step_, step_;
};

// Samples x_j into the places of v_j.
template <class T, class Source>
FASTINIT_DEVICE void sample_vectors(const OrthogonalMatrix& tall, Source& source, const Reflectors<T>& reflectors) {
  const SampledUnits<Source::kBlockValues> units(tall);
  const auto draw = [&](uint64_t block, auto& values) { source.template draw<1, 0>(block, values); };
  const auto put = [&](int row, int column, T value) {
    reflectors.vector(column)[row] = row == column && value == 0 ? T{kInsteadOfZero} : value;
  };
  FASTINIT_ROLL
  for (int unit = static_cast<int>(threadIdx.x); unit < units.count(); unit += kMatrixThreads) {
    units.template sample<T>(unit, draw, put);
  }
}

// From x_j to v_j and tau_j, a warp for each j: v_j is x_j with |x_j| added to its first entry, with the sign of that.
template <class T>
FASTINIT_DEVICE void make_reflectors(const Reflectors<T>& reflectors, int warp, int lane) {
  FASTINIT_ROLL
  for (int j = warp; j < reflectors.columns(); j += kMatrixWarps) {
    T* x = reflectors.vector(j);
    T squares[1] = {0};
    FASTINIT_ROLL
    for (int row = j / kLanes * kLanes + lane; row < reflectors.rows(); row += kLanes) {
      if (row >= j) squares[0] = exact_fma(x[row], x[row], squares[0]);
    }
    warp_sums(squares, lane);
    if (lane != 0) continue;
    const T length = std::sqrt(squares[0]);
    const T first = x[j];
    x[j] = first < 0 ? first - length : first + length;
    reflectors.tau(j) = 1 / exact_fma(length, first < 0 ? -first : first, squares[0]);
  }
}

// The bits of a value, rounded to the dtype.
FASTINIT_HD uint64_t element_of(float value, Dtype dtype) {
  Float16 as_float16;
  Bfloat16 as_bfloat16;
  if (dtype == Dtype::kFloat32) return bit_cast<uint32_t>(value);
  round_to(value, as_float16);
  round_to(value, as_bfloat16);
  return dtype == Dtype::kFloat16 ? as_float16.bits : as_bfloat16.bits;
}
FASTINIT_HD uint64_t element_of(double value, Dtype) { return bit_cast<uint64_t>(value); }

// Columns first ... first + kColumns - 1 of the result, by one warp. A lane holds the rows lane, lane + 32, ...: up to
// kRegisters of each column. Columns beyond the last are computed and not stored.
//
// Column c is H_1 ... H_c e_c, since H_j does nothing to e_c for j > c.
template <int kRegisters, int kColumns, class T>
FASTINIT_DEVICE void multiply(const OrthogonalMatrix& tall, const Reflectors<T>& reflectors, int first, int lane) {
  // Entries of a vector are kept from the one use to the other where there are registers for them.
  constexpr bool kKeep = kRegisters <= 8;
  const int rows = reflectors.rows();
  T x[kColumns][kRegisters];
  FASTINIT_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    FASTINIT_UNROLL
    for (int r = 0; r < kRegisters; ++r) x[c][r] = r * kLanes + lane == first + c ? 1 : 0;
  }
  const int last = first + kColumns < reflectors.columns() ? first + kColumns - 1 : reflectors.columns() - 1;
  FASTINIT_ROLL
  for (int j = last; j >= 0; --j) {
    const T* vector = reflectors.vector(j);
    const auto entry = [&](int r) {
      const int row = r * kLanes + lane;
      return row >= j && row < rows ? vector[row] : T{0};
    };
    // Whether any lane has an entry there; the same for the whole warp.
    const auto reaches = [&](int r) { return r * kLanes + kLanes > j && r * kLanes < rows; };
    T entries[kKeep ? kRegisters : 1];
    T factors[kColumns];
    FASTINIT_UNROLL
    for (int c = 0; c < kColumns; ++c) factors[c] = 0;
    FASTINIT_UNROLL
    for (int r = 0; r < kRegisters; ++r) {
      T& v = entries[kKeep ? r : 0];
      v = 0;
      if (!reaches(r)) continue;
      v = entry(r);
      FASTINIT_UNROLL
      for (int c = 0; c < kColumns; ++c) factors[c] = exact_fma(v, x[c][r], factors[c]);
    }
    warp_sums(factors, lane);
    const T tau = reflectors.tau(j);
    FASTINIT_UNROLL
    for (int c = 0; c < kColumns; ++c) factors[c] = -(tau * factors[c]);
    FASTINIT_UNROLL
    for (int r = 0; r < kRegisters; ++r) {
      if (!reaches(r)) continue;
      const T v = kKeep ? entries[kKeep ? r : 0] : entry(r);
      FASTINIT_UNROLL
      for (int c = 0; c < kColumns; ++c) x[c][r] = exact_fma(factors[c], v, x[c][r]);
    }
  }
  // d_c is minus the sign of the first entry of x_c, which is that of v_c's.
  const T gain = static_cast<T>(tall.gain);
  FASTINIT_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    const int column = first + c < reflectors.columns() ? first + c : reflectors.columns() - 1;
    const T factor = reflectors.vector(column)[column] < 0 ? gain : -gain;
    FASTINIT_UNROLL
    for (int r = 0; r < kRegisters; ++r) x[c][r] *= factor;
  }
  // The loop over rows stays a loop, so that the code of a store is there once for each column. Registers cannot be
  // indexed by the loop's variable: each turn stores the first of them, and moves the others down by one.
  const int bytes = static_cast<int>(element_bytes(tall.dtype));
  FASTINIT_ROLL
  for (int row = lane; row < tall.end_row; row += kLanes) {
    FASTINIT_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      // Unsigned numbers may wrap: a place beyond the range lies anywhere, and is not stored to.
      const uint64_t place =
          static_cast<uint64_t>(row - tall.first_row) * static_cast<uint64_t>(tall.row_memory_step) +
          static_cast<uint64_t>(first + c - tall.first_column) * static_cast<uint64_t>(tall.column_memory_step);
      if (row >= tall.first_row && first + c < tall.end_column) {
        store_element(tall.data + place * static_cast<uint64_t>(bytes), element_of(x[c][0], tall.dtype), bytes);
      }
      FASTINIT_UNROLL
      for (int r = 1; r < kRegisters; ++r) x[c][r - 1] = x[c][r];
    }
  }
}

// All columns, in groups for which the time grows with the first column's number. The warps take them from the last
// on, back and forth, so that each has as much to do.
template <int kRegisters, int kColumns, class T>
FASTINIT_DEVICE void multiply_all(const OrthogonalMatrix& tall, const Reflectors<T>& reflectors, int warp, int lane) {
  const int first = static_cast<int>(tall.first_column);
  const int groups = (static_cast<int>(tall.end_column) - first + kColumns - 1) / kColumns;
  FASTINIT_ROLL
  for (int turn = 0; turn * kMatrixWarps < groups; ++turn) {
    const int taken = turn * kMatrixWarps + (turn % 2 == 0 ? warp : kMatrixWarps - 1 - warp);
    if (taken < groups) multiply<kRegisters, kColumns>(tall, reflectors, first + (groups - 1 - taken) * kColumns, lane);
  }
}

// Writes the matrix. A lane has kWords registers for the entries of its warp's columns.
template <class T, class Source>
FASTINIT_DEVICE void write_orthogonal(const OrthogonalMatrix& tall, Source source, T* memory) {
  constexpr int kWords = 32;
  constexpr int kValues = kWords * static_cast<int>(sizeof(float)) / static_cast<int>(sizeof(T));
  const int warp = uniform(static_cast<int>(threadIdx.x) / kLanes);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const Reflectors<T> reflectors(memory, static_cast<int>(tall.rows), static_cast<int>(tall.columns));
  sample_vectors(tall, source, reflectors);
  __syncthreads();
  make_reflectors(reflectors, warp, lane);
  __syncthreads();
  if (tall.rows <= 4 * kLanes) {
    multiply_all<4, kValues / 4>(tall, reflectors, warp, lane);
  } else if (tall.rows <= 8 * kLanes) {
    multiply_all<8, kValues / 8>(tall, reflectors, warp, lane);
  } else {
    static_assert(kMostTallRows <= 32 * kLanes, "the lanes hold all rows");
    multiply_all<32, 1>(tall, reflectors, warp, lane);
  }
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
