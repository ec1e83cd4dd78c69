// Stands in for NVIDIA's header, in tests only: found first by `g++ -x c++ -I tests/cuda_on_cpu`, it makes a .cu file
// run on the CPU, blocks one after the other on the calling thread. What is here has the shape of CUDA 13; what is not
// here does not compile. fibers.h runs the threads of a block.
#pragma once
#ifdef __CUDACC__
#error "nvcc looks for cuda_runtime.h in its working directory first: run it outside of tests/cuda_on_cpu"
#endif

#include <link.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <map>
#include <memory>  // it says __noinline__ itself, so it has to come before the macro of that name
#include <mutex>
#include <numeric>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
// Where SharedMemory finds it; in a function it is static. What a file declares as `extern __shared__ T name[]`, in a
// namespace, is defined by whoever links or includes it, in the same namespace: CUDA_ON_CPU_DYNAMIC_SHARED(T, name).
#define __shared__ thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define CUDA_ON_CPU_VECTORS(type, name, align2, align4)            \
  struct alignas(align2) name##2 { type x, y; };                   \
  struct alignas(align4) name##4 { type x, y, z, w; };             \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_ON_CPU_VECTORS(int, int, 8, 16)
CUDA_ON_CPU_VECTORS(unsigned, uint, 8, 16)
CUDA_ON_CPU_VECTORS(float, float, 8, 16)
#undef CUDA_ON_CPU_VECTORS
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }
struct dim3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};

// ---- Errors.

#define CUDA_ON_CPU_ERRORS(X)                                                                         \
  X(cudaSuccess, 0, "no error")                                                                       \
  X(cudaErrorInvalidValue, 1, "invalid argument")                                                     \
  X(cudaErrorMemoryAllocation, 2, "out of memory")                                                    \
  X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                               \
  X(cudaErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")                         \
  X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                                    \
  X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                     \
  X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                            \
  X(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution on the device") \
  X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                         \
  X(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")                    \
  X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                        \
  X(cudaErrorNotSupported, 801, "operation not supported")                                            \
  X(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")       \
  X(cudaErrorUnknown, 999, "unknown error")
#define CUDA_ON_CPU_VALUE(name, code, text) name = code,
#define CUDA_ON_CPU_NAME(name, code, text) \
  case name:                               \
    return #name;
#define CUDA_ON_CPU_TEXT(name, code, text) \
  case name:                               \
    return text;
enum cudaError_t { CUDA_ON_CPU_ERRORS(CUDA_ON_CPU_VALUE) };
inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) { CUDA_ON_CPU_ERRORS(CUDA_ON_CPU_NAME) }
  return "unrecognized error code";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) { CUDA_ON_CPU_ERRORS(CUDA_ON_CPU_TEXT) }
  return "unrecognized error code";
}
#undef CUDA_ON_CPU_ERRORS
#undef CUDA_ON_CPU_VALUE
#undef CUDA_ON_CPU_NAME
#undef CUDA_ON_CPU_TEXT

// ---- Launches.

enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone,
  cudaStreamCaptureStatusActive,
  cudaStreamCaptureStatusInvalidated
};
typedef struct CUstream_st* cudaStream_t;
struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace cuda_on_cpu {

// For tests to set, besides order_seed.
inline cudaError_t fail_next_launch = cudaSuccess;  // returned once by a launch that does not run
inline int device_count = 1;
inline int multiprocessors = 132;
inline int threads_per_multiprocessor = 2048;
inline int blocks_per_multiprocessor = -1;  // what the occupancy call answers; -1: as many as those threads allow
inline int shared_bytes = 227 << 10;        // that a block can ask for
inline cudaStreamCaptureStatus capture_status = cudaStreamCaptureStatusNone;
// For tests to read.
inline int64_t launches = 0;  // that ran

// The dynamic shared memory of the kernels of this program or library: at most kMostSharedBytes, where a thread has it.
constexpr size_t kMostSharedBytes = 227 << 10, kSharedBytesForAll = 48 << 10;
inline char* (*dynamic_shared)() = nullptr;
inline size_t dynamic_shared_bytes = 0;                       // of the launch that runs
inline std::map<const void*, size_t> shared_bytes_of_kernel;  // that were asked for

inline dim3 grid_dim, block_dim;
inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local int device = 0;

inline cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// The thread-local storage of this program or library, where __shared__ variables are. On a GPU they may hold anything
// when a block starts; here, bytes 0xff. What else is there gets its value back when the kernel has ended.
class SharedMemory {
 public:
  SharedMemory() {
    static thread_local char anything;
    begin_ = &anything;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* shared_memory) {
          auto* self = static_cast<SharedMemory*>(shared_memory);
          auto* begin = static_cast<char*>(info->dlpi_tls_data);
          for (int i = 0; begin && i < info->dlpi_phnum; ++i) {
            char* end = begin + info->dlpi_phdr[i].p_memsz;
            if (info->dlpi_phdr[i].p_type != PT_TLS || self->begin_ < begin || self->begin_ >= end) continue;
            const char* libc = reinterpret_cast<char*>(&errno);
            if (libc >= begin && libc < end) return 1;  // linked statically: libc's variables must stay as they are
            self->begin_ = begin;
            self->saved_.assign(begin, end);
            return 1;
          }
          return 0;
        },
        this);
  }
  ~SharedMemory() {
    guard(false);
    std::copy(saved_.begin(), saved_.end(), begin_);
  }
  void poison() {
    guard(false);
    std::fill_n(begin_, saved_.size(), '\xff');
    guard(true);
  }

 private:
  // AddressSanitizer reports what lies beyond the dynamic shared memory of the launch.
  static void guard([[maybe_unused]] bool on) {
#ifdef __SANITIZE_ADDRESS__
    if (!dynamic_shared) return;
    char* const end = dynamic_shared() + dynamic_shared_bytes;
    const size_t beyond = kMostSharedBytes - dynamic_shared_bytes;
    on ? __asan_poison_memory_region(end, beyond) : __asan_unpoison_memory_region(end, beyond);
#endif
  }

  char* begin_;
  std::vector<char> saved_;
};

inline cudaError_t check(const cudaLaunchConfig_t& config, const void* kernel) {
  const auto outside = [](const dim3& size, unsigned x, unsigned y, unsigned z) {
    return size.x - 1 >= x || size.y - 1 >= y || size.z - 1 >= z;  // 0 too, by wrapping around
  };
  const dim3& block = config.blockDim;
  if (outside(config.gridDim, 0x7fffffff, 65535, 65535) || outside(block, kMaxThreads, kMaxThreads, 64) ||
      block.x * block.y * block.z > kMaxThreads) {
    return cudaErrorInvalidConfiguration;
  }
  const auto asked_for = shared_bytes_of_kernel.find(kernel);
  const size_t most = asked_for == shared_bytes_of_kernel.end() ? kSharedBytesForAll : asked_for->second;
  if (config.dynamicSmemBytes > std::max(most, kSharedBytesForAll)) return cudaErrorInvalidValue;
  if (config.numAttrs == 0 && (config.dynamicSmemBytes == 0 || dynamic_shared)) return cudaSuccess;
  std::fprintf(stderr, "cuda_on_cpu: no launch attributes are emulated, and no dynamic shared memory is defined\n");
  return cudaErrorNotSupported;
}

inline cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*function)(void*),
                          void* arguments) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (fail_next_launch != cudaSuccess) return report(std::exchange(fail_next_launch, cudaSuccess));
  const cudaError_t error = check(config, kernel);
  if (error != cudaSuccess) return report(error);
  ++launches;
  grid_dim = config.gridDim;
  block_dim = config.blockDim;
  dynamic_shared_bytes = config.dynamicSmemBytes;
  const auto index = [](const dim3& size, uint64_t i) {
    const uint64_t row = i / size.x;
    return uint3{unsigned(i % size.x), unsigned(row % size.y), unsigned(row / size.y)};
  };
  num_threads = block_dim.x * block_dim.y * block_dim.z;
  for (unsigned i = 0; i < num_threads; ++i) threads[i].index = index(block_dim, i);
  thread_function = function;
  thread_arguments = arguments;

  const uint64_t num_blocks = uint64_t{grid_dim.x} * grid_dim.y * grid_dim.z;
  std::vector<uint64_t> blocks(order_seed ? num_blocks : 0);
  std::iota(blocks.begin(), blocks.end(), 0);
  order.seed(order_seed);
  std::shuffle(blocks.begin(), blocks.end(), order);
  SharedMemory shared_memory;
  for (uint64_t i = 0; i < num_blocks; ++i) {
    block_index = index(grid_dim, order_seed ? blocks[i] : i);
    shared_memory.poison();
    run_block();
  }
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_DYNAMIC_SHARED(type, name)                          \
  thread_local type name[cuda_on_cpu::kMostSharedBytes / sizeof(type)]; \
  [[maybe_unused]] static const auto cuda_on_cpu_dynamic_shared =       \
      cuda_on_cpu::dynamic_shared = [] { return reinterpret_cast<char*>(name); }

