// fill_kernel for one contiguous tensor of normals alone: all that flags of nvcc could change about the samplers, and a
// tenth of the code to compile.
#include "cuda/fill_table.h"

namespace fastinit {

__global__ void fill_kernel(const Task* tasks, const int* /*first_chunk*/, int /*num_tasks*/, int num_chunks,
                            uint64_t seed, const uint64_t* /*seed_on_device*/) {
  using Normal = NormalF32<ScalarLanes, SharedQuantile, /*kTruncated=*/false>;
  __shared__ SharedQuantile::Pair hot_pairs[SharedQuantile::kEntries];
  const SharedQuantile hot = copy_quantile(hot_pairs);
  const ChunkRange chunks{static_cast<int>(blockIdx.x), num_chunks, static_cast<int>(gridDim.x)};
  const Task& task = *tasks;
  const Stream stream = derive_stream(task.name_id, seed);
  if (task.dtype == Dtype::kFloat64) {
    const DoubleSource<NormalF64> source(stream, NormalF64(task.sampler, stream));
    fill_together<double>(task, source, chunks, Overwrite{});
  } else {
    const FloatSource<Normal> source(stream, Normal(task.sampler, stream, hot));
    fill_together<float>(task, source, chunks, Overwrite{});
  }
}

}  // namespace fastinit
