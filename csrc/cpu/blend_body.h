// Blending (core/blend.h) in the registers that the values are made in, written once on lanes as fill_body.h is: for
// float32 in rows that are consecutive in memory. Through a buffer, as combine.cpp does all else, the elements would
// come from memory in bursts, while nothing is computed.
#pragma once

#include "core/blend.h"
#include "fill_body.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

template <class L, class Source>
struct BlendedSource {
  static constexpr int kBlockValues = Source::kBlockValues;
  static constexpr int kDrawValues = Source::kDrawValues;
  static constexpr bool kReadsElements = true;

  const Source source;
  const typename L::F32 keep, scale;

  template <bool kStreaming>
  FASTINIT_HD void write_draw(uint64_t block, float* elements) const {
    typename Source::Values values;
    source.draw(block, values);
    FASTINIT_UNROLL
    for (int i = 0; i < kDrawValues / L::kWidth; i += 2) {
      float* const pair = elements + i * L::kWidth;
      const typename L::F32 first = blend(L::load(pair), values[i]);
      const typename L::F32 second = blend(L::load(pair + L::kWidth), values[i + 1]);
      L::template store_pair<kStreaming>(first, second, pair);
    }
  }

 private:
  // Equal to blended(), to the bit.
  FASTINIT_HD typename L::F32 blend(typename L::F32 old, typename L::F32 value) const {
    const typename L::F32 sum = L::add(L::mul(keep, old), L::mul(scale, value));
    return L::select(L::is_nan(sum), L::from_bits(L::splat(uint32_t{0x7FC00000})), sum);
  }
};

// Local elements [begin, end) of a task of float32, in rows whose elements are consecutive in memory.
template <class L>
void blend_range(const Task& task, const Stream& stream, int64_t begin, int64_t end, float keep, float scale) {
  const IndexMap& map = task.map;
  with_distribution_f32<L>(task.sampler, stream, [&](const auto& distribution) {
    using Source = SourceF32<L, std::decay_t<decltype(distribution)>>;
    const BlendedSource<L, Source> source{{WordSource<L>(stream), distribution}, L::splat(keep), L::splat(scale)};
    Cursor cursor(map, begin);
    for (int64_t at = begin; at < end;) {
      const int64_t piece = cursor.left_in_row(map, end - at);
      float* const elements = reinterpret_cast<float*>(task.data) + cursor.memory_offset(map);
      fill_consecutive<false>(source, static_cast<uint64_t>(cursor.global_index(map)), piece, elements);
      cursor.advance(map, piece);
      at += piece;
    }
  });
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
