// What a table must be before a backend touches it. Every number of every row is looked at. With an accepted table, no
// backend overflows, reads beyond its own tables or writes outside the elements. This file cannot check that the memory
// exists and belongs to the caller.
//
// A table that is refused is a std::invalid_argument, which names the row. Knows nothing of Python.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/fingerprint.h"
#include "core/orthogonal.h"
#include "core/prepare.h"
#include "core/task.h"

namespace fastinit {

// Elements of a table, all rows together. The bytes of so many, and sums of a few such numbers, stay below 2^63.
constexpr int64_t kMostElements = int64_t{1} << 59;

[[noreturn]] FASTINIT_COLD inline void refuse_row(int64_t row, const std::string& what) {
  throw std::invalid_argument("table row " + std::to_string(row) + ": " + what);
}

// `count` elements of a row, rows of a slab, and so on, with the steps from one to the next, in elements.
struct Axis {
  int64_t count;
  int64_t memory_step;
  int64_t index_step;
};

// Adds the way from the first to the last along an axis. False if the step is negative, or the sum reaches 2^63.
inline bool add_way(int64_t count, int64_t step, int64_t& sum) {
  int64_t way = 0;
  if (count == 1) return true;  // the step is never taken
  return step >= 0 && !__builtin_mul_overflow(count - 1, step, &way) && !__builtin_add_overflow(sum, way, &sum);
}

// Whether two elements may share memory. Sorted by its step, every axis must step over all that the smaller ones reach.
template <size_t kAxes>
bool shares_memory(const Axis (&axes)[kAxes]) {
  const Axis* in_order[kAxes];
  size_t used = 0;
  for (const Axis& axis : axes) {
    if (axis.count == 1) continue;
    size_t at = used++;
    for (; at > 0 && in_order[at - 1]->memory_step > axis.memory_step; --at) in_order[at] = in_order[at - 1];
    in_order[at] = &axis;
  }
  int64_t reach = 0;
  for (size_t i = 0; i < used; ++i) {
    if (in_order[i]->memory_step <= reach) return true;
    reach += (in_order[i]->count - 1) * in_order[i]->memory_step;
  }
  return false;
}

enum class Access { kRead, kWrite };

// Checks where the elements of a row lie: axes of one element and more, the first element at address `data` with the
// global index `global_offset`. Elements that are written have an address that is a multiple of their size, and none of
// them shares memory with another. Returns the greatest global index.
template <Access kAccess, size_t kAxes>
int64_t check_places(const Axis (&axes)[kAxes], uint64_t data, int64_t element_bytes, int64_t global_offset,
                     int64_t row) {
  int64_t last_index = global_offset;
  bool counts_up = global_offset >= 0;
  for (const Axis& axis : axes) counts_up = counts_up && add_way(axis.count, axis.index_step, last_index);
  if (!counts_up) refuse_row(row, "global indices below 0 or beyond 2^63 - 1");
  int64_t bytes = 0;
  bool reaches = true;
  for (const Axis& axis : axes) reaches = reaches && add_way(axis.count, axis.memory_step, bytes);
  reaches =
      reaches && !__builtin_add_overflow(bytes, 1, &bytes) && !__builtin_mul_overflow(bytes, element_bytes, &bytes);
  if (!reaches) refuse_row(row, "negative or too large steps in memory");
  if (data == 0) refuse_row(row, "elements without memory");
  if (data + static_cast<uint64_t>(bytes - 1) < data) refuse_row(row, "elements beyond the last address");
  if constexpr (kAccess == Access::kWrite) {
    if (data % static_cast<uint64_t>(element_bytes) != 0) {
      refuse_row(row,
                 "an address that is not a multiple of the " + std::to_string(element_bytes) + " bytes of an element");
    }
    if (shares_memory(axes)) refuse_row(row, "elements that share memory");
  }
  return last_index;
}

inline void check_dtype(Dtype dtype, int64_t row) {
  const auto number = static_cast<int32_t>(dtype);
  if (number < 0 || number >= kDtypes) refuse_row(row, "unknown dtype " + std::to_string(number));
}

// Checks that the parameters of a distribution are what prepare() expects. A constant may be any number, NaN included.
inline void check_distribution(const Task& task, int64_t row) {
  const double (&parameter)[kParameters] = task.parameter;
  switch (task.distribution) {
    case Distribution::kConstant:
      for (int i = 1; i < kParameters; ++i) {
        if (parameter[i] != 0) refuse_row(row, "no such constant: expected one parameter, and zeros");
      }
      return;
    case Distribution::kUniform:
      if (std::isfinite(parameter[0]) && std::isfinite(parameter[1]) && parameter[0] <= parameter[1]) return;
      refuse_row(row, "no such uniform distribution: expected finite bounds in order");
    case Distribution::kNormal:
      if (std::isfinite(parameter[0]) && std::isfinite(parameter[1]) && parameter[1] >= 0) return;
      refuse_row(row, "no such normal distribution: expected a finite mean, and a finite std that is not negative");
    case Distribution::kTruncNormal: {
      const double infinity = std::numeric_limits<double>::infinity();
      const bool in_order = parameter[2] <= parameter[3] && parameter[2] < infinity && parameter[3] > -infinity;
      if (std::isfinite(parameter[0]) && std::isfinite(parameter[1]) && parameter[1] >= 0 && in_order) return;
      refuse_row(row,
                 "no such truncated normal distribution: expected a finite mean, a finite std that is not "
                 "negative, and bounds in order");
    }
    case Distribution::kDiagonal: {
      bool whole = true;
      for (int i = 1; i < kParameters; ++i) {
        const double least = i == 1 ? 0.0 : 1.0;
        whole = whole && parameter[i] >= least && parameter[i] < 0x1p63 && parameter[i] == std::floor(parameter[i]);
      }
      int64_t last = 0;
      if (whole && add_way(static_cast<int64_t>(parameter[3]), static_cast<int64_t>(parameter[2]), last) &&
          last < static_cast<int64_t>(parameter[4])) {
        return;
      }
      refuse_row(row, "no such diagonal: expected integers below 2^63, and as many as lie in a period");
    }
  }
  refuse_row(row, "unknown distribution " + std::to_string(static_cast<int32_t>(task.distribution)));
}

// Checks the index map of a task, and its memory. The distribution is one that was checked.
inline void check_map(const Task& task, int64_t row) {
  const IndexMap& map = task.map;
  if (task.numel < 0) refuse_row(row, "negative numel " + std::to_string(task.numel));
  if (map.row_length < 1 || map.rows_per_slab < 1) refuse_row(row, "empty rows in the index map");
  int64_t slab_numel = 0;
  if (__builtin_mul_overflow(map.row_length, map.rows_per_slab, &slab_numel) || slab_numel > kMostElements) {
    refuse_row(row, "too large slabs in the index map");
  }
  if (map.global_offset < 0) refuse_row(row, "negative global offset");
  if (task.numel == 0) return;
  const int64_t bytes = element_bytes(task.dtype);
  const Axis along_row = {std::min(map.row_length, task.numel), map.element_memory_step, 1};
  int64_t last_index = 0;
  if (along_row.count == task.numel) {  // one row, as of most tensors
    const Axis axes[] = {along_row};
    last_index = check_places<Access::kWrite>(axes, task.data, bytes, map.global_offset, row);
  } else {
    // The last row, and the last slab, may hold less than the others.
    const int64_t rows = (task.numel - 1) / map.row_length + 1;
    const int64_t slabs = (rows - 1) / map.rows_per_slab + 1;
    const Axis axes[] = {{slabs, map.slab_memory_step, map.slab_index_step},
                         {std::min(rows, map.rows_per_slab), map.row_memory_step, map.row_index_step},
                         along_row};
    last_index = check_places<Access::kWrite>(axes, task.data, bytes, map.global_offset, row);
  }
  if (task.distribution != Distribution::kDiagonal) return;
  // Diagonal::next() looks one step and one period ahead, from an index of the last element's Philox block.
  const auto step = static_cast<int64_t>(task.parameter[2]), period = static_cast<int64_t>(task.parameter[4]);
  int64_t end = 0;
  if (__builtin_add_overflow(last_index, std::max(step, period), &end) || __builtin_add_overflow(end, 8, &end)) {
    refuse_row(row, "a diagonal that reaches beyond 2^63 - 1");
  }
}

// Checks the elements of all rows together. Rows have been checked, so that no sum of two overflows.
class ElementCount {
 public:
  void add(int64_t numel, int64_t row) {
    if (numel > kMostElements - sum_) refuse_row(row, "too many elements for one table");
    sum_ += numel;
  }

