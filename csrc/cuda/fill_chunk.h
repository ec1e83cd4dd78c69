// Fills one chunk of one task, or rewrites it (Put in stores.h), by all threads of a block. Knows nothing of other
// tasks (fill.cu).
#pragma once

#include "chunks.h"
#include "sources.h"
#include "stores.h"
#include "warp.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

constexpr int kThreads = 128;  // of a block
constexpr int kWarps = kThreads / kLanes;
static_assert(kPieceRows == kLanes && kChunkPieces == kWarps, "a row a lane, a piece a warp");

// Values that follow each other in the global index and in memory.
struct Run {
  uint64_t block;    // a multiple of a power of two that is above all units
  uint64_t address;  // of its first value
  int begin, end;    // of the values from there on, those to be filled
  int first, step;   // of what is drawn at a time, a warp draws the first, the one `step` later, and so on
};

// A thread computes two Philox blocks at a time: neighbours where 16 bytes hold both, else a warp's lanes apart, so
// that a warp writes 512 bytes without a gap. In double, and in 8-bit floats, one, for lack of registers.
template <class Element, class Source, class Put>
FASTINIT_DEVICE void fill_run(Source& source, const Run& run, Dtype dtype, const Put& put) {
  constexpr int kBlockValues = Source::kBlockValues;
  constexpr int kStoreBytes = sizeof(Element) == 1 ? 4 : 16;
  constexpr int kStoreValues = kStoreBytes / static_cast<int>(sizeof(Element));
  constexpr bool kNeighbours = kStoreValues > kBlockValues;
  constexpr int kBlocks = sizeof(Element) == sizeof(double) || sizeof(Element) == 1 ? 1 : 2;
  constexpr int kStores = kNeighbours ? 1 : kBlocks;
  constexpr int kStride = kNeighbours ? 1 : kLanes;
  constexpr int kUnits = kBlocks * kLanes;

  const int begin = run.begin;
  const int end = run.end;
  // At so many places from `begin` on, values may be stored together.
  const unsigned together =
      run.address % kStoreBytes == 0 && end - begin >= kStoreValues ? end - begin - kStoreValues + 1 : 0;

  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (int unit = (begin / (kBlockValues * kUnits) + run.first) * kUnits + (kNeighbours ? 2 * lane : lane);
       unit * kBlockValues < end; unit += run.step * kUnits) {
    // A sum without a carry, as runs are cut: what depends on the upper half alone is computed outside the loop.
    const uint64_t first = run.block | static_cast<uint32_t>(unit);
    typename Source::Value values[kBlocks * kBlockValues];
    source.template draw<kBlocks, kStride>(first, values);
    FASTINIT_UNROLL
    for (int i = 0; i < kStores; ++i) {
      const int at = (unit + i * kStride) * kBlockValues;
      const uint64_t place = run.address + static_cast<uint64_t>(at) * sizeof(Element);
      const bool is_together = static_cast<unsigned>(at - begin) < together;
      if constexpr (Put::kReads) {
        if (is_together) {
          put.template together<Element, kStoreValues>(place, values + i * kStoreValues, dtype);
          continue;
        }
        FASTINIT_UNROLL
        for (int k = 0; k < kStoreValues; ++k) {
          if (static_cast<unsigned>(at + k - begin) >= static_cast<unsigned>(end - begin)) continue;
          const uint64_t address = place + static_cast<uint64_t>(k) * sizeof(Element);
          put.template at<Element>(address, values[i * kStoreValues + k], dtype);
        }
        continue;
      }
      Packed packed = pack<Element, kStoreValues>(values + i * kStoreValues, dtype);
      if (is_together) {
        store_together(place, packed, kStoreBytes);
      } else {
        FASTINIT_ROLL
        for (int k = 0; k < kStoreValues; ++k) {
          const uint64_t bits = packed.pop(sizeof(Element));
          if (at + k < begin || at + k >= end) continue;
          store_element(place + static_cast<uint64_t>(k) * sizeof(Element), bits, sizeof(Element));
        }
      }
    }
  }
}

