// From words to values: uniform, normal and truncated normal, each with a fixed number of words a value.
//
// float: one word. double: two words, the first the lower half of 64 bits. Values are samples in that precision,
// within the bounds; rounding to the storage type comes after.
#pragma once

#include <type_traits>

#include "quantile.h"
#include "stream.h"
#include "task.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

// slope * x + offset, rounded once. For x of zero or at least 2^-50, and at most 2^4, in size; if `step` is not zero,
// multiples of it, and at most 1. Lanes without fma have their own (cpu/line_without_fma.h).
template <class L>
class Line {
 public:
  FASTINIT_HD Line(float slope, float offset, float /*step*/) : slope_(L::splat(slope)), offset_(L::splat(offset)) {}
  FASTINIT_HD typename L::F32 operator()(typename L::F32 x) const { return L::fma(x, slope_, offset_); }

 private:
  typename L::F32 slope_, offset_;
};

// Uniform on [low, high], both ends included. The word with its lowest bit set, read as a signed integer, is an odd
// t in (-2^31, 2^31), t and -t equally likely: center + (t * 2^-31) * (high - low) / 2 is symmetric, in 2^31 steps.
template <class L>
class UniformF32 {
 public:
  FASTINIT_HD UniformF32(const Sampler& sampler, const Stream&)
      : line_(static_cast<float>(sampler.scale), static_cast<float>(sampler.center), /*step=*/0x1p-31f),
        lower_(L::splat(static_cast<float>(sampler.lower))),
        upper_(L::splat(static_cast<float>(sampler.upper))) {}

  template <int kGroup, class IndexOf>
  FASTINIT_HD void operator()(const typename L::U32 (&words)[kGroup], const IndexOf&,
                              typename L::F32 (&x)[kGroup]) const {
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const typename L::F32 t = L::from_signed(L::bit_or(words[i], L::splat(uint32_t{1})));
      x[i] = L::clamp(line_(L::mul(t, L::splat(0x1p-31f))), lower_, upper_);
    }
  }

 private:
  Line<L> line_;
  typename L::F32 lower_, upper_;
};

// Normal, truncated or not, by the inverse CDF. Words below a threshold fall below the mean. A word's distance d from
// its end of the range (0, or 2^32 - 1) says how far out the value lies: the tail probability is
// p = (mass beyond the bound) + (d + 1/2) * 2^-32 * (mass between the bounds), and the value is scale * Q^-1(p).
// Where p < kQuantileHot a 32-bit d would be coarse: a second word of the stream continues it to 64 bits.
//
// HotQuantile gives Q^-1 of a group where p >= kQuantileHot, from the hot rows in whatever memory is the fastest.
template <class L, class HotQuantile, bool kTruncated>
class NormalF32 {
 public:
  FASTINIT_HD NormalF32(const Sampler& sampler, const Stream& stream, const HotQuantile& hot_quantile)
      : hot_quantile_(hot_quantile),
        mass_(sampler),
        line_(static_cast<float>(sampler.scale), static_cast<float>(sampler.center), /*step=*/0.0f),
        stream_(stream) {}

