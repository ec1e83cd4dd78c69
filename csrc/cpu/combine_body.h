// The loops of combine.cpp. That file includes this one for each instruction set, in a namespace of its own, with
// FASTINIT_COMBINE_FMA set to whether it has AVX2 and FMA.

// Values that are made at a time: whole draws of every kind of lanes, in less than 8 KiB of floats.
constexpr int64_t kPieceValues = 1920;

// The next `count` local elements: calls visit(done, count, offset) for those of one row, which begin `done` elements
// after the first, at an offset in memory (in elements).
template <class Visit>
FASTINIT_HD void visit_rows(const IndexMap& map, Cursor& cursor, int64_t count, const Visit& visit) {
  for (int64_t done = 0; done < count;) {
    const int64_t in_row = cursor.left_in_row(map, count - done);
    visit(done, in_row, cursor.memory_offset(map));
    cursor.advance(map, in_row);
    done += in_row;
  }
}

// Local elements [begin, end) of a task, in order: calls combine(values, count, offset) for elements of one row, with
// the values as dtype_of_values has them. Cuts where the index is a multiple of kPieceValues, which leaves Philox
// blocks whole. Nothing is made for elements between two cuts if is_wanted(cursor, count) denies it.
template <class Value, class IsWanted, class Combine>
FASTINIT_HD void for_each_row(const Task& task, uint64_t seed, FillRange fill_range, Dtype dtype_of_values,
                              int64_t begin, int64_t end, const IsWanted& is_wanted, const Combine& combine) {
  const Stream stream = derive_stream(task.name_id, seed);
  const IndexMap& map = task.map;
  alignas(64) Value values[kPieceValues];
  Task piece = task;
  piece.data = reinterpret_cast<uint64_t>(values);
  piece.dtype = dtype_of_values;
  piece.map = {0, kPieceValues, 1, 0, 0, 1, 0, 0};
  const bool one_index_run = is_one_index_run(map);
  Cursor cursor(map, begin);
  while (begin < end) {
    const int64_t index = cursor.global_index(map);
    const int64_t most = kPieceValues - index % kPieceValues;
    int64_t count = end - begin < most ? end - begin : most;
    if (!one_index_run) count = cursor.left_in_row(map, count);
    begin += count;
    if (!is_wanted(cursor, count)) {
      visit_rows(map, cursor, count, [](int64_t, int64_t, int64_t) {});
      continue;
    }
    piece.map.global_offset = index;
    piece.numel = count;
    fill_range(piece, stream, 0, count, /*streaming=*/false);
    visit_rows(map, cursor, count, [&](int64_t done, int64_t in_row, int64_t offset) __attribute__((always_inline)) {
      combine(values + done, in_row, offset);
    });
  }
}

// The same for all elements: calls combine(values, count, elements, step) for elements that lie `step` elements apart.
template <class Value, class Combine>
FASTINIT_HD void for_each_row(const Task& task, uint64_t seed, FillRange fill_range, Dtype dtype_of_values,
                              int64_t begin, int64_t end, const Combine& combine) {
  char* const data = reinterpret_cast<char*>(task.data);
  const int64_t bytes = element_bytes(task.dtype);
  for_each_row<Value>(
      task, seed, fill_range, dtype_of_values, begin, end, [](const Cursor&, int64_t) { return true; },
      [&](const Value* values, int64_t count, int64_t offset) __attribute__((always_inline)) {
        combine(values, count, data + offset * bytes, task.map.element_memory_step);
      });
}

// Calls work(an element of the task's dtype, a value as it is sampled for that dtype).
template <class Work>
FASTINIT_HD void with_types(Dtype dtype, const Work& work) {
  switch (dtype) {
    case Dtype::kFloat32:
      return work(float{}, float{});
    case Dtype::kFloat64:
      return work(double{}, double{});
    case Dtype::kFloat16:
      return work(Float16{}, float{});
    case Dtype::kBfloat16:
      return work(Bfloat16{}, float{});
    case Dtype::kFloat8E4m3fn:
      return work(Float8E4m3fn{}, float{});
    case Dtype::kFloat8E5m2:
      return work(Float8E5m2{}, float{});
    case Dtype::kFloat8E4m3fnuz:
      return work(Float8E4m3fnuz{}, float{});
    case Dtype::kFloat8E5m2fnuz:
      return work(Float8E5m2fnuz{}, float{});
  }
}

