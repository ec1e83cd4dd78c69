// The loop that fills a range of one task, written once on lanes and compiled once per instruction set. Knows nothing
// of threads or of other tasks (dispatch.cpp).
#pragma once

#include "core/cursor.h"
#include "core/diagonal.h"
#include "core/distributions.h"
#include "core/rounding.h"
#include "hot_quantile.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

// float values from a distribution, a draw of kDrawValues at a time.
template <class L, class DistributionF32>
struct SourceF32 {
  static constexpr int kBlockValues = 4;  // of one Philox block
  static constexpr int kDrawValues = WordSource<L>::kWords;

  const WordSource<L> source;
  const DistributionF32 distribution;

  template <bool kStreaming, class Element>
  FASTINIT_HD void draw_values(uint64_t block, Element* out) const {
    constexpr int kRegisters = WordSource<L>::kRegisters;
    typename L::U32 words[kRegisters];
    typename L::F32 values[kRegisters];
    const uint64_t first = block * kBlockValues;
    if constexpr (sizeof(Element) == 1 && L::kLastRoundInPlace) {
      source.draw_unordered(block, words);
      distribution(words, [first](int i, int lane) { return first + L::place_of(i, lane); }, values);
      L::template store_unordered<kStreaming>(values, out);
    } else {
      source.draw(block, words);
      const auto index_of = [first](int i, int lane) { return first + static_cast<uint64_t>(i * L::kWidth + lane); };
      distribution(words, index_of, values);
      FASTINIT_UNROLL
      for (int i = 0; i < kRegisters; i += 2) {
        L::template store_pair<kStreaming>(values[i], values[i + 1], out + i * L::kWidth);
      }
    }
  }
};

// double values: vectors of words, then as many values at a time as their lanes are wide.
template <class L, class DistributionF64>
struct SourceF64 {
  static constexpr int kBlockValues = 2;
  static constexpr int kDrawValues = WordSource<L>::kWords / 2;

  const WordSource<L> source;
  const DistributionF64 distribution;

  template <bool kStreaming>
  FASTINIT_HD void draw_values(uint64_t block, double* out) const {
    constexpr int kRegisters = WordSource<L>::kRegisters;
    typename L::U32 registers[kRegisters];
    source.draw(block, registers);
    alignas(64) uint32_t words[WordSource<L>::kWords];
    for (int i = 0; i < kRegisters; ++i) L::template store<false>(registers[i], words + i * L::kWidth);
    using D = typename DistributionF64::Doubles;
    if constexpr (D::kWidth == 1) {
      for (int i = 0; i < kDrawValues; ++i) {
        out[i] = distribution(words[2 * i] | static_cast<uint64_t>(words[2 * i + 1]) << 32);
      }
    } else {
      for (int i = 0; i < kDrawValues; i += D::kTogether * D::kWidth) {
        typename D::U64 group[D::kTogether];
        typename D::F64 values[D::kTogether];
        FASTINIT_UNROLL
        for (int k = 0; k < D::kTogether; ++k) group[k] = D::load(words + 2 * (i + k * D::kWidth));
        distribution(group, values);
        FASTINIT_UNROLL
        for (int k = 0; k < D::kTogether; ++k) D::store(values[k], out + i + k * D::kWidth);
      }
    }
  }
};

// Writes values [index, index + count) of a source to consecutive memory. A function of its own: within its callers GCC
// spills registers to the stack, of which SSE2 has few (normals took a fifth longer).
template <bool kStreaming, class Source, class Element>
__attribute__((noinline)) void fill_consecutive(const Source& source, uint64_t index, int64_t count, Element* out) {
  constexpr int64_t kDrawValues = Source::kDrawValues;
  uint64_t block = index / Source::kBlockValues;
  const int64_t skipped = static_cast<int64_t>(index % Source::kBlockValues);
  alignas(64) Element draw_buffer[kDrawValues];
  const auto draw_part = [&](int64_t from, int64_t part) {
    source.template draw_values<false>(block, draw_buffer);
    memcpy(static_cast<void*>(out), draw_buffer + from, static_cast<size_t>(part) * sizeof(Element));
    block += kDrawValues / Source::kBlockValues;
    out += part;
    count -= part;
  };
  if (skipped != 0) draw_part(skipped, count < kDrawValues - skipped ? count : kDrawValues - skipped);
  for (; count >= kDrawValues; count -= kDrawValues) {
    source.template draw_values<kStreaming>(block, out);
    block += kDrawValues / Source::kBlockValues;
    out += kDrawValues;
  }
  if (count > 0) draw_part(0, count);
}

template <class Element>
FASTINIT_HD void scatter(const Element* values, int64_t count, const IndexMap& map, Cursor& cursor, Element* data) {
  while (count > 0) {
    const int64_t piece = cursor.left_in_row(map, count);
    Element* out = data + cursor.memory_offset(map);
    for (int64_t k = 0; k < piece; ++k) out[k * map.element_memory_step] = values[k];
    cursor.advance(map, piece);
    values += piece;
    count -= piece;
  }
}

