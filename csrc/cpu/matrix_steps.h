// What stands between orthogonal.cpp, which has the threads, and orthogonal_body.h, which has the arithmetic: one
// matrix in work, and three steps, each of units that any thread may do. A step begins when the one before is done.
#pragma once

#include "core/orthogonal.h"
#include "core/stream.h"

namespace fastinit {

struct MatrixWork {
  OrthogonalMatrix tall;  // with no fewer rows than columns
  Stream stream;
  Sampler normal;  // of mean 0 and std 1, in the matrix's dtype
  void* vectors;   // vector_entries(tall) of float or double
  void* taus;      // [columns]
};

struct MatrixSteps {
  // Samples entries of vectors: units 0 ... sample_units(tall) - 1. Scratch: scratch_entries().
  void (*sample)(const MatrixWork& work, int64_t unit, void* scratch);
  // Makes vector j and its tau of the entries: once for every column j.
  void (*make)(const MatrixWork& work, int64_t j);
  // Writes `together` columns from `first` on, as far as they are wanted. Scratch: scratch_entries().
  void (*multiply)(const MatrixWork& work, int64_t first, int together, void* scratch);
  // What the steps take for each type.
  struct Limits {
    int64_t rows;         // the most that a tall matrix may have
    int together, fewer;  // columns: as many as there are registers for sums, or fewer, which need less cache
  } floats, doubles;
};

extern const MatrixSteps kMatrixStepsPortable;
#if defined(__x86_64__)
extern const MatrixSteps kMatrixStepsSse2;
extern const MatrixSteps kMatrixStepsAvx2;
extern const MatrixSteps kMatrixStepsAvx512;
#elif defined(__aarch64__)
extern const MatrixSteps kMatrixStepsNeon;
#endif

constexpr int kMostColumnsTogether = 8;
constexpr int64_t kRowsTogether = 16;
static_assert(kLanes % kRowsTogether == 0, "rows that are sampled together lie in one block");

inline namespace FASTINIT_ISA {

// Vectors are kept in blocks of kLanes rows, the first of which has the diagonal.
FASTINIT_HD int64_t row_blocks(const OrthogonalMatrix& tall) { return (tall.rows + kLanes - 1) / kLanes; }
// The blocks of vectors 0 ... j - 1.
FASTINIT_HD int64_t vector_blocks_before(int64_t blocks, int64_t j) {
  const int64_t whole = j / kLanes;
  return kLanes * (whole * blocks - whole * (whole - 1) / 2) + j % kLanes * (blocks - whole);
}
FASTINIT_HD int64_t vector_entries(const OrthogonalMatrix& tall) {
  return vector_blocks_before(row_blocks(tall), tall.columns) * kLanes;
}

// Whether consecutive random numbers lie in the rows, rather than in the columns or nowhere.
FASTINIT_HD bool samples_rows(const OrthogonalMatrix& tall) {
  return tall.column_index_step == 1 && tall.row_index_step != 1;
}
FASTINIT_HD int64_t sample_units(const OrthogonalMatrix& tall) {
  return samples_rows(tall) ? row_blocks(tall) * (kLanes / kRowsTogether) : tall.columns;
}
// The distance from one column in work to the next. It is a block more than a column has, since a cache holds few lines
// that are whole pages apart.
FASTINIT_HD int64_t column_length(const OrthogonalMatrix& tall) { return (row_blocks(tall) + 1) * kLanes; }
FASTINIT_HD int64_t scratch_entries(const OrthogonalMatrix& tall) {
  const int64_t of_rows = kRowsTogether * tall.columns;
  const int64_t of_columns = kMostColumnsTogether * column_length(tall);
  return of_rows > of_columns ? of_rows : of_columns;
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
