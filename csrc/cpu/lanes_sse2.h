// Four lanes in SSE2 registers, which every x86-64 processor has: the words of core/scalar_lanes.h. Included in
// sse2.cpp only.
//
// There is no fma. The product of two floats is exact in double, so their sum with a third is rounded there, and then
// to float: twice where it should be once. Where that could differ, it is done again with care (fma_with_care). Where a
// test of every argument shows that it cannot differ, nothing is looked at (HotQuantile).
#pragma once

#include "core/distributions.h"
#include "core/rounding.h"
#include "doubles_sse2.h"
#include "hot_quantile.h"
#include "line_without_fma.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

struct Sse2Lanes {
  using Doubles = Sse2Doubles;
  using QuantileF64 = Sse2QuantileF64;

  static constexpr int kWidth = 4;

  // Two Philox words, each in the low half of a 64-bit lane; the high half holds anything (see Avx512Lanes).
  using Word = __m128i;
  using Wide = __m128i;
  using U32 = __m128i;
  using F32 = __m128;
  using Mask = __m128;  // all bits of a lane, or none

  static FASTINIT_HD Wide mul_wide(Word a, uint32_t b) { return _mm_mul_epu32(a, splat_word(b)); }
  static FASTINIT_HD Word high(Wide a) { return _mm_shuffle_epi32(a, 0xF5); }
  static FASTINIT_HD Word low(Wide a) { return a; }
  // The high word comes last in a round: whatever else there is to do is done before it is there. (The empty assembly
  // keeps GCC from another order of the sum.)
  static FASTINIT_HD Word xor3(Word a, Word b, Word c) {
    Word early = _mm_xor_si128(b, c);
    asm("" : "+x"(early));
    return _mm_xor_si128(a, early);
  }
  static FASTINIT_HD Word xor2(Word a, Word b) { return _mm_xor_si128(a, b); }
  static FASTINIT_HD Word splat_word(uint32_t a) { return _mm_set1_epi64x(a); }
  static FASTINIT_HD void settle(Word (&words)[4]) {
    asm volatile("" : "+x"(words[0]), "+x"(words[1]), "+x"(words[2]), "+x"(words[3]));
  }

  static constexpr int kBlocksPerWord = 2;
  static constexpr int kRegistersPerWord = 2;
  static constexpr int kCounters = 2;
  static constexpr int kCountersOfBytes = kCounters;
  static FASTINIT_HD void count_blocks(uint64_t block, Word& low, Word& high) {
    low = _mm_add_epi64(_mm_set1_epi64x(static_cast<long long>(block)), _mm_set_epi64x(1, 0));
    high = _mm_srli_epi64(low, 32);
  }
  static constexpr bool kLastRoundInPlace = false;  // measured: uniform values gain from one, normals lose
  static FASTINIT_HD void interleave(const Word (&word)[4], U32* in_order) {
    const __m128 pair01 = _mm_shuffle_ps(from_bits(word[0]), from_bits(word[1]), 0x88);
    const __m128 pair23 = _mm_shuffle_ps(from_bits(word[2]), from_bits(word[3]), 0x88);
    in_order[0] = bits(_mm_shuffle_ps(pair01, pair23, 0x88));
    in_order[1] = bits(_mm_shuffle_ps(pair01, pair23, 0xDD));
  }

  static FASTINIT_HD U32 splat(uint32_t a) { return _mm_set1_epi32(static_cast<int>(a)); }
  static FASTINIT_HD F32 splat(float a) { return _mm_set1_ps(a); }
  static FASTINIT_HD U32 bits(F32 a) { return _mm_castps_si128(a); }
  static FASTINIT_HD F32 from_bits(U32 a) { return _mm_castsi128_ps(a); }

  static FASTINIT_HD U32 bit_and(U32 a, U32 b) { return _mm_and_si128(a, b); }
  static FASTINIT_HD U32 bit_or(U32 a, U32 b) { return _mm_or_si128(a, b); }
  static FASTINIT_HD U32 add(U32 a, U32 b) { return _mm_add_epi32(a, b); }
  static FASTINIT_HD U32 sub(U32 a, U32 b) { return _mm_sub_epi32(a, b); }
  template <uint32_t kMask, uint32_t kBits>
  static FASTINIT_HD U32 and_or(U32 a) {
    return bit_or(bit_and(a, splat(kMask)), splat(kBits));
  }
  template <int kBits>
  static FASTINIT_HD U32 shift_right(U32 a) {
    return _mm_srli_epi32(a, kBits);
  }
  // Only a signed comparison exists: flipping the top bits carries the order over.
  static FASTINIT_HD Mask less(U32 a, U32 b) {
    const __m128i top = splat(uint32_t{0x80000000});
    return from_bits(_mm_cmplt_epi32(_mm_xor_si128(a, top), _mm_xor_si128(b, top)));
  }
  static FASTINIT_HD Mask top_bit_clear(U32 a) { return from_bits(_mm_cmpgt_epi32(a, splat(~uint32_t{0}))); }
  static FASTINIT_HD U32 invert_unless(Mask keep, U32 a) {
    return _mm_xor_si128(a, _mm_xor_si128(bits(keep), splat(~uint32_t{0})));
  }

