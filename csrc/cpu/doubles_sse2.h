// Two doubles in SSE2 registers: the words of ScalarDoubles, and the normal quantile on them. Included in sse2.cpp
// only.
#pragma once

#include "double_rows.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

struct Sse2Doubles {
  static constexpr int kWidth = 2;
  static constexpr int kTogether = 4;  // registers of values made in step: one polynomial alone waits for itself

  using U64 = __m128i;
  using F64 = __m128d;
  using Mask = __m128d;  // all bits of a lane, or none

  static FASTINIT_HD U64 load(const void* words) { return _mm_loadu_si128(static_cast<const __m128i*>(words)); }
  static FASTINIT_HD void store(F64 a, double* out) { _mm_storeu_pd(out, a); }
  static FASTINIT_HD U64 splat(uint64_t a) { return _mm_set1_epi64x(static_cast<long long>(a)); }
  static FASTINIT_HD F64 splat(double a) { return _mm_set1_pd(a); }
  static FASTINIT_HD U64 bit_or(U64 a, U64 b) { return _mm_or_si128(a, b); }
  // No comparison of 64 bits exists: what a - b borrows is the answer, in the top bit.
  static FASTINIT_HD Mask less(U64 a, U64 b) {
    const __m128i differ = _mm_xor_si128(a, b);
    const __m128i borrow = _mm_or_si128(_mm_andnot_si128(a, b), _mm_andnot_si128(differ, _mm_sub_epi64(a, b)));
    return _mm_castsi128_pd(_mm_shuffle_epi32(_mm_srai_epi32(borrow, 31), 0xF5));
  }
  static FASTINIT_HD U64 invert_unless(Mask keep, U64 a) {
    return _mm_xor_si128(a, _mm_xor_si128(_mm_castpd_si128(keep), splat(~uint64_t{0})));
  }
  // Either half of an integer becomes the end of a double's mantissa: 2^84 + 2^32 high, and 2^52 + low. Taking both
  // constants from the first is exact, and the last sum rounds once.
  static FASTINIT_HD F64 from_unsigned(U64 a) { return from_halves(a, splat(0x1p84), splat(0x1p84 + 0x1p52)); }
  static FASTINIT_HD F64 from_signed(U64 a) {
    const __m128i flipped = _mm_xor_si128(a, splat(uint64_t{1} << 63));
    return from_halves(flipped, splat(0x1p84), splat(0x1p84 + 0x1p63 + 0x1p52));
  }
  static FASTINIT_HD F64 add(F64 a, F64 b) { return _mm_add_pd(a, b); }
  static FASTINIT_HD F64 mul(F64 a, F64 b) { return _mm_mul_pd(a, b); }
  static FASTINIT_HD F64 min(F64 a, F64 b) { return _mm_min_pd(a, b); }
  static FASTINIT_HD F64 max(F64 a, F64 b) { return _mm_max_pd(a, b); }
  static FASTINIT_HD F64 select(Mask mask, F64 a, F64 b) {
    return _mm_or_pd(_mm_and_pd(mask, a), _mm_andnot_pd(mask, b));
  }
  static FASTINIT_HD F64 negate_if(Mask mask, F64 a) {
    return _mm_xor_pd(a, _mm_and_pd(mask, _mm_castsi128_pd(splat(uint64_t{1} << 63))));
  }

 private:
  static FASTINIT_HD F64 from_halves(U64 a, F64 high_base, F64 both) {
    const __m128i high = _mm_or_si128(_mm_srli_epi64(a, 32), _mm_castpd_si128(high_base));
    const __m128i low = _mm_or_si128(_mm_and_si128(a, splat(uint64_t{0xFFFFFFFF})), _mm_castpd_si128(splat(0x1p52)));
    return _mm_add_pd(_mm_sub_pd(_mm_castsi128_pd(high), both), _mm_castsi128_pd(low));
  }
};

// The two doubles at `first` and `second`.
FASTINIT_HD __m128d two_doubles(const double* first, const double* second) { return _mm_set_pd(*second, *first); }

class Sse2QuantileF64 {
 public:
  template <int kGroup>
  static FASTINIT_HD void at(const __m128d (&p)[kGroup], __m128d (&x)[kGroup]) {
    __m128d z[kGroup];
    const double* row[kGroup][2];
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const __m128i bits = _mm_castpd_si128(p[i]);
      // The place of a row in doubles, 16 (bits >> 51).
      const __m128i place = _mm_and_si128(_mm_srli_epi64(bits, 47), Sse2Doubles::splat(~uint64_t{15}));
      alignas(16) int64_t places[2];
      _mm_store_si128(reinterpret_cast<__m128i*>(places), place);
      FASTINIT_UNROLL
      for (int k = 0; k < 2; ++k) row[i][k] = &kDoubleRows.row[0][0] + (places[k] - kFirstDoubleRow * kDoubleRowPowers);
      const __m128i fraction = _mm_and_si128(bits, Sse2Doubles::splat(uint64_t{0x0007FFFFFFFFFFFF}));
      const __m128i one = _mm_castpd_si128(Sse2Doubles::splat(1.0));
      z[i] = _mm_sub_pd(_mm_castsi128_pd(_mm_or_si128(fraction, one)), Sse2Doubles::splat(1.25));
      constexpr int kLast = kQuantilePowersF64 - 1;
      x[i] = two_doubles(row[i][0] + kLast, row[i][1] + kLast);
    }
    FASTINIT_UNROLL
    for (int power = kQuantilePowersF64 - 2; power >= 0; --power) {
      FASTINIT_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        x[i] = _mm_add_pd(_mm_mul_pd(x[i], z[i]), two_doubles(row[i][0] + power, row[i][1] + power));
      }
    }
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
