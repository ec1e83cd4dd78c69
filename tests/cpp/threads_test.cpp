// Memory and threads that the system refuses: wherever it does, a call either does all of its work on the threads that
// there are, or throws std::bad_alloc with nothing written; and it leaves no thread behind. Exits with 1 if not.
#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

#include "backends.h"
#include "core/prepare.h"

namespace {

// How many more are granted; below 0: all.
std::atomic<int> allocations_left{-1};
std::atomic<int> threads_left{-1};
std::atomic<int> threads_started{0};

bool is_granted(std::atomic<int>& left) {
  if (left.load() < 0) return true;
  if (left.load() == 0) return false;
  left.fetch_sub(1);
  return true;
}

}  // namespace

// Not inline: GCC would take malloc() and operator delete, or the other way round, for a mismatch.
__attribute__((noinline)) void* operator new(std::size_t bytes) {
  void* const memory = is_granted(allocations_left) ? std::malloc(bytes) : nullptr;
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
__attribute__((noinline)) void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return is_granted(allocations_left) ? std::malloc(bytes) : nullptr;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

// Stands before the system's own, for all of the program.
extern "C" __attribute__((visibility("default"))) int pthread_create(pthread_t* thread,
                                                                     const pthread_attr_t* attributes,
                                                                     void* (*start)(void*), void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  if (!is_granted(threads_left)) return EAGAIN;
  threads_started.fetch_add(1);
  return create(thread, attributes, start, argument);
}

using namespace fastinit;

namespace {

constexpr uint64_t kSeed = 5;
constexpr int kThreads = 4;
int failures = 0;

struct Outcome {
  bool finished;  // rather than std::bad_alloc
  std::vector<float> values;
};

bool never() { return false; }

Outcome fill_four(int threads, int64_t numel) {
  std::vector<Task> tasks(4);
  Outcome outcome{true, std::vector<float>(tasks.size() * static_cast<size_t>(numel), 7.0f)};
  for (size_t i = 0; i < tasks.size(); ++i) {
    Task& task = tasks[i];
    task = Task{};
    task.data = reinterpret_cast<uint64_t>(outcome.values.data() + i * static_cast<size_t>(numel));
    task.numel = task.map.row_length = numel;
    task.map.rows_per_slab = task.map.element_memory_step = 1;
    task.name_id[0] = i;
    task.distribution = Distribution::kNormal;
    task.parameter[1] = 1.0;
    prepare(task);
  }
  try {
    fill_cpu(tasks.data(), 4, kSeed, threads, nullptr, never);
  } catch (const std::bad_alloc&) {
    outcome.finished = false;
  }
  return outcome;
}

Outcome fill(int threads) { return fill_four(threads, 250000); }

// A large matrix, the work of all threads together, and small ones, each the work of one thread.
Outcome make_orthogonal(int threads) {
  constexpr int kSmall = 40;
  Outcome outcome{true, std::vector<float>(300 * 300 + kSmall * 64 * 64, 7.0f)};
  std::vector<OrthogonalMatrix> matrices(1 + kSmall);
  float* data = outcome.values.data();
  for (size_t i = 0; i < matrices.size(); ++i) {
    const int64_t order = i == 0 ? 300 : 64;
    OrthogonalMatrix& matrix = matrices[i];
    matrix = OrthogonalMatrix{};
    matrix.data = reinterpret_cast<uint64_t>(data);
    matrix.rows = matrix.columns = matrix.end_row = matrix.end_column = order;
    matrix.row_memory_step = matrix.row_index_step = order;
    matrix.column_memory_step = matrix.column_index_step = 1;
    matrix.name_id[0] = i;
    matrix.gain = 1.0;
    data += order * order;
  }
  try {
    orthogonal_cpu(matrices.data(), static_cast<int64_t>(matrices.size()), kSeed, threads, nullptr, never);
  } catch (const std::bad_alloc&) {
    outcome.finished = false;
  }
  return outcome;
}

// The bits of the sum, in two halves.
Outcome add_up(int threads) {
  const std::vector<float> read(1000000, 3.0f);
  Outcome outcome{true, std::vector<float>(2, 7.0f)};
  FingerprintTask task{};
  task.data = reinterpret_cast<uint64_t>(read.data());
  task.numel = static_cast<int64_t>(read.size());
  task.element_bytes = sizeof(float);
  for (FingerprintTask::Dimension& dimension : task.dimension) dimension = {1, 1, 1};
  task.dimension[kFingerprintDimensions - 1].size = task.numel;
  try {
    uint64_t sum = 0;
    fingerprint_cpu(&task, 1, threads, nullptr, &sum, never);
    for (int half = 0; half < 2; ++half) {
      outcome.values[static_cast<size_t>(half)] = static_cast<float>(sum >> (32 * half) & 0xFFFFFF);
    }
  } catch (const std::bad_alloc&) {
    outcome.finished = false;
  }
  return outcome;
}

void check(const char* name, int granted, const char* of, const Outcome& outcome, const Outcome& wanted) {
  if (outcome.finished) {
    if (outcome.values == wanted.values) return;
  } else {
    bool untouched = true;
    for (const float value : outcome.values) untouched = untouched && value == 7.0f;
    if (untouched) return;
  }
  ++failures;
  std::printf("%s with %d %s: %s\n", name, granted, of, outcome.finished ? "other values" : "written all the same");
}

// Refuses threads, then memory, after every number of grants.
void test(const char* name, Outcome (*work)(int)) {
  threads_started = 0;
  const Outcome wanted = work(kThreads);
  if (threads_started != kThreads - 1) {
    ++failures;
    std::printf("%s: %d threads were started\n", name, threads_started.load());
  }
  for (int granted = 0; granted < kThreads; ++granted) {
    threads_left = granted;
    const Outcome outcome = work(kThreads);
    threads_left = -1;
    check(name, granted, "threads", outcome, wanted);
    if (!outcome.finished) ++failures;
  }
  int finished = 0, thrown = 0;
  for (int granted = 0; finished < 3; ++granted) {
    allocations_left = granted;
    Outcome outcome{false, {}};
    bool made = true;
    try {
      outcome = work(kThreads);
    } catch (const std::bad_alloc&) {  // of the test's own memory
      made = false;
    }
    const bool all_granted = allocations_left > 0;
    allocations_left = -1;
    if (!made) continue;
    check(name, granted, "allocations", outcome, wanted);
    thrown += !outcome.finished;
    finished += all_granted;
  }
  if (thrown == 0) {
    ++failures;
    std::printf("%s: no allocation of it failed\n", name);
  }
}

// A thread takes longer to start than this work.
void test_little_work() {
  threads_started = 0;
  fill_four(64, 25);
  if (threads_started != 0) {
    ++failures;
    std::printf("100 values: %d threads were started\n", threads_started.load());
  }
}

}  // namespace

int main() {
  test_little_work();
  test("fill", fill);
  test("orthogonal", make_orthogonal);
  test("fingerprint", add_up);
  std::printf(failures == 0 ? "threads_test: passed\n" : "threads_test: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