  static FASTINIT_HD F32 from_signed(U32 a) { return _mm_cvtepi32_ps(a); }
  // Both halves convert exactly, the product with a power of two is exact, and the sum rounds once.
  static FASTINIT_HD F32 from_unsigned(U32 a) {
    const F32 high = _mm_cvtepi32_ps(_mm_srli_epi32(a, 16));
    const F32 low = _mm_cvtepi32_ps(bit_and(a, splat(uint32_t{0xFFFF})));
    return add(mul(high, splat(65536.0f)), low);
  }
  static FASTINIT_HD F32 add(F32 a, F32 b) { return _mm_add_ps(a, b); }
  static FASTINIT_HD F32 sub(F32 a, F32 b) { return _mm_sub_ps(a, b); }
  static FASTINIT_HD F32 mul(F32 a, F32 b) { return _mm_mul_ps(a, b); }
  static FASTINIT_HD F32 fma_of_exact(F32 a, F32 b, F32 c) { return add(mul(a, b), c); }
  static FASTINIT_HD F32 fma(F32 a, F32 b, F32 c) {
    const DoubleSum low = sum_in_double(a, b, c);
    const DoubleSum high = sum_in_double(upper(a), upper(b), upper(c));
    const F32 rounded = rounded_to_float(low.sum, high.sum);
    // A second rounding differs from a single one only where the sum is halfway between two floats. Below the least
    // normal float, halfway lies elsewhere, and any sum may be there. What rounds to zero is exact: c is zero, or takes
    // away all of a product's upper bits.
    const __m128i last = bits(_mm_shuffle_ps(_mm_castpd_ps(low.sum), _mm_castpd_ps(high.sum), 0x88));
    const F32 halfway = from_bits(_mm_cmpeq_epi32(bit_and(last, splat(uint32_t{0x1FFFFFFF})), splat(kHalfUlp)));
    const F32 size = from_bits(bit_and(bits(rounded), splat(uint32_t{0x7FFFFFFF})));
    const F32 maybe_subnormal = _mm_and_ps(_mm_cmple_ps(size, splat(0x1p-126f)), _mm_cmpneq_ps(size, splat(0.0f)));
    if (__builtin_expect(any(_mm_or_ps(halfway, maybe_subnormal)), 0)) return fma_with_care(a, b, c, rounded);
    return rounded;
  }
  // Rounded twice.
  static FASTINIT_HD F32 fma_in_double(F32 a, F32 b, F32 c) {
    return rounded_to_float(sum_in_double(a, b, c).sum, sum_in_double(upper(a), upper(b), upper(c)).sum);
  }
  static FASTINIT_HD F32 min(F32 a, F32 b) { return _mm_min_ps(a, b); }
  static FASTINIT_HD F32 max(F32 a, F32 b) { return _mm_max_ps(a, b); }
  static FASTINIT_HD F32 clamp(F32 a, F32 lower, F32 upper) { return _mm_min_ps(_mm_max_ps(a, lower), upper); }
  static FASTINIT_HD Mask less(F32 a, F32 b) { return _mm_cmplt_ps(a, b); }
  static FASTINIT_HD Mask is_nan(F32 a) { return _mm_cmpunord_ps(a, a); }
  static FASTINIT_HD F32 select(Mask mask, F32 a, F32 b) {
    return _mm_or_ps(_mm_and_ps(mask, a), _mm_andnot_ps(mask, b));
  }
  static FASTINIT_HD F32 negate_if(Mask mask, F32 a) {
    return _mm_xor_ps(a, _mm_and_ps(mask, from_bits(splat(uint32_t{0x80000000}))));
  }
  static FASTINIT_HD bool any(Mask mask) { return _mm_movemask_ps(mask) != 0; }

