// Tests of the CUDA emulation itself. Returns non-zero if a check fails.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "shim_kernels.cu"

CUDA_ON_CPU_DYNAMIC_SHARED(unsigned, dynamic_words);

namespace {

int failures = 0;

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      ++failures;                                                         \
      std::printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                     \
  } while (false)

thread_local int bystander = 17;

template <typename... ExpTypes, typename... ActTypes>
cudaError_t run(dim3 grid, dim3 block, void (*kernel)(ExpTypes...), ActTypes... args) {
  const cudaLaunchConfig_t config = launch_config(grid, block);
  return cudaLaunchKernelEx(&config, kernel, args...);
}

void test_sum() {
  std::vector<float> values(100003);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 7);
  const Table table = {values.data(), values.size(), {}};
  unsigned long long expected = 0;
  for (float value : values) expected += static_cast<unsigned long long>(value);
  for (int multiprocessors : {1, 2, 132}) {
    cuda_on_cpu::multiprocessors = multiprocessors;
    cuda_on_cpu::blocks_per_multiprocessor = multiprocessors == 2 ? 3 : -1;
    const int64_t launches = cuda_on_cpu::launches;
    unsigned long long sum = 0;
    float float_sum = 0;
    unsigned num_blocks = 0;
    CHECK(launch_sum(table, &sum, &num_blocks, nullptr) == cudaSuccess);
    CHECK(sum == expected);
    CHECK(num_blocks == (multiprocessors == 2 ? 6u : 8u * multiprocessors));
    CHECK(launch_sum(table, &float_sum, &num_blocks, nullptr) == cudaSuccess);
    CHECK(float_sum == static_cast<float>(expected));
    CHECK(cuda_on_cpu::launches == launches + 2);
  }
}

void test_transpose() {
  const int rows = 77, columns = 130;
  std::vector<float> in(rows * columns), out(in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  CHECK(launch_transpose(in.data(), out.data(), rows, columns) == cudaSuccess);
  int wrong = 0;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      wrong += out[column * rows + row] != in[row * columns + column];
    }
  }
  CHECK(wrong == 0);
}

void test_votes() {
  std::vector<Votes> votes(96);
  CHECK(run(1, 96, votes_kernel, votes.data()) == cudaSuccess);
  for (int i = 0; i < 96; ++i) {
    const int lane = i % 32;
    const Votes& vote = votes[i];
    CHECK(vote.odd == 0xaaaaaaaau && vote.any == 1 && vote.all == 1 && vote.active == ~0u);
    CHECK(vote.half == (lane < 16 ? 0x0000000fu : 0x000f0000u));
    CHECK(vote.broadcast == i - lane + 3 && vote.segment == lane / 8 * 8 + 1 && vote.swapped == (lane ^ 5));
    CHECK(vote.last == (lane % 16 < 14 ? lane + 2 : lane) && vote.other == 0.5f * (lane ^ 1));
    CHECK(vote.block_any == 1 && vote.block_none == 0);
  }
}

void test_bits() {
  uint4 out = {};
  float pi = 0;
  int order[3] = {};
  unsigned long long wide = 0;
  CHECK(run(3, 70, bits_kernel, &out, &pi, order, &wide) == cudaSuccess);
  CHECK(out.x == unsigned(uint64_t{0xd2511f53} * 0x3fc00000 >> 32) &&
        out.w == unsigned(uint64_t{0xcd9e8d57} * 0x40900000 >> 32));
  CHECK(pi == 3.14159274f && order[0] == 5 && order[1] == -210 && order[2] == 69 && wide == 1ull << 63);
  CHECK(alignof(float4) == 16 && alignof(float2) == 8 && alignof(ulonglong2) == 16 && alignof(double2) == 16);
}

