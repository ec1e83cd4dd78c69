// blend_cpu, differs_cpu and distances_cpu: values of a table, and what its tensors hold, combined a few KiB at a time.
// The values are made by the fill of the instruction set (fill_body.h) into a buffer in the first cache. The loops that
// combine are plain C++, from which the compiler makes vector code for every instruction set.
#include <cmath>
#include <cstring>
#include <vector>

#include "backends.h"
#include "core/blend.h"
#include "core/cursor.h"
#include "core/stream.h"
#include "instruction_sets.h"
#include "parallel.h"

namespace fastinit {
namespace {

// Values that are made at a time: 8 KiB of floats.
constexpr int64_t kPieceValues = 2048;

// Local elements [begin, end) of a task, in order: calls combine(values, count, elements, step) for elements that lie
// `step` elements apart, with the values as the dtype kValues has them. Cuts where the index is a multiple of
// kPieceValues, which leaves Philox blocks whole.
template <class Value, class Element, class Combine>
FASTINIT_HD void for_each_row(const Task& task, uint64_t seed, FillRange fill_range, Dtype dtype_of_values,
                              int64_t begin, int64_t end, const Combine& combine) {
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
    piece.map.global_offset = index;
    piece.numel = count;
    fill_range(piece, stream, 0, count, /*streaming=*/false);
    for (int64_t done = 0; done < count;) {
      const int64_t in_row = cursor.left_in_row(map, count - done);
      Element* const elements = reinterpret_cast<Element*>(task.data) + cursor.memory_offset(map);
      combine(values + done, in_row, elements, map.element_memory_step);
      cursor.advance(map, in_row);
      done += in_row;
    }
    begin += count;
  }
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

struct Blend {
  double keep, scale;
};

template <class Value, class Element>
FASTINIT_HD void blend_row(const Value* __restrict__ values, int64_t count, Value keep, Value scale,
                           Element* __restrict__ elements, int64_t step) {
  const auto blend = [&](int64_t k, int64_t at) __attribute__((always_inline)) {
    round_to(blended(keep, widened(elements[at]), scale, values[k]), elements[at]);
  };
  if (step == 1) {  // known to be so, it becomes vector loads
    for (int64_t k = 0; k < count; ++k) blend(k, k);
  } else {
    for (int64_t k = 0; k < count; ++k) blend(k, k * step);
  }
}

FASTINIT_HD void blend_range(const Task& task, uint64_t seed, FillRange fill_range, int64_t begin, int64_t end,
                             const Blend& blend) {
  with_types(task.dtype, [&](auto element, auto value) __attribute__((always_inline)) {
    using Element = decltype(element);
    using Value = decltype(value);
    const auto keep = static_cast<Value>(blend.keep), scale = static_cast<Value>(blend.scale);
    const Dtype sampled = sizeof(Value) == sizeof(double) ? Dtype::kFloat64 : Dtype::kFloat32;
    for_each_row<Value, Element>(
        task, seed, fill_range, sampled, begin, end,
        [&](const Value* values, int64_t count, Element* elements, int64_t step)
            __attribute__((always_inline)) { blend_row(values, count, keep, scale, elements, step); });
  });
}

// Whether any element has other bits than its value.
FASTINIT_HD void compare_range(const Task& task, uint64_t seed, FillRange fill_range, int64_t begin, int64_t end,
                               bool& differs) {
  with_types(task.dtype, [&](auto element, auto) __attribute__((always_inline)) {
    using Element = decltype(element);
    for_each_row<Element, Element>(
        task, seed, fill_range, task.dtype, begin, end,
        [&](const Element* values, int64_t count, const Element* elements, int64_t step)
            __attribute__((always_inline)) {
              if (step == 1) {
                differs = differs || memcmp(static_cast<const void*>(values), elements, count * sizeof(Element)) != 0;
                return;
              }
              for (int64_t k = 0; k < count && !differs; ++k) {
                differs = memcmp(static_cast<const void*>(values + k), elements + k * step, sizeof(Element)) != 0;
              }
            });
  });
}

// Sums in double, element k of a chunk in lane k % kLanes. So they are the same for any instruction set. Four lanes
// fill an AVX2 register; of eight, which do not fit into one, GCC 12 makes code that takes five times as long.
constexpr int kLanes = 4;
typedef double Doubles __attribute__((vector_size(kLanes * sizeof(double))));
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));