  // A group of registers of words to values; index_of(i, lane) is the index of a value of register i.
  template <int kGroup, class IndexOf>
  FASTINIT_DEVICE void operator()(const typename L::U32 (&words)[kGroup], const IndexOf& index_of,
                                  typename L::F32 (&x)[kGroup]) const {
    typename L::Mask negative[kGroup];
    typename L::U32 distance[kGroup];
    typename L::F32 p[kGroup];
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      negative[i] = mass_.negative(words[i]);
      distance[i] = L::invert_unless(negative[i], words[i]);
      p[i] = mass_.probability(distance[i], negative[i]);
    }
    hot_quantile_(p, x);
    typename L::F32 least = p[0];
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      x[i] = L::negate_if(negative[i], x[i]);
      least = L::min(least, p[i]);
    }
    if (__builtin_expect(L::any(L::less(least, L::splat(kQuantileHot))), 0)) resample_tail(p, words, index_of, x);
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) x[i] = mass_.clamp(line_(x[i]));
  }

 private:
  // Without bounds: the numbers are the same for all normals, and both sides are alike.
  struct WholeMass {
    FASTINIT_HD explicit WholeMass(const Sampler&) {}
    FASTINIT_HD typename L::Mask negative(typename L::U32 words) const { return L::top_bit_clear(words); }
    FASTINIT_HD bool is_negative(uint32_t word) const { return word >> 31 == 0; }
    // Half of the words at most lie on either side, so the distance reads the same with a sign.
    FASTINIT_HD typename L::F32 probability(typename L::U32 distance, typename L::Mask) const {
      return L::fma_of_exact(L::from_signed(distance), L::splat(0x1p-32f), L::splat(0x1p-33f));
    }
    FASTINIT_HD typename L::F32 clamp(typename L::F32 x) const { return x; }
    FASTINIT_HD float tail_slope() const { return 0x1p-64f; }
    FASTINIT_HD float beyond(bool /*negative*/) const { return 0.0f; }
  };

  struct BoundedMass {
    FASTINIT_HD explicit BoundedMass(const Sampler& sampler)
        : negative_below_(L::splat(static_cast<uint32_t>(sampler.negative_below >> 32))),
          slope_(L::splat(static_cast<float>(sampler.mass * 0x1p-32))),
          offset_negative_(L::splat(static_cast<float>(sampler.below_lower + sampler.mass * 0x1p-33))),
          offset_positive_(L::splat(static_cast<float>(sampler.above_upper + sampler.mass * 0x1p-33))),
          lower_(L::splat(static_cast<float>(sampler.lower))),
          upper_(L::splat(static_cast<float>(sampler.upper))),
          sampler_(sampler) {}
    FASTINIT_HD typename L::Mask negative(typename L::U32 words) const { return L::less(words, negative_below_); }
    FASTINIT_HD bool is_negative(uint32_t word) const { return word < L::get(negative_below_, 0); }
    FASTINIT_HD typename L::F32 probability(typename L::U32 distance, typename L::Mask negative) const {
      return L::fma(L::from_unsigned(distance), slope_, L::select(negative, offset_negative_, offset_positive_));
    }
    FASTINIT_HD typename L::F32 clamp(typename L::F32 x) const { return L::clamp(x, lower_, upper_); }
    FASTINIT_HD float tail_slope() const { return static_cast<float>(sampler_.mass * 0x1p-64); }
    FASTINIT_HD float beyond(bool negative) const {
      return static_cast<float>(negative ? sampler_.below_lower : sampler_.above_upper);
    }

   private:
    typename L::U32 negative_below_;
    typename L::F32 slope_, offset_negative_, offset_positive_, lower_, upper_;
    const Sampler& sampler_;  // outlives this; read again where it is rare, which spares registers
  };

  // The value, in units of sigma, of an element whose word lies in the tail. `index` is the element's.
  FASTINIT_DEVICE float tail_value(uint32_t word, uint64_t index) const {
    const bool negative = mass_.is_negative(word);
    const uint32_t distance = negative ? word : ~word;
    const uint64_t distance64 = static_cast<uint64_t>(distance) << 32 | tail_word(stream_, index) | 1;
    const float p = exact_fma(static_cast<float>(distance64), mass_.tail_slope(), mass_.beyond(negative));
    const float x = normal_quantile(p > kQuantileLeast ? p : kQuantileLeast);
    return negative ? -x : x;
  }

  // Samples again the values of a group that lie in the tail, one after the other. One value in 43 691 does.
  template <int kGroup, class IndexOf>
  FASTINIT_DEVICE void resample_tail(const typename L::F32 (&p)[kGroup], const typename L::U32 (&words)[kGroup],
                                     const IndexOf& index_of, typename L::F32 (&x)[kGroup]) const {
    if constexpr (L::kWidth == 1) {
      // A GPU's thread keeps all of this in registers. So no array may be indexed by a variable, and the word is drawn
      // again rather than kept.
      static_assert(kGroup < 32, "a group's marks fit a word, and end");
      uint32_t in_tail = 0;
      FASTINIT_UNROLL
      for (int i = 0; i < kGroup; ++i) in_tail |= static_cast<uint32_t>(p[i] < kQuantileHot) << i;
      FASTINIT_ROLL
      for (int found = 0; in_tail >> found != 0; ++found) {
        if ((in_tail >> found & 1) == 0) continue;
        const uint64_t index = index_of(found, 0);
        const float value = tail_value(word_at(stream_, index), index);
        FASTINIT_UNROLL
        for (int i = 0; i < kGroup; ++i) x[i] = i == found ? value : x[i];
      }
    } else {
      for (int i = 0; i < kGroup; ++i) {
        const typename L::Mask in_tail = L::less(p[i], L::splat(kQuantileHot));
        if (L::any(in_tail)) {
          x[i] = resample_lanes(x[i], in_tail, words[i], [&](int lane) { return index_of(i, lane); });
        }
      }
    }
  }

  template <class IndexOf>
  FASTINIT_COLD typename L::F32 resample_lanes(typename L::F32 x, typename L::Mask in_tail, typename L::U32 words,
                                               const IndexOf& index_of) const {
    for (int lane = 0; lane < L::kWidth; ++lane) {
      if (L::test(in_tail, lane)) L::set(x, lane, tail_value(L::get(words, lane), index_of(lane)));
    }
    return x;
  }

  HotQuantile hot_quantile_;
  std::conditional_t<kTruncated, BoundedMass, WholeMass> mass_;
  Line<L> line_;
  Stream stream_;
};

