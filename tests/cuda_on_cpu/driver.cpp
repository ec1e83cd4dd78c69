// A kernel of the CUDA backend as a shared library for the CPU, driven by test_cuda_on_cpu.py through ctypes: its file
// in csrc/cuda itself (SOURCE_FILL, SOURCE_REWRITE or SOURCE_ORTHOGONAL), or what nvcc made of it (ptx_to_cpp.py),
// launched like its own host code does it (PTX_FILL, PTX_REWRITE or PTX_ORTHOGONAL). One kernel a library: they take
// long to compile.
#if defined(SOURCE_FILL)
#include "cuda/fill.cu"
#elif defined(SOURCE_REWRITE)
#include "cuda/rewrite.cu"
#elif defined(SOURCE_ORTHOGONAL)
#include "cuda/orthogonal.cu"

CUDA_ON_CPU_DYNAMIC_SHARED(double, fastinit::matrix_memory);
#else
#include <cuda_runtime.h>

#include <algorithm>

#include "core/orthogonal.h"
#include "core/prepare.h"
#if defined(PTX_FILL)
#include PTX_FILL
#elif defined(PTX_REWRITE)
#include PTX_REWRITE

#include "cuda/stores.h"
#else
#include PTX_ORTHOGONAL
#endif
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

__attribute__((visibility("default"))) void configure_shared(int bytes) { cuda_on_cpu::shared_bytes = bytes; }

__attribute__((visibility("default"))) void fail_next_launch() {
  cuda_on_cpu::fail_next_launch = cudaErrorLaunchOutOfResources;
}

// Gives back the stacks of the device's threads; the next launch makes new ones.
__attribute__((visibility("default"))) void release_stacks() { cuda_on_cpu::release_fibers(); }

// Launches that the emulated device has run.
__attribute__((visibility("default"))) long long device_launches() { return cuda_on_cpu::launches; }

#if defined(SOURCE_FILL) || defined(SOURCE_ORTHOGONAL)
// Launches by the code's own count.
__attribute__((visibility("default"))) long long counted_launches() { return fastinit::launches; }
#endif

#if defined(PTX_FILL)

// `image` is a table as write_cuda_table made it. Returns 0, or a CUDA error.
__attribute__((visibility("default"))) int fill(const void* image, long long num_tasks, long long num_chunks,
                                                unsigned long long seed, const void* seed_on_device, char* /*message*/,
                                                int /*capacity*/) {
  if (num_chunks == 0) return 0;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min<long long>(
      num_chunks, static_cast<long long>(cuda_on_cpu::multiprocessors) * cuda_on_cpu::blocks_per_multiprocessor)));
  config.blockDim = dim3(128);  // kThreads of fill_chunk.h
  const auto* tasks = static_cast<const Task*>(image);
  return cudaLaunchKernelEx(&config, ptx_fill_kernel, reinterpret_cast<uint64_t>(tasks),
                            reinterpret_cast<uint64_t>(tasks + num_tasks), static_cast<uint32_t>(num_tasks),
                            static_cast<uint32_t>(num_chunks), static_cast<uint64_t>(seed),
                            reinterpret_cast<uint64_t>(seed_on_device));
}

#elif defined(PTX_REWRITE)

static int rewrite(const void* image, long long num_tasks, long long num_chunks, const fastinit::Rewrite& given,
                   unsigned long long seed) {
  if (num_chunks == 0) return 0;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min<long long>(
      num_chunks, static_cast<long long>(cuda_on_cpu::multiprocessors) * cuda_on_cpu::blocks_per_multiprocessor)));
  config.blockDim = dim3(128);  // kThreads of fill_chunk.h
  const auto* tasks = static_cast<const Task*>(image);
  rewrite_kernel_Param5 rewrite;
  static_assert(sizeof rewrite == sizeof given);
  std::memcpy(&rewrite, &given, sizeof rewrite);
  return cudaLaunchKernelEx(&config, ptx_rewrite_kernel, reinterpret_cast<uint64_t>(tasks),
                            reinterpret_cast<uint64_t>(tasks + num_tasks), static_cast<uint32_t>(num_tasks),
                            static_cast<uint32_t>(num_chunks), static_cast<uint64_t>(seed), rewrite);
}

// The same, blended.
__attribute__((visibility("default"))) int blend(const void* image, long long num_tasks, long long num_chunks,
                                                 double keep, double scale, unsigned long long seed, char* /*message*/,
                                                 int /*capacity*/) {
  return rewrite(image, num_tasks, num_chunks, fastinit::Rewrite(keep, scale), seed);
}

