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
template <class L, class DistributionF32, int kCounters = L::kCounters>
struct SourceF32 {
  using Words = WordSource<L, kCounters>;
  static constexpr int kBlockValues = 4;  // of one Philox block
  static constexpr int kDrawValues = Words::kWords;
  static constexpr bool kReadsElements = false;
  using Lanes = L;

  const Words source;
  const DistributionF32 distribution;

  using Values = typename L::F32[Words::kRegisters];

  // In stream order.
  FASTINIT_HD void draw(uint64_t block, Values& values) const {
    typename L::U32 words[Words::kRegisters];
    source.draw(block, words);
    const uint64_t first = block * kBlockValues;
    const auto index_of = [first](int i, int lane) { return first + static_cast<uint64_t>(i * L::kWidth + lane); };
    distribution(words, index_of, values);
  }

  template <bool kStreaming, class Element>
  FASTINIT_HD void write_draw(uint64_t block, Element* out) const {
    Values values;
    if constexpr (sizeof(Element) == 1 && L::kLastRoundInPlace) {
      typename L::U32 words[Words::kRegisters];
      source.draw_unordered(block, words);
      const uint64_t first = block * kBlockValues;
      distribution(words, [first](int i, int lane) { return first + L::place_of(i, lane); }, values);
      L::template store_unordered<kStreaming>(values, out);
    } else {
      draw(block, values);
      FASTINIT_UNROLL
      for (int i = 0; i < Words::kRegisters; i += 2) {
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
  static constexpr bool kReadsElements = false;

  const WordSource<L> source;
  const DistributionF64 distribution;

  template <bool kStreaming>
  FASTINIT_HD void write_draw(uint64_t block, double* out) const {
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
      // As many as go into a draw.
      constexpr int kGroup = kDrawValues / D::kWidth % D::kTogether == 0 ? D::kTogether : D::kTogether - 1;
      static_assert(kDrawValues % (kGroup * D::kWidth) == 0, "a draw is so many groups");
      for (int i = 0; i < kDrawValues; i += kGroup * D::kWidth) {
        typename D::U64 group[kGroup];
        typename D::F64 values[kGroup];
        FASTINIT_UNROLL
        for (int k = 0; k < kGroup; ++k) group[k] = D::load(words + 2 * (i + k * D::kWidth));
        distribution(group, values);
        FASTINIT_UNROLL
        for (int k = 0; k < kGroup; ++k) D::store(values[k], out + i + k * D::kWidth);
      }
    }
  }
};

// Writes whole lines past the caches. Memory that is written through the caches is read first, which takes as long as
// making many values. Both addresses are aligned to kStreamAlignment.
template <class L>
FASTINIT_HD void copy_streaming(const void* from, size_t bytes, void* out) {
  constexpr size_t kLine = 64;
  const char* line = static_cast<const char*>(from);
  char* to = static_cast<char*>(out);
  for (; bytes >= kLine; bytes -= kLine, line += kLine, to += kLine) {
    FASTINIT_UNROLL
    for (size_t at = 0; at < kLine; at += sizeof(typename L::U32)) {
      typename L::U32 part;
      memcpy(&part, line + at, sizeof(part));
      L::template store<true>(part, to + at);
    }
  }
  memcpy(to, line, bytes);
}

// Writes what a source makes of values [index, index + count) to consecutive memory; streaming begins with a block. A
// function of its own: within its callers GCC spills registers to the stack, of which SSE2 has few (normals took a
// fifth longer). It draws at one place only, since a draw is most of the code that there is to compile.
template <bool kStreaming, class Source, class Element>
__attribute__((noinline)) void fill_consecutive(const Source& source, uint64_t index, int64_t count, Element* out) {
  constexpr int64_t kDrawValues = Source::kDrawValues;
  constexpr int64_t kDrawBlocks = kDrawValues / Source::kBlockValues;
  uint64_t block = index / Source::kBlockValues;
  if constexpr (kStreaming) {
    for (; count >= kDrawValues; count -= kDrawValues, block += kDrawBlocks, out += kDrawValues) {
      source.template write_draw<true>(block, out);
    }
    static_assert(!Source::kReadsElements, "what is read comes through the caches");
    if (count > 0) {
      alignas(64) Element part_of_draw[kDrawValues];
      fill_consecutive<false>(source, block * Source::kBlockValues, count, part_of_draw);
      copy_streaming<typename Source::Lanes>(part_of_draw, static_cast<size_t>(count) * sizeof(Element), out);
    }
    return;
  }
  int64_t skipped = static_cast<int64_t>(index % Source::kBlockValues);
  alignas(64) Element part_of_draw[kDrawValues];
  if constexpr (Source::kReadsElements) memset(static_cast<void*>(part_of_draw), 0, sizeof(part_of_draw));
  for (; count > 0; block += kDrawBlocks) {
    const int64_t wanted = count < kDrawValues - skipped ? count : kDrawValues - skipped;
    const size_t bytes = static_cast<size_t>(wanted) * sizeof(Element);
    const bool is_whole = wanted == kDrawValues;
    if constexpr (Source::kReadsElements) {
      if (!is_whole) memcpy(static_cast<void*>(part_of_draw + skipped), out, bytes);
    }
    source.template write_draw<false>(block, is_whole ? out : part_of_draw);
    if (!is_whole) memcpy(static_cast<void*>(out), part_of_draw + skipped, bytes);
    out += wanted;
    count -= wanted;
    skipped = 0;
  }
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
  // Doubles never stream, so no streaming code is compiled for them.
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
  constexpr int64_t kBufferValues = 1024 / Source::kDrawValues * Source::kDrawValues;
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
      const int64_t end_index = index + piece;
      for (int64_t at = diagonal.next(index); at < end_index;) {
        const int64_t last = diagonal.last_of_period(at);
        for (; at <= last && at < end_index; at += diagonal.step()) out[(at - index) * step] = value;
        at = diagonal.next(last + 1);
      }
    }
    cursor.advance(task.map, piece);
    begin += piece;
  }
}

// Calls work(distribution) with the one that a sampler in float stands for.
template <class L, class Work>
FASTINIT_HD void with_distribution_f32(const Sampler& sampler, const Stream& stream, const Work& work) {
  alignas(64) static constexpr QuantileHotRows kHot = quantile_hot_rows();
  if (sampler.kind == Distribution::kUniform) {
    work(UniformF32<L>(sampler, stream));
  } else if (sampler.kind == Distribution::kNormal) {
    work(NormalF32<L, HotQuantile<L>, /*kTruncated=*/false>(sampler, stream, HotQuantile<L>(kHot)));
  } else {
    work(NormalF32<L, HotQuantile<L>, /*kTruncated=*/true>(sampler, stream, HotQuantile<L>(kHot)));
  }
}

template <class L, class Element>
void fill_typed(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming) {
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
  } else {
    with_distribution_f32<L>(sampler, stream, [&](const auto& distribution) {
      constexpr int kCounters = sizeof(Element) == 1 ? L::kCountersOfBytes : L::kCounters;
      using Source = SourceF32<L, std::decay_t<decltype(distribution)>, kCounters>;
      const Source source{WordSource<L, kCounters>(stream), distribution};
      fill_elements<L, const Source, Element>(task, source, begin, end, streaming);
    });
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
