// Without fma, csrc/cpu rounds in double, and then to float (lanes_sse2.h, lanes_portable.h). Here the quantile's
// polynomial is compared for every p that it may be given, and fma where two roundings differ from one.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>

#define FASTINIT_ISA sse2
#include "cpu/lanes_sse2.h"
#else
#define FASTINIT_ISA portable
#endif

#include "cpu/lanes_portable.h"

#if !FASTINIT_HAS_FMA

using namespace fastinit;

namespace {

int failures = 0;

void check(bool holds, const char* lanes, const char* what) {
  if (holds) return;
  ++failures;
  std::printf("without_fma_test: failed: %s of %s\n", what, lanes);
}

// As a Line takes for granted.
bool is_in_range(float x) { return x == 0.0f || (x >= 0x1p-50f && x <= 0x1p4f); }

bool are_equal(float a, float b) { return bit_cast<uint32_t>(a) == bit_cast<uint32_t>(b); }

template <class L>
void store(typename L::F32 values, float* out) {
  L::template store<false>(L::bits(values), out);
}

// Sanitizers, under which this takes ten times as long, see all of its code in a part of the numbers.
#if defined(__SANITIZE_ADDRESS__)
constexpr uint32_t kEvery = 61;
#else
constexpr uint32_t kEvery = 1;
#endif

template <class L>
void check_every_quantile(const char* lanes) {
  constexpr int kGroup = 4, kValues = kGroup * L::kWidth;
  alignas(64) static constexpr QuantileHotRows kHot = quantile_hot_rows();
  const HotQuantile<L> quantile(kHot);
  const uint32_t end = bit_cast<uint32_t>(0.75f);
  int64_t compared = 0, different = 0, out_of_range = 0;
  for (uint32_t bits = bit_cast<uint32_t>(kQuantileHot); bits < end; bits += kEvery * kValues) {
    float p[kValues], x[kValues];
    for (int i = 0; i < kValues; ++i) p[i] = bit_cast<float>(bits + static_cast<uint32_t>(i));
    typename L::F32 p_lanes[kGroup], x_lanes[kGroup];
    for (int i = 0; i < kGroup; ++i) p_lanes[i] = L::load(p + i * L::kWidth);
    quantile(p_lanes, x_lanes);
    for (int i = 0; i < kGroup; ++i) store<L>(x_lanes[i], x + i * L::kWidth);
    for (int i = 0; i < kValues; ++i) {
      const float wanted = normal_quantile(p[i]);
      different += !are_equal(wanted, x[i]);
      out_of_range += !is_in_range(wanted);
      ++compared;
    }
  }
  std::printf("without_fma_test: %lld quantiles of %s compared, %lld differ, %lld out of range\n",
              static_cast<long long>(compared), lanes, static_cast<long long>(different),
              static_cast<long long>(out_of_range));
  check(compared >= (int64_t{32} << 22) / kEvery, lanes, "all half octaves");
  check(different == 0, lanes, "quantiles as by fma");
  check(out_of_range == 0, lanes, "quantiles within the range of a line's argument");
}

class Random {
 public:
  uint32_t word() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  // A float a few units from one with a short mantissa: sums of such are often near halfway. The exponent lies within
  // `spread` of `exponent`.
  float number(int exponent, int spread) {
    const int power = exponent + static_cast<int>(word() % static_cast<uint32_t>(2 * spread + 1)) - spread;
    const uint32_t biased = power < -126 ? 1 : power > 126 ? 253 : static_cast<uint32_t>(power + 127);
    const uint32_t size = (biased << 23 | (word() & 0x700000)) + 4 - word() % 8;
    return bit_cast<float>(size | (word() & 0x80000000));
  }