// A piece of a contiguous task: every kChunkPieces-th part of a chunk, so that the warps of a block write side by side.
template <class Element, int kBlockValues>
FASTINIT_DEVICE Run contiguous_run(const Task& task, int64_t piece) {
  constexpr int kValues = kChunkUnits * kBlockValues;
  const int64_t block = first_block(task) + piece / kChunkPieces * kChunkUnits;
  const int64_t before = block * kBlockValues - task.map.global_offset;  // local index of the chunk's value 0
  const int64_t left = task.numel - before;
  Run run;
  run.block = static_cast<uint64_t>(block);
  run.address = task.data + static_cast<uint64_t>(before) * sizeof(Element);
  run.begin = before < 0 ? static_cast<int>(-before) : 0;
  run.end = left < kValues ? static_cast<int>(left) : kValues;
  run.first = static_cast<int>(piece % kChunkPieces);
  run.step = kChunkPieces;
  return run;
}

// Row number `rows` of a task, counted through its slabs.
struct Row {
  int64_t global_index;   // of its first element
  int64_t memory_offset;  // of its first element, in elements
  int64_t length;         // the task may end within its last row

  FASTINIT_DEVICE Row(const Task& task, int64_t rows) {
    const IndexMap& map = task.map;
    const int64_t slab = divide(rows, map.rows_per_slab);
    const int64_t row = rows - slab * map.rows_per_slab;
    global_index = map.global_offset + slab * map.slab_index_step + row * map.row_index_step;
    memory_offset = slab * map.slab_memory_step + row * map.row_memory_step;
    const int64_t left = task.numel - rows * map.row_length;
    length = left < map.row_length ? left : map.row_length;
  }
};

// A piece of a task of long rows (chunks.h).
template <class Element, int kBlockValues>
FASTINIT_DEVICE Run row_run(const Task& task, int64_t piece) {
  constexpr int kValues = kPieceUnits * kBlockValues;
  const int64_t pieces = pieces_along(task);
  const int64_t rows = divide(piece, pieces);
  Run run{};
  if (rows * task.map.row_length >= task.numel) return run;  // beyond the last
  const Row row(task, rows);
  const int64_t in_row = piece - rows * pieces;
  const int64_t block = (row.global_index / kValues + in_row) * kPieceUnits;
  // The index in the row of the block's value 0. A global index of it would not do: the last piece of a row may begin
  // beyond the last index that there is.
  const int64_t before = in_row * kValues - row.global_index % kValues;
  const int64_t left = row.length - before;
  run.block = static_cast<uint64_t>(block);
  run.address = task.data + static_cast<uint64_t>(row.memory_offset + before) * sizeof(Element);
  run.begin = before < 0 ? static_cast<int>(-before) : 0;
  run.end = left < kValues ? static_cast<int>(left > 0 ? left : 0) : kValues;
  run.step = 1;
  return run;
}

// Where a local element lies, and how far its row goes on from there.
struct Place {
  uint64_t address;
  int left_in_row;  // elements, from this one on; kEnough if there are more

  static constexpr int kEnough = 4;  // no Philox block has more

  FASTINIT_DEVICE Place(const Task& task, int64_t local_index, int bytes) {
    const IndexMap& map = task.map;
    const int64_t rows = divide(local_index, map.row_length);
    const int64_t column = local_index - rows * map.row_length;
    const int64_t slab = divide(rows, map.rows_per_slab);
    const int64_t row = rows - slab * map.rows_per_slab;
    const int64_t offset = slab * map.slab_memory_step + row * map.row_memory_step + column * map.element_memory_step;
    const int64_t left = map.row_length - column;
    address = task.data + static_cast<uint64_t>(offset) * static_cast<uint64_t>(bytes);
    left_in_row = left < kEnough ? static_cast<int>(left) : kEnough;
  }
};