// Fills local elements [begin, end) of a task.
template <class L, class Source, class Element>
void fill_elements(const Task& task, const Source& source, int64_t begin, int64_t end, bool streaming) {
  // Compiled for those who do: doubles never stream.
  constexpr bool kStreams = L::kStreamAlignment > 1 && sizeof(Element) < sizeof(double);
  const IndexMap& map = task.map;
  Element* const data = reinterpret_cast<Element*>(task.data);
  Cursor cursor(map, begin);
  const bool one_index_run = is_one_index_run(map);
  if (map.element_memory_step == 1 && (!one_index_run || map.row_length >= Source::kDrawValues)) {
    while (begin < end) {
      const int64_t piece = cursor.left_in_row(map, end - begin);
      const uint64_t index = static_cast<uint64_t>(cursor.global_index(map));
      Element* out = data + cursor.memory_offset(map);
      const bool aligned =
          reinterpret_cast<uintptr_t>(out) % L::kStreamAlignment == 0 && index % Source::kBlockValues == 0;
      if (streaming && aligned) {
        fill_consecutive<kStreams>(source, index, piece, out);
      } else {
        fill_consecutive<false>(source, index, piece, out);
      }
      cursor.advance(map, piece);
      begin += piece;
    }
    return;
  }
  // Elements that are scattered in memory: values are made in the order of their indices, in a small buffer.
  constexpr int64_t kBufferValues = 1024;
  alignas(64) Element buffer[kBufferValues];
  while (begin < end) {
    const int64_t left = end - begin < kBufferValues ? end - begin : kBufferValues;
    const int64_t piece = one_index_run ? left : cursor.left_in_row(map, left);
    fill_consecutive<false>(source, static_cast<uint64_t>(cursor.global_index(map)), piece, buffer);
    scatter(buffer, piece, map, cursor, data);
    begin += piece;
  }
}

template <class Element>
void write_steps(Element* out, int64_t count, int64_t step, Element value) {
  if (step == 1) {
    for (int64_t k = 0; k < count; ++k) out[k] = value;
  } else {
    for (int64_t k = 0; k < count; ++k) out[k * step] = value;
  }
}

// Writes the same value everywhere, or on a diagonal, with zeros elsewhere.
template <class Element>
void fill_constant(const Task& task, int64_t begin, int64_t end) {
  Element value, zero;
  round_to(task.sampler.center, value);
  round_to(0.0, zero);
  const bool everywhere = task.sampler.kind == Distribution::kConstant;
  const Diagonal diagonal(task.parameter);
  Cursor cursor(task.map, begin);
  while (begin < end) {
    const int64_t piece = cursor.left_in_row(task.map, end - begin);
    Element* out = reinterpret_cast<Element*>(task.data) + cursor.memory_offset(task.map);
    const int64_t step = task.map.element_memory_step;
    write_steps(out, piece, step, everywhere ? value : zero);
    if (!everywhere) {
      const int64_t index = cursor.global_index(task.map);
      for (int64_t at = diagonal.next(index); at < index + piece; at = diagonal.next(at + 1)) {
        out[(at - index) * step] = value;
      }
    }
    cursor.advance(task.map, piece);
    begin += piece;
  }
}

template <class L, class Element>
void fill_typed(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming) {
  alignas(64) static constexpr QuantileHotRows kHot = quantile_hot_rows();
  const Sampler& sampler = task.sampler;
  if (sampler.kind == Distribution::kConstant || sampler.kind == Distribution::kDiagonal) {
    fill_constant<Element>(task, begin, end);
  } else if constexpr (sizeof(Element) == sizeof(double)) {
    if (sampler.kind == Distribution::kUniform) {
      using Uniform = UniformDoubles<typename L::Doubles>;
      const SourceF64<L, Uniform> source{WordSource<L>(stream), Uniform(sampler, stream)};
      fill_elements<L, decltype(source), Element>(task, source, begin, end, streaming);
    } else {
      using Normal = NormalDoubles<typename L::Doubles, typename L::QuantileF64>;
      const SourceF64<L, Normal> source{WordSource<L>(stream), Normal(sampler, stream)};
      fill_elements<L, decltype(source), Element>(task, source, begin, end, streaming);
    }
  } else if (sampler.kind == Distribution::kUniform) {
    const SourceF32<L, UniformF32<L>> source{WordSource<L>(stream), UniformF32<L>(sampler, stream)};
    fill_elements<L, decltype(source), Element>(task, source, begin, end, streaming);
  } else if (sampler.kind == Distribution::kNormal) {
    using Normal = NormalF32<L, HotQuantile<L>, /*kTruncated=*/false>;
    const SourceF32<L, Normal> source{WordSource<L>(stream), Normal(sampler, stream, HotQuantile<L>(kHot))};
    fill_elements<L, decltype(source), Element>(task, source, begin, end, streaming);
  } else {
    using TruncNormal = NormalF32<L, HotQuantile<L>, /*kTruncated=*/true>;
    const SourceF32<L, TruncNormal> source{WordSource<L>(stream), TruncNormal(sampler, stream, HotQuantile<L>(kHot))};
    fill_elements<L, decltype(source), Element>(task, source, begin, end, streaming);
  }
}

template <class L>
void fill_range(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming) {
  switch (task.dtype) {
    case Dtype::kFloat32:
      return fill_typed<L, float>(task, stream, begin, end, streaming);
    case Dtype::kFloat64:
      return fill_typed<L, double>(task, stream, begin, end, false);
    case Dtype::kFloat16:
      return fill_typed<L, Float16>(task, stream, begin, end, streaming);
    case Dtype::kBfloat16:
      return fill_typed<L, Bfloat16>(task, stream, begin, end, streaming);
    case Dtype::kFloat8E4m3fn:
      return fill_typed<L, Float8E4m3fn>(task, stream, begin, end, streaming);
    case Dtype::kFloat8E5m2:
      return fill_typed<L, Float8E5m2>(task, stream, begin, end, streaming);
    case Dtype::kFloat8E4m3fnuz:
      return fill_typed<L, Float8E4m3fnuz>(task, stream, begin, end, streaming);
    case Dtype::kFloat8E5m2fnuz:
      return fill_typed<L, Float8E5m2fnuz>(task, stream, begin, end, streaming);
  }
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
