// fill_cuda as a shared library for the CPU, driven by test_cuda_on_cpu.py through ctypes: csrc/cuda/fill.cu itself or,
// with PTX_KERNEL, what nvcc made of its kernel (ptx_to_cpp.py), launched like fill_cuda launches it.
#if defined(PTX_KERNEL)
#include <cuda_runtime.h>

#include <algorithm>

#include "core/task.h"
#include PTX_KERNEL
#else
#include "cuda/fill.cu"
#endif

#include <cstdio>
#include <cstring>
#include <exception>

using fastinit::Task;

extern "C" {

__attribute__((visibility("default"))) void configure(int multiprocessors, int blocks_per_multiprocessor,
                                                      unsigned long long order_seed) {
  cuda_on_cpu::multiprocessors = multiprocessors;
  cuda_on_cpu::blocks_per_multiprocessor = blocks_per_multiprocessor;
  cuda_on_cpu::order_seed = order_seed;
}

__attribute__((visibility("default"))) void fail_next_launch() {
  cuda_on_cpu::fail_next_launch = cudaErrorLaunchOutOfResources;
}

// Launches that the emulated device has run.
__attribute__((visibility("default"))) long long device_launches() { return cuda_on_cpu::launches; }

#if defined(PTX_KERNEL)

// `image` is a table as write_cuda_table made it. Returns 0, or a CUDA error.
__attribute__((visibility("default"))) int fill(const void* image, long long num_tasks, long long num_chunks,
                                                unsigned long long seed, char* /*message*/, int /*capacity*/) {
  if (num_chunks == 0) return 0;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min<long long>(
      num_chunks, static_cast<long long>(cuda_on_cpu::multiprocessors) * cuda_on_cpu::blocks_per_multiprocessor)));
  config.blockDim = dim3(256);
  const auto* tasks = static_cast<const Task*>(image);
  return cudaLaunchKernelEx(&config, ptx_fill_kernel, reinterpret_cast<uint64_t>(tasks),
                            reinterpret_cast<uint64_t>(tasks + num_tasks), static_cast<uint32_t>(num_tasks),
                            static_cast<uint32_t>(num_chunks), static_cast<uint64_t>(seed));
}

#else

__attribute__((visibility("default"))) long long table_bytes(long long num_tasks) {
  return fastinit::cuda_table_bytes(num_tasks);
}

// Returns the number of chunks, or -1 if there are too many.
__attribute__((visibility("default"))) long long write_table(const void* tasks, long long num_tasks, void* image) try {
  return fastinit::write_cuda_table(static_cast<const Task*>(tasks), num_tasks, image);
} catch (const std::length_error&) {
  return -1;
}

__attribute__((visibility("default"))) long long counted_launches() { return fastinit::cuda_launches(); }

// Returns 0, or 1 with a message.
__attribute__((visibility("default"))) int fill(const void* image, long long num_tasks, long long num_chunks,
                                                unsigned long long seed, char* message, int capacity) try {
  fastinit::fill_cuda({reinterpret_cast<uint64_t>(image), num_tasks, num_chunks}, seed, 0, 0);
  return 0;
} catch (const std::exception& error) {
  std::snprintf(message, static_cast<size_t>(capacity), "%s", error.what());
  return 1;
}

#endif

}  // extern "C"