  static FASTINIT_HD bool test(Mask mask, int lane) { return _mm_movemask_ps(mask) >> lane & 1; }
  static FASTINIT_HD uint32_t get(U32 a, int lane) {
    alignas(16) uint32_t lanes[kWidth];
    _mm_store_si128(reinterpret_cast<__m128i*>(lanes), a);
    return lanes[lane];
  }
  static FASTINIT_HD void set(F32& a, int lane, float value) {
    alignas(16) float lanes[kWidth];
    _mm_store_ps(lanes, a);
    lanes[lane] = value;
    a = _mm_load_ps(lanes);
  }

  // A pair of registers to memory, rounded to its type. `out` is aligned to 16 bytes if kStreaming, which writes past
  // the caches.
  static constexpr int kStreamAlignment = 16;
  static FASTINIT_HD F32 load(const float* from) { return _mm_loadu_ps(from); }
  template <bool kStreaming>
  static FASTINIT_HD void store(__m128i values, void* out) {
    if (kStreaming) {
      _mm_stream_si128(static_cast<__m128i*>(out), values);
    } else {
      _mm_storeu_si128(static_cast<__m128i*>(out), values);
    }
  }
  template <bool kStreaming>
  static FASTINIT_HD void store_pair(F32 first, F32 second, float* out) {
    store<kStreaming>(bits(first), out);
    store<kStreaming>(bits(second), out + kWidth);
  }
  // The packs take signed numbers, and clamp those beyond 16 bits. Sign-extended from 16 bits, none is too large.
  template <bool kStreaming>
  static FASTINIT_HD void store_pair(F32 first, F32 second, Bfloat16* out) {
    const __m128i low = _mm_srai_epi32(bfloat16_in_upper_half<Sse2Lanes>(first), 16);
    const __m128i high = _mm_srai_epi32(bfloat16_in_upper_half<Sse2Lanes>(second), 16);
    store<kStreaming>(_mm_packs_epi32(low, high), out);
  }
  template <bool kStreaming>
  static FASTINIT_HD void store_pair(F32 first, F32 second, Float16* out) {
    store<kStreaming>(_mm_packs_epi32(signed_float16(first), signed_float16(second)), out);
  }
  template <bool kStreaming, Dtype kDtype>
  static FASTINIT_HD void store_pair(F32 first, F32 second, Float8<kDtype>* out) {
    constexpr Float8Format kFormat(kDtype);
    const __m128i halves = _mm_packs_epi32(float8_in_lowest_byte<Sse2Lanes>(first, kFormat),
                                           float8_in_lowest_byte<Sse2Lanes>(second, kFormat));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(halves, halves));
  }

  static FASTINIT_HD F32 upper(F32 a) { return _mm_movehl_ps(a, a); }
  static FASTINIT_HD F32 rounded_to_float(__m128d low, __m128d high) {
    return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
  }

 private:
  static constexpr uint32_t kHalfUlp = 0x10000000;  // of a float, among the last 29 bits of a double

  struct DoubleSum {
    __m128d product, addend, sum;
  };
  // Of the two lower lanes.
  static FASTINIT_HD DoubleSum sum_in_double(F32 a, F32 b, F32 c) {
    const __m128d product = _mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b));
    const __m128d addend = _mm_cvtps_pd(c);
    return {product, addend, _mm_add_pd(product, addend)};
  }
  // Marks the sums that are not exact in double, by Knuth's two-sum.
  static FASTINIT_HD __m128d is_inexact(const DoubleSum& of) {
    const __m128d virtual_addend = _mm_sub_pd(of.sum, of.product);
    const __m128d error =
        _mm_add_pd(_mm_sub_pd(of.product, _mm_sub_pd(of.sum, virtual_addend)), _mm_sub_pd(of.addend, virtual_addend));
    return _mm_cmpneq_pd(error, _mm_setzero_pd());
  }
  // An exact sum was rounded once. Others go one by one.
  static __attribute__((noinline)) F32 fma_with_care(F32 a, F32 b, F32 c, F32 rounded) {
    const __m128d inexact =
        _mm_or_pd(is_inexact(sum_in_double(a, b, c)), is_inexact(sum_in_double(upper(a), upper(b), upper(c))));
    if (_mm_movemask_pd(inexact) == 0) return rounded;
    alignas(16) float lanes[3][kWidth];
    _mm_store_ps(lanes[0], a);
    _mm_store_ps(lanes[1], b);
    _mm_store_ps(lanes[2], c);
    for (int i = 0; i < kWidth; ++i) lanes[0][i] = exact_fma(lanes[0][i], lanes[1][i], lanes[2][i]);
    return _mm_load_ps(lanes[0]);
  }

  // As round_to, with the sign in all upper bits.
  static FASTINIT_HD __m128i signed_float16(F32 x) {
    const F32 magnitude = from_bits(bit_and(bits(x), splat(uint32_t{0x7FFFFFFF})));
    const U32 size = bits(min(magnitude, splat(65536.0f)));
    const U32 odd = bit_and(shift_right<13>(size), splat(uint32_t{1}));
    const U32 normal = shift_right<13>(add(size, add(odd, splat(uint32_t{0x0FFF} - (uint32_t{112} << 23)))));
    const U32 subnormal = sub(bits(add(magnitude, splat(0.5f))), splat(uint32_t{0x3F000000}));
    const Mask is_subnormal = less(magnitude, splat(0x1p-14f));
    const U32 rounded = bits(select(is_subnormal, from_bits(subnormal), from_bits(normal)));
    const U32 sign = _mm_slli_epi32(_mm_srai_epi32(bits(x), 31), 15);
    return bit_or(rounded, sign);
  }
};

