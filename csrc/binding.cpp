// The module that Python imports. It has every table from Python checked (checks.h), hands it to a backend, and turns
// failures into exceptions. No torch header: a table is bytes, a tensor in it an address, so one binary serves every
// torch. direct.h and layout.h look at tensors themselves.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <thread>

#include "backends.h"
#include "checks.h"
#include "core/fp_environment.h"
#include "core/prepare.h"
#include "core/stream.h"
#include "direct.h"
#include "layout.h"

namespace py = pybind11;

namespace fastinit {
namespace {

// A table as NumPy holds it: a contiguous run of structs.
template <class Row>
struct TableOf {
  explicit TableOf(const py::buffer& buffer) : info(buffer.request()) {
    const bool contiguous = info.ndim == 1 && (info.size < 2 || info.strides[0] == info.itemsize);
    if (info.itemsize != static_cast<py::ssize_t>(sizeof(Row)) || !contiguous) {
      throw py::value_error("table: expected a contiguous one-dimensional array of " + std::to_string(sizeof(Row)) +
                            "-byte rows, got " + std::to_string(info.size * info.itemsize) + " bytes in rows of " +
                            std::to_string(info.itemsize));
    }
    if (reinterpret_cast<uintptr_t>(info.ptr) % alignof(Row) != 0) {
      throw py::value_error("table: expected an address that is a multiple of " + std::to_string(alignof(Row)));
    }
    rows = static_cast<const Row*>(info.ptr);
    num_rows = info.size;
  }

  Row* writable_rows() const {
    if (info.readonly) throw py::value_error("table: expected one that can be written to, got a read-only one");
    return static_cast<Row*>(info.ptr);
  }

