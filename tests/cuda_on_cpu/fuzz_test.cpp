// Tables of random bytes and extreme numbers: whatever csrc/checks.h accepts can be filled, by the CPU backend and by
// the CUDA backend compiled for the CPU, with the right values and nothing written beside them. For the sanitizers,
// too. Exits with 1 if anything is wrong.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "backends.h"
#include "checks.h"
#include "core/prepare.h"
#include "cuda/chunks.h"

namespace fastinit {
CUDA_ON_CPU_DYNAMIC_SHARED(double, matrix_memory);
}

using namespace fastinit;

namespace {

__extension__ typedef __int128 Int128;

constexpr uint64_t kSeed = 42;
constexpr int64_t kMostRun = 20000;  // elements of a row that is filled
std::mt19937_64 random_bits(2026);
int failures = 0;

void fail(const char* what, int64_t number) {
  if (++failures <= 20) std::printf("%s, in table %lld\n", what, static_cast<long long>(number));
}

int64_t below(int64_t end) { return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(end)); }

// Memory that ends where its last element does, so that a sanitizer sees what goes beyond.
class Memory {
 public:
  explicit Memory(int64_t bytes) : bytes_(bytes), data_(new uint64_t[static_cast<size_t>(bytes / 8 + 1)]) {
    begin_ = reinterpret_cast<unsigned char*>(data_.get()) + (8 - bytes % 8) % 8;
    clear();
  }
  uint64_t address() const { return reinterpret_cast<uint64_t>(begin_); }
  void clear() { std::memset(begin_, 0xA5, static_cast<size_t>(bytes_)); }
  std::vector<unsigned char> content() const { return {begin_, begin_ + bytes_}; }
  // Of an element at an address, its place; -1 if it does not lie within.
  int64_t place(Int128 at, int64_t element_bytes) const {
    const Int128 offset = at - static_cast<Int128>(address());
    return offset >= 0 && offset + element_bytes <= bytes_ ? static_cast<int64_t>(offset) : -1;
  }

 private:
  int64_t bytes_;
  std::unique_ptr<uint64_t[]> data_;
  unsigned char* begin_;
};

// One word of a struct becomes an extreme, a random or a slightly different number; or one byte of it another.
void mutate(void* row, size_t bytes) {
  constexpr uint64_t kExtremes[] = {0,
                                    1,
                                    2,
                                    7,
                                    1023,
                                    1024,
                                    uint64_t{1} << 31,
                                    uint64_t{1} << 32,
                                    uint64_t{1} << 59,
                                    uint64_t{1} << 62,
                                    (uint64_t{1} << 63) - 1,
                                    uint64_t{1} << 63,
                                    ~uint64_t{0},
                                    0x7FF0000000000000,   // infinity
                                    0xFFF0000000000000,   // its negative
                                    0x7FF8000000000000,   // NaN
                                    0x7FEFFFFFFFFFFFFF,   // the largest double
                                    0x0000000000000001,   // the least one
                                    0x43E0000000000000,   // 2^63
                                    0xBFF0000000000000,   // -1
                                    0x3FE0000000000000};  // 0.5
  auto* const begin = static_cast<unsigned char*>(row);
  unsigned char* const word = begin + below(static_cast<int64_t>(bytes / 8)) * 8;
  uint64_t value = 0;
  std::memcpy(&value, word, sizeof(value));
  switch (below(6)) {
    case 0:
      value = random_bits();
      break;
    case 1:
      value += static_cast<uint64_t>(below(5) - 2);
      break;
    case 2:  // one half: a dtype, or a distribution
      value ^= random_bits() << (below(2) * 32) >> below(32);
      break;
    case 3:
      begin[below(static_cast<int64_t>(bytes))] = static_cast<unsigned char>(random_bits());
      return;
    default:
      value = kExtremes[below(std::size(kExtremes))];
  }
  std::memcpy(word, &value, sizeof(value));
}