template <>
class Line<Sse2Lanes> : public LineWithoutFma<Sse2Lanes> {
  using LineWithoutFma::LineWithoutFma;
};

// In double, each step rounded to float without a look at halfway sums: tests/cpp/without_fma_test.cpp compares every
// p.
template <>
class HotQuantile<Sse2Lanes> {
 public:
  FASTINIT_HD explicit HotQuantile(const QuantileHotRows&) {}

  template <int kGroup>
  FASTINIT_HD void operator()(const __m128 (&p)[kGroup], __m128 (&x)[kGroup]) const {
    static_assert(kGroup % kTogether == 0, "a group is so many times what is looked up together");
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; i += kTogether) evaluate(p + i, x + i);
  }

 private:
  static constexpr int kTogether = 4;    // registers in step: one polynomial alone waits for itself
  static constexpr int kRowDoubles = 8;  // of one row's powers: a cache line

  struct Rows {
    double row[kQuantileHotRows][kRowDoubles];
  };
  static constexpr Rows rows_in_double() {
    Rows rows{};
    const QuantileHotRows hot = quantile_hot_rows();
    for (int row = 0; row < kQuantileHotRows; ++row) {
      for (int power = 0; power < kQuantilePowersF32; ++power) rows.row[row][power] = hot.row[row][power];
    }
    return rows;
  }

  static FASTINIT_HD void evaluate(const __m128* p, __m128* x) {
    alignas(64) static constexpr Rows kRows = rows_in_double();
    const double* row[kTogether][4];
    __m128d z[kTogether][2], value[kTogether][2];
    FASTINIT_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      const __m128i bits = _mm_castps_si128(p[i]);
      // The place of a row in bytes, 64 (bits >> 22 & 31).
      alignas(16) uint32_t places[4];
      _mm_store_si128(reinterpret_cast<__m128i*>(places),
                      _mm_and_si128(_mm_srli_epi32(bits, 19), _mm_set1_epi32(31 * kRowDoubles)));
      FASTINIT_UNROLL
      for (int k = 0; k < 4; ++k) row[i][k] = &kRows.row[0][0] + places[k];
      const __m128 z_float = QuantileArgument<Sse2Lanes>(p[i]).z;
      z[i][0] = _mm_cvtps_pd(z_float);
      z[i][1] = _mm_cvtps_pd(Sse2Lanes::upper(z_float));
      FASTINIT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const __m128d product = _mm_mul_pd(z[i][half], _mm_set1_pd(double{kQuantileRatio}));
        value[i][half] = _mm_mul_pd(in_float(_mm_add_pd(product, _mm_set1_pd(1.0))),
                                    coefficient(row[i], half, kQuantilePowersF32 - 1));
      }
    }
    FASTINIT_UNROLL
    for (int power = kQuantilePowersF32 - 2; power >= 0; --power) {
      FASTINIT_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        FASTINIT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const __m128d product = _mm_mul_pd(in_float(value[i][half]), z[i][half]);
          value[i][half] = _mm_add_pd(product, coefficient(row[i], half, power));
        }
      }
    }
    FASTINIT_UNROLL
    for (int i = 0; i < kTogether; ++i) x[i] = Sse2Lanes::rounded_to_float(value[i][0], value[i][1]);
  }
  static FASTINIT_HD __m128d in_float(__m128d a) { return _mm_cvtps_pd(_mm_cvtpd_ps(a)); }
  static FASTINIT_HD __m128d coefficient(const double* const (&row)[4], int half, int power) {
    return two_doubles(row[2 * half] + power, row[2 * half + 1] + power);
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
