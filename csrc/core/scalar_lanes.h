// One lane: the vocabulary in which core/ is written, in plain C++. The portable CPU build and CUDA threads use it
// as it is; csrc/cpu/lanes_*.h say the same words for vector registers. Every operation is exactly rounded or
// integer, so all kinds of lanes give the same bits.
#pragma once

#include <cstring>

#include "platform.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

template <class To, class From>
FASTINIT_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF)
#define FASTINIT_HAS_FMA 1
#else
#define FASTINIT_HAS_FMA 0
// The float next to product + addend, given their rounded sum, which is on a tie between two floats or subnormal: the
// sum is rounded to odd, and the second rounding sees on which side of the tie the true sum lies (Boldo, Melquiond:
// "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE TC 2008). The error of
// the sum is exact by Knuth's two-sum.
FASTINIT_COLD inline float rounded_by_odd(double product, double addend, double sum) {
  uint64_t bits = bit_cast<uint64_t>(sum);
  const double virtual_addend = sum - product;
  const double error = (product - (sum - virtual_addend)) + (addend - virtual_addend);
  if (error != 0.0 && (bits & 1) == 0) {
    // Even and inexact: the neighbour towards the true sum is odd.
    const bool away_from_zero = (error > 0.0) == (sum > 0.0);
    bits += away_from_zero ? 1 : ~uint64_t{0};
  }
  return static_cast<float>(bit_cast<double>(bits));
}
#endif

// a * b + c, rounded once to nearest even.
FASTINIT_HD float exact_fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#elif FASTINIT_HAS_FMA
  return __builtin_fmaf(a, b, c);
#else
  // Without the instruction: the product is exact in double, and the sum is rounded there first. Rounding it again to
  // float gives the same as rounding once, unless the sum fell on a tie between two floats, or is subnormal.
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double addend = c;
  const double sum = product + addend;
  const uint64_t bits = bit_cast<uint64_t>(sum);
  const bool on_tie = (bits & 0x1FFFFFFF) == 0x10000000;
  const bool subnormal = (bits << 1) - 1 < (uint64_t{1023 - 126} << 53) - 1;  // and not zero
  if (__builtin_expect(on_tie || subnormal, 0)) return rounded_by_odd(product, addend, sum);
  return static_cast<float>(sum);
#endif
}

// One double, for samples in double precision.
struct ScalarDoubles {
  static constexpr int kWidth = 1;

  using U64 = uint64_t;
  using F64 = double;
  using Mask = bool;

  static FASTINIT_HD U64 splat(uint64_t a) { return a; }
  static FASTINIT_HD F64 splat(double a) { return a; }
  static FASTINIT_HD U64 bit_or(U64 a, U64 b) { return a | b; }
  static FASTINIT_HD Mask less(U64 a, U64 b) { return a < b; }
  static FASTINIT_HD U64 invert_unless(Mask keep, U64 a) { return keep ? a : ~a; }
  static FASTINIT_HD F64 from_signed(U64 a) { return static_cast<double>(static_cast<int64_t>(a)); }
  static FASTINIT_HD F64 from_unsigned(U64 a) { return static_cast<double>(a); }
  static FASTINIT_HD F64 add(F64 a, F64 b) { return a + b; }
  static FASTINIT_HD F64 mul(F64 a, F64 b) { return a * b; }
  static FASTINIT_HD F64 min(F64 a, F64 b) { return a < b ? a : b; }
  static FASTINIT_HD F64 max(F64 a, F64 b) { return a > b ? a : b; }
  static FASTINIT_HD F64 select(Mask mask, F64 a, F64 b) { return mask ? a : b; }
  static FASTINIT_HD F64 negate_if(Mask mask, F64 a) { return mask ? -a : a; }
};

struct ScalarLanes {
  static constexpr int kWidth = 1;

  using Word = uint32_t;  // a Philox word
  using Wide = uint64_t;  // the product of two
  using U32 = uint32_t;
  using F32 = float;
  using Mask = uint32_t;  // all bits, or none

  static FASTINIT_HD Wide mul_wide(Word a, uint32_t b) { return static_cast<uint64_t>(a) * b; }
  static FASTINIT_HD Word high(Wide a) { return static_cast<uint32_t>(a >> 32); }
  static FASTINIT_HD Word low(Wide a) { return static_cast<uint32_t>(a); }
  static FASTINIT_HD Word xor3(Word a, Word b, Word c) { return a ^ b ^ c; }
  static FASTINIT_HD Word xor2(Word a, Word b) { return a ^ b; }
  static FASTINIT_HD Word splat_word(uint32_t a) { return a; }
  // Makes the words now, before whatever follows, where that helps a compiler. GCC would mix the rounds of all
  // counters, for which there are too few registers.
  static FASTINIT_HD void settle(Word (&)[4]) {}

