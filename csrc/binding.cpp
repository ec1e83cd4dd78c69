// The only pybind11 file: checks what comes from Python, hands the table to a backend, turns failures into exceptions.
// No torch header: a table is bytes, a tensor in it an address, so one binary serves every torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <string>

#include "backends.h"
#include "core/fp_environment.h"
#include "core/prepare.h"

namespace py = pybind11;

namespace fastinit {
namespace {

// A table as NumPy holds it: a contiguous, writable run of structs.
template <class Row>
struct TableOf {
  explicit TableOf(const py::buffer& buffer) : info(buffer.request(/*writable=*/true)) {
    const py::ssize_t bytes = info.size * info.itemsize;
    const bool contiguous = info.ndim == 1 && (info.size < 2 || info.strides[0] == info.itemsize);
    if (info.itemsize != static_cast<py::ssize_t>(sizeof(Row)) || !contiguous) {
      throw py::value_error("table: expected a contiguous one-dimensional array of " + std::to_string(sizeof(Row)) +
                            "-byte rows, got " + std::to_string(bytes) + " bytes in rows of " +
                            std::to_string(info.itemsize));
    }
    rows = static_cast<Row*>(info.ptr);
    num_rows = info.size;
  }

  py::buffer_info info;
  Row* rows;
  int64_t num_rows;
};
using Table = TableOf<Task>;

[[noreturn]] void fail_row(int64_t row, const std::string& what) {
  throw py::value_error("table row " + std::to_string(row) + ": " + what);
}

void check_dtype(Dtype dtype, int64_t row) {
  const auto number = static_cast<int32_t>(dtype);
  if (number < 0 || number >= kDtypes) fail_row(row, "unknown dtype " + std::to_string(number));
}

void check_task(const Task& task, int64_t row) {
  const auto distribution = static_cast<int32_t>(task.distribution);
  const auto fail = [row](const std::string& what) { fail_row(row, what); };
  check_dtype(task.dtype, row);
  if (distribution < 0 || distribution >= kDistributions) fail("unknown distribution " + std::to_string(distribution));
  if (task.numel < 0) fail("negative numel " + std::to_string(task.numel));
  if (task.numel > 0 && task.data == 0) fail("elements without memory");
  if (task.map.row_length < 1 || task.map.rows_per_slab < 1) fail("empty rows in the index map");
  if (task.map.global_offset < 0) fail("negative global offset");
  if (task.distribution == Distribution::kDiagonal) {
    const double (&parameter)[kParameters] = task.parameter;
    if (!(parameter[1] >= 0 && parameter[2] >= 1 && parameter[3] >= 1 && parameter[4] >= 1)) fail("no such diagonal");
  }
}

// Derives every row's sampler. Returns (row, error) of the first row that cannot be sampled, or None.
std::optional<std::pair<int64_t, int32_t>> prepare_table(const py::buffer& buffer) {
  const Table table(buffer);
  for (int64_t row = 0; row < table.num_rows; ++row) check_task(table.rows[row], row);
  const DefaultFpEnvironment environment;
  for (int64_t row = 0; row < table.num_rows; ++row) {
    const PrepareError error = prepare(table.rows[row]);
    if (error != PrepareError::kNone) return std::make_pair(row, static_cast<int32_t>(error));
  }
  return std::nullopt;
}

// Whether element (rows - 1, columns - 1), and so all others, has a number from 0 to 2^63 - 1.
bool counts_up(int64_t rows, int64_t columns, int64_t offset, int64_t row_step, int64_t column_step) {
  int64_t of_row = 0, of_column = 0, last = 0;
  return offset >= 0 && row_step >= 0 && column_step >= 0 && !__builtin_mul_overflow(rows - 1, row_step, &of_row) &&
         !__builtin_mul_overflow(columns - 1, column_step, &of_column) &&
         !__builtin_add_overflow(of_row, of_column, &last) && !__builtin_add_overflow(last, offset, &last);
}

void check_matrix(const OrthogonalMatrix& matrix, int64_t row) {
  const auto fail = [row](const std::string& what) { fail_row(row, what); };
  check_dtype(matrix.dtype, row);
  if (!std::isfinite(matrix.gain)) fail("a gain that is not finite");
  if (matrix.rows < 0 || matrix.columns < 0) fail("a negative number of rows or columns");
  if (matrix.rows == 0 || matrix.columns == 0) return;
  const auto lies_within = [](int64_t first, int64_t end, int64_t size) {
    return first >= 0 && first <= end && end <= size;
  };
  if (!lies_within(matrix.first_row, matrix.end_row, matrix.rows) ||
      !lies_within(matrix.first_column, matrix.end_column, matrix.columns)) {
    fail("a range beyond the matrix");
  }
  if (matrix.data == 0) fail("elements without memory");
  if (std::max(matrix.rows, matrix.columns) > kMostTallRows) {
    fail(std::to_string(matrix.rows) + " x " + std::to_string(matrix.columns) + " is too large");
  }
  if (!counts_up(matrix.rows, matrix.columns, matrix.global_offset, matrix.row_index_step, matrix.column_index_step)) {
    fail("global indices below 0 or beyond 2^63 - 1");
  }
  if (!counts_up(matrix.rows, matrix.columns, 0, matrix.row_memory_step, matrix.column_memory_step)) {
    fail("negative or too large steps in memory");
  }
}

// Checks a table of orthogonal matrices for orthogonal_cuda. Returns what it needs of shared memory; 0 if all are
// empty.
int64_t check_orthogonal(const py::buffer& buffer) {
  const TableOf<OrthogonalMatrix> table(buffer);
  if (table.num_rows > std::numeric_limits<int32_t>::max()) throw py::value_error("table: too many rows");
  int64_t most = 0;
  for (int64_t row = 0; row < table.num_rows; ++row) {
    const OrthogonalMatrix& matrix = table.rows[row];
    check_matrix(matrix, row);
    const int64_t bytes = orthogonal_shared_bytes(matrix.rows, matrix.columns, matrix.dtype);
    if (bytes < 0) {
      fail_row(row, std::to_string(matrix.rows) + " x " + std::to_string(matrix.columns) + " is too large for a block");
    }
    most = std::max(most, bytes);
  }
  return most;
}

void reseed_table(const py::buffer& buffer, uint64_t seed) {
  const Table table(buffer);
  for (int64_t row = 0; row < table.num_rows; ++row) {
    table.rows[row].stream = derive_stream(table.rows[row].name_id, seed);
  }
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
  throw py::value_error("FASTINIT_FORCE_ISA: expected one that this processor has (" + names + "), got '" + forced +
                        "'");
}

// Without the interpreter's lock; a signal stops it.
template <class Work>
void call_interruptibly(const Work& work) {
  bool finished = false;
  {
    const py::gil_scoped_release release;
    finished = work([] {
      const py::gil_scoped_acquire acquire;
      return PyErr_CheckSignals() != 0;
    });
  }
  if (!finished) throw py::error_already_set();
}

void fill_table(const py::buffer& buffer, int threads) {
  const Table table(buffer);
  const char* isa = forced_isa();
  call_interruptibly([&](const std::function<bool()>& should_stop) {
    return fill_cpu(table.rows, table.num_rows, threads, isa, should_stop);
  });
}

bool fits_orthogonal_cpu(int64_t rows, int64_t columns) { return orthogonal_cpu_fits(rows, columns, forced_isa()); }

void orthogonal_cpu_table(const py::buffer& buffer, uint64_t seed, int threads) {
  const TableOf<OrthogonalMatrix> table(buffer);
  for (int64_t row = 0; row < table.num_rows; ++row) check_matrix(table.rows[row], row);
  const char* isa = forced_isa();
  call_interruptibly([&](const std::function<bool()>& should_stop) {
    return orthogonal_cpu(table.rows, table.num_rows, seed, threads, isa, should_stop);
  });
}

void check_fingerprint_task(const FingerprintTask& task, int64_t row) {
  const auto fail = [row](const std::string& what) { fail_row(row, what); };
  const int64_t bytes = task.element_bytes;
  if (bytes != 1 && bytes != 2 && bytes != 4 && bytes != 8) fail("elements of " + std::to_string(bytes) + " bytes");
  int64_t numel = 1;
  for (const FingerprintTask::Dimension& dimension : task.dimension) {
    if (dimension.size < 1) fail("a dimension of size " + std::to_string(dimension.size));
    numel *= dimension.size;
  }
  if (numel != task.numel) fail("sizes that do not make up " + std::to_string(task.numel) + " elements");
  if (task.data == 0) fail("elements without memory");
}

// One sum a row.
py::array_t<uint64_t> fingerprint_table(const py::buffer& buffer, int threads) {
  const TableOf<FingerprintTask> table(buffer);
  for (int64_t row = 0; row < table.num_rows; ++row) check_fingerprint_task(table.rows[row], row);
  const char* isa = forced_isa();
  py::array_t<uint64_t> sums(table.num_rows);
  uint64_t* const data = sums.mutable_data();
  call_interruptibly([&](const std::function<bool()>& should_stop) {
    return fingerprint_cpu(table.rows, table.num_rows, threads, isa, data, should_stop);
  });
  return sums;
}

#if defined(FASTINIT_CUDA)
// The table's image for a device, as bytes to be copied there, and the number of its chunks.
std::pair<py::array_t<uint8_t>, int64_t> cuda_table(const py::buffer& buffer) {
  const Table table(buffer);
  py::array_t<uint8_t> image(cuda_table_bytes(table.num_rows));
  const int64_t num_chunks = write_cuda_table(table.rows, table.num_rows, image.mutable_data());
  return {image, num_chunks};
}

void fill_cuda_table(uint64_t address, int64_t num_tasks, int64_t num_chunks, uint64_t seed, int device,
                     uint64_t stream) {
  fill_cuda({address, num_tasks, num_chunks}, seed, device, stream);
}

bool fits_orthogonal_cuda(int64_t rows, int64_t columns, int32_t dtype, int device) {
  return orthogonal_cuda_fits(rows, columns, static_cast<Dtype>(dtype), device);
}

void orthogonal_cuda_table(uint64_t address, int64_t num_matrices, int64_t shared_bytes, uint64_t seed, int device,
                           uint64_t stream) {
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
  module.def("reseed", &reseed_table, py::arg("table"), py::arg("seed"));
  module.def("fill_cpu", &fill_table, py::arg("table"), py::arg("threads"));
  module.def("orthogonal_dtype", &orthogonal_dtype);
  module.def("orthogonal_cpu_fits", &fits_orthogonal_cpu, py::arg("rows"), py::arg("columns"));
  module.def("orthogonal_cpu", &orthogonal_cpu_table, py::arg("table"), py::arg("seed"), py::arg("threads"));
  module.def("check_orthogonal", &check_orthogonal, py::arg("table"));
  module.attr("FINGERPRINT_VERSION") = kFingerprintVersion;
  module.def("fingerprint_dtype", &fingerprint_dtype);
  module.def("fingerprint_cpu", &fingerprint_table, py::arg("table"), py::arg("threads"));
#if defined(FASTINIT_CUDA)
  module.attr("HAS_CUDA") = true;
  module.def("cuda_table", &cuda_table, py::arg("table"));
  module.def("fill_cuda", &fill_cuda_table, py::arg("address"), py::arg("num_tasks"), py::arg("num_chunks"),
             py::arg("seed"), py::arg("device"), py::arg("stream"));
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
}
