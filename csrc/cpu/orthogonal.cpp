// orthogonal_cpu: small matrices each by a thread of its own, larger ones each by all threads together.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#if defined(__unix__)
#include <unistd.h>
#endif

#include "backends.h"
#include "core/fp_environment.h"
#include "core/prepare.h"
#include "instruction_sets.h"
#include "matrix_steps.h"
#include "parallel.h"

namespace fastinit {
namespace {

// With fewer operations than this, a thread costs more to start than it saves. A matrix has rows * columns^2.
constexpr double kLeastOperationsPerThread = 4e6;

// All threads together work on a matrix whose vectors take more bytes than this. A core's cache holds no more, and so
// memory does not grow with the number of threads.
constexpr int64_t kMostBytesAlone = int64_t{1} << 18;

MatrixSteps steps_of(int choice) {
#if defined(__x86_64__)
  const MatrixSteps all[kInstructionSets] = {
      kMatrixStepsAvx512, kMatrixStepsAvx2, kMatrixStepsSse2, {}, kMatrixStepsPortable};
  return all[choice];
#elif defined(__aarch64__)
  const MatrixSteps all[kInstructionSets] = {{}, {}, {}, kMatrixStepsNeon, kMatrixStepsPortable};
  return all[choice];
#else
  static_cast<void>(choice);
  return kMatrixStepsPortable;
#endif
}

int64_t entry_bytes(const OrthogonalMatrix& matrix) { return matrix.dtype == Dtype::kFloat64 ? 8 : 4; }

// The bytes of a core's first cache for data. Each of these processors has 32 KiB or more.
int64_t first_cache_bytes() {
  constexpr long kLeast = 32 << 10;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const long found = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  return std::max(found, kLeast);
#else
  return kLeast;
#endif
}

// Every reflector goes through all columns taken together, so they should stay in the first cache, beside two vectors.
int columns_together(const MatrixSteps& steps, const OrthogonalMatrix& tall) {
  const MatrixSteps::Limits& limits = tall.dtype == Dtype::kFloat64 ? steps.doubles : steps.floats;
  const int64_t column_bytes = row_blocks(tall) * kLanes * entry_bytes(tall);
  return (limits.together + 2) * column_bytes <= first_cache_bytes() ? limits.together : limits.fewer;
}

double cost(const OrthogonalMatrix& tall) {
  return static_cast<double>(tall.rows) * static_cast<double>(tall.columns) * static_cast<double>(tall.columns);
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(int64_t bytes) {
  constexpr int64_t kAlignment = 64;
  void* memory = std::aligned_alloc(kAlignment, static_cast<size_t>((bytes / kAlignment + 1) * kAlignment));
  if (memory == nullptr) throw std::bad_alloc();
  return Memory(memory);
}

// Memory for the vectors and taus of one matrix at a time.
class Workspace {
 public:
  void reserve(const OrthogonalMatrix& tall) {
    vector_bytes_ = std::max(vector_bytes_, vector_entries(tall) * entry_bytes(tall));
    tau_bytes_ = std::max(tau_bytes_, tall.columns * entry_bytes(tall));
  }
  void allocate_reserved() {
    vectors_ = allocate(vector_bytes_);
    taus_ = allocate(tau_bytes_);
  }
  MatrixWork work(const OrthogonalMatrix& tall, uint64_t seed, const Sampler& normal) const {
    return {tall, derive_stream(tall.name_id, seed), normal, vectors_.get(), taus_.get()};
  }

 private:
  int64_t vector_bytes_ = 0, tau_bytes_ = 0;
  Memory vectors_, taus_;
};

// Units of work that threads take one after the other, and a place where they wait for each other.
class Team {
 public:
  explicit Team(int threads) : threads_(threads) {}

  // Before any thread waits.
  void set_threads(int threads) { threads_ = threads; }

  // Calls unit(0) ... unit(units - 1), each on one of the threads.
  template <class Do>
  void share(int64_t units, const Do& unit) {
    for (;;) {
      const int64_t taken = next_.fetch_add(1, std::memory_order_relaxed);
      if (taken >= units) break;
      unit(taken);
    }
    wait();
  }

  // Waits until all threads are here. The last one lets the others go on, to units that count from 0 again.
  void wait() {
    const int64_t round = round_.load(std::memory_order_acquire);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      waiting_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
    } else {
      while (round_.load(std::memory_order_acquire) == round) std::this_thread::yield();
    }
  }

 private:
  int threads_;
  std::atomic<int64_t> next_{0};
  std::atomic<int> waiting_{0};
  std::atomic<int64_t> round_{0};
};

// Writes one matrix, by all threads of a team. A thread that hears yes from should_end() does no more of the products,
// which take nearly all of the time; it waits for the others all the same.
template <class ShouldEnd>
void write_matrix(const MatrixSteps& steps, const MatrixWork& work, void* scratch, Team& team,
                  const ShouldEnd& should_end) {
  const OrthogonalMatrix& tall = work.tall;
  const int together = columns_together(steps, tall);
  const int64_t groups = (tall.end_column - tall.first_column + together - 1) / together;
  team.share(sample_units(tall), [&](int64_t unit) { steps.sample(work, unit, scratch); });
  team.share(tall.columns, [&](int64_t j) { steps.make(work, j); });
  // Groups are taken from the right, where they take longest.
  team.share(groups, [&](int64_t taken) {
    if (should_end()) return;
    steps.multiply(work, tall.first_column + (groups - 1 - taken) * together, together, scratch);
  });
}

Sampler standard_normal(Dtype dtype) {
  Task task{};
  task.dtype = dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
  task.distribution = Distribution::kNormal;
  task.parameter[1] = 1.0;
  prepare(task);
  return task.sampler;
}

}  // namespace

bool orthogonal_cpu_fits(int64_t rows, int64_t columns, Dtype dtype, const char* isa) {
  const MatrixSteps steps = steps_of(chosen_instruction_set(isa));
  return std::max(rows, columns) <= (dtype == Dtype::kFloat64 ? steps.doubles : steps.floats).rows;
}

bool orthogonal_cpu(const OrthogonalMatrix* matrices, int64_t num_matrices, uint64_t seed, int threads, const char* isa,
                    const std::function<bool()>& should_stop) {
  const MatrixSteps steps = steps_of(chosen_instruction_set(isa));
  std::vector<OrthogonalMatrix> wanted;
  double total = 0;
  for (int64_t i = 0; i < num_matrices; ++i) {
    const OrthogonalMatrix matrix = tall(matrices[i]);
    if (matrix.first_row == matrix.end_row || matrix.first_column == matrix.end_column) continue;
    wanted.push_back(matrix);
    total += cost(matrix);
  }
  threads =
      static_cast<int>(std::clamp(total / kLeastOperationsPerThread, 1.0, static_cast<double>(std::max(1, threads))));
  // Long work comes first, so that threads end at about the same time.
  std::stable_sort(wanted.begin(), wanted.end(),
                   [](const OrthogonalMatrix& a, const OrthogonalMatrix& b) { return cost(a) > cost(b); });
  const auto is_small = [](const OrthogonalMatrix& matrix) {
    return vector_entries(matrix) * entry_bytes(matrix) <= kMostBytesAlone;
  };
  const auto small_begin = std::stable_partition(wanted.begin(), wanted.end(),
                                                 [&](const OrthogonalMatrix& matrix) { return !is_small(matrix); });
  // A few small matrices alone would leave threads without work: all threads share them, too.
  const int64_t num_small = wanted.end() - small_begin;
  const int64_t num_shared =
      num_small < 2 * threads ? static_cast<int64_t>(wanted.size()) : small_begin - wanted.begin();

  Workspace shared;
  std::vector<Workspace> own(static_cast<size_t>(threads));
  int64_t scratch_bytes = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (static_cast<int64_t>(i) < num_shared) {
      shared.reserve(wanted[i]);
    } else {
      for (Workspace& workspace : own) workspace.reserve(wanted[i]);
    }
    scratch_bytes = std::max(scratch_bytes, scratch_entries(wanted[i]) * entry_bytes(wanted[i]));
  }
  shared.allocate_reserved();
  for (Workspace& workspace : own) workspace.allocate_reserved();
  std::vector<Memory> scratch;
  for (int i = 0; i < threads; ++i) scratch.push_back(allocate(scratch_bytes));
  const Sampler of_float = standard_normal(Dtype::kFloat32);
  const Sampler of_double = standard_normal(Dtype::kFloat64);

