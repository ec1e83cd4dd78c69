// Fills one chunk of one task, by all threads of a block. Knows nothing of other tasks (fill.cu).
#pragma once

#include "chunks.h"
#include "sources.h"
#include "stores.h"
#include "warp.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

constexpr int kThreads = 128;  // of a block

// A task whose elements follow each other in the global index and in memory. A thread computes two Philox blocks at a
// time: neighbours where 16 bytes hold both, else kThreads apart, so that a warp writes 512 bytes without a gap. In
// double one, for lack of registers.
template <class Element, class Source>
FASTINIT_DEVICE void fill_contiguous(const Task& task, Source& source, int64_t chunk) {
  constexpr int kBlockValues = Source::kBlockValues;
  constexpr int kStoreValues = 16 / static_cast<int>(sizeof(Element));
  constexpr bool kNeighbours = kStoreValues > kBlockValues;
  constexpr int kBlocks = sizeof(Element) == sizeof(double) ? 1 : 2;
  constexpr int kStores = kNeighbours ? 1 : kBlocks;
  constexpr int kStride = kNeighbours ? 1 : kThreads;

  const int64_t block = first_block(task) + chunk * kChunkUnits;
  const int64_t before = block * kBlockValues - task.map.global_offset;  // local index of the chunk's value 0
  const uint64_t address = task.data + static_cast<uint64_t>(before) * sizeof(Element);
  // Of the chunk's values, those of the task.
  const int begin = before < 0 ? static_cast<int>(-before) : 0;
  const int64_t left = task.numel - before;
  const int end = left < kChunkUnits * kBlockValues ? static_cast<int>(left) : kChunkUnits * kBlockValues;
  // At so many places from `begin` on, 16 bytes may be stored together.
  const unsigned together = address % 16 == 0 && end - begin >= kStoreValues ? end - begin - kStoreValues + 1 : 0;

  const int thread = static_cast<int>(threadIdx.x);
  // From an even unit on, so that neighbours are aligned like the chunk.
  for (int unit = begin / kBlockValues / 2 * 2 + (kNeighbours ? 2 * thread : thread); unit * kBlockValues < end;
       unit += kBlocks * kThreads) {
    // A sum without a carry, as chunks are cut: what depends on the upper half alone is computed outside the loop.
    const uint64_t first = static_cast<uint64_t>(block) | static_cast<uint32_t>(unit);
    typename Source::Value values[kBlocks * kBlockValues];
    source.template draw<kBlocks, kStride>(first, values);
    FASTINIT_UNROLL
    for (int i = 0; i < kStores; ++i) {
      Packed packed = pack<Element, kStoreValues>(values + i * kStoreValues);
      const int at = (unit + i * kStride) * kBlockValues;
      const uint64_t place = address + static_cast<uint64_t>(at) * sizeof(Element);
      if (static_cast<unsigned>(at - begin) < together) {
        store_together(place, packed, 16);
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

// 64-bit division takes a hundred instructions; most indices are small.
FASTINIT_DEVICE int64_t divide(int64_t a, int64_t b) {
  const uint64_t numerator = static_cast<uint64_t>(a);
  const uint64_t denominator = static_cast<uint64_t>(b);
  if ((numerator | denominator) >> 32 == 0) {
    return static_cast<uint32_t>(numerator) / static_cast<uint32_t>(denominator);
  }
  return static_cast<int64_t>(numerator / denominator);
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
    address = task.data + static_cast<uint64_t>(offset * bytes);
    left_in_row = left < kEnough ? static_cast<int>(left) : kEnough;
  }
};

// The elements of one Philox block that belong to a task (in rows: to one of its rows).
struct Unit {
  uint64_t block;
  int64_t local_index;  // of the first
  int skipped;          // values of the block before it
  int end;              // and up to the last

  FASTINIT_DEVICE Unit(const Task& task, int64_t unit, int block_values) {
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
      block = static_cast<uint64_t>(run_begin / block_values + (unit - rows * units));
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
  if (dtype == Dtype::kFloat32) return pack<float, 4>(values);
  return dtype == Dtype::kFloat16 ? pack<Float16, 4>(values) : pack<Bfloat16, 4>(values);
}
FASTINIT_DEVICE Packed pack_block(const double (&values)[2], Dtype) { return pack<double, 2>(values); }
FASTINIT_DEVICE Packed pack_block(const uint64_t (&bits)[4], Dtype dtype) {
  return dtype == Dtype::kFloat32 ? pack<float, 4>(bits) : pack<Float16, 4>(bits);
}
FASTINIT_DEVICE Packed pack_block(const uint64_t (&bits)[2], Dtype) { return pack<double, 2>(bits); }

// Any task: shards of columns, transposed and padded views, channels_last. The source is made anew for every block:
// what it holds would not fit into registers beside the index map.
template <class MakeSource>
FASTINIT_DEVICE void fill_mapped(const Task& task, const MakeSource& make_source, int64_t chunk, int64_t units) {
  using Source = decltype(make_source());
  constexpr int kBlockValues = Source::kBlockValues;
  const int64_t chunk_begin = chunk * kChunkUnits;
  const int chunk_units = units - chunk_begin < kChunkUnits ? static_cast<int>(units - chunk_begin) : kChunkUnits;
  FASTINIT_ROLL
  for (int i = static_cast<int>(threadIdx.x); i < chunk_units; i += kThreads) {
    const Unit unit(task, chunk_begin + i, kBlockValues);
    if (unit.skipped >= unit.end) continue;
    typename Source::Value values[kBlockValues];
    make_source().template draw<1, 0>(unit.block, values);
    const int bytes = static_cast<int>(element_bytes(task.dtype));
    Packed packed = pack_block(values, task.dtype);
    Place place(task, unit.local_index, bytes);
    const int block_bytes = kBlockValues * bytes;
    if (unit.end - unit.skipped == kBlockValues && place.left_in_row >= kBlockValues &&
        task.map.element_memory_step == 1 && place.address % static_cast<uint64_t>(block_bytes) == 0) {
      store_together(place.address, packed, block_bytes);
      continue;
    }
    FASTINIT_ROLL
    for (int k = 0; k < unit.end; ++k) {
      const uint64_t bits = packed.pop(bytes);
      if (k < unit.skipped) continue;
      if (place.left_in_row == 0) place = Place(task, unit.local_index + k - unit.skipped, bytes);
      store_element(place.address, bits, bytes);
      // Unsigned, for the step may be any number where a row has one element.
      place.address += static_cast<uint64_t>(task.map.element_memory_step) * static_cast<uint64_t>(bytes);
      --place.left_in_row;
    }
  }
}

// Of a task, the chunks first, first + step, ... below count.
struct ChunkRange {
  int first, count, step;

  template <class Fill>
  FASTINIT_DEVICE void for_each(const Fill& fill) const {
    FASTINIT_ROLL
    for (int chunk = first; chunk < count; chunk += step) fill(chunk);
  }
};

template <class Element, class Source>
FASTINIT_DEVICE void fill_contiguous(const Task& task, Source source, const ChunkRange& chunks) {
  chunks.for_each([&](int64_t chunk) { fill_contiguous<Element>(task, source, chunk); });
}

template <class MakeSource>
FASTINIT_DEVICE void fill_mapped(const Task& task, const MakeSource& make_source, const ChunkRange& chunks) {
  const int64_t units = num_units(task);
  chunks.for_each([&](int64_t chunk) { fill_mapped(task, make_source, chunk, units); });
}

// Float samples: all that differs between contiguous tasks of three dtypes is the store.
template <class MakeSource>
FASTINIT_DEVICE void fill_float(const Task& task, const MakeSource& make_source, const ChunkRange& chunks) {
  if (!is_contiguous(task)) {
    fill_mapped(task, make_source, chunks);
  } else if (task.dtype == Dtype::kFloat32) {
    fill_contiguous<float>(task, make_source(), chunks);
  } else if (task.dtype == Dtype::kFloat16) {
    fill_contiguous<Float16>(task, make_source(), chunks);
  } else {
    fill_contiguous<Bfloat16>(task, make_source(), chunks);
  }
}

template <class MakeSource>
FASTINIT_DEVICE void fill_double(const Task& task, const MakeSource& make_source, const ChunkRange& chunks) {
  if (is_contiguous(task)) {
    fill_contiguous<double>(task, make_source(), chunks);
  } else {
    fill_mapped(task, make_source, chunks);
  }
}

FASTINIT_DEVICE void fill_unsampled(const Task& task, const ChunkRange& chunks) {
  const bool everywhere = task.sampler.kind == Distribution::kConstant;
  if (everywhere && is_contiguous(task)) {
    switch (element_bytes(task.dtype)) {
      case 8:
        return fill_contiguous<double>(task, ConstantSource<2>(task), chunks);
      case 4:
        return fill_contiguous<float>(task, ConstantSource<4>(task), chunks);
      default:
        return fill_contiguous<Float16>(task, ConstantSource<4>(task), chunks);
    }
  }
  if (task.dtype == Dtype::kFloat64) {
    fill_mapped(task, [&] { return DiagonalSource<2>(task); }, chunks);
  } else {
    fill_mapped(task, [&] { return DiagonalSource<4>(task); }, chunks);
  }
}

FASTINIT_DEVICE void fill_chunks(const Task& task, uint64_t seed, const SharedQuantile& hot, const ChunkRange& chunks) {
  using Uniform = UniformF32<ScalarLanes>;
  using Normal = NormalF32<ScalarLanes, SharedQuantile, /*kTruncated=*/false>;
  using TruncNormal = NormalF32<ScalarLanes, SharedQuantile, /*kTruncated=*/true>;
  const Sampler& sampler = task.sampler;
  if (sampler.kind == Distribution::kConstant || sampler.kind == Distribution::kDiagonal) {
    return fill_unsampled(task, chunks);
  }
  const Stream derived = derive_stream(task.name_id, seed);
  const Stream stream{uniform(derived.key), uniform(derived.counter_high)};
  if (task.dtype == Dtype::kFloat64) {
    if (sampler.kind == Distribution::kUniform) {
      fill_double(task, [&] { return DoubleSource<UniformF64>(stream, UniformF64(sampler, stream)); }, chunks);
    } else {
      fill_double(task, [&] { return DoubleSource<NormalF64>(stream, NormalF64(sampler, stream)); }, chunks);
    }
  } else if (sampler.kind == Distribution::kUniform) {
    fill_float(task, [&] { return FloatSource<Uniform>(stream, Uniform(sampler, stream)); }, chunks);
  } else if (sampler.kind == Distribution::kNormal) {
    fill_float(task, [&] { return FloatSource<Normal>(stream, Normal(sampler, stream, hot)); }, chunks);
  } else {
    fill_float(task, [&] { return FloatSource<TruncNormal>(stream, TruncNormal(sampler, stream, hot)); }, chunks);
  }
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
