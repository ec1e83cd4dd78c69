// orthogonal_cuda: all matrices of a table in one launch, a block each. Here are the kernel and its launch.
#include <cuda_runtime.h>

#include <algorithm>

#include "backends.h"
#include "core/prepare.h"
#include "launch.h"
#include "reflectors.h"

namespace fastinit {

// The shared memory of a block, as many bytes as the launch says. It is declared outside of the kernel, since tests,
// which include this file, define it.
extern __shared__ double matrix_memory[];

namespace {

// Two blocks a multiprocessor: 128 registers a thread.
__global__ void __launch_bounds__(kMatrixThreads, 2)
    orthogonal_kernel(const OrthogonalMatrix* __restrict__ matrices, uint64_t seed, const Sampler normal) {
  const OrthogonalMatrix matrix = tall(matrices[blockIdx.x]);
  if (matrix.columns == 0) return;
  const Stream derived = derive_stream(matrix.name_id, seed);
  const Stream stream{uniform(derived.key), uniform(derived.counter_high)};
  if (matrix.dtype == Dtype::kFloat64) {
    write_orthogonal(matrix, DoubleSource<NormalF64>(stream, NormalF64(normal, stream)), matrix_memory);
  } else {
    using Normal = NormalF32<ScalarLanes, GlobalQuantile, /*kTruncated=*/false>;
    write_orthogonal(matrix, FloatSource<Normal>(stream, Normal(normal, stream, GlobalQuantile{})),
                     reinterpret_cast<float*>(matrix_memory));
  }
}

}  // namespace

bool orthogonal_cuda_fits(int64_t rows, int64_t columns, Dtype dtype, int device) {
  const int64_t bytes = orthogonal_shared_bytes(rows, columns, dtype);
  return bytes >= 0 && bytes <= most_shared_bytes(device);
}

void orthogonal_cuda(const OrthogonalTable& table, uint64_t seed, int device, uint64_t stream) {
  if (table.shared_bytes == 0) return;  // nothing to write
  const DeviceScope scope(device);
  Task standard{};
  standard.distribution = Distribution::kNormal;
  standard.parameter[1] = 1.0;
  prepare(standard);
  launch(orthogonal_kernel, static_cast<unsigned>(table.num_matrices), kMatrixThreads,
         static_cast<size_t>(table.shared_bytes), reinterpret_cast<cudaStream_t>(stream),
         reinterpret_cast<const OrthogonalMatrix*>(table.address), seed, standard.sampler);
}

}  // namespace fastinit
