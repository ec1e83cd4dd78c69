// The CUDA backend, compiled for the CPU, against the CPU backend, in C++ alone: for the sanitizers, which see a write
// or a read outside of a tensor. test_cuda_on_cpu.py has more cases. Exits with 1 if anything differs.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "backends.h"
#include "core/prepare.h"
#include "cuda/chunks.h"

using namespace fastinit;

namespace {

constexpr double kParameters5[][kParameters] = {
    {0.5},                // constant
    {-1.0, 2.0},          // uniform
    {0.25, 2.0},          // normal
    {0, 1, -2, 3},        // truncated normal
    {1, 2, 33, 40, 2000}  // diagonal
};
constexpr int64_t kSizes[] = {0, 1, 3, 4, 5, 15, 16, 17, 1000, 8191, 8192, 8193, 30000};

Task make_task(Dtype dtype, Distribution distribution, int64_t numel, int64_t offset) {
  Task task{};
  task.numel = numel;
  task.map = {offset, std::max<int64_t>(numel, 1), 1, 0, 0, 1, 0, 0};
  task.name_id[0] = static_cast<uint64_t>(numel) * 77 + static_cast<uint64_t>(offset);
  std::copy_n(kParameters5[static_cast<int>(distribution)], kParameters, task.parameter);
  task.dtype = dtype;
  task.distribution = distribution;
  return task;
}

// Rows of 30 in memory of 37 a row, index steps of 50 a row.
void make_rows(Task& task) {
  task.map.row_length = 30;
  task.map.rows_per_slab = 7;
  task.map.row_index_step = 50;
  task.map.slab_index_step = 360;
  task.map.row_memory_step = 37;
  task.map.slab_memory_step = 7 * 37;
  task.numel = task.numel / 30 * 30;
}

int64_t memory_bytes(const Task& task) { return (task.numel / task.map.row_length + 1) * 37 * 8 + task.numel * 8; }

}  // namespace

int main() {
  constexpr uint64_t kSeed = 99;
  std::vector<Task> tasks;
  for (int dtype = 0; dtype < kDtypes; ++dtype) {
    for (int distribution = 0; distribution < kDistributions; ++distribution) {
      for (const int64_t numel : kSizes) {
        for (const int64_t offset : {int64_t{0}, int64_t{3}, (int64_t{1} << 34) - 5, int64_t{1} << 62}) {
          tasks.push_back(make_task(static_cast<Dtype>(dtype), static_cast<Distribution>(distribution), numel, offset));
          tasks.push_back(tasks.back());
          make_rows(tasks.back());
        }
      }
    }
  }
  // Exactly as long as the contiguous tensors are, so that a sanitizer sees what goes beyond.
  std::vector<std::vector<unsigned char>> by_cpu, by_cuda;
  for (Task& task : tasks) {
    const int64_t bytes = is_contiguous(task) ? task.numel * element_bytes(task.dtype) : memory_bytes(task);
    by_cpu.emplace_back(static_cast<size_t>(bytes), 0xA5);
    by_cuda.push_back(by_cpu.back());
    if (prepare(task) != PrepareError::kNone) return 1;
  }
  for (size_t i = 0; i < tasks.size(); ++i) tasks[i].data = reinterpret_cast<uint64_t>(by_cpu[i].data());
  const auto num_tasks = static_cast<int64_t>(tasks.size());
  fill_cpu(tasks.data(), num_tasks, kSeed, 1, nullptr, [] { return false; });
  for (size_t i = 0; i < tasks.size(); ++i) tasks[i].data = reinterpret_cast<uint64_t>(by_cuda[i].data());

  std::vector<int64_t> image(static_cast<size_t>(cuda_table_bytes(num_tasks) / 8 + 1));
  const int64_t num_chunks = write_cuda_table(tasks.data(), num_tasks, image.data());
  cuda_on_cpu::multiprocessors = 3;
  cuda_on_cpu::order_seed = 5;
  fill_cuda({reinterpret_cast<uint64_t>(image.data()), num_tasks, num_chunks}, kSeed, 0, 0, 0);

  int failures = cuda_launches() == 1 ? 0 : 1;
  const auto compare = [&](const char* what) {
    for (size_t i = 0; i < tasks.size(); ++i) {
      if (by_cpu[i] == by_cuda[i]) continue;
      ++failures;
      std::printf("%s, dtype %d, distribution %d, %lld elements from %lld: differs\n", what,
                  static_cast<int>(tasks[i].dtype), static_cast<int>(tasks[i].distribution),
                  static_cast<long long>(tasks[i].numel), static_cast<long long>(tasks[i].map.global_offset));
    }
  };
  compare("in a table");
  for (size_t i = 0; i < tasks.size(); ++i) {
    std::fill(by_cuda[i].begin(), by_cuda[i].end(), 0xA5);
    fill_cuda_single(tasks[i], kSeed, 0, 0);
  }
  compare("alone");
  // As a captured graph is replayed with another seed in the device's memory.
  uint64_t seed_on_device = 0;
  for (const uint64_t seed : {kSeed + 1, kSeed}) {
    seed_on_device = seed;
    fill_cuda({reinterpret_cast<uint64_t>(image.data()), num_tasks, num_chunks}, 0,
              reinterpret_cast<uint64_t>(&seed_on_device), 0, 0);
    if (seed != kSeed && by_cpu == by_cuda) ++failures;
  }
  compare("with a seed on the device");
  return failures == 0 ? 0 : 1;
}