void test_shared_memory() {
  std::vector<unsigned> out(3 * kBlock);
  CHECK(run(3, kBlock, unwritten_kernel, out.data()) == cudaSuccess);
  CHECK(out == std::vector<unsigned>(out.size(), ~0u));
  CHECK(bystander == 17);
  for (int count : {1, 500, 12 << 10, 25 << 10}) {
    out.assign(2 * count, 0);
    CHECK(launch_dynamic(out.data(), count, 100 << 10) == cudaSuccess);
    CHECK(out == std::vector<unsigned>(out.size(), ~0u));
  }
  int optin = 0;
  CHECK(cudaDeviceGetAttribute(&optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess);
  CHECK(optin == 227 << 10);
}

void test_order() {
  const auto ranks = [](unsigned seed) {
    cuda_on_cpu::order_seed = seed;
    int next = 0;
    std::vector<int> ranks(40 * 64);
    CHECK(run(40, 64, order_kernel, &next, ranks.data()) == cudaSuccess);
    CHECK(next == 40 * 64);
    cuda_on_cpu::order_seed = 0;
    return ranks;
  };
  const std::vector<int> natural = ranks(0), first = ranks(1), again = ranks(1), second = ranks(2);
  for (size_t i = 0; i < natural.size(); ++i) CHECK(natural[i] == static_cast<int>(i));
  CHECK(first == again && first != second && first != natural);
  bool blocks = false, threads = false;
  for (int i = 0; i < 64; ++i) threads |= first[i] % 64 != i;
  for (int i = 0; i < 40; ++i) blocks |= first[i * 64] / 64 != i;
  CHECK(blocks && threads);
}

void test_errors() {
  const int64_t launches = cuda_on_cpu::launches;
  const dim3 bad_grids[] = {dim3(0), dim3(1, 0), dim3(1, 1, 0), dim3(0x80000000u), dim3(1, 65536)};
  for (const dim3& grid : bad_grids) CHECK(run(grid, 32, empty_kernel) == cudaErrorInvalidConfiguration);
  const dim3 bad_blocks[] = {dim3(0), dim3(1025), dim3(32, 33), dim3(1, 1, 65), dim3(1, 0), dim3(1024, 1024, 64)};
  for (const dim3& block : bad_blocks) CHECK(run(1, block, empty_kernel) == cudaErrorInvalidConfiguration);
  CHECK(cudaPeekAtLastError() == cudaErrorInvalidConfiguration);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess);
  cudaLaunchConfig_t config = launch_config(1, 32);
  config.dynamicSmemBytes = (48 << 10) + 1;  // without asking for it
  CHECK(cudaLaunchKernelEx(&config, empty_kernel) == cudaErrorInvalidValue);
  std::vector<unsigned> out(2 * 20000);
  CHECK(launch_dynamic(out.data(), 20000, 79999) == cudaErrorInvalidValue);
  CHECK(launch_dynamic(out.data(), 20000, (227 << 10) + 1) == cudaErrorInvalidValue);
  cuda_on_cpu::shared_bytes = 64 << 10;
  CHECK(launch_dynamic(out.data(), 17 << 10, 68 << 10) == cudaErrorInvalidValue);
  cuda_on_cpu::shared_bytes = 227 << 10;
  config = launch_config(1, 32);
  config.numAttrs = 1;
  CHECK(cudaLaunchKernelEx(&config, empty_kernel) == cudaErrorNotSupported);
  cuda_on_cpu::fail_next_launch = cudaErrorLaunchOutOfResources;
  CHECK(run(1, 32, empty_kernel) == cudaErrorLaunchOutOfResources);
  CHECK(cudaGetLastError() == cudaErrorLaunchOutOfResources);
  CHECK(cuda_on_cpu::launches == launches);
  CHECK(run(1, 1024, empty_kernel) == cudaSuccess && cuda_on_cpu::launches == launches + 1);
  CHECK(cudaGetLastError() == cudaSuccess);

  int value = -1;
  CHECK(cudaGetDevice(&value) == cudaSuccess && value == 0);
  CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice && cudaSetDevice(-1) == cudaErrorInvalidDevice);
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 1) == cudaErrorInvalidDevice);
  cuda_on_cpu::device_count = 2;
  CHECK(cudaSetDevice(1) == cudaSuccess && cudaGetDevice(&value) == cudaSuccess && value == 1);
  CHECK(cudaGetDeviceCount(&value) == cudaSuccess && value == 2);
  CHECK(cudaSetDevice(0) == cudaSuccess);
  cuda_on_cpu::device_count = 1;
  CHECK(std::string(cudaGetErrorName(cudaErrorInvalidDevice)) == "cudaErrorInvalidDevice");
  CHECK(std::string(cudaGetErrorString(cudaErrorInvalidConfiguration)) == "invalid configuration argument");

  const int from = 5;
  CHECK(cudaMemcpyAsync(&value, &from, sizeof from, cudaMemcpyHostToDevice, nullptr) == cudaSuccess && value == 5);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusActive;
  CHECK(cudaStreamIsCapturing(nullptr, &status) == cudaSuccess && status == cudaStreamCaptureStatusNone);
}

// What a child process says on stderr before it aborts; empty if it ends otherwise.
std::string last_words(int fault) {
  int ends[2];
  if (pipe(ends) != 0) return "";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    int out[32];
    run(2, 64, faulty_kernel, fault, out);
    _exit(0);
  }
  close(ends[1]);
  std::string words;
  char buffer[512];
  for (ssize_t bytes; (bytes = read(ends[0], buffer, sizeof buffer)) > 0;) words.append(buffer, bytes);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT ? words : "";
}

void test_faults() {
  const char* expected[] = {
      // of each fault, in natural order
      "divergent __syncthreads: of 64 threads, 63 wait in __syncthreads at ",
      "divergent __syncthreads: thread 32 comes to ",
      "divergent __shfl_sync: of 64 threads, 32 wait in __shfl_sync with mask 0xffffffff at ",
      "while lane 0 waits in __syncwarp at ",
      "while lane 0 waits in __any_sync at ",
      "mask 0x00000001 does not name lane 1, which calls",
  };
  for (int fault = 0; fault < 6; ++fault) {
    for (unsigned seed : {0u, 3u}) {
      cuda_on_cpu::order_seed = seed;
      const std::string words = last_words(fault);
      CHECK(words.find(seed == 0 ? expected[fault] : "divergent") != std::string::npos);
      CHECK(words.find("shim_kernels.cu:") != std::string::npos);
    }
  }
  cuda_on_cpu::order_seed = 0;
}

}  // namespace

int main() {
  for (unsigned seed : {0u, 1u, 2026u}) {
    cuda_on_cpu::order_seed = seed;
    test_sum();
    test_transpose();
    test_votes();
    test_bits();
    test_shared_memory();
  }
  test_order();
  test_errors();
  test_faults();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
