// How the work of all tasks is cut: into units (a Philox block of values each) and chunks of units, by the same
// functions on the host, which sizes the grid, and in the kernel, where a block finds its tasks.
#pragma once

#include "core/cursor.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

// Units of a chunk: 8192 values of 32-bit words. Small enough that chunks divide evenly among the blocks of a grid
// (four a multiprocessor, hundreds of chunks each on large models), large enough that finding the task costs nothing.
constexpr int kChunkUnits = 2048;

// Values of a Philox block.
FASTINIT_HD int block_values(Dtype dtype) { return dtype == Dtype::kFloat64 ? 2 : 4; }

// A task whose elements follow each other in the global index has one run of Philox blocks; any other has a run a row.
FASTINIT_HD bool is_one_row(const Task& task) { return task.numel <= task.map.row_length; }
FASTINIT_HD bool is_contiguous(const Task& task) { return is_one_row(task) && task.map.element_memory_step == 1; }
FASTINIT_HD bool has_one_run(const Task& task) { return is_one_row(task) || is_one_index_run(task.map); }

// The Philox block that is unit 0 of a single run. It is a multiple of kChunkUnits, so that the upper half of the
// counter never changes within a chunk, and places in memory are aligned alike in all chunks.
FASTINIT_HD int64_t first_block(const Task& task) {
  const int64_t block = task.map.global_offset / block_values(task.dtype);
  return block - block % kChunkUnits;
}

// The most Philox blocks that a row of elements can touch, wherever in a block it begins.
FASTINIT_HD int64_t row_units(const Task& task) {
  const int values = block_values(task.dtype);
  return (task.map.row_length + 2 * values - 2) / values;
}

FASTINIT_HD int64_t num_units(const Task& task) {
  if (task.numel == 0) return 0;
  if (!has_one_run(task)) return (task.numel + task.map.row_length - 1) / task.map.row_length * row_units(task);
  return (task.map.global_offset + task.numel - 1) / block_values(task.dtype) - first_block(task) + 1;
}

FASTINIT_HD int64_t num_chunks(const Task& task) { return (num_units(task) + kChunkUnits - 1) / kChunkUnits; }

}  // namespace FASTINIT_ISA
}  // namespace fastinit
