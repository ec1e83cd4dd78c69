// blend_cpu, fill_where_cpu, differs_cpu and distances_cpu: values of a table, and what its tensors hold, combined a
// few KiB at a time. The values are made by the fill of the instruction set (fill_body.h) into a buffer in the first
// cache. The loops that combine (combine_body.h) are compiled for every instruction set. The most common blend, of
// float32 in consecutive rows, needs no buffer (blend_body.h).
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "backends.h"
#include "core/blend.h"
#include "core/cursor.h"
#include "core/stream.h"
#include "instruction_sets.h"
#include "parallel.h"
#include "target.h"

namespace fastinit {
namespace {

struct Blend {
  double keep, scale;
};

// The loops, compiled for every instruction set.
struct Loops {
  void (*blend)(const Task&, uint64_t, FillRange, int64_t, int64_t, const Blend&);
  void (*write_where)(const Task&, const uint8_t*, uint64_t, FillRange, int64_t, int64_t);
  void (*compare)(const Task&, uint64_t, FillRange, int64_t, int64_t, bool&);
  void (*measure)(const Task&, uint64_t, FillRange, int64_t, int64_t, Distance&);
};

#define FASTINIT_COMBINE_FMA 0
namespace portable_combine {
#include "combine_body.h"
}  // namespace portable_combine
#undef FASTINIT_COMBINE_FMA

#if defined(__x86_64__)
#define FASTINIT_COMBINE_FMA 1

FASTINIT_BEGIN_TARGET("avx2,fma")
namespace avx2_combine {
#include "combine_body.h"
}  // namespace avx2_combine
FASTINIT_END_TARGET

FASTINIT_BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
namespace avx512_combine {
#include "combine_body.h"
}  // namespace avx512_combine
FASTINIT_END_TARGET

#undef FASTINIT_COMBINE_FMA
#endif  // x86-64

const Loops& loops_of(int choice) {
#if defined(__x86_64__)
  static constexpr const Loops* kLoops[kInstructionSets] = {
      &avx512_combine::kLoops, &avx2_combine::kLoops, &portable_combine::kLoops, nullptr, &portable_combine::kLoops};
#elif defined(__aarch64__)
  // NEON needs no target of its own.
  static constexpr const Loops* kLoops[kInstructionSets] = {nullptr, nullptr, nullptr, &portable_combine::kLoops,
                                                            &portable_combine::kLoops};
#else
  static constexpr const Loops* kLoops[kInstructionSets] = {nullptr, nullptr, nullptr, nullptr,
                                                            &portable_combine::kLoops};
#endif
  return *kLoops[choice];
}

std::vector<int64_t> numels_of(const Task* tasks, int64_t num_tasks) {
  std::vector<int64_t> numels(static_cast<size_t>(num_tasks));
  for (int64_t i = 0; i < num_tasks; ++i) numels[i] = tasks[i].numel;
  return numels;
}

// Rows shorter than this are left to the buffer, which makes the values of several at a time.
constexpr int64_t kLeastRow = 256;

bool blends_in_registers(const Task& task) {
  const bool is_drawn = task.sampler.kind != Distribution::kConstant && task.sampler.kind != Distribution::kDiagonal;
  return is_drawn && task.dtype == Dtype::kFloat32 && task.map.element_memory_step == 1 &&
         task.map.row_length >= kLeastRow;
}

}  // namespace

bool blend_cpu(const Task* tasks, int64_t num_tasks, double keep, double scale, uint64_t seed, int threads,
               const char* isa, const std::function<bool()>& should_stop) {
  const int choice = chosen_instruction_set(isa);
  const FillLoops& fill_loops = fill_loops_of(choice);
  const Loops& loops = loops_of(choice);
  const Blend blend{keep, scale};
  return for_all_chunks(numels_of(tasks, num_tasks), threads, should_stop,
                        [&](int64_t task_index, int64_t begin, int64_t end) {
                          const Task& task = tasks[task_index];
                          if (blends_in_registers(task)) {
                            fill_loops.blend(task, derive_stream(task.name_id, seed), begin, end,
                                             static_cast<float>(keep), static_cast<float>(scale));
                          } else {
                            loops.blend(task, seed, fill_loops.fill, begin, end, blend);
                          }
                        });
}

bool fill_where_cpu(const Task* tasks, int64_t num_tasks, const uint64_t* masks, uint64_t seed, int threads,
                    const char* isa, const std::function<bool()>& should_stop) {
  const int choice = chosen_instruction_set(isa);
  const FillRange fill_range = fill_loops_of(choice).fill;
  const Loops& loops = loops_of(choice);
  return for_all_chunks(numels_of(tasks, num_tasks), threads, should_stop,
                        [&](int64_t task_index, int64_t begin, int64_t end) {
                          const auto* mask = reinterpret_cast<const uint8_t*>(masks[task_index]);
                          loops.write_where(tasks[task_index], mask, seed, fill_range, begin, end);
                        });
}

bool differs_cpu(const Task* tasks, int64_t num_tasks, uint64_t seed, int threads, const char* isa, uint8_t* differs,
                 const std::function<bool()>& should_stop) {
  const int choice = chosen_instruction_set(isa);
  const FillRange fill_range = fill_loops_of(choice).fill;
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
  const FillRange fill_range = fill_loops_of(choice).fill;
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