// The same, where masks are true.
__attribute__((visibility("default"))) int fill_where(const void* image, long long num_tasks, long long num_chunks,
                                                      const void* masks, unsigned long long seed, char* /*message*/,
                                                      int /*capacity*/) {
  return rewrite(image, num_tasks, num_chunks, fastinit::Rewrite(reinterpret_cast<uint64_t>(masks)), seed);
}

#elif defined(PTX_ORTHOGONAL)

// `image` is an array of OrthogonalMatrix. Returns 0, or a CUDA error.
__attribute__((visibility("default"))) int orthogonal(const void* image, long long num_matrices, long long shared_bytes,
                                                      unsigned long long seed, char* /*message*/, int /*capacity*/) {
  if (shared_bytes == 0) return 0;
  Task standard{};
  standard.distribution = fastinit::Distribution::kNormal;
  standard.parameter[1] = 1.0;
  fastinit::prepare(standard);
  orthogonal_kernel_Param2 sampler;
  static_assert(sizeof sampler == sizeof standard.sampler);
  std::memcpy(&sampler, &standard.sampler, sizeof sampler);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(num_matrices));
  config.blockDim = dim3(256);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  const auto bytes = static_cast<int>(shared_bytes);
  cudaFuncSetAttribute(ptx_orthogonal_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  return cudaLaunchKernelEx(&config, ptx_orthogonal_kernel, reinterpret_cast<uint64_t>(image),
                            static_cast<uint64_t>(seed), sampler);
}

#elif defined(SOURCE_FILL)

__attribute__((visibility("default"))) long long table_bytes(long long num_tasks) {
  return fastinit::cuda_table_bytes(num_tasks);
}

// Returns the number of chunks, or -1 if there are too many.
__attribute__((visibility("default"))) long long write_table(const void* tasks, long long num_tasks, void* image) try {
  return fastinit::write_cuda_table(static_cast<const Task*>(tasks), num_tasks, image);
} catch (const std::length_error&) {
  return -1;
}

// Returns 0, or 1 with a message.
__attribute__((visibility("default"))) int fill(const void* image, long long num_tasks, long long num_chunks,
                                                unsigned long long seed, const void* seed_on_device, char* message,
                                                int capacity) try {
  fastinit::fill_cuda({reinterpret_cast<uint64_t>(image), num_tasks, num_chunks}, seed,
                      reinterpret_cast<uint64_t>(seed_on_device), 0, 0);
  return 0;
} catch (const std::exception& error) {
  std::snprintf(message, static_cast<size_t>(capacity), "%s", error.what());
  return 1;
}

#elif defined(SOURCE_REWRITE)

// Returns 0, or 1 with a message.
__attribute__((visibility("default"))) int blend(const void* image, long long num_tasks, long long num_chunks,
                                                 double keep, double scale, unsigned long long seed, char* message,
                                                 int capacity) try {
  fastinit::blend_cuda({reinterpret_cast<uint64_t>(image), num_tasks, num_chunks}, keep, scale, seed, 0, 0);
  return 0;
} catch (const std::exception& error) {
  std::snprintf(message, static_cast<size_t>(capacity), "%s", error.what());
  return 1;
}

__attribute__((visibility("default"))) int fill_where(const void* image, long long num_tasks, long long num_chunks,
                                                      const void* masks, unsigned long long seed, char* message,
                                                      int capacity) try {
  fastinit::fill_where_cuda({reinterpret_cast<uint64_t>(image), num_tasks, num_chunks},
                            reinterpret_cast<uint64_t>(masks), seed, 0, 0);
  return 0;
} catch (const std::exception& error) {
  std::snprintf(message, static_cast<size_t>(capacity), "%s", error.what());
  return 1;
}

#else

__attribute__((visibility("default"))) int orthogonal_fits(long long rows, long long columns, int dtype) {
  return fastinit::orthogonal_cuda_fits(rows, columns, static_cast<fastinit::Dtype>(dtype), 0) ? 1 : 0;
}

// `image` is an array of OrthogonalMatrix. Returns 0, or 1 with a message.
__attribute__((visibility("default"))) int orthogonal(const void* image, long long num_matrices, long long shared_bytes,
                                                      unsigned long long seed, char* message, int capacity) try {
  fastinit::orthogonal_cuda({reinterpret_cast<uint64_t>(image), num_matrices, shared_bytes}, seed, 0, 0);
  return 0;
} catch (const std::exception& error) {
  std::snprintf(message, static_cast<size_t>(capacity), "%s", error.what());
  return 1;
}

#endif

}  // extern "C"