// The elements of one Philox block that belong to a task (in rows: to one of its rows).
struct Unit {
  uint64_t block;
  int64_t local_index;  // of the first
  int skipped;          // values of the block before it
  int end;              // and up to the last

  FASTINIT_DEVICE Unit(const Task& task, int64_t unit) {
    const int block_values = 1 << block_bits(task.dtype);
    const IndexMap& map = task.map;
    int64_t run_begin = map.global_offset;  // global indices
    int64_t run_numel = task.numel;
    local_index = 0;
    if (has_one_run(task)) {
      block = static_cast<uint64_t>(first_block(task) + unit);
    } else {
      const int64_t units = row_units(task);
      const int64_t rows = divide(unit, units);
      const int64_t slab = divide(rows, map.rows_per_slab);
      run_begin += slab * map.slab_index_step + (rows - slab * map.rows_per_slab) * map.row_index_step;
      local_index = rows * map.row_length;
      run_numel = task.numel - local_index < map.row_length ? task.numel - local_index : map.row_length;
      block = static_cast<uint64_t>((run_begin >> block_bits(task.dtype)) + (unit - rows * units));
    }
    const int64_t before = static_cast<int64_t>(block) * block_values - run_begin;  // of the run, its index at value 0
    const int64_t left = run_numel - before;
    skipped = before < 0 ? (before > -block_values ? static_cast<int>(-before) : block_values) : 0;
    end = left < block_values ? static_cast<int>(left > 0 ? left : 0) : block_values;
    local_index += before + skipped;
  }
};

// A Philox block of values as elements of the dtype that the task says.
FASTINIT_DEVICE Packed pack_block(const float (&values)[4], Dtype dtype) {
  if (dtype == Dtype::kFloat32) return pack<float, 4>(values, dtype);
  if (is_float8(dtype)) return pack<AnyFloat8, 4>(values, dtype);
  return dtype == Dtype::kFloat16 ? pack<Float16, 4>(values, dtype) : pack<Bfloat16, 4>(values, dtype);
}
FASTINIT_DEVICE Packed pack_block(const double (&values)[2], Dtype dtype) { return pack<double, 2>(values, dtype); }
FASTINIT_DEVICE Packed pack_block(const uint64_t (&bits)[4], Dtype dtype) {
  if (dtype == Dtype::kFloat32) return pack<float, 4>(bits, dtype);
  return is_float8(dtype) ? pack<AnyFloat8, 4>(bits, dtype) : pack<Float16, 4>(bits, dtype);
}
FASTINIT_DEVICE Packed pack_block(const uint64_t (&bits)[2], Dtype dtype) { return pack<double, 2>(bits, dtype); }

// A lane's next values: those of two Philox blocks, from value `skipped` on.
template <class Value>
FASTINIT_DEVICE void skip(const Value (&block)[4], const Value (&next)[4], int skipped, Value (&values)[4]) {
  Value both[7] = {block[0], block[1], block[2], block[3], next[0], next[1], next[2]};
  FASTINIT_UNROLL
  for (int i = 0; i < 5; ++i) both[i] = skipped & 2 ? both[i + 2] : both[i];
  FASTINIT_UNROLL
  for (int i = 0; i < 4; ++i) values[i] = skipped & 1 ? both[i + 1] : both[i];
}
template <class Value>
FASTINIT_DEVICE void skip(const Value (&block)[2], const Value (&next)[2], int skipped, Value (&values)[2]) {
  values[0] = skipped & 1 ? block[1] : block[0];
  values[1] = skipped & 1 ? next[0] : block[1];
}

// The first of an array in registers; the others move down. Such an array cannot be indexed by the variable of a loop.
template <class Value, int kCount>
FASTINIT_DEVICE Value take_first(Value (&values)[kCount]) {
  const Value first = values[0];
  FASTINIT_UNROLL
  for (int k = 1; k < kCount; ++k) values[k - 1] = values[k];
  return first;
}

