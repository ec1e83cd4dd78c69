// SSE2 has no fma: csrc/cpu/lanes_sse2.h rounds in double, and then to float. Here the quantile's polynomial is
// compared for every p that it may be given, and fma where two roundings differ from one.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>

#define FASTINIT_ISA sse2
#include "cpu/lanes_sse2.h"

using namespace fastinit;

namespace {

int failures = 0;

void check(bool holds, const char* what) {
  if (holds) return;
  ++failures;
  std::printf("sse2_test: failed: %s\n", what);
}

// As Line<Sse2Lanes> takes for granted.
bool is_in_range(float x) { return x == 0.0f || (x >= 0x1p-50f && x <= 0x1p4f); }

// Sanitizers, under which this takes ten times as long, see all of its code in a part of the numbers.
#if defined(__SANITIZE_ADDRESS__)
constexpr uint32_t kEvery = 61;
#else
constexpr uint32_t kEvery = 1;
#endif

void check_every_quantile() {
  constexpr int kGroup = 4;
  const HotQuantile<Sse2Lanes> quantile(quantile_hot_rows());
  const uint32_t end = bit_cast<uint32_t>(0.75f);
  int64_t compared = 0, different = 0, out_of_range = 0;
  for (uint32_t bits = bit_cast<uint32_t>(kQuantileHot); bits < end; bits += kEvery * kGroup * Sse2Lanes::kWidth) {
    float p[kGroup][4], x[kGroup][4];
    for (int i = 0; i < kGroup * 4; ++i) p[i / 4][i % 4] = bit_cast<float>(bits + static_cast<uint32_t>(i));
    __m128 p_lanes[kGroup], x_lanes[kGroup];
    for (int i = 0; i < kGroup; ++i) p_lanes[i] = _mm_loadu_ps(p[i]);
    quantile(p_lanes, x_lanes);
    for (int i = 0; i < kGroup; ++i) _mm_storeu_ps(x[i], x_lanes[i]);
    for (int i = 0; i < kGroup * 4; ++i) {
      const float wanted = normal_quantile(p[i / 4][i % 4]);
      different += bit_cast<uint32_t>(wanted) != bit_cast<uint32_t>(x[i / 4][i % 4]);
      out_of_range += !is_in_range(wanted);
      ++compared;
    }
  }
  std::printf("sse2_test: %lld quantiles compared, %lld differ, %lld out of range\n", static_cast<long long>(compared),
              static_cast<long long>(different), static_cast<long long>(out_of_range));
  check(compared >= (int64_t{32} << 22) / kEvery, "all half octaves");
  check(different == 0, "quantiles as by fma");
  check(out_of_range == 0, "quantiles within the range of a line's argument");
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

// Exponents near `exponent`, so that some sums are subnormal where it is low.
void check_fma(Random& random, int exponent) {
  int64_t twice_differs = 0, different = 0;
  for (int i = 0; i < 1 << 21; ++i) {
    float a[4], b[4], c[4], got[4];
    for (int lane = 0; lane < 4; ++lane) {
      a[lane] = random.number(0, 3);
      b[lane] = random.number(exponent, 3);
      c[lane] = random.number(exponent + 12, 16);
    }
    _mm_storeu_ps(got, Sse2Lanes::fma(_mm_loadu_ps(a), _mm_loadu_ps(b), _mm_loadu_ps(c)));
    for (int lane = 0; lane < 4; ++lane) {
      const float wanted = std::fma(a[lane], b[lane], c[lane]);
      const double sum = static_cast<double>(a[lane]) * static_cast<double>(b[lane]) + static_cast<double>(c[lane]);
      different += bit_cast<uint32_t>(got[lane]) != bit_cast<uint32_t>(wanted);
      twice_differs += bit_cast<uint32_t>(static_cast<float>(sum)) != bit_cast<uint32_t>(wanted);
    }
  }
  std::printf("sse2_test: fma near 2^%d: %lld differ, where two roundings would in %lld\n", exponent,
              static_cast<long long>(different), static_cast<long long>(twice_differs));
  check(different == 0, "fma");
  check(twice_differs > 0, "arguments whose sums two roundings get wrong");
}

// Slopes and offsets of either kind, on arguments from all of the range.
void check_line(Random& random) {
  int64_t different = 0;
  for (int i = 0; i < 1 << 16; ++i) {
    const uint32_t kind = random.word() % 4;
    const float slope = kind == 0 ? bit_cast<float>(random.word() & 0xFF800000) : random.number(0, 125);
    const float offset = kind == 1 ? 0.0f : kind == 2 ? -0.0f : random.number(0, 125);
    if (!std::isfinite(slope)) continue;
    const Line<Sse2Lanes> line(slope, offset);
    for (int k = 0; k < 8; ++k) {
      float x[4], got[4];
      for (float& each : x) each = random.word() % 16 == 0 ? 0.0f * random.number(0, 1) : random.number(-23, 26);
      _mm_storeu_ps(got, line(_mm_loadu_ps(x)));
      for (int lane = 0; lane < 4; ++lane) {
        const float wanted = std::fma(x[lane], slope, offset);
        different += bit_cast<uint32_t>(got[lane]) != bit_cast<uint32_t>(wanted);
      }
    }
  }
  check(different == 0, "lines");
}

}  // namespace

int main() {
  check_every_quantile();
  Random random;
  check_fma(random, 0);
  check_fma(random, -126);
  check_line(random);
  std::printf(failures == 0 ? "sse2_test: passed\n" : "sse2_test: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

#else

int main() { std::printf("sse2_test: not for this processor\n"); }

#endif
