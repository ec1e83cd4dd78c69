// What the kernels of fill.cu, rewrite.cu and fill_single.cu share: how many threads are resident, how a block finds
// the tasks of its chunks in a table, and the launch. Each kernel has a file of its own, so that they compile side by
// side, and a test compiles only the one it is about.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <limits>

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

// This many times as many blocks are launched as can be resident, where there are chunks for all. Blocks of a
// multiprocessor that have the same work end at different times; whoever is early takes the next. On an H200 this makes
// normals 3 % and truncated normals 7 % faster. From 16 on, what a block does first costs as much as that gains.
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
    const Task& task = tasks[index];
    fill_chunks(task, seed_on_device == nullptr ? seed : *seed_on_device, hot, chunks, put.of(task, index));
    chunk += (chunks.count - chunks.first + step - 1) / step * step;  // this block's first chunk beyond the task
  }
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
}  // namespace fastinit