// A piece of a task of neighbouring rows (chunks.h), by a warp. All lanes are at the same column, so that what they
// store lies together; where rows do not begin with Philox blocks, a lane therefore holds a block until it has the next
// one.
template <class MakeSource, class Put>
FASTINIT_DEVICE void fill_across(const Task& task, const MakeSource& make_source, int64_t piece, const Put& put) {
  using Source = decltype(make_source());
  constexpr int kBlockValues = Source::kBlockValues;
  const IndexMap& map = task.map;
  const int bytes = static_cast<int>(element_bytes(task.dtype));

  const ColumnPieces pieces(task);
  const int64_t chunk = piece / kChunkPieces;
  const int64_t chunk_of_rows = divide(chunk, pieces.number);
  const int64_t column = (chunk - chunk_of_rows * pieces.number) * pieces.columns;
  const int64_t left_in_row = map.row_length - column;
  const int columns = left_in_row < pieces.columns ? static_cast<int>(left_in_row) : pieces.columns;

  const int64_t first = (chunk_of_rows * kChunkPieces + piece % kChunkPieces) * kLanes;
  if (first * map.row_length >= task.numel) return;  // beyond the last
  const int64_t rows = first + static_cast<int>(threadIdx.x) % kLanes;
  const bool exists = rows * map.row_length < task.numel;
  const Row row(task, exists ? rows : 0);
  const int64_t left = exists ? row.length - column : 0;
  const int end = left < columns ? static_cast<int>(left) : columns;
  const uint64_t index = static_cast<uint64_t>(row.global_index + column);
  const uint64_t block = index / kBlockValues;
  const int skipped = static_cast<int>(index % kBlockValues);
  const uint64_t step = static_cast<uint64_t>(map.element_memory_step) * static_cast<uint64_t>(bytes);
  uint64_t place = task.data + static_cast<uint64_t>(row.memory_offset) * static_cast<uint64_t>(bytes) + step * column;

  const bool holds = row_skips(task, block_bits(task.dtype)) != 0;
  const int draws = (columns + (holds ? kBlockValues - 1 : 0) + kBlockValues - 1) / kBlockValues;
  typename Source::Value held[kBlockValues]{};
  typename Source::Value drawn[kBlockValues]{};
  int at = holds ? -kBlockValues : 0;
  Source source = make_source();
  FASTINIT_ROLL
  for (int i = 0; at < columns; ++i, at += kBlockValues) {
    if (i < draws) source.template draw<1, 0>(block + static_cast<uint64_t>(i), drawn);
    typename Source::Value values[kBlockValues];
    FASTINIT_UNROLL
    for (int k = 0; k < kBlockValues; ++k) values[k] = drawn[k];
    if (holds) {
      skip(held, drawn, skipped, values);
      FASTINIT_UNROLL
      for (int k = 0; k < kBlockValues; ++k) held[k] = drawn[k];
      if (at < 0) continue;
    }
    if constexpr (Put::kReads) {
      FASTINIT_ROLL
      for (int k = 0; k < kBlockValues; ++k) {
        const typename Source::Value value = take_first(values);
        if (at + k < end) put.at(place, value, task.dtype);
        place += step;
      }
    } else {
      Packed packed = pack_block(values, task.dtype);
      FASTINIT_UNROLL
      for (int k = 0; k < kBlockValues; ++k) {
        const uint64_t bits = packed.pop(bytes);
        if (at + k < end) store_element(place, bits, bytes);
        place += step;
      }
    }
  }
}

