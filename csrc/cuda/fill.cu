// fill_cuda: all tasks of a table in one launch. Here are the table as it lies in device memory, the kernel and its
// launch.
#include <stdexcept>

#include "fill_table.h"

namespace fastinit {
namespace {

__global__ void __launch_bounds__(kThreads, kResidentThreads / kThreads)
    fill_kernel(const Task* tasks, const int* __restrict__ first_chunk, int num_tasks, int num_chunks, uint64_t seed,
                const uint64_t* __restrict__ seed_on_device) {
  __shared__ SharedQuantile::Pair hot_pairs[SharedQuantile::kEntries];
  const SharedQuantile hot = copy_quantile(hot_pairs);
  fill_table(tasks, first_chunk, num_tasks, num_chunks, seed, seed_on_device, hot, Overwrite{});
}

}  // namespace

int64_t cuda_table_bytes(int64_t num_tasks) {
  return num_tasks * static_cast<int64_t>(sizeof(Task)) + (num_tasks + 1) * static_cast<int64_t>(sizeof(int));
}

int64_t write_cuda_table(const Task* tasks, int64_t num_tasks, void* image) {
  std::copy_n(tasks, num_tasks, static_cast<Task*>(image));
  int* first_chunk = reinterpret_cast<int*>(static_cast<Task*>(image) + num_tasks);
  int64_t chunks = 0;
  for (int64_t i = 0; i < num_tasks; ++i) {
    first_chunk[i] = static_cast<int>(chunks);
    chunks += num_chunks(tasks[i]);
    // No device holds so many: 10^13 values and more.
    if (chunks > kMostChunks) throw std::length_error("too many elements for one table");
  }
  first_chunk[num_tasks] = static_cast<int>(chunks);
  return chunks;
}

void fill_cuda(const CudaTable& table, uint64_t seed, uint64_t seed_address, int device, uint64_t stream) {
  if (table.num_chunks == 0) return;
  const auto* tasks = reinterpret_cast<const Task*>(table.address);
  const auto* first_chunk = reinterpret_cast<const int*>(tasks + table.num_tasks);
  launch_fill(fill_kernel, table.num_chunks, device, stream, tasks, first_chunk, static_cast<int>(table.num_tasks),
              static_cast<int>(table.num_chunks), seed, reinterpret_cast<const uint64_t*>(seed_address));
}

bool is_capturing_cuda(int device, uint64_t stream) {
  const DeviceScope scope(device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(reinterpret_cast<cudaStream_t>(stream), &status), "asking for a capture");
  return status != cudaStreamCaptureStatusNone;
}

int64_t cuda_launches() { return launches.load(std::memory_order_relaxed); }

}  // namespace fastinit
