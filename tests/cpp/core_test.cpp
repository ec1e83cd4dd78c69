// Tests of core/ that Python cannot reach: the emulated fma, rounding, and the constants' arithmetic. Exits with 1 if
// anything differs.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "backends.h"
#include "core/distributions.h"
#include "core/fp_environment.h"
#include "core/prepare.h"
#include "cpu/hot_quantile.h"

using namespace fastinit;

namespace {

int failures = 0;

#define CHECK(condition, ...)                       \
  do {                                              \
    if (!(condition)) {                             \
      if (++failures <= 20) {                       \
        std::printf("%s:%d: ", __FILE__, __LINE__); \
        std::printf(__VA_ARGS__);                   \
        std::printf(" (%s)\n", #condition);         \
      }                                             \
    }                                               \
  } while (false)

// Test data from Philox itself.
class Bits {
 public:
  uint32_t next() {
    if (used_ == 4) {
      uint32_t block[1][4] = {{counter_++, 0, 0, 0}};
      philox4x32(block, PhiloxKeys<ScalarLanes>(2026));
      for (int i = 0; i < 4; ++i) block_[i] = block[0][i];
      used_ = 0;
    }
    return block_[used_++];
  }

 private:
  uint32_t counter_ = 0;
  uint32_t block_[4] = {};
  int used_ = 4;
};

void test_philox() {
  struct Answer {
    uint32_t counter[4], key[2], block[4];
  };
  const Answer answers[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Answer& answer : answers) {
    uint32_t block[1][4];
    for (int i = 0; i < 4; ++i) block[0][i] = answer.counter[i];
    philox4x32(block, PhiloxKeys<ScalarLanes>(answer.key[0] | static_cast<uint64_t>(answer.key[1]) << 32));
    for (int i = 0; i < 4; ++i) CHECK(block[0][i] == answer.block[i], "word %d is %08x", i, block[0][i]);
  }
}

void test_philox_start() {
  Bits bits;
  for (int i = 0; i < 1000; ++i) {
    const uint32_t word1 = bits.next(), word2 = bits.next(), word3 = bits.next();
    const uint64_t key = bits.next() | static_cast<uint64_t>(bits.next()) << 32;
    const PhiloxKeys<ScalarLanes> keys(key);
    uint32_t whole[2][4] = {{bits.next(), word1, word2, word3}, {bits.next(), word1, word2, word3}};
    uint32_t started[2][4] = {{whole[0][0]}, {whole[1][0]}};
    philox4x32(whole, keys);
    PhiloxStart<ScalarLanes>(key, word1, word2, word3)(started, keys);
    philox4x32<ScalarLanes, PhiloxStart<ScalarLanes>::kRounds>(started, keys);
    for (int k = 0; k < 8; ++k) {
      CHECK(started[k / 4][k % 4] == whole[k / 4][k % 4], "word %d is %08x", k, started[k / 4][k % 4]);
    }
  }
}

void check_fma(float a, float b, float c) {
  const float expected = std::fmaf(a, b, c);
  if (std::isnan(expected)) return;
  const float got = exact_fma(a, b, c);
  CHECK(bit_cast<uint32_t>(got) == bit_cast<uint32_t>(expected), "fma(%a, %a, %a) is %a, expected %a", a, b, c, got,
        expected);
}

// The portable build has no fma instruction: its emulation must round once, ties and subnormals included.
void test_fma() {
  Bits bits;
  for (int i = 0; i < 5000000; ++i) {
    const uint32_t a = bits.next(), b = bits.next(), c = bits.next();
    // Any finite numbers, then numbers of like size, where sums cancel and fall on ties.
    if ((a & 0x7F800000) != 0x7F800000 && (b & 0x7F800000) != 0x7F800000 && (c & 0x7F800000) != 0x7F800000) {
      check_fma(bit_cast<float>(a), bit_cast<float>(b), bit_cast<float>(c));
    }
    const auto near_one = [](uint32_t x) { return bit_cast<float>((x & 0x83FFFFFF) | 0x3C000000); };
    check_fma(near_one(a), near_one(b), near_one(c));
    // Few mantissa bits: products are short, so that exact ties are common.
    const auto coarse = [](uint32_t x) { return bit_cast<float>((x & 0x8FFFF000) | 0x38000000); };
    check_fma(coarse(a), coarse(b), bit_cast<float>((c & 0x8FFFFFFF) | 0x38000000));
    // Ties broken by a product far below: a sum of 2^24 + 1/2 ulp and almost nothing.
    const float tiny = std::ldexp(near_one(b), -60);
    check_fma(near_one(a), tiny, bit_cast<float>(c & 0x80FFFFFF) + 1.5f);
    // Subnormal results.
    check_fma(near_one(a), std::ldexp(near_one(b), -130), std::ldexp(near_one(c), -135));
  }
}

void test_float16_rounding() {
  // Every float16 and the points halfway to its neighbour, and just beside them.
  for (uint32_t magnitude = 0; magnitude < 0x7C00; ++magnitude) {
    const double value = to_double(Float16{static_cast<uint16_t>(magnitude)});
    const double above = magnitude == 0x7BFF ? 65536.0 : to_double(Float16{static_cast<uint16_t>(magnitude + 1)});
    const float middle = static_cast<float>(0.5 * (value + above));  // exact: one bit more
    const uint32_t tie = magnitude + (magnitude & 1);
    const struct {
      float from;
      uint32_t to;
    } cases[] = {{static_cast<float>(value), magnitude},
                 {middle, tie},
                 {std::nextafter(middle, 0.0f), magnitude},
                 {std::nextafter(middle, 1e9f), magnitude + 1}};
    for (const auto& each : cases) {
      Float16 rounded, negated;
      round_to(each.from, rounded);
      round_to(-each.from, negated);
      CHECK(rounded.bits == each.to, "%a to %04x, expected %04x", each.from, rounded.bits, each.to);
      CHECK(negated.bits == (each.to | 0x8000), "%a to %04x, expected %04x", -each.from, negated.bits,
            each.to | 0x8000);
    }
  }
}

void test_bfloat16_rounding() {
  for (uint32_t upper = 0; upper < 0x7F80; ++upper) {
    const uint32_t bits = upper << 16;
    const uint32_t tie = upper + (upper & 1);
    const uint32_t cases[][2] = {
        {bits, upper}, {bits | 0x7FFF, upper}, {bits | 0x8000, tie}, {bits | 0x8001, upper + 1}};
    for (const auto& each : cases) {
      Bfloat16 rounded;
      round_to(bit_cast<float>(each[0]), rounded);
      CHECK(rounded.bits == each[1], "%08x to %04x, expected %04x", each[0], rounded.bits, each[1]);
    }
  }
}

void test_rounding_inward() {
  Bits bits;
  for (int i = 0; i < 200000; ++i) {
    const double x = std::ldexp(static_cast<int32_t>(bits.next()), static_cast<int>(bits.next() % 30) - 45);
    for (int dtype = 0; dtype < kDtypes; ++dtype) {
      const double up = round_toward(static_cast<Dtype>(dtype), x, Toward::kUp);
      const double down = round_toward(static_cast<Dtype>(dtype), x, Toward::kDown);
      const double nearest = round_toward(static_cast<Dtype>(dtype), x, Toward::kNearest);
      CHECK(down <= x && x <= up, "dtype %d: %a not in [%a, %a]", dtype, x, down, up);
      CHECK(nearest == up || nearest == down, "dtype %d: %a is neither %a nor %a", dtype, nearest, down, up);
    }
  }
}

void test_upper_tail() {
  for (int i = 0; i <= 37500; ++i) {
    const double x = i / 1000.0;
    const double expected = 0.5 * std::erfc(x / std::sqrt(2.0));
    const double error = std::abs(upper_tail(x) / expected - 1.0);
    // erfc's argument is rounded: that alone moves the result by x^2 2^-53.
    CHECK(error < 1e-13 + x * x * 0x1p-52, "Q(%g): relative error %g", x, error);
  }
  CHECK(upper_tail(0.0) == 0.5, "Q(0) is %a", upper_tail(0.0));
  CHECK(upper_tail(std::numeric_limits<double>::infinity()) == 0.0, "Q(inf)");
}

// The quantile undoes upper_tail, in both precisions, from one half to the end of the table.
void test_quantile() {
  double worst32 = 0.0, worst64 = 0.0;
  for (int i = 1; i < 9200; ++i) {
    const double x = i / 1000.0;
    const double p = upper_tail(x);
    // dx = dp / density: what rounding p, and the error of upper_tail, do to x.
    const double density = std::exp(-0.5 * x * x) / std::sqrt(2.0 * M_PI);
    const double error32 = std::abs(normal_quantile(static_cast<float>(p)) - x) - p * 0x1p-24 / density;
    const double error64 = std::abs(normal_quantile(p) - x) - p * 1.2e-13 / density;
    worst32 = std::max(worst32, error32 / std::max(x, 0.1));
    worst64 = std::max(worst64, error64 / std::max(x, 0.1));
  }
  CHECK(worst32 < 1.6e-7, "float: %g", worst32);
  CHECK(worst64 < 5e-16, "double: %g", worst64);
  CHECK(normal_quantile(0.5f) == 0.0f && normal_quantile(0.5) == 0.0, "at one half");
  constexpr QuantileHotRows kHot = quantile_hot_rows();
  const HotQuantile<ScalarLanes> hot(kHot);
  for (uint32_t bits = bit_cast<uint32_t>(kQuantileHot); bits <= bit_cast<uint32_t>(0.5f); bits += 97) {
    const float p = bit_cast<float>(bits);
    const float group[1] = {p};
    float x[1];
    hot(group, x);
    CHECK(x[0] == normal_quantile(p), "at %a", p);
  }
}

// The error that docs/STREAM.md promises, and no step back within a row (x falls as p grows). All floats of the last
// four rows before one half, where the float table's polynomials are stretched most; samples of the others.
void test_quantile_in_float() {
  for (uint32_t row = kQuantileFirstRow; row < kQuantileLastRow; ++row) {
    float before = std::numeric_limits<float>::infinity();
    for (uint32_t bits = row << 22; bits < (row + 1) << 22; bits += row < kQuantileLastRow - 4 ? 101 : 1) {
      const float p = bit_cast<float>(bits);
      const float x = normal_quantile(p);
      const double exact = normal_quantile(static_cast<double>(p));
      CHECK(std::abs(x - exact) <= (exact < 0.1 ? 1.6e-8 : 1.4e-7 * exact), "row %u, at %a: %a", row, p, x);
      CHECK(x <= before && x > 0.0f, "row %u, at %a: %a after %a", row, p, x, before);
      before = x;
    }
  }
}

// No thread writes outside its task: guard elements around a tensor of every size stay.
void test_guards() {
  for (int64_t numel : {1, 2, 3, 127, 128, 129, 1000, 32767, 32768, 32769, 100000}) {
    for (int64_t shift : {0, 1, 5}) {
      std::vector<float> memory(static_cast<size_t>(numel + shift + 64), 7.0f);
      Task task{};
      task.data = reinterpret_cast<uint64_t>(memory.data() + shift);
      task.numel = numel;
      task.map = {0, numel, 1, 0, 0, 1, 0, 0};
      task.distribution = Distribution::kNormal;
      task.parameter[1] = 1.0;
      CHECK(prepare(task) == PrepareError::kNone, "prepare");
      CHECK(fill_cpu(&task, 1, 1, 3, nullptr, [] { return false; }), "filled");
      for (int64_t i = 0; i < static_cast<int64_t>(memory.size()); ++i) {
        const bool inside = i >= shift && i < shift + numel;
        CHECK((memory[static_cast<size_t>(i)] == 7.0f) != inside, "numel %ld, shift %ld, element %ld",
              static_cast<long>(numel), static_cast<long>(shift), static_cast<long>(i));
      }
    }
  }
}

}  // namespace

int main() {
  const DefaultFpEnvironment environment;
  test_philox();
  test_philox_start();
  test_fma();
  test_float16_rounding();
  test_bfloat16_rounding();
  test_rounding_inward();
  test_upper_tail();
  test_quantile();
  test_quantile_in_float();
  test_guards();
  std::printf(failures == 0 ? "core_test: passed\n" : "core_test: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