// Calls work(an unsigned integer of as many bytes).
template <class Work>
FASTINIT_HD void with_bits(int64_t bytes, const Work& work) {
  switch (bytes) {
    case 1:
      return work(uint8_t{});
    case 2:
      return work(uint16_t{});
    case 4:
      return work(uint32_t{});
    default:
      return work(uint64_t{});
  }
}

// A row's elements, of any dtype, in one of the functions below: so the walk over rows is compiled once for all.
template <class Value>
using BlendRow = void (*)(const Value* values, int64_t count, Value keep, Value scale, void* elements, int64_t step);

template <class Value, class Element>
void blend_row(const Value* __restrict__ values, int64_t count, Value keep, Value scale, void* data, int64_t step) {
  Element* __restrict__ const elements = static_cast<Element*>(data);
  const auto blend = [&](int64_t k, int64_t at) __attribute__((always_inline)) {
    round_to(blended(keep, widened(elements[at]), scale, values[k]), elements[at]);
  };
  if (step == 1) {  // known to be so, it becomes vector loads
    for (int64_t k = 0; k < count; ++k) blend(k, k);
  } else {
    for (int64_t k = 0; k < count; ++k) blend(k, k * step);
  }
}

template <class Value>
void blend_rows(const Task& task, uint64_t seed, FillRange fill_range, int64_t begin, int64_t end, const Blend& blend,
                BlendRow<Value> row) {
  const auto keep = static_cast<Value>(blend.keep), scale = static_cast<Value>(blend.scale);
  const Dtype sampled = sizeof(Value) == sizeof(double) ? Dtype::kFloat64 : Dtype::kFloat32;
  for_each_row<Value>(task, seed, fill_range, sampled, begin, end,
                      [&](const Value* values, int64_t count, char* elements, int64_t step)
                          __attribute__((always_inline)) { row(values, count, keep, scale, elements, step); });
}

void blend_range(const Task& task, uint64_t seed, FillRange fill_range, int64_t begin, int64_t end,
                 const Blend& blend) {
  with_types(task.dtype, [&](auto element, auto value) __attribute__((always_inline)) {
    using Value = decltype(value);
    blend_rows<Value>(task, seed, fill_range, begin, end, blend, blend_row<Value, decltype(element)>);
  });
}

// Whether any of `count` bytes that lie `step` apart is true.
FASTINIT_HD bool any_true(const uint8_t* mask, int64_t count, int64_t step) {
  uint8_t any = 0;
  if (step == 1) {
    for (int64_t k = 0; k < count; ++k) any |= mask[k];
  } else {
    for (int64_t k = 0; k < count; ++k) any |= mask[k * step];
  }
  return any != 0;
}

// Elements are only moved, as Bits: a float might come out of a register with other bits if it is NaN.
template <class Bits>
FASTINIT_HD void write_row(const Bits* __restrict__ values, int64_t count, const uint8_t* __restrict__ mask,
                           Bits* __restrict__ elements, int64_t step) {
  if (step == 1) {  // vector loads, and stores of all
    for (int64_t k = 0; k < count; ++k) elements[k] = mask[k] != 0 ? values[k] : elements[k];
  } else {
    for (int64_t k = 0; k < count; ++k) {
      if (mask[k * step] != 0) elements[k * step] = values[k];
    }
  }
}

template <class Bits>
FASTINIT_HD void write_bits_where(const Task& task, const uint8_t* mask, uint64_t seed, FillRange fill_range,
                                  int64_t begin, int64_t end) {
  const int64_t step = task.map.element_memory_step;
  for_each_row<Bits>(
      task, seed, fill_range, task.dtype, begin, end,
      [&](Cursor cursor, int64_t count) {
        bool any = false;
        visit_rows(task.map, cursor, count, [&](int64_t, int64_t in_row, int64_t offset) {
          any = any || any_true(mask + offset, in_row, step);
        });
        return any;
      },
      [&](const Bits* values, int64_t count, int64_t offset) __attribute__((always_inline)) {
        write_row(values, count, mask + offset, reinterpret_cast<Bits*>(task.data) + offset, step);
      });
}

