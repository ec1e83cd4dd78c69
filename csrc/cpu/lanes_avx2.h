// Eight lanes in AVX2 registers, with FMA and F16C: the words of core/scalar_lanes.h. Included inside a target region
// (target.h) only.
#pragma once

#include "core/philox.h"
#include "core/rounding.h"
#include "doubles_avx2.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

struct Avx2Lanes {
  using Doubles = Avx2Doubles;
  using QuantileF64 = Avx2QuantileF64;

  static constexpr int kWidth = 8;

  // Four Philox words, each in the low half of a 64-bit lane; the high half holds anything (see Avx512Lanes).
  using Word = __m256i;
  using Wide = __m256i;
  using U32 = __m256i;
  using F32 = __m256;
  using Mask = __m256;  // all bits of a lane, or none

  static FASTINIT_HD Wide mul_wide(Word a, uint32_t b) { return _mm256_mul_epu32(a, splat_word(b)); }
  static FASTINIT_HD Word high(Wide a) { return _mm256_shuffle_epi32(a, 0xF5); }
  static FASTINIT_HD Word low(Wide a) { return a; }
  // The high word comes last in a round: whatever else there is to do is done before it is there. (The empty assembly
  // keeps GCC from another order of the sum.)
  static FASTINIT_HD Word xor3(Word a, Word b, Word c) {
    Word early = _mm256_xor_si256(b, c);
    asm("" : "+x"(early));
    return _mm256_xor_si256(a, early);
  }
  static FASTINIT_HD Word xor2(Word a, Word b) { return _mm256_xor_si256(a, b); }
  static FASTINIT_HD Word splat_word(uint32_t a) { return _mm256_set1_epi64x(a); }
  static FASTINIT_HD void settle(Word (&words)[4]) {
    asm volatile("" : "+x"(words[0]), "+x"(words[1]), "+x"(words[2]), "+x"(words[3]));
  }

  static constexpr int kBlocksPerWord = 4;
  static constexpr int kRegistersPerWord = 2;
  static constexpr int kCounters = 3;  // 12 of the 16 registers
  static constexpr int kCountersOfBytes = 2;
  static FASTINIT_HD void count_blocks(uint64_t block, Word& low, Word& high) {
    low = _mm256_add_epi64(_mm256_set1_epi64x(static_cast<long long>(block)), _mm256_setr_epi64x(0, 2, 1, 3));
    high = _mm256_srli_epi64(low, 32);
  }
  static FASTINIT_HD void interleave(const Word (&word)[4], U32* in_order) {
    const __m256i pair01 = _mm256_blend_epi32(word[0], _mm256_shuffle_epi32(word[1], 0xA0), 0xAA);
    const __m256i pair23 = _mm256_blend_epi32(word[2], _mm256_shuffle_epi32(word[3], 0xA0), 0xAA);
    in_order[0] = _mm256_unpacklo_epi64(pair01, pair23);
    in_order[1] = _mm256_unpackhi_epi64(pair01, pair23);
  }

  // A product's low half is one of the words, and its high half becomes the other one where it lies: words 1 and 0 of
  // every block, 3 and 2 in the second register. `key` is what high_half makes of the last round's.
  static constexpr bool kLastRoundInPlace = true;
  static FASTINIT_HD Word high_half(Word key) { return _mm256_slli_epi64(key, 32); }
  static FASTINIT_HD void last_round(const Word (&counter)[4], const Word (&key)[2], U32* pairs) {
    const Wide product0 = mul_wide(counter[0], kPhiloxMultiplier0);
    const Wide product1 = mul_wide(counter[2], kPhiloxMultiplier1);
    pairs[0] = xor3(product1, _mm256_slli_epi64(counter[1], 32), key[0]);
    pairs[1] = xor3(product0, _mm256_slli_epi64(counter[3], 32), key[1]);
  }
  static FASTINIT_HD void interleave_pairs(const U32 (&pairs)[2], U32* in_order) {
    in_order[0] = bits(_mm256_shuffle_ps(from_bits(pairs[0]), from_bits(pairs[1]), 0x11));
    in_order[1] = bits(_mm256_shuffle_ps(from_bits(pairs[0]), from_bits(pairs[1]), 0xBB));
  }

