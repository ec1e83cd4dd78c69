// blend_cuda and fill_where_cuda: as fill_cuda, but what the tensors hold goes into what they get (Rewrite in
// stores.h).
#include "fill_table.h"

namespace fastinit {
namespace {

// It needs more registers than fill_kernel.
__global__ void __launch_bounds__(kThreads, kResidentThreads / kThreads * 5 / 8)
    rewrite_kernel(const Task* tasks, const int* __restrict__ first_chunk, int num_tasks, int num_chunks, uint64_t seed,
                   const Rewrite rewrite) {
  __shared__ SharedQuantile::Pair hot_pairs[SharedQuantile::kEntries];
  const SharedQuantile hot = copy_quantile(hot_pairs);
  fill_table(tasks, first_chunk, num_tasks, num_chunks, seed, nullptr, hot, rewrite);
}

void launch_rewrite(const CudaTable& table, const Rewrite& rewrite, uint64_t seed, int device, uint64_t stream) {
  if (table.num_chunks == 0) return;
  const auto* tasks = reinterpret_cast<const Task*>(table.address);
  const auto* first_chunk = reinterpret_cast<const int*>(tasks + table.num_tasks);
  launch_fill(rewrite_kernel, table.num_chunks, device, stream, tasks, first_chunk, static_cast<int>(table.num_tasks),
              static_cast<int>(table.num_chunks), seed, rewrite);
}

}  // namespace

void blend_cuda(const CudaTable& table, double keep, double scale, uint64_t seed, int device, uint64_t stream) {
  launch_rewrite(table, Rewrite(keep, scale), seed, device, stream);
}

void fill_where_cuda(const CudaTable& table, uint64_t masks, uint64_t seed, int device, uint64_t stream) {
  launch_rewrite(table, Rewrite(masks), seed, device, stream);
}

}  // namespace fastinit