void write_range_where(const Task& task, const uint8_t* mask, uint64_t seed, FillRange fill_range, int64_t begin,
                       int64_t end) {
  with_bits(element_bytes(task.dtype), [&](auto bits) __attribute__((always_inline)) {
    write_bits_where<decltype(bits)>(task, mask, seed, fill_range, begin, end);
  });
}

// Whether any element has other bits than its value.
void compare_range(const Task& task, uint64_t seed, FillRange fill_range, int64_t begin, int64_t end, bool& differs) {
  with_bits(element_bytes(task.dtype), [&](auto bits) __attribute__((always_inline)) {
    using Bits = decltype(bits);
    for_each_row<Bits>(task, seed, fill_range, task.dtype, begin, end,
                       [&](const Bits* values, int64_t count, const char* elements, int64_t step)
                           __attribute__((always_inline)) {
                             if (step == 1) {
                               differs = differs || memcmp(values, elements, count * sizeof(Bits)) != 0;
                               return;
                             }
                             for (int64_t k = 0; k < count && !differs; ++k) {
                               differs = memcmp(values + k, elements + k * step * sizeof(Bits), sizeof(Bits)) != 0;
                             }
                           });
  });
}

// Sums in double, element k of a chunk in lane k % kLanes. So they are the same for any instruction set. In several
// vectors, for a sum waits for the one before, and those of one vector leave most of a core's units idle. No vector is
// wider than registers are: GCC would take it apart into single numbers to compare it.
constexpr int kLanes = 8;
#if FASTINIT_COMBINE_FMA
constexpr int kVectorLanes = 4;
using Doubles = __m256d;
#else
constexpr int kVectorLanes = 2;
typedef double Doubles __attribute__((vector_size(kVectorLanes * sizeof(double))));
typedef float Floats __attribute__((vector_size(kVectorLanes * sizeof(float))));
#endif

FASTINIT_HD void load(const double* from, Doubles& to) { memcpy(&to, from, sizeof(to)); }
FASTINIT_HD void load(const float* from, Doubles& to) {
#if FASTINIT_COMBINE_FMA
  to = _mm256_cvtps_pd(_mm_loadu_ps(from));
#else
  Floats floats;
  memcpy(&floats, from, sizeof(floats));
  to = __builtin_convertvector(floats, Doubles);
#endif
}
// Adds a * b to a sum. Products of floats are exact in double. So for them a fused operation, which rounds only the
// sum, gives the same as two.
template <class Value>
FASTINIT_HD void add_product(const Doubles& a, const Doubles& b, Doubles& sum) {
#if FASTINIT_COMBINE_FMA
  if constexpr (sizeof(Value) < sizeof(double)) {
    sum = _mm256_fmadd_pd(a, b, sum);
    return;
  }
#endif
  sum += a * b;
}

struct VectorSums {
  Doubles now{}, initial{}, product{}, moved{}, largest_square{};

  template <class Value>
  FASTINIT_HD void add(const Value* elements, const Value* values) {
    Doubles w, value;
    load(elements, w);
    load(values, value);
    const Doubles change = w - value;
    add_product<Value>(w, w, now);
    add_product<Value>(value, value, initial);
    add_product<Value>(w, value, product);
    const Doubles square = change * change;
    moved += square;
#if FASTINIT_COMBINE_FMA
    largest_square = _mm256_max_pd(square, largest_square);  // the second, if the first is NaN
#else
    largest_square = square > largest_square ? square : largest_square;
#endif
  }
};

struct LaneSums {
  static constexpr int kVectors = kLanes / kVectorLanes;
  VectorSums vectors[kVectors];