  // A draw that 8-bit floats are made of. Their bytes are shuffled at the end anyhow, so it costs nothing that their
  // words lie in another order, in which no shuffle is needed before: register i holds words 1 and 0 (or 3 and 2, if i
  // is odd) of two blocks in either half, the blocks of the upper half being the last four of the eight.
  static FASTINIT_HD void count_blocks_unordered(uint64_t block, int counter, Word& low, Word& high) {
    const uint64_t first = block + 2 * static_cast<uint64_t>(counter);
    low = _mm256_add_epi64(_mm256_set1_epi64x(static_cast<long long>(first)), _mm256_setr_epi64x(0, 1, 4, 5));
    high = _mm256_srli_epi64(low, 32);
  }
  static FASTINIT_HD uint64_t place_of(int i, int lane) {
    const int block = lane / 4 * 4 + i / 2 * 2 + lane / 2 % 2;
    return static_cast<uint64_t>(block * 4 + i % 2 * 2 + 1 - lane % 2);
  }

  static FASTINIT_HD U32 splat(uint32_t a) { return _mm256_set1_epi32(static_cast<int>(a)); }
  static FASTINIT_HD F32 splat(float a) { return _mm256_set1_ps(a); }
  static FASTINIT_HD U32 bits(F32 a) { return _mm256_castps_si256(a); }
  static FASTINIT_HD F32 from_bits(U32 a) { return _mm256_castsi256_ps(a); }

  static FASTINIT_HD U32 bit_and(U32 a, U32 b) { return _mm256_and_si256(a, b); }
  static FASTINIT_HD U32 bit_or(U32 a, U32 b) { return _mm256_or_si256(a, b); }
  static FASTINIT_HD U32 add(U32 a, U32 b) { return _mm256_add_epi32(a, b); }
  static FASTINIT_HD U32 sub(U32 a, U32 b) { return _mm256_sub_epi32(a, b); }
  template <uint32_t kMask, uint32_t kBits>
  static FASTINIT_HD U32 and_or(U32 a) {
    return bit_or(bit_and(a, splat(kMask)), splat(kBits));
  }
  template <int kBits>
  static FASTINIT_HD U32 shift_right(U32 a) {
    return _mm256_srli_epi32(a, kBits);
  }
  // Only a signed comparison exists: flipping the top bits carries the order over.
  static FASTINIT_HD Mask less(U32 a, U32 b) {
    const __m256i top = splat(uint32_t{0x80000000});
    return from_bits(_mm256_cmpgt_epi32(_mm256_xor_si256(b, top), _mm256_xor_si256(a, top)));
  }
  static FASTINIT_HD Mask top_bit_clear(U32 a) { return from_bits(_mm256_cmpgt_epi32(a, splat(~uint32_t{0}))); }
  static FASTINIT_HD U32 invert_unless(Mask keep, U32 a) {
    return _mm256_xor_si256(a, _mm256_xor_si256(bits(keep), splat(~uint32_t{0})));
  }

