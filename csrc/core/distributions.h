// From words to values: uniform, normal and truncated normal, each with a fixed number of words a value.
//
// float: one word. double: two words, the first the lower half of 64 bits. Values are samples in that precision,
// within the bounds; rounding to the storage type comes after.
#pragma once

#include "quantile.h"
#include "task.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

// Uniform on [low, high], both ends included. The word with its lowest bit set, read as a signed integer, is an odd
// t in (-2^31, 2^31), t and -t equally likely: center + (t * 2^-31) * (high - low) / 2 is symmetric, in 2^31 steps.
template <class L>
class UniformF32 {
 public:
  FASTINIT_HD UniformF32(const Sampler& sampler, const Stream&)
      : scale_(L::splat(static_cast<float>(sampler.scale))),
        center_(L::splat(static_cast<float>(sampler.center))),
        lower_(L::splat(static_cast<float>(sampler.lower))),
        upper_(L::splat(static_cast<float>(sampler.upper))) {}

  template <int kGroup>
  FASTINIT_HD void operator()(const typename L::U32 (&words)[kGroup], uint64_t /*index*/,
                              typename L::F32 (&x)[kGroup]) const {
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const typename L::F32 t = L::from_signed(L::bit_or(words[i], L::splat(uint32_t{1})));
      x[i] = L::clamp(L::fma(L::mul(t, L::splat(0x1p-31f)), scale_, center_), lower_, upper_);
    }
  }

 private:
  typename L::F32 scale_, center_, lower_, upper_;
};

// Normal, truncated or not, by the inverse CDF. Words below a threshold fall below the mean. A word's distance d from
// its end of the range (0, or 2^32 - 1) says how far out the value lies: the tail probability is
// p = (mass beyond the bound) + (d + 1/2) * 2^-32 * (mass between the bounds), and the value is scale * Q^-1(p).
// Where p < kQuantileHot a 32-bit d would be coarse: a second word of the stream continues it to 64 bits.
template <class L>
class NormalF32 {
 public:
  FASTINIT_HD NormalF32(const Sampler& sampler, const Stream& stream, const QuantileHotRows& hot)
      : quantile_(hot),
        negative_below_(L::splat(static_cast<uint32_t>(sampler.negative_below >> 32))),
        slope_(L::splat(static_cast<float>(sampler.mass * 0x1p-32))),
        offset_negative_(L::splat(static_cast<float>(sampler.below_lower + sampler.mass * 0x1p-33))),
        offset_positive_(L::splat(static_cast<float>(sampler.above_upper + sampler.mass * 0x1p-33))),
        scale_(L::splat(static_cast<float>(sampler.scale))),
        center_(L::splat(static_cast<float>(sampler.center))),
        lower_(L::splat(static_cast<float>(sampler.lower))),
        upper_(L::splat(static_cast<float>(sampler.upper))),
        tail_{stream, static_cast<float>(sampler.mass * 0x1p-64), static_cast<float>(sampler.below_lower),
              static_cast<float>(sampler.above_upper)} {}

  // A group of registers of words, the first being that of value `index`, to values.
  template <int kGroup>
  FASTINIT_HD void operator()(const typename L::U32 (&words)[kGroup], uint64_t index,
                              typename L::F32 (&x)[kGroup]) const {
    typename L::Mask negative[kGroup];
    typename L::U32 distance[kGroup];
    typename L::F32 p[kGroup];
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      negative[i] = L::less(words[i], negative_below_);
      distance[i] = L::invert_unless(negative[i], words[i]);
      p[i] = L::fma(L::from_unsigned(distance[i]), slope_, L::select(negative[i], offset_negative_, offset_positive_));
    }
    quantile_(p, x);
    typename L::F32 least = p[0];
    FASTINIT_UNROLL
    for (int i = 1; i < kGroup; ++i) least = L::min(least, p[i]);
    if (__builtin_expect(L::any(L::less(least, L::splat(kQuantileHot))), 0)) {
      for (int i = 0; i < kGroup; ++i) {
        const typename L::Mask in_tail = L::less(p[i], L::splat(kQuantileHot));
        if (L::any(in_tail)) x[i] = tail_.resample(x[i], in_tail, negative[i], distance[i], index + i * L::kWidth);
      }
    }
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      x[i] = L::clamp(L::fma(L::negate_if(negative[i], x[i]), scale_, center_), lower_, upper_);
    }
  }

 private:
  struct Tail {
    Stream stream;
    float slope, below_lower, above_upper;

    FASTINIT_HD float quantile(bool negative, uint32_t distance, uint64_t index) const {
      const uint64_t distance64 = static_cast<uint64_t>(distance) << 32 | tail_word(stream, index) | 1;
      const float p = exact_fma(static_cast<float>(distance64), slope, negative ? below_lower : above_upper);
      return normal_quantile(p > kQuantileLeast ? p : kQuantileLeast);
    }

    // Lane by lane: about one register in 700 of a 16-lane kind comes here.
    FASTINIT_COLD typename L::F32 resample(typename L::F32 x, typename L::Mask in_tail, typename L::Mask negative,
                                           typename L::U32 distance, uint64_t index) const {
      for (int lane = 0; lane < L::kWidth; ++lane) {
        if (!L::test(in_tail, lane)) continue;
        const float value = quantile(L::test(negative, lane), L::get(distance, lane), index + lane);
        L::set(x, lane, value);
      }
      return x;
    }
  };

  HotQuantile<L> quantile_;
  typename L::U32 negative_below_;
  typename L::F32 slope_, offset_negative_, offset_positive_, scale_, center_, lower_, upper_;
  Tail tail_;
};

// The same two in double, a value at a time, with separate products and sums.

FASTINIT_HD double clamp(double x, double lower, double upper) {
  const double raised = x > lower ? x : lower;
  return raised < upper ? raised : upper;
}

class UniformF64 {
 public:
  FASTINIT_HD UniformF64(const Sampler& sampler, const Stream&)
      : scale_(sampler.scale), center_(sampler.center), lower_(sampler.lower), upper_(sampler.upper) {}

  FASTINIT_HD double operator()(uint64_t word) const {
    const double t = static_cast<double>(static_cast<int64_t>(word | 1));
    return clamp(t * 0x1p-63 * scale_ + center_, lower_, upper_);
  }

 private:
  double scale_, center_, lower_, upper_;
};

class NormalF64 {
 public:
  FASTINIT_HD NormalF64(const Sampler& sampler, const Stream&)
      : negative_below_(sampler.negative_below),
        slope_(sampler.mass * 0x1p-64),
        offset_negative_(sampler.below_lower + sampler.mass * 0x1p-65),
        offset_positive_(sampler.above_upper + sampler.mass * 0x1p-65),
        scale_(sampler.scale),
        center_(sampler.center),
        lower_(sampler.lower),
        upper_(sampler.upper) {}

  FASTINIT_HD double operator()(uint64_t word) const {
    const bool negative = word < negative_below_;
    const uint64_t distance = negative ? word : ~word;
    const double p = static_cast<double>(distance) * slope_ + (negative ? offset_negative_ : offset_positive_);
    const double least = kQuantileLeast;
    const double x = normal_quantile(p > least ? p : least);
    return clamp((negative ? -x : x) * scale_ + center_, lower_, upper_);
  }

 private:
  uint64_t negative_below_;
  double slope_, offset_negative_, offset_positive_, scale_, center_, lower_, upper_;
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
