// What the binding calls: a backend fills a prepared table, or reads one. Nothing else of a backend is visible. Tables
// are those that checks.h accepts; a backend does not look at them again.
#pragma once

#include <functional>
#include <limits>

#include "core/fingerprint.h"
#include "core/orthogonal.h"
#include "core/task.h"

namespace fastinit {

// Every name that FASTINIT_FORCE_ISA may take, best first; `supported` says whether this processor has it.
struct InstructionSet {
  const char* name;
  bool supported;
};
constexpr int kInstructionSets = 5;
const InstructionSet* instruction_sets();  // [kInstructionSets]

// Fills all tasks in one pass on `threads` threads, the calling one among them, with the values of `seed`. The table is
// only read: any number of fills may run on it at the same time. `isa` names an instruction set of instruction_sets()
// that is supported, or is null for the best. `should_stop` is asked by the calling thread, every 50 ms or so; once it
// says yes, the fill stops. Returns whether everything was filled. Throws std::bad_alloc; nothing was written then.
bool fill_cpu(const Task* tasks, int64_t num_tasks, uint64_t seed, int threads, const char* isa,
              const std::function<bool()>& should_stop);

// Whether orthogonal_cpu takes a matrix of this size and dtype. A matrix that it does not take is for products of whole
// matrices (fastinit/run/orthogonal.py).
bool orthogonal_cpu_fits(int64_t rows, int64_t columns, Dtype dtype, const char* isa);

// Like fill_cpu, for orthogonal matrices. Throws std::bad_alloc; nothing was written then.
bool orthogonal_cpu(const OrthogonalMatrix* matrices, int64_t num_matrices, uint64_t seed, int threads, const char* isa,
                    const std::function<bool()>& should_stop);

// Fills a contiguous matrix of `rows` rows with `values`. Then every column gets zeros in the `zeros` rows with the
// smallest keys; of equal keys, the lower row counts as the smaller. `keys` has the matrix's elements in float64,
// column after column, wherever its address is. The rest as fill_cpu.
bool sparse_cpu(const Task& values, const Task& keys, int64_t rows, int64_t zeros, uint64_t seed, int threads,
                const char* isa, const std::function<bool()>& should_stop);

// Adds up the hashes of the elements of every task (docs/FINGERPRINT.md): sums[num_tasks]. The rest as fill_cpu.
bool fingerprint_cpu(const FingerprintTask* tasks, int64_t num_tasks, int threads, const char* isa, uint64_t* sums,
                     const std::function<bool()>& should_stop);

// Like fill_cpu, but what a tensor holds goes into what it gets: keep * element + scale * value (core/blend.h). Throws
// std::bad_alloc; nothing was written then.
bool blend_cpu(const Task* tasks, int64_t num_tasks, double keep, double scale, uint64_t seed, int threads,
               const char* isa, const std::function<bool()>& should_stop);

// Like fill_cpu, but only where a mask is true. masks[num_tasks]: addresses of bytes, 0 or 1. The byte of an element
// lies as many bytes from the first one as the element lies elements from the first. Throws std::bad_alloc; nothing was
// written then.
bool fill_where_cpu(const Task* tasks, int64_t num_tasks, const uint64_t* masks, uint64_t seed, int threads,
                    const char* isa, const std::function<bool()>& should_stop);

// Whether the elements of every task have other bits than fill_cpu would write: differs[num_tasks], 0 or 1. Writes
// nothing else. The rest as fill_cpu.
bool differs_cpu(const Task* tasks, int64_t num_tasks, uint64_t seed, int threads, const char* isa, uint8_t* differs,
                 const std::function<bool()>& should_stop);

// Sums over the elements of a task, in double. w is an element, v the value that fill_cpu would write.
struct Distance {
  double now = 0.0;      // w^2
  double initial = 0.0;  // v^2
  double product = 0.0;  // w v
  double moved = 0.0;    // (w - v)^2
  double largest = 0.0;  // the largest |w - v| that is a number

  void add(const Distance& other) {
    now += other.now;
    initial += other.initial;
    product += other.product;
    moved += other.moved;
    largest = other.largest > largest ? other.largest : largest;
  }
};

// How far the elements of every task are from what fill_cpu would write: distances[num_tasks], the same for any number
// of threads and any instruction set. The rest as differs_cpu.
bool distances_cpu(const Task* tasks, int64_t num_tasks, uint64_t seed, int threads, const char* isa,
                   Distance* distances, const std::function<bool()>& should_stop);

// Moments and extremes of the finite values, and counts over all values. `squares` is the sum of squared differences
// from the mean.
struct Moments {
  int64_t count = 0, non_finite = 0, zeros = 0;
  double mean = 0.0, squares = 0.0;
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();

  void join(const Moments& other);
};

// The moments of `numel` elements of float32, float64 or bfloat16 that lie one behind the other. The rest as fill_cpu.
bool statistics_cpu(const void* data, int64_t numel, Dtype dtype, int threads, const char* isa, Moments* result,
                    const std::function<bool()>& should_stop);

// A table in the memory of a CUDA device. It holds no seed: one upload serves any number of fills.
struct CudaTable {
  uint64_t address;
  int64_t num_tasks;
  int64_t num_chunks;
};

// The bytes of a table of `num_tasks` tasks, and its image in host memory (8-byte aligned), to be copied to the device
// by whoever owns the memory there. Returns the number of chunks, for CudaTable.
int64_t cuda_table_bytes(int64_t num_tasks);
int64_t write_cuda_table(const Task* tasks, int64_t num_tasks, void* image);

// Enqueues one kernel on a stream (a cudaStream_t) of `device`, and does not wait for it. Throws std::runtime_error if
// the CUDA run-time refuses; nothing was enqueued then. If seed_address is not 0, the kernel reads the seed there, in
// the device's memory.
void fill_cuda(const CudaTable& table, uint64_t seed, uint64_t seed_address, int device, uint64_t stream);

// Like fill_cuda, but keep * element + scale * value (core/blend.h), read and written by the same kernel.
void blend_cuda(const CudaTable& table, double keep, double scale, uint64_t seed, int device, uint64_t stream);

// Like fill_cuda, but only where a mask is true. masks: the address of an array like that of fill_where_cpu. The array
// and the masks are in the device's memory.
void fill_where_cuda(const CudaTable& table, uint64_t masks, uint64_t seed, int device, uint64_t stream);

// Like fill_cuda for one task, which travels with the launch: nothing is uploaded.
void fill_cuda_single(const Task& task, uint64_t seed, int device, uint64_t stream);

// Whether the work on a stream is being captured into a graph.
bool is_capturing_cuda(int device, uint64_t stream);

// Whether orthogonal_cuda takes a matrix of this size on this device.
bool orthogonal_cuda_fits(int64_t rows, int64_t columns, Dtype dtype, int device);

// Orthogonal matrices in the memory of a CUDA device: an array of OrthogonalMatrix.
struct OrthogonalTable {
  uint64_t address;
  int64_t num_matrices;  // below 2^31
  int64_t shared_bytes;  // the most that orthogonal_shared_bytes gives for any of them
};

// Like fill_cuda: one kernel, enqueued, and not waited for.
void orthogonal_cuda(const OrthogonalTable& table, uint64_t seed, int device, uint64_t stream);

// Kernels launched by this process so far.
int64_t cuda_launches();

}  // namespace fastinit
