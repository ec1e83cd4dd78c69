// Rounding float to the 8-bit floats, against the numbers themselves: between two neighbours the nearer one, and of two
// equally near the even one. The scalar code, and AVX2 registers on x86-64 (where both are compiled for AVX2, and a
// processor without it checks nothing). `float8_test all` looks at all floats from half of the least tie to twice the
// greatest, and beyond at every 61st; without it, at those around every tie and every 4099th. Exits with 1 if any
// differs.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__x86_64__)
#include "cpu/target.h"
#define FASTINIT_ISA avx2
FASTINIT_BEGIN_TARGET("avx2,fma,f16c")
#include "cpu/lanes_avx2.h"
namespace {
// 32 floats to 8-bit floats, as a fill of AVX2 stores them.
template <fastinit::Dtype kDtype>
void round_vectors(const float* x, uint8_t* rounded) {
  using L = fastinit::Avx2Lanes;
  alignas(32) float in_place[32];
  for (int i = 0; i < 4; ++i) {
    for (int lane = 0; lane < 8; ++lane) in_place[8 * i + lane] = x[L::place_of(i, lane)];
  }
  __m256 values[4];
  for (int i = 0; i < 4; ++i) values[i] = _mm256_load_ps(in_place + 8 * i);
  L::store_unordered<false>(values, reinterpret_cast<fastinit::Float8<kDtype>*>(rounded));
}
constexpr bool kVectors = true;
#else
#include "core/rounding.h"
namespace {
template <fastinit::Dtype kDtype>
void round_vectors(const float*, uint8_t*) {}
constexpr bool kVectors = false;
#endif
template <fastinit::Dtype kDtype>
void round_scalars(const float* x, uint8_t* rounded) {
  for (int i = 0; i < 32; ++i) {
    fastinit::Float8<kDtype> value;
    fastinit::round_to(x[i], value);
    rounded[i] = value.bits;
  }
}
uint32_t bits_of(float x) { return fastinit::bit_cast<uint32_t>(x); }
float from_bits(uint32_t bits) { return fastinit::bit_cast<float>(bits); }
}  // namespace
#if defined(__x86_64__)
FASTINIT_END_TARGET
#endif

using fastinit::Dtype;

namespace {

int failures = 0;

struct Format {
  const char* name;
  int mantissa_bits, bias;
  int beyond;  // what lies beyond the greatest number becomes
  bool has_one_zero;

  // The number that these bits stand for; those of `beyond` go on as if it were a number.
  double number(int code) const {
    const int exponent = code >> mantissa_bits;
    const int mantissa = code & ((1 << mantissa_bits) - 1);
    if (exponent == 0) return std::ldexp(mantissa, 1 - bias - mantissa_bits);
    return std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
  }
  double tie(int code) const { return (number(code) + number(code + 1)) / 2; }
};

// Floats in rising order of their magnitudes, checked 16 magnitudes of both signs at a time.
template <Dtype kDtype>
class Walk {
 public:
  explicit Walk(const Format& format) : format_(format), tie_(format.tie(0)) {}

  void add(uint32_t magnitude) {
    const double x = from_bits(magnitude);
    while (code_ < format_.beyond && (x > tie_ || (x == tie_ && code_ % 2 == 1))) tie_ = format_.tie(++code_);
    for (uint32_t sign = 0; sign < 2; ++sign) {
      x_[count_] = from_bits(magnitude | sign << 31);
      wanted_[count_++] = static_cast<uint8_t>(code_ | (sign == 1 && !(format_.has_one_zero && code_ == 0) ? 0x80 : 0));
    }
    if (count_ == 32) check();
  }
  void finish() {
    for (; count_ != 0;) add(0x7F800000);
  }

 private:
  void check() {
    uint8_t rounded[32];
    round_scalars<kDtype>(x_, rounded);
    compare("scalar", rounded);
    if (kVectors) {
      round_vectors<kDtype>(x_, rounded);
      compare("vectors", rounded);
    }
    count_ = 0;
  }
  void compare(const char* code, const uint8_t* got) {
    if (std::memcmp(got, wanted_, 32) == 0) return;
    for (int i = 0; i < 32; ++i) {
      if (got[i] == wanted_[i] || ++failures > 20) continue;
      std::printf("%s, %s: %a becomes %02x, expected %02x\n", format_.name, code, static_cast<double>(x_[i]), got[i],
                  wanted_[i]);
    }
  }

  const Format format_;
  double tie_;  // between code_ and the next
  int code_ = 0, count_ = 0;
  float x_[32] = {};
  uint8_t wanted_[32] = {};
};

template <Dtype kDtype>
void test(const Format& format, bool all) {
  constexpr uint32_t kInfinity = 0x7F800000;
  Walk<kDtype> walk(format);
  if (all) {
    const uint32_t least = bits_of(static_cast<float>(format.tie(0) / 2));
    const uint32_t most = bits_of(static_cast<float>(format.tie(0x80) * 2));
    for (uint32_t magnitude = 0; magnitude < kInfinity; magnitude += magnitude < least || magnitude > most ? 61 : 1) {
      walk.add(magnitude);
    }
    walk.add(kInfinity);
  } else {
    uint32_t stride = 0;
    for (int code = 0; code <= 0x80; ++code) {
      const uint32_t tie = bits_of(static_cast<float>(format.tie(code)));
      for (; stride < tie - 40; stride += 4099) walk.add(stride);
      for (uint32_t near = tie - 40; near <= tie + 40; ++near) walk.add(near);
      while (stride <= tie + 40) stride += 4099;
    }
    for (; stride < kInfinity; stride += 4099) walk.add(stride);
    walk.add(kInfinity);
  }
  walk.finish();
}

}  // namespace

int main(int count, char** arguments) {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    std::printf("float8_test: NOT CHECKED, this processor has no AVX2\n");
    return 0;
  }
#endif
  const bool all = count > 1 && std::strcmp(arguments[1], "all") == 0;
  test<Dtype::kFloat8E4m3fn>({"e4m3fn", 3, 7, 0x7E, false}, all);
  test<Dtype::kFloat8E5m2>({"e5m2", 2, 15, 0x7C, false}, all);
  test<Dtype::kFloat8E4m3fnuz>({"e4m3fnuz", 3, 8, 0x80, true}, all);
  test<Dtype::kFloat8E5m2fnuz>({"e5m2fnuz", 2, 16, 0x80, true}, all);
  std::printf("float8_test: %s, %s vectors\n", failures == 0 ? "passed" : "failed", kVectors ? "with" : "without");
  return failures == 0 ? 0 : 1;
}
