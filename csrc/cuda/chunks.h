// How the work of all tasks is cut: into units (a Philox block of values each) and chunks of units, or into pieces
// (what a warp fills at a time) and chunks of pieces; by the same functions on the host, which sizes the grid, and in
// the kernel, where a block finds its tasks.
#pragma once

#include "core/cursor.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

// Neither number is negative. Most are small, and one division of 32 bits does. Others are divided bit by bit: for a
// 64-bit division the compiler calls a function, and around calls it cannot keep round keys in the registers that a
// warp shares.
FASTINIT_HD int64_t divide(int64_t a, int64_t b) {
  uint64_t rest = static_cast<uint64_t>(a);
  const uint64_t divisor = static_cast<uint64_t>(b);
  if ((rest | divisor) >> 32 == 0) return static_cast<uint32_t>(rest) / static_cast<uint32_t>(divisor);
  int bit = 0;
  FASTINIT_ROLL
  while (rest >> bit >= divisor) ++bit;
  uint64_t quotient = 0;
  FASTINIT_ROLL
  while (--bit >= 0) {
    quotient *= 2;
    if (rest >> bit < divisor) continue;
    rest -= divisor << bit;
    ++quotient;
  }
  return static_cast<int64_t>(quotient);
}

// Units of a chunk: 8192 values of 32-bit words. Small enough that chunks divide evenly among the blocks of a grid
// (four a multiprocessor, hundreds of chunks each on large models), large enough that finding the task costs nothing.
constexpr int kChunkUnits = 2048;

// The binary logarithm of the number of values in a Philox block.
FASTINIT_HD int block_bits(Dtype dtype) { return dtype == Dtype::kFloat64 ? 1 : 2; }

// A task whose elements follow each other in the global index has one run of Philox blocks; any other has a run a row.
FASTINIT_HD bool is_one_row(const Task& task) { return task.numel <= task.map.row_length; }
FASTINIT_HD bool is_contiguous(const Task& task) { return is_one_row(task) && task.map.element_memory_step == 1; }
FASTINIT_HD bool has_one_run(const Task& task) { return is_one_row(task) || is_one_index_run(task.map); }

// The Philox block that is unit 0 of a single run. It is a multiple of kChunkUnits, so that the upper half of the
// counter never changes within a chunk, and places in memory are aligned alike in all chunks.
FASTINIT_HD int64_t first_block(const Task& task) {
  return task.map.global_offset >> block_bits(task.dtype) & -int64_t{kChunkUnits};
}

// The number of rows of a task that has more than one.
FASTINIT_HD int64_t num_rows(const Task& task) { return divide(task.numel - 1, task.map.row_length) + 1; }

// How many values lie between the last multiple of 2^bits and the start of a row. If rows differ, the largest possible
// number.
FASTINIT_HD int64_t row_skips(const Task& task, int bits) {
  const int64_t below = (int64_t{1} << bits) - 1;
  const bool alike = ((task.map.row_index_step | task.map.slab_index_step) & below) == 0;
  return alike ? task.map.global_offset & below : below;
}

// The most multiples of 2^bits values that a row begins in or goes through.
FASTINIT_HD int64_t row_parts(const Task& task, int bits) {
  return (task.map.row_length + row_skips(task, bits) + (int64_t{1} << bits) - 1) >> bits;
}

// The most Philox blocks that a row of elements can touch.
FASTINIT_HD int64_t row_units(const Task& task) { return row_parts(task, block_bits(task.dtype)); }

FASTINIT_HD int64_t num_units(const Task& task) {
  if (task.numel == 0) return 0;
  if (!has_one_run(task)) return num_rows(task) * row_units(task);
  return ((task.map.global_offset + task.numel - 1) >> block_bits(task.dtype)) - first_block(task) + 1;
}

// A diagonal divides for every value, whatever the layout: its tasks are cut into units.
FASTINIT_HD bool has_pieces(const Task& task) {
  return !is_one_row(task) && task.sampler.kind != Distribution::kDiagonal;
}

// Rows whose elements lie together, and enough of them that finding a row costs little: a warp takes a row, or a piece
// of it. (Shards of columns, padded views.)
constexpr int kLongRow = 256;  // two stores of 16 bytes a lane, in float
FASTINIT_HD bool has_long_rows(const Task& task) {
  return has_pieces(task) && task.map.element_memory_step == 1 && task.map.row_length >= kLongRow;
}

// Elements are apart, and those of neighbouring rows lie together: each lane of a warp takes a row, or a piece of it.
// (Transposed views, channels_last.)
constexpr int kPieceRows = 32;
FASTINIT_HD bool has_neighbouring_rows(const Task& task) {
  return has_pieces(task) && task.map.element_memory_step != 1 && task.map.row_memory_step == 1;
}

// Such a piece is the part of a row within this many Philox blocks, which begin at a multiple of this number. So the
// upper half of the counter never changes within a piece.
constexpr int kPieceBits = 9;
constexpr int kPieceUnits = 1 << kPieceBits;
FASTINIT_HD int64_t pieces_along(const Task& task) { return row_parts(task, kPieceBits + block_bits(task.dtype)); }

// How a row is cut across: into pieces of equal size, since one block may get the last pieces of all rows.
struct ColumnPieces {
  int64_t number;
  int columns;  // of each but the last; a multiple of a Philox block

  FASTINIT_HD explicit ColumnPieces(const Task& task) {
    number = (task.map.row_length + 127) / 128;
    columns = static_cast<int>(divide(task.map.row_length + number - 1, number) + 3) / 4 * 4;
  }
};

// A chunk has a piece for each warp of a block. Those across are of neighbouring rows: the warps write side by side.
constexpr int kChunkPieces = 4;

FASTINIT_HD int64_t num_chunks(const Task& task) {
  if (has_long_rows(task)) return (num_rows(task) * pieces_along(task) + kChunkPieces - 1) / kChunkPieces;
  if (has_neighbouring_rows(task)) {
    const int rows = kChunkPieces * kPieceRows;
    return (num_rows(task) + rows - 1) / rows * ColumnPieces(task).number;
  }
  return (num_units(task) + kChunkUnits - 1) / kChunkUnits;
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
