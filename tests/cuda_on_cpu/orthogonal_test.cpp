// The kernel for orthogonal matrices, compiled for the CPU, in C++ alone: that it samples the very values of the CPU
// backend; and for the sanitizers, which see a write or a read outside of a matrix or of shared memory.
// test_cuda_orthogonal_on_cpu.py has more cases. Exits with 1 if anything is wrong.
#include <cmath>
#include <cstdio>
#include <vector>

#include "backends.h"
#include "core/prepare.h"
#include "cuda/launch.h"
#include "cuda/reflectors.h"

namespace fastinit {
CUDA_ON_CPU_DYNAMIC_SHARED(double, matrix_memory);
}

using namespace fastinit;

namespace {

constexpr uint64_t kSeed = 99;
int failures = 0;

struct Shape {
  int64_t rows, columns;
};
constexpr Shape kShapes[] = {{1, 1},   {1, 6},   {6, 1},    {7, 5},    {33, 32},  {31, 64}, {128, 128},
                             {129, 9}, {9, 257}, {300, 12}, {1024, 3}, {2, 1024}, {0, 4},   {4, 0}};

OrthogonalMatrix make_matrix(const Shape& shape, Dtype dtype) {
  OrthogonalMatrix matrix{};
  matrix.rows = shape.rows;
  matrix.columns = shape.columns;
  matrix.end_row = shape.rows;
  matrix.end_column = shape.columns;
  matrix.row_memory_step = matrix.row_index_step = shape.columns;
  matrix.column_memory_step = matrix.column_index_step = 1;
  matrix.name_id[0] = static_cast<uint64_t>(shape.rows * 1000 + shape.columns);
  matrix.gain = 1.0;
  matrix.dtype = dtype;
  return matrix;
}

Sampler standard_normal() {
  Task task{};
  task.distribution = Distribution::kNormal;
  task.parameter[1] = 1.0;
  prepare(task);
  return task.sampler;
}

// What the kernel samples, before anything is made of it.
template <class T, class Source>
__global__ void sampled_kernel(const OrthogonalMatrix matrix, Source source, T* sampled) {
  T* memory = reinterpret_cast<T*>(matrix_memory);
  const OrthogonalMatrix turned = tall(matrix);
  const Reflectors<T> reflectors(memory, static_cast<int>(turned.rows), static_cast<int>(turned.columns));
  sample_vectors(turned, source, reflectors);
  __syncthreads();
  const auto entries = static_cast<int>(reflector_entries(turned.rows, turned.columns));
  for (int i = static_cast<int>(threadIdx.x); i < entries; i += kMatrixThreads) sampled[i] = memory[i];
}

// Value `index` of a stream, by the CPU backend.
template <class T>
T value_of(const OrthogonalMatrix& matrix, int64_t index) {
  T value = 0;
  Task task{};
  task.data = reinterpret_cast<uint64_t>(&value);
  task.numel = 1;
  task.map = {index, 1, 1, 0, 0, 1, 0, 0};
  task.parameter[1] = 1.0;
  task.dtype = matrix.dtype;
  task.distribution = Distribution::kNormal;
  prepare(task);
  task.name_id[0] = matrix.name_id[0];
  task.name_id[1] = matrix.name_id[1];
  fill_cpu(&task, 1, kSeed, 1, nullptr, [] { return false; });
  return value;
}

template <class T, class Source>
void check_sampled(const OrthogonalMatrix& matrix, const Source& source) {
  const OrthogonalMatrix turned = tall(matrix);
  std::vector<T> sampled(static_cast<size_t>(reflector_entries(turned.rows, turned.columns)));
  const auto bytes = static_cast<size_t>(orthogonal_shared_bytes(matrix.rows, matrix.columns, matrix.dtype));
  launch(sampled_kernel<T, Source>, 1, kMatrixThreads, bytes, nullptr, matrix, source, sampled.data());
  size_t at = 0;
  int64_t wrong = 0;
  for (int64_t column = 0; column < turned.columns; ++column) {
    for (int64_t row = column; row < turned.rows; ++row, ++at) {
      const int64_t index = turned.global_offset + row * turned.row_index_step + column * turned.column_index_step;
      wrong += sampled[at] != value_of<T>(matrix, index);
    }
  }
  if (wrong == 0) return;
  ++failures;
  std::printf("%lld x %lld, steps %lld and %lld: %lld samples differ\n", static_cast<long long>(matrix.rows),
              static_cast<long long>(matrix.columns), static_cast<long long>(matrix.row_index_step),
              static_cast<long long>(matrix.column_index_step), static_cast<long long>(wrong));
}

// 50 000 values and more of each dtype, so that some lie in the tail.
void test_samples() {
  const Sampler normal = standard_normal();
  using Normal = NormalF32<ScalarLanes, GlobalQuantile, /*kTruncated=*/false>;
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64}) {
    for (const Shape& shape : kShapes) {
      if (shape.rows == 0 || shape.columns == 0) continue;
      const int64_t steps[][2] = {{shape.columns, 1},    {1, shape.rows}, {9 * shape.columns, 9}, {5, 1},
                                  {int64_t{1} << 33, 1}, {0, 3}};
      for (const auto& [row_step, column_step] : steps) {
        for (const int64_t offset : {int64_t{0}, int64_t{3}, (int64_t{1} << 34) - 50}) {
          OrthogonalMatrix matrix = make_matrix(shape, dtype);
          matrix.row_index_step = row_step;
          matrix.column_index_step = column_step;
          matrix.global_offset = offset;
          const Stream stream = derive_stream(matrix.name_id, kSeed);
          if (dtype == Dtype::kFloat64) {
            check_sampled<double>(matrix, DoubleSource<NormalF64>(stream, NormalF64(normal, stream)));
          } else {
            check_sampled<float>(matrix, FloatSource<Normal>(stream, Normal(normal, stream, GlobalQuantile{})));
          }
        }
      }
    }
  }
}

