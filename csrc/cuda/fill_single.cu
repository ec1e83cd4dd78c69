// fill_cuda_single: one task, without a table in device memory.
#include <stdexcept>

#include "fill_table.h"

namespace fastinit {
namespace {

// Fills one task, an argument of the launch. As another branch of fill_kernel it would not fit into registers.
// It needs a few more, and fills what is too small for that to matter.
__global__ void __launch_bounds__(kThreads, kResidentThreads / kThreads * 5 / 8)
    fill_single_kernel(const __grid_constant__ Task task, int num_chunks, uint64_t seed) {
  __shared__ SharedQuantile::Pair hot_pairs[SharedQuantile::kEntries];
  const SharedQuantile hot = copy_quantile(hot_pairs);
  const ChunkRange chunks{static_cast<int>(blockIdx.x), num_chunks, static_cast<int>(gridDim.x)};
  fill_chunks(task, seed, hot, chunks, Overwrite{});
}

}  // namespace

void fill_cuda_single(const Task& task, uint64_t seed, int device, uint64_t stream) {
  const int64_t chunks = num_chunks(task);
  if (chunks > kMostChunks) throw std::length_error("too many elements for one launch");
  if (chunks > 0) launch_fill(fill_single_kernel, chunks, device, stream, task, static_cast<int>(chunks), seed);
}

}  // namespace fastinit
