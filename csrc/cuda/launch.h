// The way to the CUDA run-time: errors become exceptions, and every kernel starts here.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <stdexcept>
#include <string>

namespace fastinit {

inline void check_cuda(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forget it: the next call of whoever shares the device shall not find it
  throw std::runtime_error(std::string("CUDA error while ") + doing + ": " + cudaGetErrorName(error) + ", " +
                           cudaGetErrorString(error));
}

// Makes a device the current one of this thread for as long as it lives.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check_cuda(cudaGetDevice(&previous_), "asking for the current device");
    check_cuda(cudaSetDevice(device), "choosing the device");
  }
  ~DeviceScope() { cudaSetDevice(previous_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_ = 0;
};

inline int multiprocessors(int device) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "asking for multiprocessors");
  return count;
}

// The most shared memory that a block can ask for.
inline int most_shared_bytes(int device) {
  int bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "asking for the size of shared memory");
  return bytes;
}

template <class... Parameters>
int blocks_per_multiprocessor(void (*kernel)(Parameters...), int threads) {
  int blocks = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0), "asking for the occupancy");
  return blocks;
}

// How many kernels this process has launched.
inline std::atomic<int64_t> launches{0};

// The dynamic shared memory that a block may have without asking for it.
constexpr size_t kSharedBytesForAll = 48 << 10;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, size_t shared_bytes, cudaStream_t stream,
            const Arguments&... arguments) {
  if (shared_bytes > kSharedBytesForAll) {
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "asking for shared memory");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), "launching a kernel");
  launches.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace fastinit