// The same two in double, with separate products and sums, on the words of ScalarDoubles.

template <class D>
FASTINIT_HD typename D::F64 clamp(typename D::F64 x, typename D::F64 lower, typename D::F64 upper) {
  return D::min(D::max(x, lower), upper);
}

template <class D>
class UniformDoubles {
 public:
  using Doubles = D;

  FASTINIT_HD UniformDoubles(const Sampler& sampler, const Stream&)
      : scale_(D::splat(sampler.scale)),
        center_(D::splat(sampler.center)),
        lower_(D::splat(sampler.lower)),
        upper_(D::splat(sampler.upper)) {}

  template <int kGroup>
  FASTINIT_HD void operator()(const typename D::U64 (&words)[kGroup], typename D::F64 (&x)[kGroup]) const {
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) x[i] = (*this)(words[i]);
  }

  FASTINIT_HD typename D::F64 operator()(typename D::U64 word) const {
    const typename D::F64 t = D::mul(D::from_signed(D::bit_or(word, D::splat(uint64_t{1}))), D::splat(0x1p-63));
    return clamp<D>(D::add(D::mul(t, scale_), center_), lower_, upper_);
  }

 private:
  typename D::F64 scale_, center_, lower_, upper_;
};

// Quantile gives Q^-1 of p in [2^-66, 0.75), from the table in whatever order is the fastest to read.
template <class D, class Quantile>
class NormalDoubles {
 public:
  using Doubles = D;

  FASTINIT_HD NormalDoubles(const Sampler& sampler, const Stream&)
      : negative_below_(D::splat(sampler.negative_below)),
        slope_(D::splat(sampler.mass * 0x1p-64)),
        offset_negative_(D::splat(sampler.below_lower + sampler.mass * 0x1p-65)),
        offset_positive_(D::splat(sampler.above_upper + sampler.mass * 0x1p-65)),
        scale_(D::splat(sampler.scale)),
        center_(D::splat(sampler.center)),
        lower_(D::splat(sampler.lower)),
        upper_(D::splat(sampler.upper)) {}

  FASTINIT_DEVICE typename D::F64 operator()(typename D::U64 word) const {
    const typename D::U64 words[1] = {word};
    typename D::F64 x[1];
    (*this)(words, x);
    return x[0];
  }

  template <int kGroup>
  FASTINIT_DEVICE void operator()(const typename D::U64 (&words)[kGroup], typename D::F64 (&x)[kGroup]) const {
    typename D::Mask negative[kGroup];
    typename D::F64 p[kGroup];
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      negative[i] = D::less(words[i], negative_below_);
      const typename D::F64 distance = D::from_unsigned(D::invert_unless(negative[i], words[i]));
      const typename D::F64 offset = D::select(negative[i], offset_negative_, offset_positive_);
      p[i] = D::max(D::add(D::mul(distance, slope_), offset), D::splat(double{kQuantileLeast}));
    }
    Quantile::at(p, x);
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      x[i] = clamp<D>(D::add(D::mul(D::negate_if(negative[i], x[i]), scale_), center_), lower_, upper_);
    }
  }

 private:
  typename D::U64 negative_below_;
  typename D::F64 slope_, offset_negative_, offset_positive_, scale_, center_, lower_, upper_;
};

struct ScalarQuantileF64 {
  template <int kGroup>
  static FASTINIT_DEVICE void at(const double (&p)[kGroup], double (&x)[kGroup]) {
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) x[i] = normal_quantile(p[i]);
  }
};

using UniformF64 = UniformDoubles<ScalarDoubles>;
using NormalF64 = NormalDoubles<ScalarDoubles, ScalarQuantileF64>;

}  // namespace FASTINIT_ISA
}  // namespace fastinit
