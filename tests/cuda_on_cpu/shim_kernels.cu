// Kernels and launches that use what cuda_runtime.h of this folder offers. shim_test.cpp includes and runs them; nvcc
// compiles the same file against NVIDIA's header, which shows that the shapes agree:
//   nvcc -std=c++17 -arch=sm_90 -c tests/cuda_on_cpu/shim_kernels.cu -o /dev/null
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

constexpr int kBlock = 256;
constexpr int kTile = 32;
constexpr int kRows = 8;

__constant__ unsigned kFactors[2] = {0xd2511f53u, 0xcd9e8d57u};

struct Table {  // as large as CUDA's old limit for arguments
  const float* values;
  unsigned long long numel;
  char rest[4000];
};

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int delta = warpSize / 2; delta > 0; delta /= 2) value += __shfl_down_sync(0xffffffffu, value, delta);
  return value;
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    sum_kernel(const __grid_constant__ Table table, T* sum, unsigned* num_blocks) {
  __shared__ T partial[kBlock / 32];
  T value = 0;
  for (unsigned long long i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < table.numel;
       i += uint64_t{gridDim.x} * blockDim.x) {
    value += static_cast<T>(__ldg(table.values + i));
  }
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x < 32) {
    value = warp_sum(threadIdx.x < kBlock / 32 ? partial[threadIdx.x] : T{0});
    if (threadIdx.x == 0) {
      atomicAdd(sum, value);
      atomicAdd(num_blocks, 1u);
    }
  }
}

// [rows][columns] -> [columns][rows]
__global__ void transpose_kernel(const float* __restrict__ in, float* __restrict__ out, int rows, int columns) {
  __shared__ float tile[kTile][kTile + 1];
  const int column = blockIdx.x * kTile + threadIdx.x;
  for (int i = threadIdx.y; i < kTile; i += kRows) {
    const int row = blockIdx.y * kTile + i;
    if (row < rows && column < columns) tile[i][threadIdx.x] = in[row * columns + column];
  }
  __syncthreads();
  const int out_column = blockIdx.y * kTile + threadIdx.x;
  for (int i = threadIdx.y; i < kTile; i += kRows) {
    const int out_row = blockIdx.x * kTile + i;
    if (out_row < columns && out_column < rows) out[out_row * rows + out_column] = tile[threadIdx.x][i];
  }
}

struct Votes {
  unsigned odd, half, active;
  int any, all, broadcast, swapped, segment, last, block_any, block_none;
  float other;
};

__global__ void votes_kernel(Votes* votes) {
  const int lane = threadIdx.x % warpSize;
  Votes& vote = votes[threadIdx.x];
  vote.odd = __ballot_sync(0xffffffffu, lane % 2);
  vote.any = __any_sync(0xffffffffu, lane == 7);
  vote.all = __all_sync(0xffffffffu, lane >= 0);
  vote.active = __activemask();
  vote.broadcast = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x), 3);
  vote.segment = __shfl_sync(0xffffffffu, lane, 1, 8);
  vote.swapped = __shfl_xor_sync(0xffffffffu, lane, 5);
  vote.last = __shfl_down_sync(0xffffffffu, lane, 2, 16);
  vote.other = __shfl_xor_sync(0xffffffffu, 0.5f * lane, 1);
  vote.half = 0;
  // Two halves of a warp on different ways.
  if (lane < 16) {
    vote.half = __ballot_sync(0x0000ffffu, lane < 4);
    __syncwarp(0x0000ffffu);
  } else {
    vote.half = __ballot_sync(0xffff0000u, lane < 20);
  }
  __syncwarp();
  vote.block_any = __syncthreads_or(threadIdx.x == 40);
  vote.block_none = __syncthreads_or(0);
}

