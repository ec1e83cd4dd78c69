// Four lanes in NEON registers of aarch64: the words of core/scalar_lanes.h. Included in neon.cpp only.
#pragma once

#include "core/distributions.h"
#include "core/rounding.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

struct NeonLanes {
  using Doubles = ScalarDoubles;
  using QuantileF64 = ScalarQuantileF64;

  static constexpr int kWidth = 4;

  // Four Philox words side by side. A product takes two registers, and two unzips take them apart.
  using Word = uint32x4_t;
  struct Wide {
    uint32x4_t lanes01, lanes23;  // low and high word of each product
  };
  using U32 = uint32x4_t;
  using F32 = float32x4_t;
  using Mask = uint32x4_t;  // all bits of a lane, or none

  static FASTINIT_HD Wide mul_wide(Word a, uint32_t b) {
    return {vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vdup_n_u32(b))),
            vreinterpretq_u32_u64(vmull_high_u32(a, vdupq_n_u32(b)))};
  }
  static FASTINIT_HD Word high(Wide a) { return vuzp2q_u32(a.lanes01, a.lanes23); }
  static FASTINIT_HD Word low(Wide a) { return vuzp1q_u32(a.lanes01, a.lanes23); }
  // See Avx2Lanes.
  static FASTINIT_HD Word xor3(Word a, Word b, Word c) {
    Word early = veorq_u32(b, c);
    asm("" : "+w"(early));
    return veorq_u32(a, early);
  }
  static FASTINIT_HD Word xor2(Word a, Word b) { return veorq_u32(a, b); }
  static FASTINIT_HD Word splat_word(uint32_t a) { return vdupq_n_u32(a); }
  static FASTINIT_HD void settle(Word (&words)[4]) {
    asm volatile("" : "+w"(words[0]), "+w"(words[1]), "+w"(words[2]), "+w"(words[3]));
  }

  static constexpr int kBlocksPerWord = 4;
  static constexpr int kRegistersPerWord = 4;
  static constexpr int kCounters = 2;
  static constexpr int kCountersOfBytes = kCounters;
  static FASTINIT_HD void count_blocks(uint64_t block, Word& low, Word& high) {
    const uint64x2_t first = vaddq_u64(vdupq_n_u64(block), vcombine_u64(vcreate_u64(0), vcreate_u64(1)));
    const uint32x4_t blocks01 = vreinterpretq_u32_u64(first);
    const uint32x4_t blocks23 = vreinterpretq_u32_u64(vaddq_u64(first, vdupq_n_u64(2)));
    low = vuzp1q_u32(blocks01, blocks23);
    high = vuzp2q_u32(blocks01, blocks23);
  }
  static constexpr bool kLastRoundInPlace = false;
  static FASTINIT_HD void interleave(const Word (&word)[4], U32* in_order) {
    transpose(word[0], word[1], word[2], word[3], in_order);
  }

  static FASTINIT_HD U32 splat(uint32_t a) { return vdupq_n_u32(a); }
  static FASTINIT_HD F32 splat(float a) { return vdupq_n_f32(a); }
  static FASTINIT_HD U32 bits(F32 a) { return vreinterpretq_u32_f32(a); }
  static FASTINIT_HD F32 from_bits(U32 a) { return vreinterpretq_f32_u32(a); }

  static FASTINIT_HD U32 bit_and(U32 a, U32 b) { return vandq_u32(a, b); }
  static FASTINIT_HD U32 bit_or(U32 a, U32 b) { return vorrq_u32(a, b); }
  static FASTINIT_HD U32 add(U32 a, U32 b) { return vaddq_u32(a, b); }
  template <uint32_t kMask, uint32_t kBits>
  static FASTINIT_HD U32 and_or(U32 a) {
    return bit_or(bit_and(a, splat(kMask)), splat(kBits));
  }
  template <int kBits>
  static FASTINIT_HD U32 shift_right(U32 a) {
    return vshrq_n_u32(a, kBits);
  }
  static FASTINIT_HD Mask less(U32 a, U32 b) { return vcltq_u32(a, b); }
  static FASTINIT_HD Mask top_bit_clear(U32 a) { return vcgezq_s32(vreinterpretq_s32_u32(a)); }
  static FASTINIT_HD U32 invert_unless(Mask keep, U32 a) { return veorq_u32(a, vmvnq_u32(keep)); }

  static FASTINIT_HD F32 from_signed(U32 a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
  static FASTINIT_HD F32 from_unsigned(U32 a) { return vcvtq_f32_u32(a); }
  static FASTINIT_HD F32 add(F32 a, F32 b) { return vaddq_f32(a, b); }
  static FASTINIT_HD F32 sub(F32 a, F32 b) { return vsubq_f32(a, b); }
  static FASTINIT_HD F32 mul(F32 a, F32 b) { return vmulq_f32(a, b); }
  static FASTINIT_HD F32 fma(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }
  static FASTINIT_HD F32 fma_of_exact(F32 a, F32 b, F32 c) { return fma(a, b, c); }
  // These order -0 before +0: see set_bounds in prepare.h.
  static FASTINIT_HD F32 min(F32 a, F32 b) { return vminq_f32(a, b); }
  static FASTINIT_HD F32 clamp(F32 a, F32 lower, F32 upper) { return vminq_f32(vmaxq_f32(a, lower), upper); }
  static FASTINIT_HD Mask less(F32 a, F32 b) { return vcltq_f32(a, b); }
  static FASTINIT_HD Mask is_nan(F32 a) { return vmvnq_u32(vceqq_f32(a, a)); }
  static FASTINIT_HD F32 select(Mask mask, F32 a, F32 b) { return vbslq_f32(mask, a, b); }
  static FASTINIT_HD F32 negate_if(Mask mask, F32 a) {
    return from_bits(veorq_u32(bits(a), vandq_u32(mask, splat(uint32_t{0x80000000}))));
  }
  static FASTINIT_HD bool any(Mask mask) { return vmaxvq_u32(mask) != 0; }

  static FASTINIT_HD bool test(Mask mask, int lane) { return get(mask, lane) != 0; }
  static FASTINIT_HD uint32_t get(U32 a, int lane) {
    uint32_t lanes[kWidth];
    vst1q_u32(lanes, a);
    return lanes[lane];
  }
  static FASTINIT_HD void set(F32& a, int lane, float value) {
    float lanes[kWidth];
    vst1q_f32(lanes, a);
    lanes[lane] = value;
    a = vld1q_f32(lanes);
  }

  // Four rows are loaded and transposed. A table of 128 bytes would take two look-ups of 64 a power, each of several
  // cycles, and byte indices.
  static constexpr int kRowsTogether = 4;
  struct HotRows {
    struct Row {
      F32 power[6];
    };
    const float* rows;  // [32][8]
    template <class Hot>
    FASTINIT_HD explicit HotRows(const Hot& hot) : rows(hot.row[0]) {}
    FASTINIT_HD Row find(U32 bits) const {
      const U32 place = vandq_u32(vshrq_n_u32(bits, 22), splat(uint32_t{31}));
      const float* const row0 = rows + 8 * size_t{vgetq_lane_u32(place, 0)};
      const float* const row1 = rows + 8 * size_t{vgetq_lane_u32(place, 1)};
      const float* const row2 = rows + 8 * size_t{vgetq_lane_u32(place, 2)};
      const float* const row3 = rows + 8 * size_t{vgetq_lane_u32(place, 3)};
      U32 first[4];
      transpose(bits_at(row0), bits_at(row1), bits_at(row2), bits_at(row3), first);
      const F32 last01 = vcombine_f32(vld1_f32(row0 + 4), vld1_f32(row1 + 4));
      const F32 last23 = vcombine_f32(vld1_f32(row2 + 4), vld1_f32(row3 + 4));
      return {{from_bits(first[0]), from_bits(first[1]), from_bits(first[2]), from_bits(first[3]),
               vuzp1q_f32(last01, last23), vuzp2q_f32(last01, last23)}};
    }
    FASTINIT_HD F32 power(int power, const Row& row) const { return row.power[power]; }
  };

  // A pair of registers to memory, rounded to its type. There is no store past the caches among the intrinsics.
  static constexpr int kStreamAlignment = 16;
  static FASTINIT_HD F32 load(const float* from) { return vld1q_f32(from); }
  template <bool kStreaming>
  static FASTINIT_HD void store(U32 values, void* out) {
    memcpy(out, &values, sizeof(values));
  }
  // A value at a time, for types that have no conversion of four.
  template <bool kStreaming, class Element>
  static FASTINIT_HD void store_pair(F32 first, F32 second, Element* out) {
    float values[2 * kWidth];
    vst1q_f32(values, first);
    vst1q_f32(values + kWidth, second);
    for (int i = 0; i < 2 * kWidth; ++i) round_to(values[i], out[i]);
  }
  template <bool kStreaming>
  static FASTINIT_HD void store_pair(F32 first, F32 second, float* out) {
    vst1q_f32(out, first);
    vst1q_f32(out + kWidth, second);
  }
  template <bool kStreaming>
  static FASTINIT_HD void store_pair(F32 first, F32 second, Bfloat16* out) {
    const uint16x8_t low = vreinterpretq_u16_u32(bfloat16_in_upper_half<NeonLanes>(first));
    const uint16x8_t high = vreinterpretq_u16_u32(bfloat16_in_upper_half<NeonLanes>(second));
    vst1q_u16(&out->bits, vuzp2q_u16(low, high));
  }
  template <bool kStreaming>
  static FASTINIT_HD void store_pair(F32 first, F32 second, Float16* out) {
    const float16x8_t rounded = vcombine_f16(vcvt_f16_f32(first), vcvt_f16_f32(second));
    vst1q_u16(&out->bits, vreinterpretq_u16_f16(rounded));
  }

 private:
  static FASTINIT_HD U32 bits_at(const float* from) { return vreinterpretq_u32_f32(vld1q_f32(from)); }

  static FASTINIT_HD void transpose(U32 row0, U32 row1, U32 row2, U32 row3, U32* column) {
    const uint64x2_t even01 = vreinterpretq_u64_u32(vtrn1q_u32(row0, row1));
    const uint64x2_t odd01 = vreinterpretq_u64_u32(vtrn2q_u32(row0, row1));
    const uint64x2_t even23 = vreinterpretq_u64_u32(vtrn1q_u32(row2, row3));
    const uint64x2_t odd23 = vreinterpretq_u64_u32(vtrn2q_u32(row2, row3));
    column[0] = vreinterpretq_u32_u64(vtrn1q_u64(even01, even23));
    column[1] = vreinterpretq_u32_u64(vtrn1q_u64(odd01, odd23));
    column[2] = vreinterpretq_u32_u64(vtrn2q_u64(even01, even23));
    column[3] = vreinterpretq_u32_u64(vtrn2q_u64(odd01, odd23));
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