  static constexpr int kBlocksPerWord = 1;            // Philox blocks that one Word holds a word of
  static constexpr int kRegistersPerWord = 4;         // U32 registers that its four words fill
  static constexpr int kCounters = 2;                 // Words that advance together
  static constexpr int kCountersOfBytes = kCounters;  // where 8-bit floats are made of them
  // The two low counter words of kBlocksPerWord blocks from `block` on.
  static FASTINIT_HD void count_blocks(uint64_t block, Word& low, Word& high) {
    low = static_cast<uint32_t>(block);
    high = static_cast<uint32_t>(block >> 32);
  }
  // Whether the lanes have a last round of Philox of their own. It leaves the words where little work orders them;
  // 8-bit floats need not even that work (see Avx2Lanes).
  static constexpr bool kLastRoundInPlace = false;
  // Words of blocks, brought into stream order.
  static FASTINIT_HD void interleave(const Word (&word)[4], U32* in_order) {
    for (int i = 0; i < 4; ++i) in_order[i] = word[i];
  }

  static FASTINIT_HD U32 splat(uint32_t a) { return a; }
  static FASTINIT_HD F32 splat(float a) { return a; }
  static FASTINIT_HD U32 bits(F32 a) { return bit_cast<uint32_t>(a); }
  static FASTINIT_HD F32 from_bits(U32 a) { return bit_cast<float>(a); }

  static FASTINIT_HD U32 bit_and(U32 a, U32 b) { return a & b; }
  static FASTINIT_HD U32 bit_or(U32 a, U32 b) { return a | b; }
  static FASTINIT_HD U32 add(U32 a, U32 b) { return a + b; }
  static FASTINIT_HD U32 sub(U32 a, U32 b) { return a - b; }
  template <uint32_t kMask, uint32_t kBits>
  static FASTINIT_HD U32 and_or(U32 a) {
#if defined(__CUDA_ARCH__)
    // This is one instruction. From two constants in plain C++, nvcc makes two instructions.
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(result) : "r"(a), "n"(kMask), "r"(kBits));
    return result;
#else
    return (a & kMask) | kBits;
#endif
  }
  template <int kBits>
  static FASTINIT_HD U32 shift_right(U32 a) {
    return a >> kBits;
  }
  static FASTINIT_HD Mask less(U32 a, U32 b) { return a < b ? ~uint32_t{0} : 0; }
  static FASTINIT_HD Mask top_bit_clear(U32 a) { return ~static_cast<uint32_t>(static_cast<int32_t>(a) >> 31); }
  static FASTINIT_HD U32 invert_unless(Mask keep, U32 a) { return a ^ ~keep; }

  static FASTINIT_HD F32 from_signed(U32 a) { return static_cast<float>(static_cast<int32_t>(a)); }
  static FASTINIT_HD F32 from_unsigned(U32 a) { return static_cast<float>(a); }
  static FASTINIT_HD F32 add(F32 a, F32 b) { return a + b; }
  static FASTINIT_HD F32 sub(F32 a, F32 b) { return a - b; }
  static FASTINIT_HD F32 mul(F32 a, F32 b) { return a * b; }
  static FASTINIT_HD F32 fma(F32 a, F32 b, F32 c) { return exact_fma(a, b, c); }
  // Where a * b is a float, so that its own rounding changes nothing.
  static FASTINIT_HD F32 fma_of_exact(F32 a, F32 b, F32 c) {
#if defined(__CUDA_ARCH__)
    return exact_fma(a, b, c);
#else
    return a * b + c;
#endif
  }
#if defined(__CUDA_ARCH__)
  // One instruction each, which orders -0 before +0: see set_bounds in prepare.h.
  static FASTINIT_HD F32 min(F32 a, F32 b) { return fminf(a, b); }
  static FASTINIT_HD F32 max(F32 a, F32 b) { return fmaxf(a, b); }
#else
  static FASTINIT_HD F32 min(F32 a, F32 b) { return a < b ? a : b; }
  static FASTINIT_HD F32 max(F32 a, F32 b) { return a > b ? a : b; }
#endif
  static FASTINIT_HD F32 clamp(F32 a, F32 lower, F32 upper) { return min(max(a, lower), upper); }
  static FASTINIT_HD Mask less(F32 a, F32 b) { return a < b ? ~uint32_t{0} : 0; }
  static FASTINIT_HD Mask is_nan(F32 a) { return a == a ? 0 : ~uint32_t{0}; }
  static FASTINIT_HD F32 select(Mask mask, F32 a, F32 b) { return mask != 0 ? a : b; }
  static FASTINIT_HD F32 negate_if(Mask mask, F32 a) { return from_bits(bits(a) ^ (mask & 0x80000000)); }
  static FASTINIT_HD bool any(Mask mask) { return mask != 0; }

  static FASTINIT_HD bool test(Mask mask, int /*lane*/) { return mask != 0; }
  static FASTINIT_HD uint32_t get(U32 a, int /*lane*/) { return a; }
  static FASTINIT_HD void set(F32& a, int /*lane*/, float value) { a = value; }

  // The hot rows of the quantile's table (cpu/hot_quantile.h): the row that belongs to the bits of p, and its powers.
  static constexpr int kRowsTogether = 4;
  struct HotRows {
    using Row = const float*;
    const float* rows;  // [32][8]
    template <class Hot>
    FASTINIT_HD explicit HotRows(const Hot& hot) : rows(hot.row[0]) {}
    FASTINIT_HD Row find(U32 bits) const { return rows + (bits >> 22 & 31) * 8; }
    FASTINIT_HD F32 power(int power, Row row) const { return row[power]; }
  };
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