__global__ void bits_kernel(uint4* out, float* largest, int* order, unsigned long long* wide) {
  alignas(16) __shared__ unsigned words[4];
  __shared__ __align__(8) unsigned counts[2];
  if (threadIdx.x < 2) counts[threadIdx.x] = 0;
  if (threadIdx.x < 4) words[threadIdx.x] = __umulhi(kFactors[threadIdx.x % 2], __float_as_uint(1.5f + threadIdx.x));
  __syncthreads();
  if (threadIdx.x == 0) {
    __stcs(out, *reinterpret_cast<uint4*>(words));
    *largest = __uint_as_float(0x40490fdb);
  }
  atomicMax(&counts[0], threadIdx.x);
  atomicAdd(order + 1, -1);
  atomicExch(order, 5);
  atomicMax(wide, 1ull << threadIdx.x % 64);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(order + 2, static_cast<int>(counts[0]));
}

// Reads shared memory that nobody has written.
__global__ void unwritten_kernel(unsigned* out) {
  __shared__ unsigned shared[kBlock];
  out[blockIdx.x * kBlock + threadIdx.x] = shared[threadIdx.x];
  shared[threadIdx.x] = threadIdx.x;
}

extern __shared__ unsigned dynamic_words[];

// The same of dynamic shared memory, of which there are `count` words.
__global__ void dynamic_kernel(unsigned* out, int count) {
  for (int i = threadIdx.x; i < count; i += kBlock) {
    out[blockIdx.x * count + i] = dynamic_words[i];
    dynamic_words[i] = i;
  }
}

__global__ void order_kernel(int* next, int* ranks) {
  ranks[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}

__global__ void empty_kernel() {}

// Wrong in the way that `fault` says.
__global__ void faulty_kernel(int fault, int* out) {
  const int lane = threadIdx.x % 32;
  if (fault == 0 && threadIdx.x == 3) return;
  if (fault == 0) __syncthreads();
  if (fault == 1) {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (fault == 2 && lane < 16) out[lane] = __shfl_sync(0xffffffffu, lane, 0);
  if (fault == 3) __syncwarp(lane == 0 ? 0x3u : 0xffffffffu);
  if (fault == 4) out[lane] = lane < 8 ? __any_sync(0xffffffffu, 1) : __shfl_xor_sync(0xffffffffu, 1, 1);
  if (fault == 5) __syncwarp(0x1u);
}

inline cudaLaunchConfig_t launch_config(dim3 grid, dim3 block) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = nullptr;
  return config;
}

// As many blocks as the device holds at a time.
template <typename T>
cudaError_t launch_sum(const Table& table, T* sum, unsigned* num_blocks, cudaStream_t stream) {
  int device = 0, multiprocessors = 0, blocks = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  if (cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device))
    return error;
  if (cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, sum_kernel<T>, kBlock, 0))
    return error;
  cudaLaunchConfig_t config = launch_config(dim3(multiprocessors * blocks), kBlock);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, sum_kernel<T>, table, sum, num_blocks);
}

template cudaError_t launch_sum<float>(const Table&, float*, unsigned*, cudaStream_t);
template cudaError_t launch_sum<unsigned long long>(const Table&, unsigned long long*, unsigned*, cudaStream_t);

inline cudaError_t launch_dynamic(unsigned* out, int count, size_t asked_for) {
  cudaLaunchConfig_t config = launch_config(2, kBlock);
  config.dynamicSmemBytes = count * sizeof(unsigned);
  const int bytes = static_cast<int>(asked_for);
  if (cudaError_t error = cudaFuncSetAttribute(dynamic_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) {
    return error;
  }
  return cudaLaunchKernelEx(&config, dynamic_kernel, out, count);
}

inline cudaError_t launch_transpose(const float* in, float* out, int rows, int columns) {
  const cudaLaunchConfig_t config =
      launch_config(dim3((columns + kTile - 1) / kTile, (rows + kTile - 1) / kTile), dim3(kTile, kRows));
  return cudaLaunchKernelEx(&config, transpose_kernel, in, out, rows, columns);
}
