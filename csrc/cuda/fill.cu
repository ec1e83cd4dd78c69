// fill_cuda and blend_cuda: all tasks of a table in one launch. Here are the table as it lies in device memory, the
// kernels, which find the tasks of a block's chunks, and their launch.
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "backends.h"
#include "fill_chunk.h"
#include "launch.h"

namespace fastinit {
namespace {

// The most resident threads of a multiprocessor for which ptxas fits the kernel into registers without spilling any. A
// thread then has 64 registers, or 72, 80 and 128 on the architectures where the kernel takes more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kResidentThreads = 512;
#elif defined(__CUDA_ARCH__) && (__CUDA_ARCH__ >= 1000 || __CUDA_ARCH__ < 800)
constexpr int kResidentThreads = 768;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kResidentThreads = 896;
#else
constexpr int kResidentThreads = 1024;
#endif

// So many times the resident blocks are launched, where there are chunks for all. Blocks of a multiprocessor that have
// the same work end at different times; whoever is early takes the next. On an H200 this makes normals 3 % and
// truncated normals 7 % faster. From 16 on, what a block does first costs as much as that gains.
constexpr int64_t kBlocksPerPlace = 8;

// Chunk numbers are ints, and a block's next one may lie a whole grid beyond the last chunk.
constexpr int64_t kMostChunks = std::numeric_limits<int>::max() - (1 << 24);

// The last task whose first chunk is not beyond `chunk`: tasks without elements have no chunk.
FASTINIT_DEVICE int find_task(const int* first_chunk, int num_tasks, int chunk) {
  int found = 0;
  int beyond = num_tasks;
  while (beyond - found > 1) {
    const int middle = (found + beyond) / 2;
    if (first_chunk[middle] <= chunk) {
      found = middle;
    } else {
      beyond = middle;
    }
  }
  return found;
}

// The hot rows of the quantile's table, copied to shared memory by all threads of a block.
FASTINIT_DEVICE SharedQuantile copy_quantile(SharedQuantile::Pair* pairs) {
  for (int i = static_cast<int>(threadIdx.x); i < SharedQuantile::kEntries; i += kThreads) {
    pairs[i] = SharedQuantile::entry(i);
  }
  __syncthreads();
  return SharedQuantile(pairs);
}

// tasks: [num_tasks]; first_chunk: [num_tasks + 1], prefix sums of num_chunks(task), the last of which is num_chunks.
// Blocks take the chunks of all tasks in turn: which block fills a chunk, and when, changes no value.
//
// The seed lies on the device if seed_on_device is not null: a captured graph then gives other values when it is
// replayed with another one there.
//
// tasks is not __restrict__. So the compiler reads again (from L1) what a strided task needs, rather than keep it in
// registers, of which the kernel has none left.
template <class Put>
FASTINIT_DEVICE void fill_table(const Task* tasks, const int* __restrict__ first_chunk, int num_tasks, int num_chunks,
                                uint64_t seed, const uint64_t* __restrict__ seed_on_device, const SharedQuantile& hot,
                                const Put& put) {
  const int step = static_cast<int>(gridDim.x);
  for (int chunk = static_cast<int>(blockIdx.x); chunk < num_chunks;) {
    const int index = uniform(find_task(first_chunk, num_tasks, chunk));
    const int begin = first_chunk[index];
    const ChunkRange chunks{chunk - begin, first_chunk[index + 1] - begin, step};
    fill_chunks(tasks[index], seed_on_device == nullptr ? seed : *seed_on_device, hot, chunks, put);
    chunk += (chunks.count - chunks.first + step - 1) / step * step;  // this block's first chunk beyond the task
  }
}

__global__ void __launch_bounds__(kThreads, kResidentThreads / kThreads)
    fill_kernel(const Task* tasks, const int* __restrict__ first_chunk, int num_tasks, int num_chunks, uint64_t seed,
                const uint64_t* __restrict__ seed_on_device) {
  __shared__ SharedQuantile::Pair hot_pairs[SharedQuantile::kEntries];
  const SharedQuantile hot = copy_quantile(hot_pairs);
  fill_table(tasks, first_chunk, num_tasks, num_chunks, seed, seed_on_device, hot, Overwrite{});
}

// What the tensors hold goes into what they get. A kernel of its own, for it needs more registers.
__global__ void __launch_bounds__(kThreads, kResidentThreads / kThreads * 5 / 8)
    blend_kernel(const Task* tasks, const int* __restrict__ first_chunk, int num_tasks, int num_chunks, uint64_t seed,
                 const Blend blend) {
  __shared__ SharedQuantile::Pair hot_pairs[SharedQuantile::kEntries];
  const SharedQuantile hot = copy_quantile(hot_pairs);
  fill_table(tasks, first_chunk, num_tasks, num_chunks, seed, nullptr, hot, blend);
}

// Fills one task, an argument of the launch. As another branch of fill_kernel it would not fit into registers.
// It needs a few more, and fills what is too small for that to matter.
__global__ void __launch_bounds__(kThreads, kResidentThreads / kThreads * 5 / 8)
    fill_single_kernel(const __grid_constant__ Task task, int num_chunks, uint64_t seed) {
  __shared__ SharedQuantile::Pair hot_pairs[SharedQuantile::kEntries];
  const SharedQuantile hot = copy_quantile(hot_pairs);
  const ChunkRange chunks{static_cast<int>(blockIdx.x), num_chunks, static_cast<int>(gridDim.x)};
  fill_chunks(task, seed, hot, chunks, Overwrite{});
}

template <class... Parameters, class... Arguments>
void launch_fill(void (*kernel)(Parameters...), int64_t num_chunks, int device, uint64_t stream,
                 const Arguments&... arguments) {
  const DeviceScope scope(device);
  const int64_t places = int64_t{multiprocessors(device)} * blocks_per_multiprocessor(kernel, kThreads);
  const auto blocks = static_cast<unsigned>(std::min(num_chunks, places * kBlocksPerPlace));
  launch(kernel, blocks, kThreads, 0, reinterpret_cast<cudaStream_t>(stream), arguments...);
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

void blend_cuda(const CudaTable& table, double keep, double scale, uint64_t seed, int device, uint64_t stream) {
  if (table.num_chunks == 0) return;
  const auto* tasks = reinterpret_cast<const Task*>(table.address);
  const auto* first_chunk = reinterpret_cast<const int*>(tasks + table.num_tasks);
  launch_fill(blend_kernel, table.num_chunks, device, stream, tasks, first_chunk, static_cast<int>(table.num_tasks),
              static_cast<int>(table.num_chunks), seed, Blend(keep, scale));
}

void fill_cuda_single(const Task& task, uint64_t seed, int device, uint64_t stream) {
  const int64_t chunks = num_chunks(task);
  if (chunks > kMostChunks) throw std::length_error("too many elements for one launch");
  if (chunks > 0) launch_fill(fill_single_kernel, chunks, device, stream, task, static_cast<int>(chunks), seed);
}

bool is_capturing_cuda(int device, uint64_t stream) {
  const DeviceScope scope(device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(reinterpret_cast<cudaStream_t>(stream), &status), "asking for a capture");
  return status != cudaStreamCaptureStatusNone;
}

int64_t cuda_launches() { return launches.load(std::memory_order_relaxed); }

}  // namespace fastinit
