// fingerprint_cpu: adds up the hashes of elements, on threads (parallel.h). One loop in plain C++, from which the
// compiler makes vector code for every instruction set.
#include "core/fingerprint.h"

#include <cstring>
#include <vector>

#include "backends.h"
#include "instruction_sets.h"
#include "parallel.h"

namespace fastinit {
namespace {

// Adds up the hashes of a row's elements. `state` is the hash's state for the first one.
template <class Bits>
FASTINIT_HD uint64_t hash_row(const unsigned char* data, int64_t count, int64_t memory_step, uint64_t state,
                              uint64_t state_step) {
  uint64_t sum = 0;
  const auto add = [&](int64_t k, int64_t step) __attribute__((always_inline)) {
    Bits bits;
    memcpy(&bits, data + k * step * static_cast<int64_t>(sizeof(Bits)), sizeof(Bits));
    sum += fingerprint_mix((state + static_cast<uint64_t>(k) * state_step) ^ bits);
  };
  if (memory_step == 1) {  // known to be so, it becomes vector loads
    for (int64_t k = 0; k < count; ++k) add(k, 1);
  } else {
    for (int64_t k = 0; k < count; ++k) add(k, memory_step);
  }
  return sum;
}

// Elements [begin, end), counted with the last dimension running fastest. Numbers may wrap, and come back: a step
// beyond the end of a dimension is taken before it is taken back.
template <class Bits>
FASTINIT_HD uint64_t hash_elements(const FingerprintTask& task, int64_t begin, int64_t end) {
  constexpr int kLast = kFingerprintDimensions - 1;
  const auto& dimension = task.dimension;
  int64_t position[kFingerprintDimensions];
  int64_t rest = begin;
  uint64_t address = task.data, index = static_cast<uint64_t>(task.global_offset);
  const auto move = [&](int d, int64_t count) __attribute__((always_inline)) {
    address += static_cast<uint64_t>(count) * static_cast<uint64_t>(dimension[d].memory_step) * sizeof(Bits);
    index += static_cast<uint64_t>(count) * static_cast<uint64_t>(dimension[d].index_step);
  };
  for (int d = kLast; d >= 0; --d) {
    position[d] = rest % dimension[d].size;
    rest /= dimension[d].size;
    move(d, position[d]);
  }
  const uint64_t state_step = static_cast<uint64_t>(dimension[kLast].index_step) * kFingerprintStep;
  uint64_t sum = 0;
  while (begin < end) {
    const int64_t left = dimension[kLast].size - position[kLast];
    const int64_t count = left < end - begin ? left : end - begin;
    const uint64_t state = task.key + index * kFingerprintStep;
    sum += hash_row<Bits>(reinterpret_cast<const unsigned char*>(address), count, dimension[kLast].memory_step, state,
                          state_step);
    begin += count;
    // To the beginning of the next row.
    move(kLast, -position[kLast]);
    position[kLast] = 0;
    for (int d = kLast - 1; d >= 0; --d) {
      move(d, 1);
      if (++position[d] < dimension[d].size) break;
      move(d, -position[d]);
      position[d] = 0;
    }
  }
  return sum;
}

FASTINIT_HD uint64_t hash_range(const FingerprintTask& task, int64_t begin, int64_t end) {
  switch (task.element_bytes) {
    case 1:
      return hash_elements<uint8_t>(task, begin, end);
    case 2:
      return hash_elements<uint16_t>(task, begin, end);
    case 4:
      return hash_elements<uint32_t>(task, begin, end);
    default:
      return hash_elements<uint64_t>(task, begin, end);
  }
}

using HashRange = uint64_t (*)(const FingerprintTask& task, int64_t begin, int64_t end);

uint64_t hash_range_portable(const FingerprintTask& task, int64_t begin, int64_t end) {
  return hash_range(task, begin, end);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) uint64_t hash_range_avx2(const FingerprintTask& task, int64_t begin, int64_t end) {
  return hash_range(task, begin, end);
}

// With vpmullq, of DQ, for the products of 64 bits.
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) uint64_t hash_range_avx512(const FingerprintTask& task,
                                                                                         int64_t begin, int64_t end) {
  return hash_range(task, begin, end);
}
#endif

HashRange hash_range_of(int choice) {
#if defined(__x86_64__)
  constexpr HashRange kHashRanges[kInstructionSets] = {hash_range_avx512, hash_range_avx2, hash_range_portable, nullptr,
                                                       hash_range_portable};
#else
  constexpr HashRange kHashRanges[kInstructionSets] = {nullptr, nullptr, nullptr, hash_range_portable,
                                                       hash_range_portable};
#endif
  return kHashRanges[choice];
}

}  // namespace

bool fingerprint_cpu(const FingerprintTask* tasks, int64_t num_tasks, int threads, const char* isa, uint64_t* sums,
                     const std::function<bool()>& should_stop) {
  const HashRange hash_range_of_isa = hash_range_of(chosen_instruction_set(isa));
  std::vector<int64_t> numels(static_cast<size_t>(num_tasks));
  std::vector<std::atomic<uint64_t>> totals(static_cast<size_t>(num_tasks));
  for (int64_t i = 0; i < num_tasks; ++i) {
    numels[i] = tasks[i].numel;
    totals[i] = 0;
  }
  const bool finished =
      for_all_chunks(numels, threads, should_stop, [&](int64_t task_index, int64_t begin, int64_t end) {
        const uint64_t sum = hash_range_of_isa(tasks[task_index], begin, end);
        totals[task_index].fetch_add(sum, std::memory_order_relaxed);
      });
  for (int64_t i = 0; i < num_tasks; ++i) sums[i] = totals[i];
  return finished;
}

}  // namespace fastinit
