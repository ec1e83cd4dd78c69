// The only pybind11 file: checks what comes from Python, hands the table to a backend, turns failures into exceptions.
// No torch header: a table is bytes, a tensor in it an address, so one binary serves every torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>

#include "backends.h"
#include "core/fp_environment.h"
#include "core/prepare.h"

namespace py = pybind11;

namespace fastinit {
namespace {

// A table as NumPy holds it: a contiguous, writable run of Task structs.
struct Table {
  explicit Table(const py::buffer& buffer) : info(buffer.request(/*writable=*/true)) {
    const py::ssize_t bytes = info.size * info.itemsize;
    const bool contiguous = info.ndim == 1 && (info.size < 2 || info.strides[0] == info.itemsize);
    if (info.itemsize != static_cast<py::ssize_t>(sizeof(Task)) || !contiguous) {
      throw py::value_error("table: expected a contiguous one-dimensional array of " + std::to_string(sizeof(Task)) +
                            "-byte rows, got " + std::to_string(bytes) + " bytes in rows of " +
                            std::to_string(info.itemsize));
    }
    tasks = static_cast<Task*>(info.ptr);
    num_tasks = info.size;
  }

  py::buffer_info info;
  Task* tasks;
  int64_t num_tasks;
};

void check_task(const Task& task, int64_t row) {
  const auto dtype = static_cast<int32_t>(task.dtype);
  const auto distribution = static_cast<int32_t>(task.distribution);
  const auto fail = [row](const std::string& what) {
    throw py::value_error("table row " + std::to_string(row) + ": " + what);
  };
  if (dtype < 0 || dtype >= kDtypes) fail("unknown dtype " + std::to_string(dtype));
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
  for (int64_t row = 0; row < table.num_tasks; ++row) check_task(table.tasks[row], row);
  const DefaultFpEnvironment environment;
  for (int64_t row = 0; row < table.num_tasks; ++row) {
    const PrepareError error = prepare(table.tasks[row]);
    if (error != PrepareError::kNone) return std::make_pair(row, static_cast<int32_t>(error));
  }
  return std::nullopt;
}

void reseed_table(const py::buffer& buffer, uint64_t seed) {
  const Table table(buffer);
  for (int64_t row = 0; row < table.num_tasks; ++row) {
    table.tasks[row].stream = derive_stream(table.tasks[row].name_id, seed);
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

void fill_table(const py::buffer& buffer, int threads) {
  const Table table(buffer);
  const char* isa = forced_isa();
  bool finished = false;
  {
    const py::gil_scoped_release release;
    finished = fill_cpu(table.tasks, table.num_tasks, threads, isa, [] {
      const py::gil_scoped_acquire acquire;
      return PyErr_CheckSignals() != 0;
    });
  }
  if (!finished) throw py::error_already_set();
}

#if defined(FASTINIT_CUDA)
// The table's image for a device, as bytes to be copied there, and the number of its chunks.
std::pair<py::array_t<uint8_t>, int64_t> cuda_table(const py::buffer& buffer) {
  const Table table(buffer);
  py::array_t<uint8_t> image(cuda_table_bytes(table.num_tasks));
  const int64_t num_chunks = write_cuda_table(table.tasks, table.num_tasks, image.mutable_data());
  return {image, num_chunks};
}

void fill_cuda_table(uint64_t address, int64_t num_tasks, int64_t num_chunks, uint64_t seed, int device,
                     uint64_t stream) {
  fill_cuda({address, num_tasks, num_chunks}, seed, device, stream);
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

// The caller's part of a Task, as numpy.dtype takes it: names, formats, offsets and itemsize.
py::dict task_dtype() {
  py::list names, formats, offsets;
  const auto field = [&](const char* name, const char* format, size_t offset) {
    names.append(name);
    formats.append(format);
    offsets.append(offset);
  };
  constexpr size_t kMap = offsetof(Task, map);
  field("data", "u8", offsetof(Task, data));
  field("numel", "i8", offsetof(Task, numel));
  field("global_offset", "i8", kMap + offsetof(IndexMap, global_offset));
  field("row_length", "i8", kMap + offsetof(IndexMap, row_length));
  field("rows_per_slab", "i8", kMap + offsetof(IndexMap, rows_per_slab));
  field("row_index_step", "i8", kMap + offsetof(IndexMap, row_index_step));
  field("slab_index_step", "i8", kMap + offsetof(IndexMap, slab_index_step));
  field("element_memory_step", "i8", kMap + offsetof(IndexMap, element_memory_step));
  field("row_memory_step", "i8", kMap + offsetof(IndexMap, row_memory_step));
  field("slab_memory_step", "i8", kMap + offsetof(IndexMap, slab_memory_step));
  field("name_id", "V16", offsetof(Task, name_id));
  field("parameter", "5f8", offsetof(Task, parameter));
  field("dtype", "i4", offsetof(Task, dtype));
  field("distribution", "i4", offsetof(Task, distribution));
  py::dict dtype;
  dtype["names"] = names;
  dtype["formats"] = formats;
  dtype["offsets"] = offsets;
  dtype["itemsize"] = sizeof(Task);
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
#if defined(FASTINIT_CUDA)
  module.attr("HAS_CUDA") = true;
  module.def("cuda_table", &cuda_table, py::arg("table"));
  module.def("fill_cuda", &fill_cuda_table, py::arg("address"), py::arg("num_tasks"), py::arg("num_chunks"),
             py::arg("seed"), py::arg("device"), py::arg("stream"));
  module.def("cuda_launches", &cuda_launches);
#else
  module.attr("HAS_CUDA") = false;
#endif
  module.def("active_isa", &active_isa);
  module.def("supported_isas", &supported_isas);
  module.def("philox4x32", &philox_block, py::arg("counter"), py::arg("key"));
}