  // Adds as many pairs as fill all lanes, and returns their number. It asks for elements ahead, also those of the next
  // piece: they come from memory while values are made.
  template <class Value>
  int64_t add(const Value* elements, const Value* values, int64_t count) {
    constexpr int64_t kAhead = kPieceValues * 2 / 3;
    LaneSums sums = *this;  // in registers
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) {
      __builtin_prefetch(elements + k + kAhead);
      FASTINIT_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        sums.vectors[i].add(elements + k + i * kVectorLanes, values + k + i * kVectorLanes);
      }
    }
    *this = sums;
    return k;
  }

  void add_to(Distance& sums) const {
    sums.now += sum_of(&VectorSums::now);
    sums.initial += sum_of(&VectorSums::initial);
    sums.product += sum_of(&VectorSums::product);
    sums.moved += sum_of(&VectorSums::moved);
    for (int lane = 0; lane < kLanes; ++lane) {
      sums.largest = std::fmax(sums.largest, std::sqrt(in_lane(&VectorSums::largest_square, lane)));
    }
  }

 private:
  double in_lane(Doubles VectorSums::* which, int lane) const {
    return (vectors[lane / kVectorLanes].*which)[lane % kVectorLanes];
  }
  // By pairs, and four lanes after four.
  double sum_of(Doubles VectorSums::* which) const {
    double sum = 0.0;
    for (int lane = 0; lane < kLanes; lane += 4) {
      sum += (in_lane(which, lane) + in_lane(which, lane + 1)) + (in_lane(which, lane + 2) + in_lane(which, lane + 3));
    }
    return sum;
  }
};

template <class Value>
using Widen = void (*)(const void* from, int64_t count, int64_t step, Value* to);

template <class Value, class Element>
void widen(const void* from, int64_t count, int64_t step, Value* to) {
  const Element* const elements = static_cast<const Element*>(from);
  if (step == 1) {
    for (int64_t k = 0; k < count; ++k) to[k] = widened(elements[k]);
  } else {
    for (int64_t k = 0; k < count; ++k) to[k] = widened(elements[k * step]);
  }
}

// Elements are of type Value, or are Sampled, an unsigned integer of their size, and are widened to Value.
template <class Sampled, class Value>
void measure_rows(const Task& task, uint64_t seed, FillRange fill_range, int64_t begin, int64_t end, Widen<Value> widen,
                  Distance& distance) {
  LaneSums sums;
  // Pairs that do not fill all lanes yet, whose elements are apart, or that are to be widened.
  Value held[kPieceValues], held_values[kPieceValues];
  int64_t count_held = 0;
  const auto add_held = [&] {
    const int64_t added = sums.add(held, held_values, count_held);
    count_held -= added;
    memmove(held, held + added, count_held * sizeof(Value));
    memmove(held_values, held_values + added, count_held * sizeof(Value));
  };
  for_each_row<Sampled>(task, seed, fill_range, task.dtype, begin, end,
                        [&](const Sampled* values, int64_t count, const char* data, int64_t step)
                            __attribute__((always_inline)) {
                              const Sampled* const elements = reinterpret_cast<const Sampled*>(data);
                              int64_t k = 0;
                              if constexpr (std::is_same_v<Sampled, Value>) {
                                if (step == 1 && count_held == 0) k = sums.add(elements, values, count);
                              }
                              while (k < count) {
                                const int64_t room = kPieceValues - count_held;
                                const int64_t taken = count - k < room ? count - k : room;
                                widen(elements + k * step, taken, step, held + count_held);
                                widen(values + k, taken, 1, held_values + count_held);
                                count_held += taken;
                                k += taken;
                                add_held();
                              }
                            });
  // Zeros fill the last lanes: they add nothing.
  if (count_held > 0) {
    memset(held + count_held, 0, kLanes * sizeof(Value));
    memset(held_values + count_held, 0, kLanes * sizeof(Value));
    count_held = kLanes;
    add_held();
  }
  sums.add_to(distance);
}

void measure_range(const Task& task, uint64_t seed, FillRange fill_range, int64_t begin, int64_t end,
                   Distance& distance) {
  with_types(task.dtype, [&](auto element, auto value) __attribute__((always_inline)) {
    using Element = decltype(element);
    using Value = decltype(value);
    using Narrow = std::conditional_t<sizeof(Element) == 1, uint8_t, uint16_t>;
    using Sampled = std::conditional_t<std::is_same_v<Element, Value>, Value, Narrow>;
    measure_rows<Sampled, Value>(task, seed, fill_range, begin, end, widen<Value, Element>, distance);
  });
}

constexpr Loops kLoops = {blend_range, write_range_where, compare_range, measure_range};