// Any task. The source is made anew for every block: what it holds would not fit into registers beside the index map.
template <class MakeSource, class Put>
FASTINIT_DEVICE void fill_mapped(const Task& task, const MakeSource& make_source, int64_t chunk, int64_t units,
                                 const Put& put) {
  using Source = decltype(make_source());
  constexpr int kBlockValues = Source::kBlockValues;
  const int64_t chunk_begin = chunk * kChunkUnits;
  const int chunk_units = units - chunk_begin < kChunkUnits ? static_cast<int>(units - chunk_begin) : kChunkUnits;
  FASTINIT_ROLL
  for (int i = static_cast<int>(threadIdx.x); i < chunk_units; i += kThreads) {
    const Unit unit(task, chunk_begin + i);
    if (unit.skipped >= unit.end) continue;
    typename Source::Value values[kBlockValues];
    make_source().template draw<1, 0>(unit.block, values);
    const int bytes = static_cast<int>(element_bytes(task.dtype));
    Place place(task, unit.local_index, bytes);
    [[maybe_unused]] Packed packed;
    if constexpr (!Put::kReads) {
      packed = pack_block(values, task.dtype);
      const int block_bytes = kBlockValues * bytes;
      if (unit.end - unit.skipped == kBlockValues && place.left_in_row >= kBlockValues &&
          task.map.element_memory_step == 1 && place.address % static_cast<uint64_t>(block_bytes) == 0) {
        store_together(place.address, packed, block_bytes);
        continue;
      }
    }
    const auto next = [&] {
      if constexpr (Put::kReads) {
        return take_first(values);
      } else {
        return packed.pop(bytes);
      }
    };
    FASTINIT_ROLL
    for (int k = 0; k < unit.end; ++k) {
      const auto value = next();
      if (k < unit.skipped) continue;
      if (place.left_in_row == 0) place = Place(task, unit.local_index + k - unit.skipped, bytes);
      if constexpr (Put::kReads) {
        put.at(place.address, value, task.dtype);
      } else {
        store_element(place.address, value, bytes);
      }
      // Unsigned, for the step may be any number where a row has one element.
      place.address += static_cast<uint64_t>(task.map.element_memory_step) * static_cast<uint64_t>(bytes);
      --place.left_in_row;
    }
  }
}

// The chunks first, first + step, ... of a task, as far as they are below count.
struct ChunkRange {
  int first, count, step;

  template <class Fill>
  FASTINIT_DEVICE void for_each(const Fill& fill) const {
    FASTINIT_ROLL
    for (int chunk = first; chunk < count; chunk += step) fill(chunk);
  }
};

// Fills this warp's piece of every chunk.
template <class Fill>
FASTINIT_DEVICE void for_each_piece(const ChunkRange& chunks, const Fill& fill) {
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  chunks.for_each([&](int64_t chunk) {
    // The place changes from chunk to chunk: else one warp might have all the short pieces.
    const int turn = static_cast<int>(static_cast<uint32_t>(chunk) * 0x9E3779B9u >> 16);
    fill(chunk * kChunkPieces + (warp + turn) % kChunkPieces);
  });
}

template <class Element, class Source, class Put>
FASTINIT_DEVICE void fill_together(const Task& task, Source source, const ChunkRange& chunks, const Put& put) {
  constexpr int kBlockValues = Source::kBlockValues;
  for_each_piece(chunks, [&](int64_t piece) {
    const Run run = is_contiguous(task) ? contiguous_run<Element, kBlockValues>(task, piece)
                                        : row_run<Element, kBlockValues>(task, piece);
    fill_run<Element>(source, run, task.dtype, put);
  });
}

// The ways to fill a task, each for all of its chunks.
struct Together {
  // All that differs between the dtypes of float samples is the store.
  template <class MakeSource, class Put>
  static FASTINIT_DEVICE void fill(const Task& task, const MakeSource& make_source, const ChunkRange& chunks,
                                   const Put& put) {
    using Source = decltype(make_source());
    if constexpr (Source::kBlockValues == 2) {
      fill_together<double>(task, make_source(), chunks, put);
    } else if (task.dtype == Dtype::kFloat32) {
      fill_together<float>(task, make_source(), chunks, put);
    } else if (is_float8(task.dtype)) {
      fill_together<AnyFloat8>(task, make_source(), chunks, put);
    } else if (task.dtype == Dtype::kFloat16 || std::is_same_v<typename Source::Value, uint64_t>) {
      fill_together<Float16>(task, make_source(), chunks, put);
    } else {
      fill_together<Bfloat16>(task, make_source(), chunks, put);
    }
  }
};