FASTINIT_HD void load(const double* from, Doubles& to) { memcpy(&to, from, sizeof(to)); }
FASTINIT_HD void load(const float* from, Doubles& to) {
  Floats floats;
  memcpy(&floats, from, sizeof(floats));
  to = __builtin_convertvector(floats, Doubles);
}
template <class Element>
FASTINIT_HD void load(const Element* from, Doubles& to) {
  float floats[kLanes];
  for (int k = 0; k < kLanes; ++k) floats[k] = widened(from[k]);
  load(floats, to);
}

struct LaneSums {
  Doubles now{}, initial{}, product{}, moved{}, largest_square{};

  FASTINIT_HD void add(const Doubles& w, const Doubles& value) {
    const Doubles change = w - value;
    now += w * w;
    initial += value * value;
    product += w * value;
    const Doubles square = change * change;
    moved += square;
    largest_square = square > largest_square ? square : largest_square;
  }
  void add_to(Distance& sums) const {
    const auto sum = [](const Doubles& lanes) { return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]); };
    sums.now += sum(now);
    sums.initial += sum(initial);
    sums.product += sum(product);
    sums.moved += sum(moved);
    for (int k = 0; k < kLanes; ++k) sums.largest = std::fmax(sums.largest, std::sqrt(largest_square[k]));
  }
};

FASTINIT_HD void measure_range(const Task& task, uint64_t seed, FillRange fill_range, int64_t begin, int64_t end,
                               Distance& sums) {
  with_types(task.dtype, [&](auto element, auto) __attribute__((always_inline)) {
    using Element = decltype(element);
    LaneSums lanes;
    // Pairs that fill no vector yet, or whose elements are apart.
    Element held[kPieceValues], held_values[kPieceValues];
    int64_t count_held = 0;
    const auto add_held = [&] {
      int64_t k = 0;
      for (; k + kLanes <= count_held; k += kLanes) {
        Doubles w, value;
        load(held + k, w);
        load(held_values + k, value);
        lanes.add(w, value);
      }
      memmove(static_cast<void*>(held), held + k, (count_held - k) * sizeof(Element));
      memmove(static_cast<void*>(held_values), held_values + k, (count_held - k) * sizeof(Element));
      count_held -= k;
    };
    for_each_row<Element, Element>(task, seed, fill_range, task.dtype, begin, end,
                                   [&](const Element* values, int64_t count, const Element* elements, int64_t step)
                                       __attribute__((always_inline)) {
                                         int64_t k = 0;
                                         if (step == 1 && count_held == 0) {
                                           for (; k + kLanes <= count; k += kLanes) {
                                             Doubles w, value;
                                             load(elements + k, w);
                                             load(values + k, value);
                                             lanes.add(w, value);
                                           }
                                         }
                                         while (k < count) {
                                           const int64_t room = kPieceValues - count_held;
                                           const int64_t taken = count - k < room ? count - k : room;
                                           for (int64_t i = 0; i < taken; ++i)
                                             held[count_held + i] = elements[(k + i) * step];
                                           memcpy(static_cast<void*>(held_values + count_held), values + k,
                                                  taken * sizeof(Element));
                                           count_held += taken;
                                           k += taken;
                                           add_held();
                                         }
                                       });
    // Zeros fill the last vector: they add nothing.
    memset(static_cast<void*>(held + count_held), 0, kLanes * sizeof(Element));
    memset(static_cast<void*>(held_values + count_held), 0, kLanes * sizeof(Element));
    count_held = count_held == 0 ? 0 : kLanes;
    add_held();
    lanes.add_to(sums);
  });
}

// The loops, compiled for every instruction set.
struct Loops {
  void (*blend)(const Task&, uint64_t, FillRange, int64_t, int64_t, const Blend&);
  void (*compare)(const Task&, uint64_t, FillRange, int64_t, int64_t, bool&);
  void (*measure)(const Task&, uint64_t, FillRange, int64_t, int64_t, Distance&);
};

#define FASTINIT_LOOPS(isa, attributes)                                                                            \
  attributes void blend_##isa(const Task& task, uint64_t seed, FillRange fill_range, int64_t begin, int64_t end,   \
                              const Blend& blend) {                                                                \
    blend_range(task, seed, fill_range, begin, end, blend);                                                        \
  }                                                                                                                \
  attributes void compare_##isa(const Task& task, uint64_t seed, FillRange fill_range, int64_t begin, int64_t end, \
                                bool& differs) {                                                                   \
    compare_range(task, seed, fill_range, begin, end, differs);                                                    \
  }                                                                                                                \
  attributes void measure_##isa(const Task& task, uint64_t seed, FillRange fill_range, int64_t begin, int64_t end, \
                                Distance& sums) {                                                                  \
    measure_range(task, seed, fill_range, begin, end, sums);                                                       \
  }                                                                                                                \
  constexpr Loops kLoops_##isa = {blend_##isa, compare_##isa, measure_##isa};

