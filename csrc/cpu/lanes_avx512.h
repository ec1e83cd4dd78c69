// Sixteen lanes in AVX-512 registers (F, BW, DQ, VL): the words of core/scalar_lanes.h. Included inside a target
// region (target.h) only.
#pragma once

#include "core/rounding.h"
#include "doubles_avx2.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

struct Avx512Lanes {
  using Doubles = Avx2Doubles;
  using QuantileF64 = Avx2QuantileF64;

  static constexpr int kWidth = 16;

  // Eight Philox words, each in the low half of a 64-bit lane; the high half holds anything. vpmuludq reads only
  // low halves, so a product is its own low word, and neither needs a shuffle.
  using Word = __m512i;
  using Wide = __m512i;
  using U32 = __m512i;
  using F32 = __m512;
  using Mask = __mmask16;

  static FASTINIT_HD Wide mul_wide(Word a, uint32_t b) { return _mm512_mul_epu32(a, _mm512_set1_epi64(b)); }
  static FASTINIT_HD Word high(Wide a) { return _mm512_srli_epi64(a, 32); }
  static FASTINIT_HD Word low(Wide a) { return a; }
  static FASTINIT_HD Word xor3(Word a, Word b, Word c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  static FASTINIT_HD Word xor2(Word a, Word b) { return _mm512_xor_si512(a, b); }
  static FASTINIT_HD Word splat_word(uint32_t a) { return _mm512_set1_epi64(a); }
  static FASTINIT_HD void settle(Word (&)[4]) {}

  static constexpr int kBlocksPerWord = 8;
  static constexpr int kRegistersPerWord = 2;
  static constexpr int kCounters = 4;  // 128 values a draw; measured: 2 reach 80 % of the speed, 3 reach 90 %
  static constexpr int kCountersOfBytes = kCounters;
  // The lanes count 0 4 1 5 2 6 3 7: the order in which the unpacks below leave every 128 bits with the four words of
  // one block, and the blocks in sequence.
  static FASTINIT_HD void count_blocks(uint64_t block, Word& low, Word& high) {
    low = _mm512_add_epi64(_mm512_set1_epi64(static_cast<long long>(block)), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
    high = _mm512_srli_epi64(low, 32);
  }
  static constexpr bool kLastRoundInPlace = false;
  static FASTINIT_HD void interleave(const Word (&word)[4], U32* in_order) {
    const __mmask16 odd = 0xAAAA;
    const __m512i pair01 = _mm512_mask_shuffle_epi32(word[0], odd, word[1], _MM_PERM_CCAA);
    const __m512i pair23 = _mm512_mask_shuffle_epi32(word[2], odd, word[3], _MM_PERM_CCAA);
    in_order[0] = _mm512_unpacklo_epi64(pair01, pair23);
    in_order[1] = _mm512_unpackhi_epi64(pair01, pair23);
  }

  static FASTINIT_HD U32 splat(uint32_t a) { return _mm512_set1_epi32(static_cast<int>(a)); }
  static FASTINIT_HD F32 splat(float a) { return _mm512_set1_ps(a); }
  static FASTINIT_HD U32 bits(F32 a) { return _mm512_castps_si512(a); }
  static FASTINIT_HD F32 from_bits(U32 a) { return _mm512_castsi512_ps(a); }

  static FASTINIT_HD U32 bit_and(U32 a, U32 b) { return _mm512_and_si512(a, b); }
  static FASTINIT_HD U32 bit_or(U32 a, U32 b) { return _mm512_or_si512(a, b); }
  static FASTINIT_HD U32 add(U32 a, U32 b) { return _mm512_add_epi32(a, b); }
  static FASTINIT_HD U32 sub(U32 a, U32 b) { return _mm512_sub_epi32(a, b); }
  template <uint32_t kMask, uint32_t kBits>
  static FASTINIT_HD U32 and_or(U32 a) {
    return _mm512_ternarylogic_epi32(a, splat(kMask), splat(kBits), 0xEA);
  }
  template <int kBits>
  static FASTINIT_HD U32 shift_right(U32 a) {
    return _mm512_srli_epi32(a, kBits);
  }
  static FASTINIT_HD Mask less(U32 a, U32 b) { return _mm512_cmplt_epu32_mask(a, b); }
  static FASTINIT_HD Mask top_bit_clear(U32 a) { return _mm512_testn_epi32_mask(a, splat(uint32_t{0x80000000})); }
  static FASTINIT_HD U32 invert_unless(Mask keep, U32 a) {
    return _mm512_mask_xor_epi32(a, static_cast<Mask>(~keep), a, _mm512_set1_epi32(-1));
  }

  static FASTINIT_HD F32 from_signed(U32 a) { return _mm512_cvtepi32_ps(a); }
  static FASTINIT_HD F32 from_unsigned(U32 a) { return _mm512_cvtepu32_ps(a); }
  static FASTINIT_HD F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
  static FASTINIT_HD F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
  static FASTINIT_HD F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
  static FASTINIT_HD F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
  static FASTINIT_HD F32 fma_of_exact(F32 a, F32 b, F32 c) { return fma(a, b, c); }
  static FASTINIT_HD F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
  static FASTINIT_HD F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
  static FASTINIT_HD F32 clamp(F32 a, F32 lower, F32 upper) { return _mm512_min_ps(_mm512_max_ps(a, lower), upper); }
  static FASTINIT_HD Mask less(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static FASTINIT_HD Mask is_nan(F32 a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
  static FASTINIT_HD F32 select(Mask mask, F32 a, F32 b) { return _mm512_mask_blend_ps(mask, b, a); }
  static FASTINIT_HD F32 negate_if(Mask mask, F32 a) {
    const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000));
    return from_bits(_mm512_mask_xor_epi32(bits(a), mask, bits(a), sign));
  }
  static FASTINIT_HD bool any(Mask mask) { return mask != 0; }

  static FASTINIT_HD bool test(Mask mask, int lane) { return mask >> lane & 1; }
  static FASTINIT_HD uint32_t get(U32 a, int lane) {
    return static_cast<uint32_t>(
        _mm_cvtsi128_si32(_mm512_castsi512_si128(_mm512_maskz_compress_epi32(static_cast<Mask>(1 << lane), a))));
  }
  static FASTINIT_HD void set(F32& a, int lane, float value) {
    a = _mm512_mask_broadcastss_ps(a, static_cast<Mask>(1 << lane), _mm_set_ss(value));
  }

  // All rows of a power fit two registers: a permute finds sixteen of them.
  static constexpr int kRowsTogether = kCounters * kRegistersPerWord;
  struct HotRows {
    using Row = U32;
    __m512 low[6], high[6];
    template <class Hot>
    FASTINIT_HD explicit HotRows(const Hot& hot) {
      FASTINIT_UNROLL
      for (int k = 0; k < 6; ++k) {
        low[k] = _mm512_loadu_ps(hot.power[k]);
        high[k] = _mm512_loadu_ps(hot.power[k] + 16);
      }
    }
    FASTINIT_HD Row find(U32 bits) const { return shift_right<22>(bits); }
    FASTINIT_HD F32 power(int power, Row row) const { return _mm512_permutex2var_ps(low[power], row, high[power]); }
  };

  // A pair of registers to memory, rounded to its type. `out` is aligned to 64 bytes if kStreaming, which writes past
  // the caches.
  static constexpr int kStreamAlignment = 64;
  static FASTINIT_HD F32 load(const float* from) { return _mm512_loadu_ps(from); }
  template <bool kStreaming>
  static FASTINIT_HD void store(__m512i values, void* out) {
    if (kStreaming) {
      _mm512_stream_si512(static_cast<__m512i*>(out), values);
    } else {
      _mm512_storeu_si512(out, values);
    }
  }
  template <bool kStreaming>
  static FASTINIT_HD void store_pair(F32 first, F32 second, float* out) {
    store<kStreaming>(bits(first), out);
    store<kStreaming>(bits(second), out + kWidth);
  }
  template <bool kStreaming>
  static FASTINIT_HD void store_pair(F32 first, F32 second, Bfloat16* out) {
    alignas(64) static constexpr uint16_t kUpperHalves[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                              23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                              45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    store<kStreaming>(
        _mm512_permutex2var_epi16(bfloat16_in_upper_half<Avx512Lanes>(first), _mm512_load_si512(kUpperHalves),
                                  bfloat16_in_upper_half<Avx512Lanes>(second)),
        out);
  }
  template <bool kStreaming>
  static FASTINIT_HD void store_pair(F32 first, F32 second, Float16* out) {
    const __m256i low = _mm512_cvtps_ph(first, _MM_FROUND_TO_NEAREST_INT);
    const __m256i high = _mm512_cvtps_ph(second, _MM_FROUND_TO_NEAREST_INT);
    store<kStreaming>(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), out);
  }
  template <bool kStreaming, Dtype kDtype>
  static FASTINIT_HD void store_pair(F32 first, F32 second, Float8<kDtype>* out) {
    constexpr Float8Format kFormat(kDtype);
    const __m128i low = _mm512_cvtepi32_epi8(float8_in_lowest_byte<Avx512Lanes>(first, kFormat));
    const __m128i high = _mm512_cvtepi32_epi8(float8_in_lowest_byte<Avx512Lanes>(second, kFormat));
    const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    if (kStreaming) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(out), bytes);
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
    }
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