  static FASTINIT_HD F32 from_signed(U32 a) { return _mm256_cvtepi32_ps(a); }
  // Both halves convert exactly, and the fma rounds their sum once.
  static FASTINIT_HD F32 from_unsigned(U32 a) {
    const F32 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(a, 16));
    const F32 low = _mm256_cvtepi32_ps(bit_and(a, splat(uint32_t{0xFFFF})));
    return _mm256_fmadd_ps(high, splat(65536.0f), low);
  }
  static FASTINIT_HD F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
  static FASTINIT_HD F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
  static FASTINIT_HD F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
  static FASTINIT_HD F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
  static FASTINIT_HD F32 fma_of_exact(F32 a, F32 b, F32 c) { return fma(a, b, c); }
  static FASTINIT_HD F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
  static FASTINIT_HD F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
  static FASTINIT_HD F32 clamp(F32 a, F32 lower, F32 upper) { return _mm256_min_ps(_mm256_max_ps(a, lower), upper); }
  static FASTINIT_HD Mask less(F32 a, F32 b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static FASTINIT_HD Mask is_nan(F32 a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
  static FASTINIT_HD F32 select(Mask mask, F32 a, F32 b) { return _mm256_blendv_ps(b, a, mask); }
  static FASTINIT_HD F32 negate_if(Mask mask, F32 a) {
    return _mm256_xor_ps(a, _mm256_and_ps(mask, from_bits(splat(uint32_t{0x80000000}))));
  }
  static FASTINIT_HD bool any(Mask mask) { return _mm256_movemask_ps(mask) != 0; }

  static FASTINIT_HD bool test(Mask mask, int lane) { return _mm256_movemask_ps(mask) >> lane & 1; }
  static FASTINIT_HD uint32_t get(U32 a, int lane) {
    alignas(32) uint32_t lanes[kWidth];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), a);
    return lanes[lane];
  }
  static FASTINIT_HD void set(F32& a, int lane, float value) {
    alignas(32) float lanes[kWidth];
    _mm256_store_ps(lanes, a);
    lanes[lane] = value;
    a = _mm256_load_ps(lanes);
  }

  // Eight rows are loaded and transposed. Permutes of eight entries, 24 for all powers, take twice the time where a
  // permute across the halves is one instruction, and seven times where it is several (AMD's first Zen).
  static constexpr int kRowsTogether = 2;  // their 12 registers of powers leave room for z and the sums
  struct HotRows {
    struct Row {
      F32 power[6];
    };
    const float* rows;  // [32][8]
    template <class Hot>
    FASTINIT_HD explicit HotRows(const Hot& hot) : rows(hot.row[0]) {}
    FASTINIT_HD Row find(U32 bits) const {
      // The place of a row in floats, 8 (bits >> 22 & 31).
      alignas(32) uint64_t places[4];
      _mm256_store_si256(reinterpret_cast<__m256i*>(places), bit_and(shift_right<19>(bits), splat(uint32_t{0xF8})));
      const float* row[kWidth];
      FASTINIT_UNROLL
      for (int i = 0; i < 4; ++i) {
        row[2 * i] = rows + static_cast<uint32_t>(places[i]);
        row[2 * i + 1] = rows + (places[i] >> 32);
      }
      const auto four = [&](int lane) {
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(row[lane])), _mm_load_ps(row[lane + 4]), 1);
      };
      const __m256 row0 = four(0), row1 = four(1), row2 = four(2), row3 = four(3);
      const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(row0, row1));
      const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(row2, row3));
      const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(row0, row1));
      const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(row2, row3));
      const auto two = [&](int lane) {
        const __m128 first = _mm_castpd_ps(_mm_load_sd(reinterpret_cast<const double*>(row[lane] + 4)));
        return _mm_loadh_pi(first, reinterpret_cast<const __m64*>(row[lane + 1] + 4));
      };
      const __m256 even = _mm256_set_m128(two(4), two(0));
      const __m256 odd = _mm256_set_m128(two(6), two(2));
      return {{_mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23)), _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23)),
               _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23)),
               _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23)), _mm256_shuffle_ps(even, odd, 0x88),
               _mm256_shuffle_ps(even, odd, 0xDD)}};
    }
    FASTINIT_HD F32 power(int power, const Row& row) const { return row.power[power]; }
  };

  // A pair of registers to memory, rounded to its type. `out` is aligned to 32 bytes if kStreaming, which writes past
  // the caches.
  static constexpr int kStreamAlignment = 32;
  static FASTINIT_HD F32 load(const float* from) { return _mm256_loadu_ps(from); }
  template <bool kStreaming>
  static FASTINIT_HD void store(__m256i values, void* out) {
    if (kStreaming) {
      _mm256_stream_si256(static_cast<__m256i*>(out), values);
    } else {
      _mm256_storeu_si256(static_cast<__m256i*>(out), values);
    }
  }
  template <bool kStreaming>
  static FASTINIT_HD void store_pair(F32 first, F32 second, float* out) {
    store<kStreaming>(bits(first), out);
    store<kStreaming>(bits(second), out + kWidth);
  }
  template <bool kStreaming>
  static FASTINIT_HD void store_pair(F32 first, F32 second, Bfloat16* out) {
    const __m256i low = _mm256_srli_epi32(bfloat16_in_upper_half<Avx2Lanes>(first), 16);
    const __m256i high = _mm256_srli_epi32(bfloat16_in_upper_half<Avx2Lanes>(second), 16);
    // The pack works within 128 bits: put the quarters back in order.
    store<kStreaming>(_mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8), out);
  }
  template <bool kStreaming>
  static FASTINIT_HD void store_pair(F32 first, F32 second, Float16* out) {
    const __m128i low = _mm256_cvtps_ph(first, _MM_FROUND_TO_NEAREST_INT);
    const __m128i high = _mm256_cvtps_ph(second, _MM_FROUND_TO_NEAREST_INT);
    store<kStreaming>(_mm256_set_m128i(high, low), out);
  }
  // The four registers of an unordered draw to memory, as 8-bit floats in order.
  template <bool kStreaming, Dtype kDtype>
  static FASTINIT_HD void store_unordered(const F32 (&values)[4], Float8<kDtype>* out) {
    constexpr Float8Format kFormat(kDtype);
    constexpr int kCountedBits = 7 - kFormat.mantissa_bits;
    // Packs work within 128 bits. The last shuffle orders the bytes of each half.
    const __m256i half0 = _mm256_packus_epi32(float8_times(values[0], kFormat), float8_times(values[1], kFormat));
    const __m256i half1 = _mm256_packus_epi32(float8_times(values[2], kFormat), float8_times(values[3], kFormat));
    const __m256i counted =
        _mm256_packus_epi16(_mm256_srli_epi16(half0, kCountedBits), _mm256_srli_epi16(half1, kCountedBits));
    const __m256i magnitude = _mm256_min_epu8(counted, _mm256_set1_epi8(static_cast<char>(kFormat.beyond)));
    // A pack to fewer bits with a sign keeps the sign.
    const __m256i signs = _mm256_packs_epi16(_mm256_packs_epi32(bits(values[0]), bits(values[1])),
                                             _mm256_packs_epi32(bits(values[2]), bits(values[3])));
    const __m256i bit = _mm256_set1_epi8(static_cast<char>(0x80));
    // vpsignb keeps the sign bit, except where the magnitude is zero: there it gives zero.
    const __m256i sign = _mm256_and_si256(signs, kFormat.has_one_zero ? _mm256_sign_epi8(bit, magnitude) : bit);
    const __m128i places = _mm_setr_epi8(1, 0, 5, 4, 3, 2, 7, 6, 9, 8, 13, 12, 11, 10, 15, 14);
    store<kStreaming>(_mm256_shuffle_epi8(_mm256_or_si256(magnitude, sign), _mm256_broadcastsi128_si256(places)), out);
  }

 private:
  // In each lane the magnitude of an 8-bit float times 2^(7 - mantissa bits), beyond the greatest one as well.
  //
  // A power of two is added to |x|: at its exponent, a float's mantissa ends where the mantissa of the rounded number
  // ends (see float8_in_lowest_byte). The sum's upper half is then its exponent, times 2^7, and its lower half counts
  // the numbers from the least one of x's exponent on. What the exponent of the least normal number would give is taken
  // off the count beforehand: it is in the lowest bits of the factor that makes the power.
  static FASTINIT_HD U32 float8_times(F32 x, const Float8Format& format) {
    const int shift = 23 - format.mantissa_bits;
    const uint32_t taken_off = ((format.least_normal >> 23) + static_cast<uint32_t>(shift)) << format.mantissa_bits;
    const U32 factor = splat(static_cast<uint32_t>(127 + shift) << 23 | (0x10000 - taken_off));
    const U32 power = _mm256_max_epi32(bit_and(bits(x), splat(uint32_t{0x7F800000})), splat(format.least_normal));
    const F32 size = from_bits(bit_and(bits(x), splat(uint32_t{0x7FFFFFFF})));
    const U32 sum = bits(fma(from_bits(power), from_bits(factor), size));
    return _mm256_madd_epi16(sum, splat(uint32_t{1} << 16 | uint32_t{1} << (7 - format.mantissa_bits)));
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
