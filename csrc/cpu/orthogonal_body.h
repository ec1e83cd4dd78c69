// One orthogonal matrix, in three steps that threads may share: H_1 H_2 ... H_n diag(d), cut to its first n columns,
// times the gain (docs/STREAM.md, section 7). Written once on vectors and compiled once per instruction set. Knows
// nothing of threads or of other matrices (orthogonal.cpp).
//
// Order and rounding of all operations are those of csrc/cuda/reflectors.h: the bits are the same.
#pragma once

#include "core/orthogonal.h"
#include "fill_body.h"
#include "matrix_steps.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

template <class T>
class ReflectorView {
 public:
  explicit FASTINIT_HD ReflectorView(const MatrixWork& work)
      : vectors_(static_cast<T*>(work.vectors)), taus_(static_cast<T*>(work.taus)), blocks_(row_blocks(work.tall)) {}

  FASTINIT_HD int64_t blocks() const { return blocks_; }
  // The rows of vector j from row 32 * block on, for block >= j / 32. Zero above row j, and beyond the last row.
  FASTINIT_HD T* rows(int64_t j, int64_t block) const {
    return vectors_ + (vector_blocks_before(blocks_, j) + block - j / kLanes) * kLanes;
  }
  FASTINIT_HD T& entry(int64_t row, int64_t j) const { return rows(j, row / kLanes)[row % kLanes]; }
  FASTINIT_HD T& tau(int64_t j) const { return taus_[j]; }

 private:
  T* vectors_;
  T* taus_;
  int64_t blocks_;
};

// Entries of the vectors are drawn along lines of consecutive indices: a unit of work is a column, or kRowsTogether
// rows, which go to the columns together.
template <class T, class Source>
void sample_unit(const MatrixWork& work, const Source& source, int64_t unit, T* scratch) {
  const OrthogonalMatrix& tall = work.tall;
  const ReflectorView<T> reflectors(work);
  const auto index_of = [&](int64_t row, int64_t column) {
    return static_cast<uint64_t>(tall.global_offset + row * tall.row_index_step + column * tall.column_index_step);
  };
  if (!samples_rows(tall)) {
    const int64_t j = unit;
    const int64_t top = j / kLanes * kLanes;
    T* rows = reflectors.rows(j, j / kLanes);
    for (int64_t row = top; row < j; ++row) rows[row - top] = 0;
    for (int64_t row = tall.rows; row < reflectors.blocks() * kLanes; ++row) rows[row - top] = 0;
    if (tall.row_index_step == 1) {
      fill_consecutive<false>(source, index_of(j, j), tall.rows - j, rows + (j - top));
    } else {
      for (int64_t row = j; row < tall.rows; ++row) {
        fill_consecutive<false>(source, index_of(row, j), 1, rows + (row - top));
      }
    }
    return;
  }
  const int64_t first = unit * kRowsTogether;
  const int64_t columns = tall.columns;
  const auto reaching = [columns](int64_t row) { return row < columns ? row + 1 : columns; };
  for (int64_t row = first; row < first + kRowsTogether && row < tall.rows; ++row) {
    fill_consecutive<false>(source, index_of(row, 0), reaching(row), scratch + (row - first) * columns);
  }
  // A column that begins further down in the same 32 rows gets zeros.
  const int64_t end = reaching(first / kLanes * kLanes + kLanes - 1);
  for (int64_t j = 0; j < end; ++j) {
    T* rows = &reflectors.entry(first, j);
    for (int64_t k = 0; k < kRowsTogether; ++k) {
      const int64_t row = first + k;
      rows[k] = row >= j && row < tall.rows ? scratch[k * columns + j] : T{0};
    }
  }
}

template <class L>
void sample_reflectors(const MatrixWork& work, int64_t unit, void* scratch) {
  alignas(64) static constexpr QuantileHotRows kHot = quantile_hot_rows();
  if (work.tall.dtype == Dtype::kFloat64) {
    using Normal = NormalDoubles<typename L::Doubles, typename L::QuantileF64>;
    const SourceF64<L, Normal> source{WordSource<L>(work.stream), Normal(work.normal, work.stream)};
    sample_unit(work, source, unit, static_cast<double*>(scratch));
  } else {
    using Normal = NormalF32<L, HotQuantile<L>, /*kTruncated=*/false>;
    const SourceF32<L, Normal> source{WordSource<L>(work.stream),
                                      Normal(work.normal, work.stream, HotQuantile<L>(kHot))};
    sample_unit(work, source, unit, static_cast<float*>(scratch));
  }
}