struct Across {
  template <class MakeSource, class Put>
  static FASTINIT_DEVICE void fill(const Task& task, const MakeSource& make_source, const ChunkRange& chunks,
                                   const Put& put) {
    for_each_piece(chunks, [&](int64_t piece) { fill_across(task, make_source, piece, put); });
  }
};

struct Mapped {
  template <class MakeSource, class Put>
  static FASTINIT_DEVICE void fill(const Task& task, const MakeSource& make_source, const ChunkRange& chunks,
                                   const Put& put) {
    const int64_t units = num_units(task);
    chunks.for_each([&](int64_t chunk) { fill_mapped(task, make_source, chunk, units, put); });
  }
};

// Every way derives the stream for itself. If they shared it, the compiler would compute the round keys before it knows
// the way, and keep them in registers of every thread instead of those that a warp shares.
template <class Way, class Put>
FASTINIT_DEVICE void fill_by(const Task& task, uint64_t seed, const SharedQuantile& hot, const ChunkRange& chunks,
                             const Put& put) {
  using Uniform = UniformF32<ScalarLanes>;
  using Normal = NormalF32<ScalarLanes, SharedQuantile, /*kTruncated=*/false>;
  using TruncNormal = NormalF32<ScalarLanes, SharedQuantile, /*kTruncated=*/true>;
  const Sampler& sampler = task.sampler;
  const bool is_double = task.dtype == Dtype::kFloat64;
  if (sampler.kind == Distribution::kConstant || sampler.kind == Distribution::kDiagonal) {
    // A diagonal is never cut into pieces (has_pieces in chunks.h).
    constexpr bool kDiagonal = std::is_same_v<Way, Mapped>;
    using Value4 = std::conditional_t<Put::kReads, float, uint64_t>;
    using Value2 = std::conditional_t<Put::kReads, double, uint64_t>;
    using Source4 = std::conditional_t<kDiagonal, DiagonalSource<4, Value4>, ConstantSource<4, Value4>>;
    using Source2 = std::conditional_t<kDiagonal, DiagonalSource<2, Value2>, ConstantSource<2, Value2>>;
    if (is_double) return Way::fill(task, [&] { return Source2(task); }, chunks, put);
    return Way::fill(task, [&] { return Source4(task); }, chunks, put);
  }
  const Stream derived = derive_stream(task.name_id, seed);
  const Stream stream{uniform(derived.key), uniform(derived.counter_high)};
  if (is_double) {
    if (sampler.kind == Distribution::kUniform) {
      Way::fill(task, [&] { return DoubleSource<UniformF64>(stream, UniformF64(sampler, stream)); }, chunks, put);
    } else {
      Way::fill(task, [&] { return DoubleSource<NormalF64>(stream, NormalF64(sampler, stream)); }, chunks, put);
    }
  } else if (sampler.kind == Distribution::kUniform) {
    Way::fill(task, [&] { return FloatSource<Uniform>(stream, Uniform(sampler, stream)); }, chunks, put);
  } else if (sampler.kind == Distribution::kNormal) {
    Way::fill(task, [&] { return FloatSource<Normal>(stream, Normal(sampler, stream, hot)); }, chunks, put);
  } else {
    Way::fill(task, [&] { return FloatSource<TruncNormal>(stream, TruncNormal(sampler, stream, hot)); }, chunks, put);
  }
}

template <class Put>
FASTINIT_DEVICE void fill_chunks(const Task& task, uint64_t seed, const SharedQuantile& hot, const ChunkRange& chunks,
                                 const Put& put) {
  if (has_long_rows(task) || (is_contiguous(task) && task.sampler.kind != Distribution::kDiagonal)) {
    fill_by<Together>(task, seed, hot, chunks, put);
  } else if (has_neighbouring_rows(task)) {
    fill_by<Across>(task, seed, hot, chunks, put);
  } else {
    fill_by<Mapped>(task, seed, hot, chunks, put);
  }
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