FASTINIT_LOOPS(portable, )
#if defined(__x86_64__)
FASTINIT_LOOPS(avx2, __attribute__((target("avx2"))))
FASTINIT_LOOPS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))
#endif
#undef FASTINIT_LOOPS

const Loops& loops_of(int choice) {
#if defined(__x86_64__)
  static constexpr const Loops* kLoops[kInstructionSets] = {&kLoops_avx512, &kLoops_avx2, nullptr, &kLoops_portable};
#elif defined(__aarch64__)
  // NEON needs no target of its own.
  static constexpr const Loops* kLoops[kInstructionSets] = {nullptr, nullptr, &kLoops_portable, &kLoops_portable};
#else
  static constexpr const Loops* kLoops[kInstructionSets] = {nullptr, nullptr, nullptr, &kLoops_portable};
#endif
  return *kLoops[choice];
}

std::vector<int64_t> numels_of(const Task* tasks, int64_t num_tasks) {
  std::vector<int64_t> numels(static_cast<size_t>(num_tasks));
  for (int64_t i = 0; i < num_tasks; ++i) numels[i] = tasks[i].numel;
  return numels;
}

}  // namespace

bool blend_cpu(const Task* tasks, int64_t num_tasks, double keep, double scale, uint64_t seed, int threads,
               const char* isa, const std::function<bool()>& should_stop) {
  const int choice = chosen_instruction_set(isa);
  const FillRange fill_range = fill_range_of(choice);
  const Loops& loops = loops_of(choice);
  const Blend blend{keep, scale};
  return for_all_chunks(numels_of(tasks, num_tasks), threads, should_stop,
                        [&](int64_t task_index, int64_t begin, int64_t end) {
                          loops.blend(tasks[task_index], seed, fill_range, begin, end, blend);
                        });
}

bool differs_cpu(const Task* tasks, int64_t num_tasks, uint64_t seed, int threads, const char* isa, uint8_t* differs,
                 const std::function<bool()>& should_stop) {
  const int choice = chosen_instruction_set(isa);
  const FillRange fill_range = fill_range_of(choice);
  const Loops& loops = loops_of(choice);
  std::vector<std::atomic<bool>> found(static_cast<size_t>(num_tasks));
  for (auto& each : found) each = false;
  const bool finished = for_all_chunks(numels_of(tasks, num_tasks), threads, should_stop,
                                       [&](int64_t task_index, int64_t begin, int64_t end) {
                                         bool one_differs = found[task_index].load(std::memory_order_relaxed);
                                         if (one_differs) return;
                                         loops.compare(tasks[task_index], seed, fill_range, begin, end, one_differs);
                                         if (one_differs) found[task_index].store(true, std::memory_order_relaxed);
                                       });
  for (int64_t i = 0; i < num_tasks; ++i) differs[i] = found[i] ? 1 : 0;
  return finished;
}

bool distances_cpu(const Task* tasks, int64_t num_tasks, uint64_t seed, int threads, const char* isa,
                   Distance* distances, const std::function<bool()>& should_stop) {
  const int choice = chosen_instruction_set(isa);
  const FillRange fill_range = fill_range_of(choice);
  const Loops& loops = loops_of(choice);
  const std::vector<int64_t> numels = numels_of(tasks, num_tasks);
  // Sums of every chunk by itself, added up in order: so the number of threads changes nothing.
  std::vector<size_t> first_chunk(numels.size() + 1);
  for (size_t i = 0; i < numels.size(); ++i) {
    first_chunk[i + 1] = first_chunk[i] + static_cast<size_t>((numels[i] + kChunk - 1) / kChunk);
  }
  std::vector<Distance> of_chunks(first_chunk.back());
  const bool finished =
      for_all_chunks(numels, threads, should_stop, [&](int64_t task_index, int64_t begin, int64_t end) {
        for (; begin < end; begin += kChunk) {
          Distance& sums = of_chunks[first_chunk[task_index] + static_cast<size_t>(begin / kChunk)];
          loops.measure(tasks[task_index], seed, fill_range, begin, std::min(begin + kChunk, end), sums);
        }
      });
  for (size_t i = 0; i < numels.size(); ++i) {
    distances[i] = Distance{};
    for (size_t chunk = first_chunk[i]; chunk < first_chunk[i + 1]; ++chunk) distances[i].add(of_chunks[chunk]);
  }
  return finished;
}

}  // namespace fastinit
