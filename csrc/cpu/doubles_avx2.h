// Four doubles in AVX2 registers: the words of ScalarDoubles, and the normal quantile on them. Included inside the
// target regions of avx2.cpp and avx512.cpp only.
#pragma once

#include "double_rows.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

struct Avx2Doubles {
  static constexpr int kWidth = 4;
  static constexpr int kTogether = 4;  // registers of values made in step: one polynomial alone waits for itself

  using U64 = __m256i;
  using F64 = __m256d;
  using Mask = __m256d;  // all bits of a lane, or none

  static FASTINIT_HD U64 load(const void* words) { return _mm256_loadu_si256(static_cast<const __m256i*>(words)); }
  static FASTINIT_HD void store(F64 a, double* out) { _mm256_storeu_pd(out, a); }
  static FASTINIT_HD U64 splat(uint64_t a) { return _mm256_set1_epi64x(static_cast<long long>(a)); }
  static FASTINIT_HD F64 splat(double a) { return _mm256_set1_pd(a); }
  static FASTINIT_HD U64 bit_or(U64 a, U64 b) { return _mm256_or_si256(a, b); }
  // Only a signed comparison exists: flipping the top bits carries the order over.
  static FASTINIT_HD Mask less(U64 a, U64 b) {
    const __m256i top = splat(uint64_t{1} << 63);
    return _mm256_castsi256_pd(_mm256_cmpgt_epi64(_mm256_xor_si256(b, top), _mm256_xor_si256(a, top)));
  }
  static FASTINIT_HD U64 invert_unless(Mask keep, U64 a) {
    return _mm256_xor_si256(a, _mm256_xor_si256(_mm256_castpd_si256(keep), splat(~uint64_t{0})));
  }
  // Either half of an integer becomes the end of a double's mantissa: 2^84 + 2^32 high, and 2^52 + low. Taking both
  // constants from the first is exact, and the last sum rounds once.
  static FASTINIT_HD F64 from_unsigned(U64 a) { return from_halves(a, splat(0x1p84), splat(0x1p84 + 0x1p52)); }
  static FASTINIT_HD F64 from_signed(U64 a) {
    const __m256i flipped = _mm256_xor_si256(a, splat(uint64_t{1} << 63));
    return from_halves(flipped, splat(0x1p84), splat(0x1p84 + 0x1p63 + 0x1p52));
  }
  static FASTINIT_HD F64 add(F64 a, F64 b) { return _mm256_add_pd(a, b); }
  static FASTINIT_HD F64 mul(F64 a, F64 b) { return _mm256_mul_pd(a, b); }
  static FASTINIT_HD F64 min(F64 a, F64 b) { return _mm256_min_pd(a, b); }
  static FASTINIT_HD F64 max(F64 a, F64 b) { return _mm256_max_pd(a, b); }
  static FASTINIT_HD F64 select(Mask mask, F64 a, F64 b) { return _mm256_blendv_pd(b, a, mask); }
  static FASTINIT_HD F64 negate_if(Mask mask, F64 a) {
    return _mm256_xor_pd(a, _mm256_and_pd(mask, _mm256_castsi256_pd(splat(uint64_t{1} << 63))));
  }

 private:
  static FASTINIT_HD F64 from_halves(U64 a, F64 high_base, F64 both) {
    const __m256i high = _mm256_or_si256(_mm256_srli_epi64(a, 32), _mm256_castpd_si256(high_base));
    const __m256i low = _mm256_blend_epi32(a, _mm256_castpd_si256(splat(0x1p52)), 0xAA);
    return _mm256_add_pd(_mm256_sub_pd(_mm256_castsi256_pd(high), both), _mm256_castsi256_pd(low));
  }
};

// Two powers of four rows at a time: loaded, and transposed by one pair of unpacks.
class Avx2QuantileF64 {
 public:
  template <int kGroup>
  static FASTINIT_HD void at(const __m256d (&p)[kGroup], __m256d (&x)[kGroup]) {
    __m256d z[kGroup];
    alignas(32) int64_t place[kGroup][4];
    const __m256i first = Avx2Doubles::splat(uint64_t{kFirstDoubleRow} * kDoubleRowPowers);
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const __m256i bits = _mm256_castpd_si256(p[i]);
      // The place of a row in doubles, 16 (bits >> 51) from the first row on.
      const __m256i in_all = _mm256_and_si256(_mm256_srli_epi64(bits, 47), Avx2Doubles::splat(~uint64_t{15}));
      _mm256_store_si256(reinterpret_cast<__m256i*>(place[i]), _mm256_sub_epi64(in_all, first));
      const __m256i fraction = _mm256_and_si256(bits, Avx2Doubles::splat(uint64_t{0x0007FFFFFFFFFFFF}));
      const __m256i one = _mm256_castpd_si256(Avx2Doubles::splat(1.0));
      z[i] = _mm256_sub_pd(_mm256_castsi256_pd(_mm256_or_si256(fraction, one)), Avx2Doubles::splat(1.25));
    }
    const double* table = &kDoubleRows.row[0][0];
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      constexpr int kLast = kQuantilePowersF64 - 1;
      const __m256d even = two(table + kLast, place[i][0], place[i][2]);
      x[i] = _mm256_unpacklo_pd(even, two(table + kLast, place[i][1], place[i][3]));
      read_after(x[i], table);
    }
    pairs<kQuantilePowersF64 - 3>(table, place, z, x);
  }

 private:
  // What is read through `table` is read after x. GCC would read the powers of all steps first, more than there are
  // registers, and keep them on the stack.
  static FASTINIT_HD void read_after(__m256d& x, const double*& table) { asm("" : "+x"(x), "+r"(table)); }

  // A pair of doubles of two rows, by their places.
  static FASTINIT_HD __m256d two(const double* table, int64_t first, int64_t second) {
    return _mm256_set_m128d(_mm_load_pd(table + second), _mm_load_pd(table + first));
  }

  template <int kPower, int kGroup>
  static FASTINIT_HD void pairs(const double* table, const int64_t (&place)[kGroup][4], const __m256d (&z)[kGroup],
                                __m256d (&x)[kGroup]) {
    FASTINIT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const __m256d even = two(table + kPower, place[i][0], place[i][2]);
      const __m256d odd = two(table + kPower, place[i][1], place[i][3]);
      x[i] = _mm256_add_pd(_mm256_mul_pd(x[i], z[i]), _mm256_unpackhi_pd(even, odd));
      x[i] = _mm256_add_pd(_mm256_mul_pd(x[i], z[i]), _mm256_unpacklo_pd(even, odd));
      read_after(x[i], table);
    }
    if constexpr (kPower > 0) pairs<kPower - 2>(table, place, z, x);
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
