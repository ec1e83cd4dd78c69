// statistics_cpu: moments, extremes and zeros of one tensor, read once, on threads (parallel.h). The result does not
// depend on the number of threads: chunks are joined in their order.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "backends.h"
#include "core/rounding.h"
#include "instruction_sets.h"
#include "parallel.h"
#include "target.h"

namespace fastinit {

// Chan, Golub, LeVeque 1979: the difference of the means enters, so that nothing cancels.
void Moments::join(const Moments& other) {
  const double finite = static_cast<double>(count - non_finite);
  const double others = static_cast<double>(other.count - other.non_finite);
  count += other.count;
  non_finite += other.non_finite;
  zeros += other.zeros;
  if (others == 0.0) return;
  const double difference = other.mean - mean, share = others / (finite + others);
  mean = finite == 0.0 ? other.mean : mean + difference * share;
  squares += other.squares + (finite == 0.0 ? 0.0 : difference * difference * (finite * share));
  low = std::fmin(low, other.low);
  high = std::fmax(high, other.high);
}

namespace {

// Elements that are summed in float32: at the most 256 in a lane.
constexpr int64_t kBlock = 1024;
// Sums of squares between these are right in float32: no square overflows, and none that matters is subnormal.
constexpr double kMostSquares = 1e37, kLeastSquares = 1e-20;

// Sums over differences from a shift.
struct Sums {
  double sum = 0.0, squares = 0.0;
  int64_t zeros = 0;
  float low = std::numeric_limits<float>::infinity(), high = -std::numeric_limits<float>::infinity();
};

double to_double(float x) { return x; }
double to_double(double x) { return x; }
double to_double(Bfloat16 x) { return to_float(x); }

Moments moments_of(const Sums& total, int64_t count, float shift) {
  if (count == 0) return {};
  const double mean = total.sum / static_cast<double>(count);
  return {count, 0, total.zeros, mean + shift, std::fmax(0.0, total.squares - mean * total.sum), total.low, total.high};
}

// Any values, one by one, in two passes over what is in the cache.
template <class T>
Moments chunk_in_double(const T* data, int64_t count) {
  Moments found;
  found.count = count;
  double sum = 0.0;
  for (int64_t k = 0; k < count; ++k) {
    const double x = to_double(data[k]);
    found.zeros += x == 0.0;
    if (!std::isfinite(x)) {
      ++found.non_finite;
      continue;
    }
    sum += x;
    found.low = x < found.low ? x : found.low;
    found.high = x > found.high ? x : found.high;
  }
  if (found.non_finite == count) return found;
  found.mean = sum / static_cast<double>(count - found.non_finite);
  for (int64_t k = 0; k < count; ++k) {
    const double difference = to_double(data[k]) - found.mean;
    if (std::isfinite(difference)) found.squares += difference * difference;
  }
  return found;
}

#define FASTINIT_VECTOR_BYTES 16
namespace portable_statistics {
#include "statistics_body.h"
}  // namespace portable_statistics
#undef FASTINIT_VECTOR_BYTES

// Clang knows prefer-vector-width as an option for a whole file only.
#if defined(__x86_64__) && !defined(__clang__)
#define FASTINIT_TARGETS
FASTINIT_BEGIN_TARGET("avx2")
#define FASTINIT_VECTOR_BYTES 32
namespace avx2_statistics {
#include "statistics_body.h"
}  // namespace avx2_statistics
#undef FASTINIT_VECTOR_BYTES
FASTINIT_END_TARGET

FASTINIT_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define FASTINIT_VECTOR_BYTES 64
namespace avx512_statistics {
#include "statistics_body.h"
}  // namespace avx512_statistics
#undef FASTINIT_VECTOR_BYTES
FASTINIT_END_TARGET
#endif

using Chunk = Moments (*)(Dtype dtype, const void* data, int64_t begin, int64_t count);

Chunk chunk_of_isa(int choice) {
  constexpr Chunk kPortable = portable_statistics::chunk;
#if defined(FASTINIT_TARGETS)
  constexpr Chunk kChunks[kInstructionSets] = {avx512_statistics::chunk, avx2_statistics::chunk, kPortable, nullptr,
                                               kPortable};
#else
  constexpr Chunk kChunks[kInstructionSets] = {kPortable, kPortable, kPortable, kPortable, kPortable};
#endif
  return kChunks[choice];
}

}  // namespace

bool statistics_cpu(const void* data, int64_t numel, Dtype dtype, int threads, const char* isa, Moments* result,
                    const std::function<bool()>& should_stop) {
  const Chunk chunk = chunk_of_isa(chosen_instruction_set(isa));
  std::vector<Moments> parts(static_cast<size_t>((numel + kChunk - 1) / kChunk));
  const std::vector<int64_t> numels{numel};
  const bool finished = for_all_chunks(numels, threads, should_stop, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kChunk) {
      parts[static_cast<size_t>(first / kChunk)] = chunk(dtype, data, first, std::min(kChunk, end - first));
    }
  });
  *result = {};
  for (const Moments& part : parts) result->join(part);
  return finished;
}

}  // namespace fastinit