  std::atomic<bool> begun{false}, stopped{false};
  std::atomic<int64_t> next{num_shared};
  bool ended = false;  // written by the calling thread, between two places where all wait
  Team together(1);
  Poll poll(should_stop);
  const auto work = [&](int thread) {
    const DefaultFpEnvironment environment;
    const auto should_end = [&] {
      if (thread == 0 && poll()) stopped.store(true, std::memory_order_relaxed);
      return stopped.load(std::memory_order_relaxed);
    };
    const auto write = [&](const Workspace& workspace, int64_t i, Team& team) {
      const OrthogonalMatrix& matrix = wanted[static_cast<size_t>(i)];
      const Sampler& normal = matrix.dtype == Dtype::kFloat64 ? of_double : of_float;
      void* const memory = scratch[static_cast<size_t>(thread)].get();
      write_matrix(steps, workspace.work(matrix, seed, normal), memory, team, should_end);
    };
    for (int64_t i = 0; i < num_shared; ++i) {
      // All threads must take the same way here, or some would wait for others that are gone.
      if (thread == 0) ended = should_end();
      together.wait();
      if (ended) return;
      write(shared, i, together);
    }
    Team alone(1);
    while (!should_end()) {
      const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= static_cast<int64_t>(wanted.size())) return;
      write(own[static_cast<size_t>(thread)], i, alone);
    }
  };
  // No thread begins before the number of threads is known: nobody may wait for one that the system did not give.
  Workers workers(threads - 1, [&](int thread) {
    while (!begun.load(std::memory_order_acquire)) std::this_thread::yield();
    work(thread);
  });
  together.set_threads(workers.count() + 1);
  begun.store(true, std::memory_order_release);
  work(0);
  workers.join();
  return !stopped;
}

}  // namespace fastinit
