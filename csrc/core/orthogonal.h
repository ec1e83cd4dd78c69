// The table of orthogonal matrices that crosses from Python to the CUDA backend: one OrthogonalMatrix each, plain data;
// and what memory a multiprocessor needs for one. What a matrix holds: docs/STREAM.md, section 7.
#pragma once

#include "task.h"

namespace fastinit {

// gain * Q, for a Haar distributed Q. Element (i, j) lies at data + i row_memory_step + j column_memory_step, and owns
// the random number of index global_offset + i row_index_step + j column_index_step. Steps are in elements.
struct OrthogonalMatrix {
  uint64_t data;  // address of element (0, 0)
  int64_t rows;
  int64_t columns;
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

// Of the shared memory of a block, which holds a matrix's reflectors: 8.6 and 8.9 have no more, 8.0 and 9.0 have room
// for more blocks then. And of the rows of a tall matrix: what the lanes of a warp hold in registers.
constexpr int64_t kMostSharedBytes = 99 << 10;
constexpr int64_t kMostTallRows = 1024;

inline namespace FASTINIT_ISA {

// The same matrix, if need be seen transposed, with no fewer rows than columns.
FASTINIT_HD OrthogonalMatrix tall(const OrthogonalMatrix& matrix) {
  if (matrix.rows >= matrix.columns) return matrix;
  OrthogonalMatrix turned = matrix;
  turned.rows = matrix.columns;
  turned.columns = matrix.rows;
  turned.row_memory_step = matrix.column_memory_step;
  turned.column_memory_step = matrix.row_memory_step;
  turned.row_index_step = matrix.column_index_step;
  turned.column_index_step = matrix.row_index_step;
  return turned;
}

// Reflector j of a tall matrix has the entries j ... rows - 1: of so many columns, a trapezoid.
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
