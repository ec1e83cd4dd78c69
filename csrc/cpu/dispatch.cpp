// fill_cpu: chooses the instruction set, cuts all tasks into chunks, and lets threads take them until none is left.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "backends.h"
#include "core/fp_environment.h"
#include "huge_pages.h"
#include "instruction_sets.h"

namespace fastinit {
namespace {

// Elements. A chunk of one task is the unit of work: 8 microseconds or so, and what a small tensor is at most.
constexpr int64_t kChunk = 32768;

// A thread takes this many elements at a time at the most. 2^19 floats are a huge page: threads that share one would
// both clear it when they touch it first.
constexpr int64_t kMostPerClaim = int64_t{1} << 19;

// Below this many elements a thread costs more to start than it saves.
constexpr int64_t kLeastPerThread = 65536;

// Writes of this size in all go past the caches: they would evict everything, and be evicted before their next use.
// It saves reading each line before writing it.
constexpr int64_t kStreamingBytes = int64_t{32} << 20;

constexpr auto kPollInterval = std::chrono::milliseconds(50);

FillRange fill_range_of(int choice) {
#if defined(__x86_64__)
  constexpr FillRange kFillRanges[kInstructionSets] = {fill_range_avx512, fill_range_avx2, fill_range_portable};
#else
  constexpr FillRange kFillRanges[kInstructionSets] = {nullptr, nullptr, fill_range_portable};
#endif
  return kFillRanges[choice];
}

// All tasks as one row of chunks; threads take runs of them.
class ChunkQueue {
 public:
  ChunkQueue(const Task* tasks, int64_t num_tasks, int threads) : tasks_(tasks), first_chunk_(num_tasks + 1) {
    int64_t numel = 0;
    for (int64_t i = 0; i < num_tasks; ++i) {
      first_chunk_[i + 1] = first_chunk_[i] + (tasks[i].numel + kChunk - 1) / kChunk;
      numel += tasks[i].numel;
    }
    // Eight claims a thread even out their speeds; in chunks of the average size.
    const int64_t chunks = first_chunk_.back();
    const int64_t average = std::max<int64_t>(1, numel / std::max<int64_t>(1, chunks));
    claim_ = std::clamp<int64_t>(chunks / (8 * threads), 1, std::max<int64_t>(1, kMostPerClaim / average));
  }

  // Fills one claim. Returns false once nothing is left.
  bool fill_claim(FillRange fill_range, bool streaming) {
    const int64_t begin = next_.fetch_add(claim_, std::memory_order_relaxed);
    const int64_t end = std::min(begin + claim_, first_chunk_.back());
    if (begin >= end) return false;
    // The last task whose first chunk is not beyond `begin`: tasks without elements have no chunk.
    int64_t task_index = std::upper_bound(first_chunk_.begin(), first_chunk_.end(), begin) - first_chunk_.begin() - 1;
    for (int64_t chunk = begin; chunk < end;) {
      while (first_chunk_[task_index + 1] <= chunk) ++task_index;
      const Task& task = tasks_[task_index];
      const int64_t chunk_end = std::min(end, first_chunk_[task_index + 1]);
      const int64_t from = (chunk - first_chunk_[task_index]) * kChunk;
      const int64_t to = std::min(task.numel, (chunk_end - first_chunk_[task_index]) * kChunk);
      fill_range(task, from, to, streaming);
      chunk = chunk_end;
    }
    return true;
  }

  void stop() { next_.store(first_chunk_.back(), std::memory_order_relaxed); }

 private:
  const Task* tasks_;
  std::vector<int64_t> first_chunk_;  // [num_tasks + 1], prefix sums
  int64_t claim_;                     // chunks
  std::atomic<int64_t> next_{0};
};

}  // namespace

const InstructionSet* instruction_sets() {
#if defined(__x86_64__)
  static const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  constexpr bool avx2 = false;
  constexpr bool avx512 = false;
#endif
  static const InstructionSet sets[kInstructionSets] = {{"avx512", avx512}, {"avx2", avx2}, {"portable", true}};
  return sets;
}

int chosen_instruction_set(const char* isa) {
  const InstructionSet* sets = instruction_sets();
  for (int i = 0; i < kInstructionSets; ++i) {
    if (sets[i].supported && (isa == nullptr || std::strcmp(isa, sets[i].name) == 0)) return i;
  }
  return kInstructionSets - 1;
}

bool fill_cpu(const Task* tasks, int64_t num_tasks, int threads, const char* isa,
              const std::function<bool()>& should_stop) {
  const FillRange fill_range = fill_range_of(chosen_instruction_set(isa));
  int64_t numel = 0;
  int64_t bytes = 0;
  for (int64_t i = 0; i < num_tasks; ++i) {
    numel += tasks[i].numel;
    bytes += tasks[i].numel * element_bytes(tasks[i].dtype);
    hint_huge_pages(tasks[i]);
  }
  const bool streaming = bytes >= kStreamingBytes;
  threads = static_cast<int>(std::clamp<int64_t>(numel / kLeastPerThread, 1, std::max(1, threads)));
  ChunkQueue queue(tasks, num_tasks, threads);

  const auto work = [&] {
    const DefaultFpEnvironment environment;
    while (queue.fill_claim(fill_range, streaming)) {
    }
    finish_streaming();
  };
  std::vector<std::thread> workers;
  try {
    for (int i = 1; i < threads; ++i) workers.emplace_back(work);
  } catch (const std::system_error&) {
    // The system has no thread left to give: those there are do the work.
  }

  bool stopped = false;
  {
    const DefaultFpEnvironment environment;
    auto last_poll = std::chrono::steady_clock::now();
    while (queue.fill_claim(fill_range, streaming)) {
      const auto now = std::chrono::steady_clock::now();
      if (now - last_poll < kPollInterval) continue;
      last_poll = now;
      if (should_stop()) {
        stopped = true;
        queue.stop();
      }
    }
    finish_streaming();
  }
  for (std::thread& worker : workers) worker.join();
  return !stopped;
}

}  // namespace fastinit
