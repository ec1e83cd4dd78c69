// Makes a Task's Sampler, which every value needs, from the distribution that the caller wrote. This is host code, in
// double, by exactly rounded operations: the constants are part of the stream's definition, so libm must not decide
// them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "rounding.h"
#include "task.h"

namespace fastinit {

enum class PrepareError : int32_t {
  kNone = 0,
  kNotRepresentable = 1,  // no value of the dtype lies between the bounds
  kFarTruncation = 2,     // the bounds lie beyond kFarthestBound on one side of the mean
};

// A truncation must come this close to the mean, in sigma: beyond, the table's 9.3 sigma would cut what is left.
constexpr double kFarthestBound = 6.0;

// With both bounds this close to the mean (in sigma) the normal density is level to 2^-17, and is sampled as uniform:
// as a difference of two probabilities near 1/2 it would be coarser than that.
constexpr double kLevelBound = 0x1p-8;

inline namespace FASTINIT_ISA {

// e^x for x in [-745, 0]; 1e-15 relative. Taylor's series on |r| <= ln(2)/2 after taking out powers of two, ln 2 in two
// parts (Cody, Waite 1980, chapter 6).
inline double exp_of_negative(double x) {
  constexpr double kInverseLn2 = 0x1.71547652b82fep+0;
  constexpr double kLn2High = 0x1.62e42fee00000p-1;
  constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  const int power = static_cast<int>(x * kInverseLn2 - 0.5);
  const double r = (x - power * kLn2High) - power * kLn2Low;
  double sum = 1.0;
  for (int term = 18; term >= 1; --term) sum = 1.0 + sum * r / term;
  return std::ldexp(sum, power);  // exact, but for subnormal results
}

// Q(x) = erfc(x / sqrt 2) / 2, the mass of the normal beyond x >= 0; relative error below 1e-13.
inline double upper_tail(double x) {
  constexpr double kInverseSqrt2Pi = 0x1.9884533d43651p-2;
  if (x > 37.5) return 0.0;  // below 1e-307
  const double density = kInverseSqrt2Pi * exp_of_negative(-0.5 * x * x);
  if (x < 2.25) {
    // 1/2 - density * (x + x^3/3 + x^5/(3 5) + ...) (Abramowitz, Stegun 26.2.11)
    double term = x;
    double sum = x;
    for (int n = 1; n < 60; ++n) {
      term = term * x * x / (2 * n + 1);
      sum += term;
    }
    return 0.5 - density * sum;
  }
  // density / (x + 1/(x + 2/(x + 3/(x + ...)))) (Abramowitz, Stegun 26.2.14)
  double fraction = x;
  for (int n = 80; n >= 1; --n) fraction = x + n / fraction;
  return density / fraction;
}

inline double to_double(float x) { return x; }
inline double to_double(double x) { return x; }
inline double to_double(Bfloat16 x) { return to_float(x); }
inline double to_double(Float16 x) {
  const int exponent = x.bits >> 10 & 31;
  const int mantissa = x.bits & 1023;
  const double infinity = std::numeric_limits<double>::infinity();
  const double magnitude = exponent == 31  ? infinity
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, exponent - 25);
  return x.bits & 0x8000 ? -magnitude : magnitude;
}
// What lies beyond the greatest number counts as infinite, whatever the format takes it for.
template <Dtype kDtype>
double to_double(Float8<kDtype> x) {
  constexpr Float8Format kFormat(kDtype);
  const double infinity = std::numeric_limits<double>::infinity();
  if (kFormat.has_one_zero && x.bits == 0x80) return infinity;
  const int exponent = (x.bits & 0x7F) >> kFormat.mantissa_bits;
  const int mantissa = x.bits & ((1 << kFormat.mantissa_bits) - 1);
  const int hidden = exponent == 0 ? 0 : 1 << kFormat.mantissa_bits;
  const int least = static_cast<int>(kFormat.least_normal >> 23) - 127 - kFormat.mantissa_bits;
  double magnitude = std::ldexp(hidden + mantissa, exponent == 0 ? least : least + exponent - 1);
  if (magnitude > kFormat.greatest) magnitude = infinity;
  return x.bits & 0x80 ? -magnitude : magnitude;
}

// The neighbour of `x` in its type, one step up in value.
template <class Bits>
Bits step_up(Bits bits) {
  constexpr Bits kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  if (bits == kSign) return 1;  // from -0 to the least positive number
  return static_cast<Bits>(bits & kSign ? bits - 1 : bits + 1);
}
inline float step_up(float x) { return bit_cast<float>(step_up(bit_cast<uint32_t>(x))); }
inline Float16 step_up(Float16 x) { return {step_up(x.bits)}; }
inline Bfloat16 step_up(Bfloat16 x) { return {step_up(x.bits)}; }
template <Dtype kDtype>
Float8<kDtype> step_up(Float8<kDtype> x) {
  if (!Float8Format(kDtype).has_one_zero) return {step_up(x.bits)};
  // The format has no negative zero. The bits of -0 stand for what lies beyond the greatest number, on either side.
  return {static_cast<uint8_t>(x.bits == 0x80 ? 0xFF : x.bits == 0x81 ? 0 : x.bits & 0x80 ? x.bits - 1 : x.bits + 1)};
}

// Nearest, or the least not below `x`, or the greatest not above, among the values of a dtype.
enum class Toward { kNearest, kUp, kDown };

template <class Element>
double round_toward(double x, Toward toward) {
  if (toward == Toward::kDown) return -round_toward<Element>(-x, Toward::kUp);
  Element element;
  round_to(static_cast<float>(x), element);
  const double nearest = std::copysign(to_double(element), x);  // where both infinities have the same bits
  return toward == Toward::kUp && nearest < x ? to_double(step_up(element)) : nearest;
}

inline double round_toward(Dtype dtype, double x, Toward toward) {
  switch (dtype) {
    case Dtype::kFloat32:
      return round_toward<float>(x, toward);
    case Dtype::kFloat16:
      return round_toward<Float16>(x, toward);
    case Dtype::kBfloat16:
      return round_toward<Bfloat16>(x, toward);
    case Dtype::kFloat8E4m3fn:
      return round_toward<Float8E4m3fn>(x, toward);
    case Dtype::kFloat8E5m2:
      return round_toward<Float8E5m2>(x, toward);
    case Dtype::kFloat8E4m3fnuz:
      return round_toward<Float8E4m3fnuz>(x, toward);
    case Dtype::kFloat8E5m2fnuz:
      return round_toward<Float8E5m2fnuz>(x, toward);
    case Dtype::kFloat64:
      break;
  }
  return x;
}

// The bits of a value as an element. The host makes them, since devices have NaNs of their own.
template <class Element>
uint64_t element_bits(double value) {
  Element element;
  round_to(value, element);
  return element.bits;
}

inline uint64_t element_bits(Dtype dtype, double value) {
  switch (dtype) {
    case Dtype::kFloat32:
      return bit_cast<uint32_t>(static_cast<float>(value));
    case Dtype::kFloat64:
      return bit_cast<uint64_t>(value);
    case Dtype::kFloat16:
      return element_bits<Float16>(value);
    case Dtype::kBfloat16:
      return element_bits<Bfloat16>(value);
    case Dtype::kFloat8E4m3fn:
      return element_bits<Float8E4m3fn>(value);
    case Dtype::kFloat8E5m2:
      return element_bits<Float8E5m2>(value);
    case Dtype::kFloat8E4m3fnuz:
      return element_bits<Float8E4m3fnuz>(value);
    case Dtype::kFloat8E5m2fnuz:
      return element_bits<Float8E5m2fnuz>(value);
  }
  return 0;
}

inline PrepareError set_bounds(Sampler& sampler, Dtype dtype, double low, double high) {
  sampler.lower = round_toward(dtype, low, Toward::kUp);
  sampler.upper = round_toward(dtype, high, Toward::kDown);
  // Of two zeros, min and max of some lanes return the second operand, of others -0 as the lesser one. With these signs
  // all of them clamp alike.
  if (sampler.lower == 0.0) sampler.lower = 0.0;
  if (sampler.upper == 0.0) sampler.upper = -0.0;
  if (low == high) sampler.lower = sampler.upper = round_toward(dtype, low, Toward::kNearest);
  return sampler.lower <= sampler.upper ? PrepareError::kNone : PrepareError::kNotRepresentable;
}

inline PrepareError prepare_uniform(Sampler& sampler, Dtype dtype, double low, double high) {
  sampler.kind = Distribution::kUniform;
  sampler.scale = 0.5 * high - 0.5 * low;
  sampler.center = 0.5 * low + 0.5 * high;
  return set_bounds(sampler, dtype, low, high);
}

inline PrepareError prepare_trunc_normal(Sampler& sampler, Dtype dtype, double mean, double std, double low,
                                         double high) {
  if (std == 0.0 || low == high) {
    const double value = mean < low ? low : mean > high ? high : mean;
    return prepare_uniform(sampler, dtype, value, value);
  }
  double lower_sigma = (low - mean) / std;
  double upper_sigma = (high - mean) / std;
  if (lower_sigma >= -kLevelBound && upper_sigma <= kLevelBound) return prepare_uniform(sampler, dtype, low, high);
  if (lower_sigma > kFarthestBound || upper_sigma < -kFarthestBound) return PrepareError::kFarTruncation;
  sampler.scale = std;
  sampler.center = mean;
  if (upper_sigma <= 0.0) {  // all below the mean: sample the mirror image
    const double mirrored = -upper_sigma;
    upper_sigma = -lower_sigma;
    lower_sigma = mirrored;
    sampler.scale = -std;
  }
  sampler.above_upper = upper_tail(upper_sigma);
  if (lower_sigma >= 0.0) {
    sampler.below_lower = 0.0;
    sampler.mass = upper_tail(lower_sigma) - sampler.above_upper;
    sampler.negative_below = 0;
  } else {
    sampler.below_lower = upper_tail(-lower_sigma);
    sampler.mass = 1.0 - sampler.below_lower - sampler.above_upper;
    const double share = (0.5 - sampler.below_lower) / sampler.mass;
    sampler.negative_below = share < 1.0 ? static_cast<uint64_t>(share * 0x1p64) : ~uint64_t{0};
  }
  return set_bounds(sampler, dtype, low, high);
}

inline PrepareError prepare_sampler(Sampler& sampler, const Task& task) {
  sampler = Sampler{};
  sampler.kind = task.distribution;
  const double infinity = std::numeric_limits<double>::infinity();
  const double (&parameter)[kParameters] = task.parameter;
  switch (task.distribution) {
    case Distribution::kConstant:
    case Distribution::kDiagonal:
      sampler.center = parameter[0];
      sampler.constant_bits = element_bits(task.dtype, parameter[0]);
      return PrepareError::kNone;
    case Distribution::kUniform:
      return prepare_uniform(sampler, task.dtype, parameter[0], parameter[1]);
    case Distribution::kNormal:
      sampler.scale = parameter[1];
      sampler.center = parameter[0];
      sampler.mass = 1.0;
      sampler.negative_below = uint64_t{1} << 63;
      sampler.lower = -infinity;
      sampler.upper = infinity;
      return PrepareError::kNone;
    case Distribution::kTruncNormal:
      return prepare_trunc_normal(sampler, task.dtype, parameter[0], parameter[1], parameter[2], parameter[3]);
  }
  return PrepareError::kNone;
}

// What prepare() leaves in task.mark. Each word is multiplied by an odd number of its own. A change of one word always
// changes the mark; a change of several almost always does.
inline uint64_t mark_of(const Task& task) {
  constexpr size_t kBegin = offsetof(Task, parameter);
  constexpr size_t kWords = (offsetof(Task, mark) - kBegin) / sizeof(uint64_t);
  static_assert(
      kWords * sizeof(uint64_t) == sizeof(task.parameter) + sizeof(Dtype) + sizeof(Distribution) + sizeof(Sampler),
      "no padding among the parameters, the dtype, the distribution, the sampler and the mark");
  uint64_t words[kWords];
  memcpy(words, reinterpret_cast<const unsigned char*>(&task) + kBegin, sizeof(words));
  constexpr uint64_t kGoldenRatio = 0x9E3779B97F4A7C15;  // of 2^64, odd
  uint64_t mark = kGoldenRatio;
  for (size_t i = 0; i < kWords; ++i) mark += words[i] * (kGoldenRatio + i * 0xBF58476D1CE4E5BA);
  return mark;
}

// Fills task.sampler and task.mark. The caller has checked the distribution (checks.h).
inline PrepareError prepare(Task& task) {
  const PrepareError error = prepare_sampler(task.sampler, task);
  task.mark = error == PrepareError::kNone ? mark_of(task) : 0;
  return error;
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
