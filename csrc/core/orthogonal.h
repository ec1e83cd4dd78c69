// The table of orthogonal matrices that crosses from Python to the backends: one OrthogonalMatrix each, plain data; and
// which of them are small enough. What a matrix holds: docs/STREAM.md, section 7.
#pragma once

#include <cmath>

#include "task.h"

namespace fastinit {

// gain * Q, for a Haar distributed Q, or a range of its rows and columns. Element (i, j) owns the random number of
// index global_offset + i row_index_step + j column_index_step, and lies, if it is in the range, at data + (i -
// first_row) row_memory_step + (j - first_column) column_memory_step. Steps are in elements.
struct OrthogonalMatrix {
  uint64_t data;  // address of element (first_row, first_column)
  int64_t rows;
  int64_t columns;
  int64_t first_row, end_row;
  int64_t first_column, end_column;
  int64_t row_memory_step;
  int64_t column_memory_step;
  int64_t global_offset;
  int64_t row_index_step;
  int64_t column_index_step;
  uint64_t name_id[2];  // 128-bit digest of the canonical name
  double gain;
  Dtype dtype;
  int32_t reserved;
};

// Matrices are made in the dtypes before the 8-bit ones.
constexpr int kMatrixDtypes = static_cast<int>(Dtype::kFloat8E4m3fn);

// The most shared memory that a block asks for; a matrix's reflectors lie there. Compute capabilities 8.6 and 8.9 have
// no more; 8.0 and 9.0 do, and keep what is left for other blocks.
constexpr int64_t kMostSharedBytes = 99 << 10;

// The most rows of a tall matrix: the lanes of a warp hold no more in registers. On a CPU, larger matrices are faster
// by products of whole matrices.
constexpr int64_t kMostTallRows = 1024;

// A sum over the rows of a column is taken in one order on every device, so that it rounds alike. First the rows of
// each remainder modulo kLanes are added up, row after row. Then these kLanes sums are added by pairs 16, 8, 4, 2 and 1
// apart.
constexpr int kLanes = 32;

// Takes the place of a first entry that is zero. If that were the only entry, its reflector would have no direction.
constexpr float kInsteadOfZero = 0x1p-40f;

inline namespace FASTINIT_ISA {

// a * b + c in double, rounded once. The samplers do without it, since some processors have to emulate it: they take
// small matrices alone here (orthogonal_cpu_fits).
FASTINIT_HD double exact_fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

// The same matrix with no fewer rows than columns: seen transposed, if it is wide.
FASTINIT_HD OrthogonalMatrix tall(const OrthogonalMatrix& matrix) {
  if (matrix.rows >= matrix.columns) return matrix;
  OrthogonalMatrix turned = matrix;
  turned.rows = matrix.columns;
  turned.columns = matrix.rows;
  turned.first_row = matrix.first_column;
  turned.end_row = matrix.end_column;
  turned.first_column = matrix.first_row;
  turned.end_column = matrix.end_row;
  turned.row_memory_step = matrix.column_memory_step;
  turned.column_memory_step = matrix.row_memory_step;
  turned.row_index_step = matrix.column_index_step;
  turned.column_index_step = matrix.row_index_step;
  return turned;
}

// The number of entries of all reflectors of a tall matrix. Reflector j has the entries j ... rows - 1, so they form a
// trapezoid.
FASTINIT_HD int64_t reflector_entries(int64_t rows, int64_t columns) {
  return columns * rows - columns * (columns - 1) / 2;
}

// Shared memory for the reflectors of a matrix, in either form, and a factor for each. 0 for a matrix without elements,
// -1 for one that is larger than any block can take.
FASTINIT_HD int64_t orthogonal_shared_bytes(int64_t rows, int64_t columns, Dtype dtype) {
  const int64_t more = rows < columns ? columns : rows;
  const int64_t fewer = rows < columns ? rows : columns;
  if (fewer <= 0) return 0;
  if (more > kMostTallRows) return -1;
  const int64_t bytes = (reflector_entries(more, fewer) + fewer) * (dtype == Dtype::kFloat64 ? 8 : 4);
  return bytes <= kMostSharedBytes ? bytes : -1;
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