// Adds up the kLanes sums of one column, by pairs 16, 8, 4, 2 and 1 apart.
template <class Vector, int kParts>
FASTINIT_HD auto sum_of_lanes(Vector (&parts)[kParts]) {
  FASTINIT_UNROLL
  for (int apart = kParts / 2; apart > 0; apart /= 2) {
    FASTINIT_UNROLL
    for (int i = 0; i < apart; ++i) parts[i] = Vector::add(parts[i], parts[i + apart]);
  }
  return parts[0].sum();
}

// Makes v_j and tau_j of x_j: v_j is x_j with |x_j| added to its first entry, with the sign of that entry.
template <class Vector, class T>
void make_reflector(const MatrixWork& work, int64_t j) {
  constexpr int kParts = kLanes / Vector::kWidth;
  const ReflectorView<T> reflectors(work);
  T& first = reflectors.entry(j, j);
  if (first == 0) first = T{kInsteadOfZero};
  Vector squares[kParts];
  FASTINIT_UNROLL
  for (int i = 0; i < kParts; ++i) squares[i] = Vector::splat(0);
  for (int64_t block = j / kLanes; block < reflectors.blocks(); ++block) {
    const T* rows = reflectors.rows(j, block);
    FASTINIT_UNROLL
    for (int i = 0; i < kParts; ++i) {
      const Vector x = Vector::load(rows + i * Vector::kWidth);
      squares[i] = Vector::fma(x, x, squares[i]);
    }
  }
  const T square = sum_of_lanes(squares);
  const T length = std::sqrt(square);
  const T size = first < 0 ? -first : first;
  reflectors.tau(j) = 1 / exact_fma(length, size, square);
  first = first < 0 ? first - length : first + length;
}

template <class T, class Element>
FASTINIT_HD void store_columns(const OrthogonalMatrix& tall, const T* x, int64_t ld, int64_t first, int64_t end) {
  Element* const data = reinterpret_cast<Element*>(tall.data);
  const auto store = [&](int64_t row, int64_t column) {
    const int64_t place =
        (row - tall.first_row) * tall.row_memory_step + (column - tall.first_column) * tall.column_memory_step;
    round_to(x[(column - first) * ld + row], data[place]);
  };
  if (tall.row_memory_step < tall.column_memory_step) {
    for (int64_t column = first; column < end; ++column) {
      for (int64_t row = tall.first_row; row < tall.end_row; ++row) store(row, column);
    }
  } else {
    for (int64_t row = tall.first_row; row < tall.end_row; ++row) {
      for (int64_t column = first; column < end; ++column) store(row, column);
    }
  }
}