  py::buffer_info info;
  const Row* rows;
  int64_t num_rows;
};
using Table = TableOf<Task>;

// Derives every row's sampler. Returns (row, error) of the first row that cannot be sampled, or None.
std::optional<std::pair<int64_t, int32_t>> prepare_table(const py::buffer& buffer) {
  const Table table(buffer);
  Task* const tasks = table.writable_rows();
  check_tasks(tasks, table.num_rows);
  const DefaultFpEnvironment environment;
  for (int64_t row = 0; row < table.num_rows; ++row) {
    const PrepareError error = prepare(tasks[row]);
    if (error != PrepareError::kNone) return std::make_pair(row, static_cast<int32_t>(error));
  }
  return std::nullopt;
}

// Checks a table of orthogonal matrices for orthogonal_cuda. Returns the shared memory that it needs; 0 if all are
// empty.
int64_t check_orthogonal(const py::buffer& buffer) {
  const TableOf<OrthogonalMatrix> table(buffer);
  if (table.num_rows > std::numeric_limits<int32_t>::max()) throw py::value_error("table: too many rows");
  check_matrices(table.rows, table.num_rows);
  return check_shared_bytes(table.rows, table.num_rows);
}

// The instruction set that FASTINIT_FORCE_ISA asks for, or null.
const char* forced_isa() {
  const char* forced = std::getenv("FASTINIT_FORCE_ISA");
  if (forced == nullptr || *forced == '\0') return nullptr;
  std::string names;
  for (int i = 0; i < kInstructionSets; ++i) {
    const InstructionSet& set = instruction_sets()[i];
    if (set.supported && std::strcmp(forced, set.name) == 0) return set.name;
    if (set.supported) names += std::string(names.empty() ? "" : ", ") + set.name;
  }
  std::string given(forced, strnlen(forced, 40));
  for (char& letter : given) letter = letter < ' ' || letter > '~' ? '?' : letter;  // Python must be able to decode it
  throw py::value_error("FASTINIT_FORCE_ISA: expected one that this processor has (" + names + "), got '" + given +
                        "'");
}

// Calls that work without the interpreter's lock now, on any thread. Changed by threads that hold it.
std::atomic<int> calls_without_lock{0};

// Calls that use functions of torch, which let go of the lock and take it again. Changed by threads that hold it.
std::atomic<int> calls_into_torch{0};

// The thread on which the interpreter exits, once it does so; 0 before.
std::atomic<unsigned long> exiting_thread{0};

bool others_exit() {
  const unsigned long exiting = exiting_thread.load(std::memory_order_relaxed);
  return exiting != 0 && exiting != PyThread_get_thread_ident();
}

bool is_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Runs before the interpreter is finalised (atexit). A daemon thread may be in a call then. The calls are told to stop,
// and we wait until their threads hold the lock again. A thread that asks for it later would be ended inside C++ code,
// ours or torch's, and that ends the process. The calls of this thread, in other functions of atexit, still work.
void stop_calls_for_exit() {
  exiting_thread = PyThread_get_thread_ident();
  // Calls into torch may run the user's code, which may wait for something forever.
  const auto latest = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (calls_without_lock > 0 || (calls_into_torch > 0 && std::chrono::steady_clock::now() < latest)) {
    const py::gil_scoped_release release;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// A call without the lock of the interpreter, which it takes again at its end.
class WithoutLock {
 public:
  WithoutLock() : finalizing_here_(is_finalizing()) {
    if (others_exit()) throw_exit();
    ++calls_without_lock;
    state_ = PyEval_SaveThread();
  }
  ~WithoutLock() {
    // If the interpreter did not wait (atexit was cleared): the thread stays here until the process ends.
    while (is_gone()) std::this_thread::sleep_for(std::chrono::seconds(1));
    PyEval_RestoreThread(state_);
    --calls_without_lock;
  }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;

  // Whether a signal came that raises an exception, or the interpreter exits. Only the main thread gets signals: on
  // others, PyErr_CheckSignals() returns at once.
  bool should_stop() {
    if (others_exit() || is_gone()) return true;
    PyEval_RestoreThread(state_);
    const bool raised = PyErr_CheckSignals() != 0;
    state_ = PyEval_SaveThread();
    return raised;
  }

  // Raises SystemExit, which ends a thread without a message.
  [[noreturn]] static void throw_exit() {
    PyErr_SetNone(PyExc_SystemExit);
    throw py::error_already_set();
  }

 private:
  // Whether the lock can no longer be had.
  bool is_gone() const { return !finalizing_here_ && is_finalizing(); }

  bool finalizing_here_;  // by this very thread, which holds the lock all the time
  PyThreadState* state_;
};

// A call that uses functions of torch. None begins once the interpreter exits.
class IntoTorch {
 public:
  IntoTorch() { begin(); }
  ~IntoTorch() { end(); }
  IntoTorch(const IntoTorch&) = delete;
  IntoTorch& operator=(const IntoTorch&) = delete;

  static void check_exit() {
    if (others_exit()) WithoutLock::throw_exit();
  }
  static void begin() {
    check_exit();
    ++calls_into_torch;
  }
  static void end() { --calls_into_torch; }
};

// Without the interpreter's lock. A signal stops the work, and so does the interpreter's exit.
template <class Work>
void call_interruptibly(const Work& work) {
  bool finished = false;
  {
    WithoutLock without_lock;
    finished = work([&] { return without_lock.should_stop(); });
  }
  if (finished) return;
  if (PyErr_Occurred() == nullptr) WithoutLock::throw_exit();
  throw py::error_already_set();
}

void fill_table(const py::buffer& buffer, uint64_t seed, int threads) {
  const Table table(buffer);
  check_threads(threads);
  check_prepared(table.rows, table.num_rows);
  const char* isa = forced_isa();
  call_interruptibly([&](const std::function<bool()>& should_stop) {
    return fill_cpu(table.rows, table.num_rows, seed, threads, isa, should_stop);
  });
}

// Factors of a blend, in float unless an element is a double.
void check_blend(double keep, double scale) {
  constexpr double kMost = std::numeric_limits<float>::max();
  if (!(std::abs(keep) <= kMost && std::abs(scale) <= kMost)) {
    throw py::value_error("keep, scale: expected finite numbers of float32, got " + std::to_string(keep) + " and " +
                          std::to_string(scale));
  }
}

using AddressArray = py::array_t<uint64_t, py::array::c_style | py::array::forcecast>;

void check_masks(const AddressArray& masks, int64_t num_rows) {
  if (masks.ndim() != 1 || masks.size() != num_rows) {
    throw py::value_error("masks: expected an address for each of " + std::to_string(num_rows) + " rows, got " +
                          std::to_string(masks.size()));
  }
  for (int64_t i = 0; i < num_rows; ++i) {
    if (masks.data()[i] == 0) throw py::value_error("masks: row " + std::to_string(i) + " has no address");
  }
}

void blend_table(const py::buffer& buffer, double keep, double scale, uint64_t seed, int threads) {
  const Table table(buffer);
  check_threads(threads);
  check_blend(keep, scale);
  check_prepared(table.rows, table.num_rows);
  const char* isa = forced_isa();
  call_interruptibly([&](const std::function<bool()>& should_stop) {
    return blend_cpu(table.rows, table.num_rows, keep, scale, seed, threads, isa, should_stop);
  });
}

// `masks`: the address of a mask for each row (fill_where_cpu).
void fill_where_table(const py::buffer& buffer, const AddressArray& masks, uint64_t seed, int threads) {
  const Table table(buffer);
  check_threads(threads);
  check_prepared(table.rows, table.num_rows);
  check_masks(masks, table.num_rows);
  const char* isa = forced_isa();
  call_interruptibly([&](const std::function<bool()>& should_stop) {
    return fill_where_cpu(table.rows, table.num_rows, masks.data(), seed, threads, isa, should_stop);
  });
}

// One byte a row.
py::array_t<uint8_t> differs_table(const py::buffer& buffer, uint64_t seed, int threads) {
  const Table table(buffer);
  check_threads(threads);
  check_prepared(table.rows, table.num_rows);
  const char* isa = forced_isa();
  py::array_t<uint8_t> differs(table.num_rows);
  uint8_t* const data = differs.mutable_data();
  call_interruptibly([&](const std::function<bool()>& should_stop) {
    return differs_cpu(table.rows, table.num_rows, seed, threads, isa, data, should_stop);
  });
  return differs;
}

// The five numbers of Distance a row.
py::array_t<double> distances_table(const py::buffer& buffer, uint64_t seed, int threads) {
  static_assert(sizeof(Distance) == 5 * sizeof(double), "five numbers");
  const Table table(buffer);
  check_threads(threads);
  check_prepared(table.rows, table.num_rows);
  const char* isa = forced_isa();
  py::array_t<double> distances({static_cast<py::ssize_t>(table.num_rows), py::ssize_t{5}});
  auto* const data = reinterpret_cast<Distance*>(distances.mutable_data());
  call_interruptibly([&](const std::function<bool()>& should_stop) {
    return distances_cpu(table.rows, table.num_rows, seed, threads, isa, data, should_stop);
  });
  return distances;
}

// Letting go of the interpreter's lock takes longer than filling so few elements.
constexpr int64_t kFilledUnderLock = 4096;

bool fits_orthogonal_cpu(int64_t rows, int64_t columns, int dtype) {
  return orthogonal_cpu_fits(rows, columns, static_cast<Dtype>(dtype), forced_isa());
}

// Whether a tensor may be filled by a call of its own: what is captured into a graph needs more care.
bool takes_directly(const Work& work, const Direct::Place& place) {
  const OrthogonalMatrix& matrix = work.matrix;
  if (work.kind == Work::Kind::kOrthogonal &&
      !orthogonal_cpu_fits(matrix.rows, matrix.columns, matrix.dtype, forced_isa())) {
    return false;
  }
#if defined(FASTINIT_CUDA)
  if (place.on_cuda) return work.kind == Work::Kind::kFill && !is_capturing_cuda(place.device, place.stream);
#endif
  return !place.on_cuda;
}

bool carry_out_on_cpu(const Work& work, uint64_t seed, int threads, const char* isa,
                      const std::function<bool()>& should_stop) {
  switch (work.kind) {
    case Work::Kind::kOrthogonal:
      return orthogonal_cpu(&work.matrix, 1, seed, threads, isa, should_stop);
    case Work::Kind::kSparse:
      return sparse_cpu(work.values, work.keys, work.rows, work.zeros, seed, threads, isa, should_stop);
    default:
      return fill_cpu(&work.values, 1, seed, threads, isa, should_stop);
  }
}

void carry_out_directly(const Work& work, uint64_t seed, const Direct::Place& place) {
  switch (work.kind) {
    case Work::Kind::kOrthogonal:
      check_matrices(&work.matrix, 1);
      break;
    case Work::Kind::kSparse:
      check_sparse(work.values, work.keys, work.rows, work.zeros);
      break;
    default:
      check_prepared(&work.values, 1);
  }
#if defined(FASTINIT_CUDA)
  if (place.on_cuda) return fill_cuda_single(work.values, seed, place.device, place.stream);
#endif
  check_threads(place.threads);
  const char* isa = forced_isa();
  if (work.numel() <= kFilledUnderLock) {
    carry_out_on_cpu(work, seed, 1, isa, [] { return false; });
    return;
  }
  call_interruptibly([&](const std::function<bool()>& should_stop) {
    return carry_out_on_cpu(work, seed, place.threads, isa, should_stop);
  });
}

bool fill_directly(Direct& direct, py::handle tensor, py::handle make, const py::tuple& arguments, py::handle fan,
                   py::handle generator) {
  const IntoTorch into_torch;
  return direct.fill(tensor, make, arguments, fan, generator, takes_directly, carry_out_directly);
}

bool fill_all_directly(Direct& direct, const py::tuple& tensors, py::handle resolve, const std::string& name_ids,
                       py::handle seed, py::handle generator) {
  const IntoTorch into_torch;
  const auto carry_out = [](const std::vector<Task>& tasks, uint64_t drawn, int threads) {
    const auto num_rows = static_cast<int64_t>(tasks.size());
    check_prepared(tasks.data(), num_rows);
    check_threads(threads);
    const char* isa = forced_isa();
    call_interruptibly([&](const std::function<bool()>& should_stop) {
      return fill_cpu(tasks.data(), num_rows, drawn, threads, isa, should_stop);
    });
  };
  return direct.fill_all(tensors, resolve, name_ids, seed, generator, carry_out);
}

void orthogonal_cpu_table(const py::buffer& buffer, uint64_t seed, int threads) {
  const TableOf<OrthogonalMatrix> table(buffer);
  check_threads(threads);
  check_matrices(table.rows, table.num_rows);
  const char* isa = forced_isa();
  call_interruptibly([&](const std::function<bool()>& should_stop) {
    return orthogonal_cpu(table.rows, table.num_rows, seed, threads, isa, should_stop);
  });
}

// One sum a row.
py::array_t<uint64_t> fingerprint_table(const py::buffer& buffer, int threads) {
  const TableOf<FingerprintTask> table(buffer);
  check_threads(threads);
  check_fingerprints(table.rows, table.num_rows);
  const char* isa = forced_isa();
  py::array_t<uint64_t> sums(table.num_rows);
  uint64_t* const data = sums.mutable_data();
  call_interruptibly([&](const std::function<bool()>& should_stop) {
    return fingerprint_cpu(table.rows, table.num_rows, threads, isa, data, should_stop);
  });
  return sums;
}

// The fields of Moments, of elements that lie one behind the other at an address.
py::tuple statistics_at(uint64_t address, int64_t numel, int dtype, int threads) {
  check_threads(threads);
  const auto kind = static_cast<Dtype>(dtype);
  if (kind != Dtype::kFloat32 && kind != Dtype::kFloat64 && kind != Dtype::kBfloat16) {
    throw std::invalid_argument("dtype: expected that of float32, float64 or bfloat16, got " + std::to_string(dtype));
  }
  if (numel < 0) throw std::invalid_argument("numel: expected 0 or more, got " + std::to_string(numel));
  if (numel > 0 && (address == 0 || address % static_cast<uint64_t>(element_bytes(kind)) != 0)) {
    throw std::invalid_argument("address: expected a multiple of the element's size that is not 0");
  }
  const char* isa = forced_isa();
  Moments found;
  call_interruptibly([&](const std::function<bool()>& should_stop) {
    return statistics_cpu(reinterpret_cast<const void*>(address), numel, kind, threads, isa, &found, should_stop);
  });
  return py::make_tuple(found.count, found.non_finite, found.zeros, found.mean, found.squares, found.low, found.high);
}

#if defined(FASTINIT_CUDA)
// The table's image for a device, as bytes to be copied there, and the number of its chunks.
std::pair<py::array_t<uint8_t>, int64_t> cuda_table(const py::buffer& buffer) {
  const Table table(buffer);
  if (table.num_rows > std::numeric_limits<int32_t>::max()) throw py::value_error("table: too many rows");
  check_prepared(table.rows, table.num_rows);
  py::array_t<uint8_t> image(cuda_table_bytes(table.num_rows));
  const int64_t num_chunks = write_cuda_table(table.rows, table.num_rows, image.mutable_data());
  return {image, num_chunks};
}

void fill_cuda_table(uint64_t address, int64_t num_tasks, int64_t num_chunks, uint64_t seed, int device,
                     uint64_t stream, uint64_t seed_address) {
  check_device_table(address, num_tasks, "num_tasks");
  check_device_table(address, num_chunks, "num_chunks");
  if (seed_address % alignof(uint64_t) != 0) throw std::invalid_argument("seed_address: expected a multiple of 8");
  fill_cuda({address, num_tasks, num_chunks}, seed, seed_address, device, stream);
}

void blend_cuda_table(uint64_t address, int64_t num_tasks, int64_t num_chunks, double keep, double scale, uint64_t seed,
                      int device, uint64_t stream) {
  check_device_table(address, num_tasks, "num_tasks");
  check_device_table(address, num_chunks, "num_chunks");
  check_blend(keep, scale);
  blend_cuda({address, num_tasks, num_chunks}, keep, scale, seed, device, stream);
}

void fill_where_cuda_table(uint64_t address, int64_t num_tasks, int64_t num_chunks, uint64_t masks, uint64_t seed,
                           int device, uint64_t stream) {
  check_device_table(address, num_tasks, "num_tasks");
  check_device_table(address, num_chunks, "num_chunks");
  check_device_table(masks, num_tasks, "masks");
  fill_where_cuda({address, num_tasks, num_chunks}, masks, seed, device, stream);
}

bool fits_orthogonal_cuda(int64_t rows, int64_t columns, int32_t dtype, int device) {
  check_dtype(static_cast<Dtype>(dtype), 0);
  return orthogonal_cuda_fits(rows, columns, static_cast<Dtype>(dtype), device);
}

void orthogonal_cuda_table(uint64_t address, int64_t num_matrices, int64_t shared_bytes, uint64_t seed, int device,
                           uint64_t stream) {
  check_device_table(address, num_matrices, "num_matrices");
  if (shared_bytes < 0 || shared_bytes > kMostSharedBytes) {
    throw py::value_error("shared_bytes: expected what check_orthogonal gives, got " + std::to_string(shared_bytes));
  }
  orthogonal_cuda({address, num_matrices, shared_bytes}, seed, device, stream);
}
#endif

std::string active_isa() {
  if (const char* forced = forced_isa()) return forced;
  for (int i = 0; i < kInstructionSets; ++i) {
    if (instruction_sets()[i].supported) return instruction_sets()[i].name;
  }
  return "portable";
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < kInstructionSets; ++i) {
    if (instruction_sets()[i].supported) names.emplace_back(instruction_sets()[i].name);
  }
  return names;
}

std::array<uint32_t, 4> philox_block(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
  uint32_t block[4] = {counter[0], counter[1], counter[2], counter[3]};
  philox4x32(block, key[0] | static_cast<uint64_t>(key[1]) << 32);
  return {block[0], block[1], block[2], block[3]};
}

// A struct's fields as numpy.dtype takes them.
class Fields {
 public:
  void add(const char* name, const char* format, size_t offset) {
    names_.append(name);
    formats_.append(format);
    offsets_.append(offset);
  }
  py::dict dtype(size_t itemsize) const {
    py::dict dtype;
    dtype["names"] = names_;
    dtype["formats"] = formats_;
    dtype["offsets"] = offsets_;
    dtype["itemsize"] = itemsize;
    return dtype;
  }

 private:
  py::list names_, formats_, offsets_;
};

// The caller's part of a Task.
py::dict task_dtype() {
  Fields fields;
  constexpr size_t kMap = offsetof(Task, map);
  fields.add("data", "u8", offsetof(Task, data));
  fields.add("numel", "i8", offsetof(Task, numel));
  fields.add("global_offset", "i8", kMap + offsetof(IndexMap, global_offset));
  fields.add("row_length", "i8", kMap + offsetof(IndexMap, row_length));
  fields.add("rows_per_slab", "i8", kMap + offsetof(IndexMap, rows_per_slab));
  fields.add("row_index_step", "i8", kMap + offsetof(IndexMap, row_index_step));
  fields.add("slab_index_step", "i8", kMap + offsetof(IndexMap, slab_index_step));
  fields.add("element_memory_step", "i8", kMap + offsetof(IndexMap, element_memory_step));
  fields.add("row_memory_step", "i8", kMap + offsetof(IndexMap, row_memory_step));
  fields.add("slab_memory_step", "i8", kMap + offsetof(IndexMap, slab_memory_step));
  fields.add("name_id", "V16", offsetof(Task, name_id));
  fields.add("parameter", "5f8", offsetof(Task, parameter));
  fields.add("dtype", "i4", offsetof(Task, dtype));
  fields.add("distribution", "i4", offsetof(Task, distribution));
  return fields.dtype(sizeof(Task));
}

py::dict orthogonal_dtype() {
  Fields fields;
  fields.add("data", "u8", offsetof(OrthogonalMatrix, data));
  fields.add("rows", "i8", offsetof(OrthogonalMatrix, rows));
  fields.add("columns", "i8", offsetof(OrthogonalMatrix, columns));
  fields.add("first_row", "i8", offsetof(OrthogonalMatrix, first_row));
  fields.add("end_row", "i8", offsetof(OrthogonalMatrix, end_row));
  fields.add("first_column", "i8", offsetof(OrthogonalMatrix, first_column));
  fields.add("end_column", "i8", offsetof(OrthogonalMatrix, end_column));
  fields.add("row_memory_step", "i8", offsetof(OrthogonalMatrix, row_memory_step));
  fields.add("column_memory_step", "i8", offsetof(OrthogonalMatrix, column_memory_step));
  fields.add("global_offset", "i8", offsetof(OrthogonalMatrix, global_offset));
  fields.add("row_index_step", "i8", offsetof(OrthogonalMatrix, row_index_step));
  fields.add("column_index_step", "i8", offsetof(OrthogonalMatrix, column_index_step));
  fields.add("name_id", "V16", offsetof(OrthogonalMatrix, name_id));
  fields.add("gain", "f8", offsetof(OrthogonalMatrix, gain));
  fields.add("dtype", "i4", offsetof(OrthogonalMatrix, dtype));
  return fields.dtype(sizeof(OrthogonalMatrix));
}

// A FingerprintTask, as numpy.dtype takes it. `dimensions`: rows of size, step in memory, step of the index.
py::dict fingerprint_dtype() {
  static_assert(sizeof(FingerprintTask::Dimension) == 3 * sizeof(int64_t), "three integers");
  const std::string dimensions = "(" + std::to_string(kFingerprintDimensions) + ",3)i8";
  py::dict dtype;
  dtype["names"] = py::make_tuple("data", "numel", "key", "global_offset", "element_bytes", "dimensions");
  dtype["formats"] = py::make_tuple("u8", "i8", "u8", "i8", "i8", dimensions);
  dtype["offsets"] = py::make_tuple(offsetof(FingerprintTask, data), offsetof(FingerprintTask, numel),
                                    offsetof(FingerprintTask, key), offsetof(FingerprintTask, global_offset),
                                    offsetof(FingerprintTask, element_bytes), offsetof(FingerprintTask, dimension));
  dtype["itemsize"] = sizeof(FingerprintTask);
  return dtype;
}

}  // namespace
}  // namespace fastinit

PYBIND11_MODULE(_C, module) {
  using namespace fastinit;
  module.doc() = "Native backends of fastinit. Private: use the fastinit package.";
  module.attr("STREAM_VERSION") = kStreamVersion;
  module.def("task_dtype", &task_dtype);
  module.def("prepare", &prepare_table, py::arg("table"));
  module.def("fill_cpu", &fill_table, py::arg("table"), py::arg("seed"), py::arg("threads"));
  module.def("blend_cpu", &blend_table, py::arg("table"), py::arg("keep"), py::arg("scale"), py::arg("seed"),
             py::arg("threads"));
  module.def("fill_where_cpu", &fill_where_table, py::arg("table"), py::arg("masks"), py::arg("seed"),
             py::arg("threads"));
  module.def("differs_cpu", &differs_table, py::arg("table"), py::arg("seed"), py::arg("threads"));
  module.def("distances_cpu", &distances_table, py::arg("table"), py::arg("seed"), py::arg("threads"));
  module.def("check_exit", &IntoTorch::check_exit);
  module.def("begin_into_torch", &IntoTorch::begin);
  module.def("end_into_torch", &IntoTorch::end);
  py::class_<Layout>(module, "Layout").def("is_of", &Layout::is_of, py::arg("tensors"));
  module.def("layout_of", &Layout::of, py::arg("exchange_api"), py::arg("tensors"), py::arg("untyped_storage"),
             py::arg("storage_bytes"));
  py::class_<Direct>(module, "Direct")
      .def(py::init<py::object, const py::dict&>(), py::arg("resolve"), py::arg("torch"))
      .def("fill", &fill_directly, py::arg("tensor"), py::arg("make"), py::arg("arguments"), py::arg("fan"),
           py::arg("generator"))
      .def("fill_all", &fill_all_directly, py::arg("tensors"), py::arg("resolve"), py::arg("name_ids"), py::arg("seed"),
           py::arg("generator"));
  module.def("orthogonal_dtype", &orthogonal_dtype);
  module.def("orthogonal_cpu_fits", &fits_orthogonal_cpu, py::arg("rows"), py::arg("columns"), py::arg("dtype"));
  module.def("orthogonal_cpu", &orthogonal_cpu_table, py::arg("table"), py::arg("seed"), py::arg("threads"));
  module.def("check_orthogonal", &check_orthogonal, py::arg("table"));
  module.attr("FINGERPRINT_VERSION") = kFingerprintVersion;
  module.def("fingerprint_dtype", &fingerprint_dtype);
  module.def("statistics_cpu", &statistics_at, py::arg("address"), py::arg("numel"), py::arg("dtype"),
             py::arg("threads"));
  module.def("fingerprint_cpu", &fingerprint_table, py::arg("table"), py::arg("threads"));
#if defined(FASTINIT_CUDA)
  module.attr("HAS_CUDA") = true;
  module.def("cuda_table", &cuda_table, py::arg("table"));
  module.def("fill_cuda", &fill_cuda_table, py::arg("address"), py::arg("num_tasks"), py::arg("num_chunks"),
             py::arg("seed"), py::arg("device"), py::arg("stream"), py::arg("seed_address") = 0);
  module.def("blend_cuda", &blend_cuda_table, py::arg("address"), py::arg("num_tasks"), py::arg("num_chunks"),
             py::arg("keep"), py::arg("scale"), py::arg("seed"), py::arg("device"), py::arg("stream"));
  module.def("fill_where_cuda", &fill_where_cuda_table, py::arg("address"), py::arg("num_tasks"), py::arg("num_chunks"),
             py::arg("masks"), py::arg("seed"), py::arg("device"), py::arg("stream"));
  module.def("orthogonal_cuda_fits", &fits_orthogonal_cuda, py::arg("rows"), py::arg("columns"), py::arg("dtype"),
             py::arg("device"));
  module.def("orthogonal_cuda", &orthogonal_cuda_table, py::arg("address"), py::arg("num_matrices"),
             py::arg("shared_bytes"), py::arg("seed"), py::arg("device"), py::arg("stream"));
  module.def("cuda_launches", &cuda_launches);
#else
  module.attr("HAS_CUDA") = false;
#endif
  module.def("active_isa", &active_isa);
  module.def("supported_isas", &supported_isas);
  module.def("philox4x32", &philox_block, py::arg("counter"), py::arg("key"));
  py::module_::import("atexit").attr("register")(py::cpp_function(&stop_calls_for_exit));
#if defined(__unix__) || defined(__APPLE__)
  // A forked child has none of the threads that are in calls.
  pthread_atfork(nullptr, nullptr, [] { calls_without_lock = calls_into_torch = 0; });
#endif
}
