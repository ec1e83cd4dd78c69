// fill_cpu: chooses the instruction set, and fills the chunks of all tasks on threads (parallel.h).
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstring>
#include <vector>

#include "backends.h"
#include "huge_pages.h"
#include "instruction_sets.h"
#include "parallel.h"

namespace fastinit {
namespace {

// A fill of this many bytes and more writes past the caches. It would evict all that is there, and be evicted itself
// before its next use. Writing past them also saves reading each line first.
constexpr int64_t kStreamingBytes = int64_t{32} << 20;

#if defined(__x86_64__)
// Clang 14's __builtin_cpu_supports does not know F16C. Support of AVX2 implies that the system keeps the registers.
bool supports_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

}  // namespace

const FillLoops& fill_loops_of(int choice) {
#if defined(__x86_64__)
  static constexpr const FillLoops* kLoops[kInstructionSets] = {&kFillLoopsAvx512, &kFillLoopsAvx2, &kFillLoopsSse2,
                                                                nullptr, &kFillLoopsPortable};
#elif defined(__aarch64__)
  static constexpr const FillLoops* kLoops[kInstructionSets] = {nullptr, nullptr, nullptr, &kFillLoopsNeon,
                                                                &kFillLoopsPortable};
#else
  static constexpr const FillLoops* kLoops[kInstructionSets] = {nullptr, nullptr, nullptr, nullptr,
                                                                &kFillLoopsPortable};
#endif
  return *kLoops[choice];
}

const InstructionSet* instruction_sets() {
#if defined(__x86_64__)
  constexpr bool sse2 = true;
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && supports_f16c();
  static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  constexpr bool sse2 = false;
  constexpr bool avx2 = false;
  constexpr bool avx512 = false;
#endif
#if defined(__aarch64__)
  constexpr bool neon = true;
#else
  constexpr bool neon = false;
#endif
  static const InstructionSet sets[kInstructionSets] = {
      {"avx512", avx512}, {"avx2", avx2}, {"sse2", sse2}, {"neon", neon}, {"portable", true}};
  return sets;
}

int chosen_instruction_set(const char* isa) {
  const InstructionSet* sets = instruction_sets();
  for (int i = 0; i < kInstructionSets; ++i) {
    if (sets[i].supported && (isa == nullptr || std::strcmp(isa, sets[i].name) == 0)) return i;
  }
  return kInstructionSets - 1;
}

bool fill_cpu(const Task* tasks, int64_t num_tasks, uint64_t seed, int threads, const char* isa,
              const std::function<bool()>& should_stop) {
  const FillRange fill_range = fill_loops_of(chosen_instruction_set(isa)).fill;
  if (num_tasks == 1 && tasks->numel <= kChunk) {  // sharing out one chunk takes longer than filling a small one
    const DefaultFpEnvironment environment;
    fill_range(*tasks, derive_stream(tasks->name_id, seed), 0, tasks->numel, /*streaming=*/false);
    return true;
  }
  std::vector<int64_t> numels(static_cast<size_t>(num_tasks));
  int64_t bytes = 0;
  for (int64_t i = 0; i < num_tasks; ++i) {
    numels[i] = tasks[i].numel;
    bytes += tasks[i].numel * element_bytes(tasks[i].dtype);
    hint_huge_pages(tasks[i]);
  }
  const bool streaming = bytes >= kStreamingBytes;
  return for_all_chunks(numels, threads, should_stop, [&](int64_t task_index, int64_t begin, int64_t end) {
    const Task& task = tasks[task_index];
    fill_range(task, derive_stream(task.name_id, seed), begin, end, streaming);
  });
}

}  // namespace fastinit