// Columns first ... first + kColumns - 1 of the result, as far as they are wanted. Column c is H_1 ... H_c e_c, since
// H_j does nothing to e_c for j > c. The sum for H_{j-1} is taken while H_j is applied.
template <class Vector, int kColumns, class T>
void multiply_columns(const MatrixWork& work, int64_t first, T* x) {
  constexpr int kParts = kLanes / Vector::kWidth;
  const OrthogonalMatrix& tall = work.tall;
  const ReflectorView<T> reflectors(work);
  const int64_t blocks = reflectors.blocks();
  const int64_t ld = column_length(tall);
  const int64_t end = first + kColumns < tall.end_column ? first + kColumns : tall.end_column;
  for (int64_t i = 0; i < kColumns * ld; ++i) x[i] = 0;
  for (int64_t c = 0; c < end - first; ++c) x[c * ld + first + c] = 1;

  Vector sums[kColumns][kParts];
  const auto clear = [&] {
    FASTINIT_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      FASTINIT_UNROLL
      for (int i = 0; i < kParts; ++i) sums[c][i] = Vector::splat(0);
    }
  };
  const auto add_block = [&](const T* rows, int64_t block) {
    FASTINIT_UNROLL
    for (int i = 0; i < kParts; ++i) {
      const Vector v = Vector::load(rows + i * Vector::kWidth);
      FASTINIT_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        sums[c][i] = Vector::fma(v, Vector::load(x + c * ld + block * kLanes + i * Vector::kWidth), sums[c][i]);
      }
    }
  };
  clear();
  for (int64_t block = (end - 1) / kLanes; block < blocks; ++block) add_block(reflectors.rows(end - 1, block), block);
  for (int64_t j = end - 1; j >= 0; --j) {
    const T tau = reflectors.tau(j);
    Vector factors[kColumns];
    FASTINIT_UNROLL
    for (int c = 0; c < kColumns; ++c) factors[c] = Vector::splat(-(tau * sum_of_lanes(sums[c])));
    clear();
    const int64_t next = j > 0 ? j - 1 : 0;  // H_1 once more at the end: its sums are not looked at
    const int64_t begin = j / kLanes;
    if (next / kLanes < begin) add_block(reflectors.rows(next, begin - 1), begin - 1);
    const T* rows = reflectors.rows(j, begin);
    const T* next_rows = reflectors.rows(next, begin);
    for (int64_t block = begin; block < blocks; ++block, rows += kLanes, next_rows += kLanes) {
      FASTINIT_UNROLL
      for (int i = 0; i < kParts; ++i) {
        const Vector v = Vector::load(rows + i * Vector::kWidth);
        const Vector next_v = Vector::load(next_rows + i * Vector::kWidth);
        FASTINIT_UNROLL
        for (int c = 0; c < kColumns; ++c) {
          T* const place = x + c * ld + block * kLanes + i * Vector::kWidth;
          const Vector moved = Vector::fma(factors[c], v, Vector::load(place));
          moved.store(place);
          sums[c][i] = Vector::fma(next_v, moved, sums[c][i]);
        }
      }
    }
  }
  const T gain = static_cast<T>(tall.gain);
  for (int64_t column = first; column < end; ++column) {
    // d_c is minus the sign of the first entry of x_c, which is that of v_c's.
    const T factor = reflectors.entry(column, column) < 0 ? gain : -gain;
    for (int64_t row = tall.first_row; row < tall.end_row; ++row) x[(column - first) * ld + row] *= factor;
  }
  if constexpr (sizeof(T) == sizeof(double)) {
    store_columns<T, double>(tall, x, ld, first, end);
  } else if (tall.dtype == Dtype::kFloat32) {
    store_columns<T, float>(tall, x, ld, first, end);
  } else if (tall.dtype == Dtype::kFloat16) {
    store_columns<T, Float16>(tall, x, ld, first, end);
  } else {
    store_columns<T, Bfloat16>(tall, x, ld, first, end);
  }
}

// Of the columns that registers allow, half are worth code of its own if they are many.
template <class Vector>
constexpr MatrixSteps::Limits limits() {
  constexpr int kTogether = Vector::kSums / (kLanes / Vector::kWidth);
  return {Vector::kMostTallRows, kTogether, kTogether > 2 ? kTogether / 2 : kTogether};
}

template <class Vector, class T>
void multiply_together(const MatrixWork& work, int64_t first, int together, T* x) {
  constexpr MatrixSteps::Limits kLimits = limits<Vector>();
  if (together == kLimits.together) {
    multiply_columns<Vector, kLimits.together>(work, first, x);
  } else {
    multiply_columns<Vector, kLimits.fewer>(work, first, x);
  }
}

// The three steps, for a choice of lanes and vectors.
template <class L, template <class> class Vector>
struct MatrixStepsOn {
  static void make(const MatrixWork& work, int64_t j) {
    if (work.tall.dtype == Dtype::kFloat64) {
      make_reflector<Vector<double>, double>(work, j);
    } else {
      make_reflector<Vector<float>, float>(work, j);
    }
  }
  static void multiply(const MatrixWork& work, int64_t first, int together, void* scratch) {
    if (work.tall.dtype == Dtype::kFloat64) {
      multiply_together<Vector<double>>(work, first, together, static_cast<double*>(scratch));
    } else {
      multiply_together<Vector<float>>(work, first, together, static_cast<float*>(scratch));
    }
  }
  static constexpr MatrixSteps kSteps = {sample_reflectors<L>, make, multiply, limits<Vector<float>>(),
                                         limits<Vector<double>>()};
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
