// Walks the elements of a task, in row-major order: global indices and places in memory. Used by all backends.
#pragma once

#include "task.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

// Whether the global index runs through, from row to row.
FASTINIT_HD bool is_one_index_run(const IndexMap& map) {
  return map.row_index_step == map.row_length && map.slab_index_step == map.rows_per_slab * map.row_length;
}

// A position among a task's local elements, counted in row-major order.
struct Cursor {
  int64_t slab, row, column;

  FASTINIT_HD Cursor(int64_t slab, int64_t row, int64_t column) : slab(slab), row(row), column(column) {}
  FASTINIT_HD Cursor(const IndexMap& map, int64_t local_index) {
    const int64_t rows = local_index / map.row_length;
    column = local_index % map.row_length;
    slab = rows / map.rows_per_slab;
    row = rows % map.rows_per_slab;
  }
  FASTINIT_HD int64_t global_index(const IndexMap& map) const {
    return map.global_offset + slab * map.slab_index_step + row * map.row_index_step + column;
  }
  FASTINIT_HD int64_t memory_offset(const IndexMap& map) const {
    return slab * map.slab_memory_step + row * map.row_memory_step + column * map.element_memory_step;
  }
  // Elements left in the row, `limit` at the most.
  FASTINIT_HD int64_t left_in_row(const IndexMap& map, int64_t limit) const {
    const int64_t left = map.row_length - column;
    return left < limit ? left : limit;
  }
  // `count` stays within the row.
  FASTINIT_HD void advance(const IndexMap& map, int64_t count) {
    column += count;
    if (column < map.row_length) return;
    column = 0;
    if (++row < map.rows_per_slab) return;
    row = 0;
    ++slab;
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