template <typename... ExpTypes, typename... ActTypes>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(ExpTypes...), ActTypes&&... args) {
  static_assert((std::is_trivially_copyable<ExpTypes>::value && ...), "CUDA copies arguments byte by byte");
  static_assert((sizeof(ExpTypes) + ... + 0) <= 32764, "CUDA's limit on the bytes of all arguments");
  if (!config) return cuda_on_cpu::report(cudaErrorInvalidValue);
  if (!kernel) return cuda_on_cpu::report(cudaErrorInvalidDeviceFunction);
  return [&](ExpTypes... values) {
    auto thread = [&] { kernel(values...); };
    const auto call = [](void* f) { (*static_cast<decltype(thread)*>(f))(); };
    return cuda_on_cpu::launch(*config, reinterpret_cast<const void*>(kernel), call, &thread);
  }(std::forward<ActTypes>(args)...);
}

// ---- What else the host calls.

enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline cudaError_t cudaPeekAtLastError() { return cuda_on_cpu::last_error; }
inline cudaError_t cudaGetLastError() { return std::exchange(cuda_on_cpu::last_error, cudaSuccess); }

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = cuda_on_cpu::device_count;
  return cuda_on_cpu::report(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = cuda_on_cpu::device;
  return cuda_on_cpu::report(cuda_on_cpu::device_count > 0 ? cudaSuccess : cudaErrorNoDevice);
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= cuda_on_cpu::device_count) return cuda_on_cpu::report(cudaErrorInvalidDevice);
  cuda_on_cpu::device = device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= cuda_on_cpu::device_count) return cuda_on_cpu::report(cudaErrorInvalidDevice);
  const std::map<cudaDeviceAttr, int> values = {
      {cudaDevAttrMaxThreadsPerBlock, cuda_on_cpu::kMaxThreads},
      {cudaDevAttrWarpSize, cuda_on_cpu::kWarp},
      {cudaDevAttrMultiProcessorCount, cuda_on_cpu::multiprocessors},
      {cudaDevAttrMaxThreadsPerMultiProcessor, cuda_on_cpu::threads_per_multiprocessor},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, cuda_on_cpu::shared_bytes}};
  const auto found = values.find(attribute);
  if (found == values.end()) return cuda_on_cpu::report(cudaErrorInvalidValue);
  *value = found->second;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel kernel, int block_size, size_t) {
  if (!kernel) return cuda_on_cpu::report(cudaErrorInvalidDeviceFunction);
  if (block_size <= 0) return cuda_on_cpu::report(cudaErrorInvalidValue);
  const int most = std::min(32, cuda_on_cpu::threads_per_multiprocessor / block_size);
  *blocks = cuda_on_cpu::blocks_per_multiprocessor >= 0 ? cuda_on_cpu::blocks_per_multiprocessor : most;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (!kernel) return cuda_on_cpu::report(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > cuda_on_cpu::shared_bytes) {
    return cuda_on_cpu::report(cudaErrorInvalidValue);
  }
  cuda_on_cpu::shared_bytes_of_kernel[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(value);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t = nullptr) {
  if (kind > cudaMemcpyDefault) return cuda_on_cpu::report(cudaErrorInvalidMemcpyDirection);
  if (bytes > 0 && (!to || !from)) return cuda_on_cpu::report(cudaErrorInvalidValue);
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cuda_on_cpu::capture_status;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

// ---- What kernels call.

inline const uint3 &threadIdx = cuda_on_cpu::thread_index, &blockIdx = cuda_on_cpu::block_index;
inline const dim3 &blockDim = cuda_on_cpu::block_dim, &gridDim = cuda_on_cpu::grid_dim;
inline const int warpSize = cuda_on_cpu::kWarp;
using std::max;
using std::min;

// Where an operation is called, as its last parameters.
#define CUDA_ON_CPU_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define CUDA_ON_CPU_HERE {__func__, file, line}

inline void __syncthreads(CUDA_ON_CPU_PLACE) { cuda_on_cpu::block_barrier(false, CUDA_ON_CPU_HERE); }
inline int __syncthreads_or(int vote, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::block_barrier(vote, CUDA_ON_CPU_HERE) > 0;
}
inline void __syncwarp(unsigned mask = ~0u, CUDA_ON_CPU_PLACE) { cuda_on_cpu::meet(mask, 0, 0, CUDA_ON_CPU_HERE); }
inline unsigned __ballot_sync(unsigned mask, int vote, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::meet(mask, vote != 0, 0, CUDA_ON_CPU_HERE).ballot;
}
inline int __any_sync(unsigned mask, int vote, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::meet(mask, vote != 0, 0, CUDA_ON_CPU_HERE).ballot != 0;
}
inline int __all_sync(unsigned mask, int vote, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::meet(mask, vote != 0, 0, CUDA_ON_CPU_HERE).ballot == mask;
}
inline unsigned __activemask() {
  const unsigned lanes = cuda_on_cpu::num_threads - cuda_on_cpu::current / 32 * 32;
  return lanes >= 32 ? ~0u : (1u << lanes) - 1;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_ON_CPU_PLACE) {
  const unsigned segment = cuda_on_cpu::current % 32 & -width;
  return cuda_on_cpu::shuffle(mask, value, segment + (source & (width - 1)), CUDA_ON_CPU_HERE);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_PLACE) {
  const unsigned lane = cuda_on_cpu::current % 32, last = lane | (width - 1);
  return cuda_on_cpu::shuffle(mask, value, delta > last - lane ? lane : lane + delta, CUDA_ON_CPU_HERE);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUDA_ON_CPU_PLACE) {
  const unsigned lane = cuda_on_cpu::current % 32, last = lane | (width - 1), source = lane ^ bits;
  return cuda_on_cpu::shuffle(mask, value, source > last ? lane : source, CUDA_ON_CPU_HERE);
}
#undef CUDA_ON_CPU_PLACE
#undef CUDA_ON_CPU_HERE

// Threads take turns only where they wait, so plain arithmetic is atomic. The types are those that CUDA has, no more.
#define CUDA_ON_CPU_ATOMIC(name, type, expression) \
  inline type name(type* address, type value) {    \
    const type old = *address;                     \
    *address = expression;                         \
    return old;                                    \
  }
CUDA_ON_CPU_ATOMIC(atomicAdd, int, int(unsigned(old) + unsigned(value)))
CUDA_ON_CPU_ATOMIC(atomicAdd, unsigned, old + value)
CUDA_ON_CPU_ATOMIC(atomicAdd, unsigned long long, old + value)
CUDA_ON_CPU_ATOMIC(atomicAdd, float, old + value)
CUDA_ON_CPU_ATOMIC(atomicMax, int, std::max(old, value))
CUDA_ON_CPU_ATOMIC(atomicMax, unsigned, std::max(old, value))
CUDA_ON_CPU_ATOMIC(atomicMax, unsigned long long, std::max(old, value))
CUDA_ON_CPU_ATOMIC(atomicExch, int, value)
CUDA_ON_CPU_ATOMIC(atomicExch, unsigned, value)
CUDA_ON_CPU_ATOMIC(atomicExch, unsigned long long, value)
CUDA_ON_CPU_ATOMIC(atomicExch, float, value)
#undef CUDA_ON_CPU_ATOMIC
inline void __threadfence() {}

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t{a} * b >> 32); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}
template <typename T>
void __stwb(T* address, T value) {
  *address = value;
}