template <class Check>
bool is_accepted(const Check& check) {
  try {
    check();
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

int64_t some_offset() {
  const int64_t offsets[] = {0,
                             1,
                             3,
                             below(1000),
                             int64_t{1} << 34,
                             (int64_t{1} << 62) + below(100),
                             std::numeric_limits<int64_t>::max() - below(3000)};
  return offsets[below(std::size(offsets))];
}

// ---- Tasks ----

constexpr double kParameters5[][kParameters] = {{0.5}, {-1, 2}, {0.25, 2}, {0, 1, -2, 3}, {1, 2, 33, 40, 2000}};

Task make_task(int64_t& bytes) {
  Task task{};
  IndexMap& map = task.map;
  task.dtype = static_cast<Dtype>(below(kDtypes));
  task.distribution = static_cast<Distribution>(below(kDistributions));
  std::copy_n(kParameters5[static_cast<int>(task.distribution)], kParameters, task.parameter);
  if (task.distribution == Distribution::kTruncNormal && below(2) == 0) {
    const double bounds[][2] = {{5.5, 6}, {-1e-9, 1e-9}, {-30, 0}, {0, 1e300}, {-1, -0.5}};
    std::copy_n(bounds[below(5)], 2, task.parameter + 2);
  }
  map.row_length = 1 + below(300);
  map.rows_per_slab = 1 + below(5);
  task.numel = below(4) == 0 ? map.row_length : below(4 * map.row_length * map.rows_per_slab);
  map.global_offset = some_offset();
  map.row_index_step = below(2) == 0 ? map.row_length : below(1000);
  map.slab_index_step = below(2) == 0 ? map.row_length * map.rows_per_slab : below(5000);
  // The axes' order in memory is another one now and then.
  int64_t axes[] = {map.row_length, map.rows_per_slab, 4}, steps[3], order[] = {0, 1, 2}, step = 1 + below(2);
  std::shuffle(order, order + below(4), random_bits);
  for (const int64_t axis : order) {
    steps[axis] = step;
    step = step * axes[axis] + below(4);
  }
  map.element_memory_step = steps[0];
  map.row_memory_step = steps[1];
  map.slab_memory_step = steps[2];
  bytes = step * element_bytes(task.dtype);
  task.name_id[0] = random_bits();
  return task;
}

struct Element {
  Int128 address, index;
};

Element element_of(const Task& task, int64_t local) {
  const IndexMap& map = task.map;
  const Int128 row = local / map.row_length, column = local % map.row_length;
  const Int128 slab = row / map.rows_per_slab, in_slab = row % map.rows_per_slab;
  const Int128 places = slab * map.slab_memory_step + in_slab * map.row_memory_step + column * map.element_memory_step;
  return {static_cast<Int128>(task.data) + places * element_bytes(task.dtype),
          map.global_offset + slab * map.slab_index_step + in_slab * map.row_index_step + column};
}

// Whether all elements lie within the memory. Fails the test if any of them lies where none can be.
bool lies_within(const Task& task, const Memory& memory, int64_t number) {
  bool within = true;
  std::set<Int128> addresses;
  const Int128 end_of_memory = static_cast<Int128>(1) << 64, end_of_indices = static_cast<Int128>(1) << 63;
  const int64_t bytes = element_bytes(task.dtype);
  const int64_t looked_at = std::min(task.numel, kMostRun);
  for (int64_t i = 0; i < looked_at; ++i) {
    const Element element = element_of(task, i < looked_at / 2 ? i : task.numel - looked_at + i);
    if (element.index < 0 || element.index >= end_of_indices) fail("an index out of range", number);
    if (element.address <= 0 || element.address + bytes > end_of_memory) fail("an address out of range", number);
    if (element.address % bytes != 0) fail("an unaligned element", number);
    if (!addresses.insert(element.address).second) fail("elements that share memory", number);
    within = within && memory.place(element.address, bytes) >= 0;
  }
  return within && task.numel <= kMostRun;
}

// What the memory must hold: every element, filled alone.
std::vector<unsigned char> filled_alone(const Task& task, const Memory& memory) {
  const int64_t bytes = element_bytes(task.dtype);
  std::vector<uint64_t> values(static_cast<size_t>(task.numel));
  std::vector<Task> alone(static_cast<size_t>(task.numel), task);
  for (int64_t i = 0; i < task.numel; ++i) {
    Task& single = alone[static_cast<size_t>(i)];
    single.data = reinterpret_cast<uint64_t>(&values[static_cast<size_t>(i)]);
    single.numel = 1;
    single.map = {static_cast<int64_t>(element_of(task, i).index), 1, 1, 0, 0, 1, 0, 0};
  }
  fill_cpu(alone.data(), task.numel, kSeed, 1, "portable", [] { return false; });
  std::vector<unsigned char> wanted = memory.content();
  for (int64_t i = 0; i < task.numel; ++i) {
    const int64_t place = memory.place(element_of(task, i).address, bytes);
    std::memcpy(wanted.data() + place, &values[static_cast<size_t>(i)], static_cast<size_t>(bytes));
  }
  return wanted;
}

void test_tasks() {
  int64_t accepted = 0, refused = 0, run = 0;
  for (int64_t number = 0; number < 400; ++number) {
    std::vector<Task> tasks;
    std::vector<Memory> memory;
    std::vector<std::vector<unsigned char>> wanted;
    for (int64_t i = 0; i < 20; ++i) {
      int64_t bytes = 0;
      Task task = make_task(bytes);
      Memory own(bytes);
      task.data = own.address();
      const int64_t mutations = below(3);
      for (int64_t k = 0; k < mutations; ++k) mutate(&task, offsetof(Task, sampler));
      const bool is_prepared = is_accepted([&] { check_tasks(&task, 1); }) && prepare(task) == PrepareError::kNone;
      if (!is_prepared) {
        if (mutations == 0 && task.map.global_offset < (int64_t{1} << 62)) fail("a good row was refused", number);
        if (is_accepted([&] { check_prepared(&task, 1); })) fail("a row that was not prepared was accepted", number);
        ++refused;
        continue;
      }
      ++accepted;
      if (below(4) == 0) {  // its distribution changes after all
        Task changed = task;
        mutate(reinterpret_cast<unsigned char*>(&changed) + offsetof(Task, parameter),
               sizeof(Task) - offsetof(Task, parameter));
        const bool same = std::memcmp(&changed, &task, sizeof(Task)) == 0;
        if (same != is_accepted([&] { check_prepared(&changed, 1); })) fail("a changed row was accepted", number);
      }
      if (!is_accepted([&] { check_prepared(&task, 1); })) fail("a prepared row was refused", number);
      if (num_chunks(task) < 0) fail("a negative number of chunks", number);
      if (!lies_within(task, own, number)) continue;
      ++run;
      wanted.push_back(filled_alone(task, own));
      tasks.push_back(task);
      memory.push_back(std::move(own));
    }
    const auto num_tasks = static_cast<int64_t>(tasks.size());
    const auto compare = [&](const char* what) {
      for (size_t i = 0; i < tasks.size(); ++i) {
        if (memory[i].content() != wanted[i]) fail(what, number);
        memory[i].clear();
      }
    };
    for (int set = 0; set < kInstructionSets; ++set) {
      if (!instruction_sets()[set].supported) continue;
      fill_cpu(tasks.data(), num_tasks, kSeed, 2, instruction_sets()[set].name, [] { return false; });
      compare(instruction_sets()[set].name);
    }
    std::vector<int64_t> image(static_cast<size_t>(cuda_table_bytes(num_tasks) / 8 + 1));
    const int64_t chunks = write_cuda_table(tasks.data(), num_tasks, image.data());
    fill_cuda({reinterpret_cast<uint64_t>(image.data()), num_tasks, chunks}, kSeed, 0, 0, 0);
    compare("the kernel");
    for (const Task& task : tasks) fill_cuda_single(task, kSeed, 0, 0);
    compare("the kernel of one task");
  }
  std::printf("tasks: %lld accepted, %lld of them filled, %lld refused\n", static_cast<long long>(accepted),
              static_cast<long long>(run), static_cast<long long>(refused));
  if (run < 2000 || accepted - run < 50 || refused < 1000) fail("tables that test too little", 0);
}

// ---- Orthogonal matrices ----

void test_matrices() {
  int64_t refused = 0, run = 0;
  for (int64_t number = 0; number < 3000; ++number) {
    OrthogonalMatrix matrix{};
    matrix.rows = 1 + below(12);
    matrix.columns = 1 + below(12);
    matrix.first_row = below(3) == 0 ? below(matrix.rows) : 0;
    matrix.end_row = matrix.rows;
    matrix.end_column = matrix.columns - (below(3) == 0 ? below(matrix.columns) : 0);
    matrix.column_memory_step = 1 + below(2);
    matrix.row_memory_step = matrix.columns * matrix.column_memory_step + below(3);
    matrix.global_offset = some_offset();
    matrix.row_index_step = below(2) == 0 ? matrix.columns : 1;
    matrix.column_index_step = matrix.row_index_step == 1 ? matrix.rows : 1;
    matrix.gain = 1.0;
    matrix.dtype = static_cast<Dtype>(below(kMatrixDtypes));
    const int64_t bytes = element_bytes(matrix.dtype);
    Memory by_cpu(matrix.rows * matrix.row_memory_step * bytes), by_cuda(matrix.rows * matrix.row_memory_step * bytes);
    matrix.data = by_cpu.address();
    const int64_t mutations = below(3);
    for (int64_t k = 0; k < mutations; ++k) mutate(&matrix, sizeof(matrix));
    int64_t shared_bytes = 0;
    const bool accepted = is_accepted([&] {
      check_matrices(&matrix, 1);
      shared_bytes = check_shared_bytes(&matrix, 1);
    });
    if (!accepted) {
      if (mutations == 0 && matrix.global_offset < (int64_t{1} << 62)) fail("a good matrix was refused", number);
      ++refused;
      continue;
    }
    const int64_t rows = matrix.end_row - matrix.first_row, columns = matrix.end_column - matrix.first_column;
    const bool empty = matrix.rows == 0 || matrix.columns == 0 || rows == 0 || columns == 0;
    const Int128 last = static_cast<Int128>(rows - 1) * matrix.row_memory_step +
                        static_cast<Int128>(columns - 1) * matrix.column_memory_step;
    const int64_t place = by_cpu.place(static_cast<Int128>(matrix.data) + last * element_bytes(matrix.dtype),
                                       element_bytes(matrix.dtype));
    const bool within = matrix.data == by_cpu.address() && (empty || place >= 0);
    if (!within || matrix.rows * matrix.columns > 5000) continue;
    ++run;
    orthogonal_cpu(&matrix, 1, kSeed, 2, nullptr, [] { return false; });
    matrix.data = by_cuda.address();
    orthogonal_cuda({reinterpret_cast<uint64_t>(&matrix), 1, shared_bytes}, kSeed, 0, 0);
    if (by_cpu.content() != by_cuda.content()) fail("a matrix differs", number);
  }
  std::printf("matrices: %lld filled, %lld refused\n", static_cast<long long>(run), static_cast<long long>(refused));
  if (run < 1000 || refused < 500) fail("matrices that test too little", 0);
}

// ---- Fingerprints ----

void test_fingerprints() {
  int64_t refused = 0, run = 0;
  for (int64_t number = 0; number < 6000; ++number) {
    FingerprintTask task{};
    task.element_bytes = int64_t{1} << below(4);
    task.numel = 1;
    int64_t step = 1;
    for (int d = kFingerprintDimensions - 1; d >= 0; --d) {
      const int64_t size = d < 4 ? 1 : 1 + below(6);
      task.dimension[d] = {size, step, below(2) == 0 ? step : below(100)};
      task.numel *= size;
      step = step * size + below(2);
    }
    task.global_offset = some_offset();
    task.key = random_bits();
    Memory memory(step * task.element_bytes);
    task.data = memory.address();
    const int64_t mutations = below(3);
    for (int64_t k = 0; k < mutations; ++k) mutate(&task, sizeof(task));
    if (!is_accepted([&] { check_fingerprints(&task, 1); })) {
      if (mutations == 0 && task.global_offset < (int64_t{1} << 62)) fail("a good fingerprint was refused", number);
      ++refused;
      continue;
    }
    const std::vector<unsigned char> content = memory.content();
    bool within = task.numel <= kMostRun;
    uint64_t wanted = 0;
    for (int64_t i = 0; within && i < task.numel; ++i) {
      Int128 address = task.data, index = task.global_offset;
      int64_t rest = i;
      for (const FingerprintTask::Dimension& dimension : task.dimension) {
        address += static_cast<Int128>(rest % dimension.size) * dimension.memory_step * task.element_bytes;
        index += static_cast<Int128>(rest % dimension.size) * dimension.index_step;
        rest /= dimension.size;
      }
      const int64_t place = memory.place(address, task.element_bytes);
      within = place >= 0;
      if (index < 0 || index >= static_cast<Int128>(1) << 63) fail("an index out of range", number);
      uint64_t bits = 0;
      if (within) std::memcpy(&bits, content.data() + place, static_cast<size_t>(task.element_bytes));
      wanted += fingerprint_mix((task.key + static_cast<uint64_t>(index) * kFingerprintStep) ^ bits);
    }
    if (!within) continue;
    ++run;
    for (int set = 0; set < kInstructionSets; ++set) {
      if (!instruction_sets()[set].supported) continue;
      uint64_t sum = 0;
      fingerprint_cpu(&task, 1, 2, instruction_sets()[set].name, &sum, [] { return false; });
      if (sum != wanted) fail(instruction_sets()[set].name, number);
    }
  }
  std::printf("fingerprints: %lld summed, %lld refused\n", static_cast<long long>(run),
              static_cast<long long>(refused));
  if (run < 2000 || refused < 1000) fail("fingerprints that test too little", 0);
}

}  // namespace

int main() {
  cuda_on_cpu::multiprocessors = 2;
  test_tasks();
  test_matrices();
  test_fingerprints();
  std::printf(failures == 0 ? "fuzz_test: passed\n" : "fuzz_test: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
