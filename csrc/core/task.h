// The table that crosses from Python to the backends: one Task a tensor (or a part of one), plain data.
//
// value(parameter, i) = f(seed, name, i, distribution), rounded once to the parameter's dtype. Nothing else enters:
// device, instruction set, threads, chunks, memory layout and sharding only decide who writes which i, and where.
#pragma once

#include "platform.h"

namespace fastinit {

enum class Dtype : int32_t {
  kFloat32 = 0,
  kFloat64 = 1,
  kFloat16 = 2,
  kBfloat16 = 3,
  kFloat8E4m3fn = 4,
  kFloat8E5m2 = 5,
  kFloat8E4m3fnuz = 6,
  kFloat8E5m2fnuz = 7,
};
constexpr int kDtypes = 8;

FASTINIT_HD bool is_float8(Dtype dtype) { return dtype >= Dtype::kFloat8E4m3fn; }

FASTINIT_HD int64_t element_bytes(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : is_float8(dtype) ? 1 : 2;
}

enum class Distribution : int32_t {
  kConstant = 0,     // parameter: value
  kUniform = 1,      // low, high
  kNormal = 2,       // mean, std
  kTruncNormal = 3,  // mean, std, low, high
  kDiagonal = 4,     // value, first, step, count, period: value on the indices of diagonal.h, zero elsewhere
};
constexpr int kDistributions = 5;
constexpr int kParameters = 5;

// Which global elements a tensor holds, and where in memory. The local elements, counted in row-major order, form
// slabs of rows_per_slab rows of row_length elements. Steps are in elements; a step along a row always moves the
// global index by one. A whole contiguous tensor is one row; a shard of columns, a transposed view and channels_last
// are rows with steps.
struct IndexMap {
  int64_t global_offset;  // global index of local element 0
  int64_t row_length;
  int64_t rows_per_slab;
  int64_t row_index_step;
  int64_t slab_index_step;
  int64_t element_memory_step;
  int64_t row_memory_step;
  int64_t slab_memory_step;
};

// A distribution made ready: what sampling needs for every value, derived once by prepare(). Where sampling is in
// float, the doubles hold floats exactly.
struct Sampler {
  Distribution kind;  // as sampled: a truncation so narrow that the density is level becomes kUniform
  int32_t reserved;
  double scale;
  double center;
  double lower;  // the bounds, rounded inward to the dtype; infinite where there is none
  double upper;
  double mass;         // of the normal between its bounds
  double below_lower;  // of the normal below its lower bound, above its upper bound
  double above_upper;
  uint64_t constant_bits;   // of a constant or a diagonal: the value as an element, in the lowest bytes
  uint64_t negative_below;  // words below this, as a fraction of 2^64, give values below the untruncated mean
};

struct Task {
  // Written by the caller.
  uint64_t data;  // address of local element 0
  int64_t numel;  // local elements
  IndexMap map;
  uint64_t name_id[2];            // 128-bit digest of the canonical name
  double parameter[kParameters];  // of the distribution, in the order given there
  Dtype dtype;
  Distribution distribution;
  // Written by prepare().
  Sampler sampler;
  uint64_t mark;  // of the distribution, the dtype and the sampler: mark_of() in prepare.h
};

}  // namespace fastinit
