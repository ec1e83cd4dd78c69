// The loop of statistics.cpp. That file includes this one for each instruction set, in a namespace of its own, with
// FASTINIT_VECTOR_BYTES set to the width of its vectors: a compiler cuts longer ones into single numbers.

constexpr int kLanes = FASTINIT_VECTOR_BYTES / 4;
typedef float Floats __attribute__((vector_size(FASTINIT_VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(FASTINIT_VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(FASTINIT_VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(FASTINIT_VECTOR_BYTES / 2)));

inline __attribute__((always_inline)) void load(const float* data, Floats& x) { memcpy(&x, data, sizeof(x)); }

inline __attribute__((always_inline)) void load(const Bfloat16* data, Floats& x) {
  Halves halves;
  memcpy(&halves, data, sizeof(halves));
  const Words words = __builtin_convertvector(halves, Words) << 16;
  memcpy(&x, &words, sizeof(x));
}

// A block of kBlock elements. The sums are those of x - shift, in float32 within a lane, and in float64 from
// there on. Returns false where float32 does not do: values that are not finite, or squares that over- or underflow.
template <class T>
bool add_block(const T* data, float shift, Sums& total) {
  Floats sum{}, squares{}, low, high;
  Ints zeros{};
  load(data, low);
  high = low;
  for (int64_t k = 0; k < kBlock; k += kLanes) {
    Floats x;
    load(data + k, x);
    const Floats difference = x - shift;
    sum += difference;
    squares += difference * difference;
    low = x < low ? x : low;
    high = x > high ? x : high;
    zeros -= x == 0.0f;
  }
  double of_sum = 0.0, of_squares = 0.0;
  float lowest = low[0], highest = high[0];
  int64_t of_zeros = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    of_sum += sum[lane];
    of_squares += squares[lane];
    lowest = low[lane] < lowest ? low[lane] : lowest;
    highest = high[lane] > highest ? high[lane] : highest;
    of_zeros += zeros[lane];
  }
  if (!(of_squares < kMostSquares) || (of_squares < kLeastSquares && lowest < highest)) return false;
  total.sum += of_sum;
  total.squares += of_squares;
  total.zeros += of_zeros;
  total.low = lowest < total.low ? lowest : total.low;
  total.high = highest > total.high ? highest : total.high;
  return true;
}

template <class T>
Moments chunk_of(const T* data, int64_t count) {
  const double first = to_double(data[0]);
  const float shift = std::isfinite(first) ? static_cast<float>(first) : 0.0f;
  Sums total;
  int64_t k = 0;
  for (; k + kBlock <= count; k += kBlock) {
    if (!add_block(data + k, shift, total)) return chunk_in_double(data, count);
  }
  Moments found = moments_of(total, k, shift);
  if (k < count) found.join(chunk_in_double(data + k, count - k));
  return found;
}

Moments chunk(Dtype dtype, const void* data, int64_t begin, int64_t count) {
  switch (dtype) {
    case Dtype::kFloat32:
      return chunk_of(static_cast<const float*>(data) + begin, count);
    case Dtype::kBfloat16:
      return chunk_of(static_cast<const Bfloat16*>(data) + begin, count);
    default:
      return chunk_in_double(static_cast<const double*>(data) + begin, count);
  }
}