// The element at an address, of float32 or float64.
double element_at(const unsigned char* place, Dtype dtype) {
  double as_double = 0;
  float as_float = 0;
  std::memcpy(&as_double, place, dtype == Dtype::kFloat64 ? 8 : 0);
  std::memcpy(&as_float, place, dtype == Dtype::kFloat32 ? 4 : 0);
  return dtype == Dtype::kFloat64 ? as_double : as_float;
}

// The CPU's own code gives the same bits in the same memory, in every instruction set, by threads apart and together.
void check_cpu(std::vector<OrthogonalMatrix> matrices, const std::vector<std::vector<unsigned char>>& wanted) {
  for (int set = 0; set < kInstructionSets; ++set) {
    if (!instruction_sets()[set].supported) continue;
    for (const int threads : {1, 3}) {
      std::vector<std::vector<unsigned char>> memory;
      for (size_t i = 0; i < wanted.size(); ++i) {
        memory.emplace_back(wanted[i].size(), 0xA5);
        matrices[i].data = reinterpret_cast<uint64_t>(memory[i].data());
      }
      const auto count = static_cast<int64_t>(matrices.size());
      const char* isa = instruction_sets()[set].name;
      orthogonal_cpu(matrices.data(), count, kSeed, threads, isa, [] { return false; });
      bool same = memory == wanted;
      // Alone, the largest ones are the work of all threads.
      for (size_t i = 0; i < wanted.size(); ++i) {
        std::fill(memory[i].begin(), memory[i].end(), 0xA5);
        orthogonal_cpu(&matrices[i], 1, kSeed, threads, isa, [] { return false; });
      }
      same = same && memory == wanted;
      if (same) continue;
      ++failures;
      std::printf("%s, %d threads: other bits than the kernel's\n", isa, threads);
    }
  }
}

// All in one launch, each in memory that ends with its last element.
void test_matrices() {
  std::vector<OrthogonalMatrix> matrices;
  std::vector<std::vector<unsigned char>> memory;
  int64_t shared_bytes = 0;
  for (int dtype = 0; dtype < kMatrixDtypes; ++dtype) {
    for (const Shape& shape : kShapes) {
      for (int layout = 0; layout < 3; ++layout) {  // row-major, column-major, with gaps
        OrthogonalMatrix matrix = make_matrix(shape, static_cast<Dtype>(dtype));
        matrix.row_memory_step = layout == 0 ? shape.columns : layout == 1 ? 1 : 2 * shape.columns + 3;
        matrix.column_memory_step = layout == 0 ? 1 : layout == 1 ? shape.rows : 2;
        const bool empty = shape.rows == 0 || shape.columns == 0;
        const int64_t last =
            (shape.rows - 1) * matrix.row_memory_step + (shape.columns - 1) * matrix.column_memory_step;
        memory.emplace_back(static_cast<size_t>(empty ? 0 : (last + 1) * element_bytes(matrix.dtype)), 0xA5);
        matrices.push_back(matrix);
        shared_bytes =
            std::max(shared_bytes, orthogonal_shared_bytes(shape.rows, shape.columns, static_cast<Dtype>(dtype)));
      }
    }
  }
  for (size_t i = 0; i < matrices.size(); ++i) matrices[i].data = reinterpret_cast<uint64_t>(memory[i].data());
  const int64_t before = cuda_launches();
  orthogonal_cuda({reinterpret_cast<uint64_t>(matrices.data()), static_cast<int64_t>(matrices.size()), shared_bytes},
                  kSeed, 0, 0);
  if (cuda_launches() != before + 1) ++failures;
  check_cpu(matrices, memory);

  for (size_t i = 0; i < matrices.size(); ++i) {
    const OrthogonalMatrix matrix = tall(matrices[i]);
    if (matrix.dtype != Dtype::kFloat32 && matrix.dtype != Dtype::kFloat64) continue;
    const auto element = [&](int64_t row, int64_t column) {
      const int64_t place = row * matrix.row_memory_step + column * matrix.column_memory_step;
      return element_at(memory[i].data() + place * element_bytes(matrix.dtype), matrix.dtype);
    };
    double worst = 0;
    for (int64_t a = 0; a < matrix.columns; ++a) {
      for (int64_t b = 0; b <= a; ++b) {
        double sum = a == b ? -1 : 0;
        for (int64_t row = 0; row < matrix.rows; ++row) sum += element(row, a) * element(row, b);
        worst = std::max(worst, std::fabs(sum));
      }
    }
    if (worst < (matrix.dtype == Dtype::kFloat64 ? 1e-14 : 5e-6)) continue;
    ++failures;
    std::printf("%lld x %lld: not orthogonal, by %g\n", static_cast<long long>(matrix.rows),
                static_cast<long long>(matrix.columns), worst);
  }
}

}  // namespace

int main() {
  cuda_on_cpu::order_seed = 5;
  test_samples();
  test_matrices();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