 private:
  uint64_t state_ = 2026;
};

// Products near 2^`exponent`, so that some sums are subnormal where it is low, or round to zero.
template <class L>
void check_fma(const char* lanes, Random& random, int exponent) {
  const int of_a = exponent < -126 ? exponent + 126 : 0, of_b = exponent - of_a;
  int64_t twice_differs = 0, different = 0, zeros = 0;
  for (int i = 0; i < 1 << 21; ++i) {
    float a[L::kWidth], b[L::kWidth], c[L::kWidth], got[L::kWidth], twice[L::kWidth];
    for (int lane = 0; lane < L::kWidth; ++lane) {
      a[lane] = random.number(of_a, 3);
      b[lane] = random.number(of_b, 3);
      c[lane] = random.number(exponent + 12, 16);
      if (exponent < -126) c[lane] *= random.number(-12, 14);  // some are subnormal, or zero
    }
    store<L>(L::fma(L::load(a), L::load(b), L::load(c)), got);
    store<L>(L::fma_in_double(L::load(a), L::load(b), L::load(c)), twice);
    for (int lane = 0; lane < L::kWidth; ++lane) {
      const float wanted = std::fma(a[lane], b[lane], c[lane]);
      const double sum = static_cast<double>(a[lane]) * static_cast<double>(b[lane]) + static_cast<double>(c[lane]);
      different += !are_equal(got[lane], wanted) || !are_equal(twice[lane], static_cast<float>(sum));
      twice_differs += !are_equal(twice[lane], wanted);
      zeros += wanted == 0.0f;
    }
  }
  std::printf("without_fma_test: fma of %s near 2^%d: %lld differ, where two roundings would in %lld\n", lanes,
              exponent, static_cast<long long>(different), static_cast<long long>(twice_differs));
  check(different == 0, lanes, "fma");
  check(twice_differs > 0, lanes, "arguments whose sums two roundings get wrong");
  check(zeros > 0 || exponent >= -126, lanes, "sums that round to zero");
}

template <class L>
int64_t different_on_line(float slope, float offset, float step, const float (&x)[L::kWidth]) {
  float got[L::kWidth];
  store<L>(Line<L>(slope, offset, step)(L::load(x)), got);
  int64_t different = 0;
  for (int lane = 0; lane < L::kWidth; ++lane) different += !are_equal(got[lane], std::fma(x[lane], slope, offset));
  return different;
}

// Slopes and offsets of every kind, on arguments from all of the range.
template <class L>
void check_line(const char* lanes, Random& random) {
  int64_t different = 0;
  for (int i = 0; i < 1 << 16; ++i) {
    const uint32_t kind = random.word() % 4;
    const float slope = kind == 0 ? bit_cast<float>(random.word() & 0xFF800000) : random.number(0, 125);
    const float offset = kind == 1 ? 0.0f : kind == 2 ? -0.0f : random.number(0, 125);
    if (!std::isfinite(slope)) continue;
    for (int k = 0; k < 8; ++k) {
      float x[L::kWidth];
      for (float& each : x) each = random.word() % 16 == 0 ? 0.0f * random.number(0, 1) : random.number(-23, 26);
      different += different_on_line<L>(slope, offset, 0.0f, x);
    }
  }
  check(different == 0, lanes, "lines");
}

// Arguments that are multiples of a step, as uniform values have them: many sums are halfway between two floats.
template <class L>
void check_line_of_steps(const char* lanes, Random& random) {
  int64_t different = 0, halfway = 0;
  for (int i = 0; i < 1 << 18; ++i) {
    // Numbers of 1 to 24 bits, so that sums fit a double by far, nearly, or not.
    const auto number = [&random](int spread) {
      const uint32_t bits = bit_cast<uint32_t>(random.number(0, spread)) ^ (random.word() & 0x007FFFFF);
      return bit_cast<float>(bits & (~uint32_t{0} << random.word() % 24));
    };
    const float slope = number(i % 2 == 0 ? 8 : 125), offset = i % 33 == 0 ? 0.0f : number(i % 2 == 0 ? 8 : 125);
    float x[L::kWidth];
    for (float& each : x) each = static_cast<float>(static_cast<int32_t>(random.word() | 1)) * 0x1p-31f;
    different += different_on_line<L>(slope, offset, 0x1p-31f, x);
    const double sum = static_cast<double>(x[0]) * static_cast<double>(slope) + static_cast<double>(offset);
    halfway += (bit_cast<uint64_t>(sum) & 0x1FFFFFFF) == 0x10000000;
  }
  std::printf("without_fma_test: lines of %s: %lld sums were halfway\n", lanes, static_cast<long long>(halfway));
  check(different == 0, lanes, "lines of steps");
  check(halfway > 1000, lanes, "sums halfway between two floats");
}

template <class L>
void check_all(const char* lanes) {
  check_every_quantile<L>(lanes);
  Random random;
  check_fma<L>(lanes, random, 0);
  check_fma<L>(lanes, random, -126);
  check_fma<L>(lanes, random, -148);
  check_line<L>(lanes, random);
  check_line_of_steps<L>(lanes, random);
}

}  // namespace

int main() {
#if defined(__x86_64__)
  check_all<Sse2Lanes>("SSE2");
#endif
  check_all<PortableLanes>("the plain loop");
  std::printf(failures == 0 ? "without_fma_test: passed\n" : "without_fma_test: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

#else

int main() { std::printf("without_fma_test: not for this processor\n"); }

#endif