 private:
  int64_t sum_ = 0;
};

// Checks what the caller writes into tasks, before prepare().
inline void check_tasks(const Task* tasks, int64_t num_tasks) {
  ElementCount count;
  for (int64_t row = 0; row < num_tasks; ++row) {
    check_dtype(tasks[row].dtype, row);
    check_distribution(tasks[row], row);
    check_map(tasks[row], row);
    count.add(tasks[row].numel, row);
  }
}

// Checks tasks before a fill: whether they were prepared, and where their elements lie. Distributions were checked
// before they were prepared, and the mark says that they are still the same.
inline void check_prepared(const Task* tasks, int64_t num_tasks) {
  ElementCount count;
  for (int64_t row = 0; row < num_tasks; ++row) {
    if (tasks[row].mark != mark_of(tasks[row])) {
      refuse_row(row, "was not prepared, or its distribution has changed since");
    }
    check_map(tasks[row], row);
    count.add(tasks[row].numel, row);
  }
}

// Checks a sparse matrix: its values, which were prepared, and the keys, whose address is set later.
inline void check_sparse(const Task& values, const Task& keys, int64_t rows, int64_t zeros) {
  check_prepared(&values, 1);
  check_prepared(&keys, 1);
  if (rows < 1 || values.numel % rows != 0) refuse_row(0, "no matrix of " + std::to_string(rows) + " rows");
  if (zeros < 0 || zeros > rows) refuse_row(0, std::to_string(zeros) + " zeros in " + std::to_string(rows) + " rows");
  if (keys.numel != values.numel || keys.dtype != Dtype::kFloat64 || keys.map.row_length < keys.numel ||
      keys.map.element_memory_step != 1) {
    refuse_row(1, "not one contiguous key in float64 for every value");
  }
}

inline void check_matrix(const OrthogonalMatrix& matrix, int64_t row) {
  check_dtype(matrix.dtype, row);
  if (is_float8(matrix.dtype)) refuse_row(row, "no matrix is made in 8-bit floats");
  if (!std::isfinite(matrix.gain)) refuse_row(row, "a gain that is not finite");
  if (matrix.rows < 0 || matrix.columns < 0) refuse_row(row, "a negative number of rows or columns");
  const auto lies_within = [](int64_t first, int64_t end, int64_t size) {
    return first >= 0 && first <= end && end <= size;
  };
  if (!lies_within(matrix.first_row, matrix.end_row, matrix.rows) ||
      !lies_within(matrix.first_column, matrix.end_column, matrix.columns)) {
    refuse_row(row, "a range beyond the matrix");
  }
  if (matrix.rows == 0 || matrix.columns == 0) return;
  if (std::max(matrix.rows, matrix.columns) > kMostTallRows) {
    refuse_row(row, std::to_string(matrix.rows) + " x " + std::to_string(matrix.columns) + " is too large");
  }
  // The reflectors need the random numbers of the whole matrix, but only the range has memory.
  const Axis whole[] = {{matrix.rows, matrix.columns, matrix.row_index_step},
                        {matrix.columns, 1, matrix.column_index_step}};
  check_places<Access::kRead>(whole, 1, 1, matrix.global_offset, row);
  const Axis range[] = {{matrix.end_row - matrix.first_row, matrix.row_memory_step, 0},
                        {matrix.end_column - matrix.first_column, matrix.column_memory_step, 0}};
  if (range[0].count == 0 || range[1].count == 0) return;
  check_places<Access::kWrite>(range, matrix.data, element_bytes(matrix.dtype), 0, row);
}

inline void check_matrices(const OrthogonalMatrix* matrices, int64_t num_matrices) {
  for (int64_t row = 0; row < num_matrices; ++row) check_matrix(matrices[row], row);
}

// The shared memory that orthogonal_cuda needs for matrices that were checked; 0 if all are empty.
inline int64_t check_shared_bytes(const OrthogonalMatrix* matrices, int64_t num_matrices) {
  int64_t most = 0;
  for (int64_t row = 0; row < num_matrices; ++row) {
    const OrthogonalMatrix& matrix = matrices[row];
    const int64_t bytes = orthogonal_shared_bytes(matrix.rows, matrix.columns, matrix.dtype);
    if (bytes < 0) {
      refuse_row(row,
                 std::to_string(matrix.rows) + " x " + std::to_string(matrix.columns) + " is too large for a block");
    }
    most = std::max(most, bytes);
  }
  return most;
}

// Elements are only read, so they may share memory, as those of an expanded tensor do, and have any address.
inline void check_fingerprints(const FingerprintTask* tasks, int64_t num_tasks) {
  ElementCount count;
  for (int64_t row = 0; row < num_tasks; ++row) {
    const FingerprintTask& task = tasks[row];
    const int64_t bytes = task.element_bytes;
    if (bytes != 1 && bytes != 2 && bytes != 4 && bytes != 8) {
      refuse_row(row, "elements of " + std::to_string(bytes) + " bytes");
    }
    Axis axes[kFingerprintDimensions];
    int64_t numel = 1;
    for (int d = 0; d < kFingerprintDimensions; ++d) {
      const FingerprintTask::Dimension& dimension = task.dimension[d];
      if (dimension.size < 1) refuse_row(row, "a dimension of size " + std::to_string(dimension.size));
      if (__builtin_mul_overflow(numel, dimension.size, &numel)) refuse_row(row, "too many elements for one table");
      axes[d] = {dimension.size, dimension.memory_step, dimension.index_step};
    }
    if (numel != task.numel) refuse_row(row, "sizes that do not make up " + std::to_string(task.numel) + " elements");
    check_places<Access::kRead>(axes, task.data, bytes, task.global_offset, row);
    count.add(numel, row);
  }
}

inline void check_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("threads: expected 1 or more, got " + std::to_string(threads));
}

// Checks the numbers that say what lies at an address on a device: `count` of `what`, at the most 2^31 - 1.
inline void check_device_table(uint64_t address, int64_t count, const std::string& what) {
  if (count < 0 || count > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument(what + ": expected 0 to 2^31 - 1, got " + std::to_string(count));
  }
  if (count > 0 && (address == 0 || address % alignof(uint64_t) != 0)) {
    throw std::invalid_argument("address: expected a multiple of 8 that is not 0, got " + std::to_string(address));
  }
}

}  // namespace fastinit
