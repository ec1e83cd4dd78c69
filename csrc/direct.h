// A call for one small tensor, or for a list of them, in which Python's part would take longer than the values. It
// looks at the tensors and at their memory, finds what equal calls or tensors got, draws a seed, fills, and counts up
// the tensors' versions.
//
// Torch's own functions do what only torch can; they are handed in as Python objects.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/orthogonal.h"
#include "core/task.h"
#include "torch_tensors.h"

namespace fastinit {

// What fills tensors of one shape and dtype. Addresses are set at every call.
struct Work {
  enum class Kind { kNone, kFill, kOrthogonal, kSparse };
  Kind kind = Kind::kNone;
  bool is_random = false;
  Task values{};              // kFill, kSparse
  OrthogonalMatrix matrix{};  // kOrthogonal: a whole one
  Task keys{};                // kSparse: float64, a key for each element, column after column
  int64_t rows = 0;           // kSparse: of the matrix
  int64_t zeros = 0;          // kSparse: so many in each column, where the smallest keys are

  int64_t numel() const { return kind == Kind::kOrthogonal ? matrix.rows * matrix.columns : values.numel; }
  Dtype dtype() const { return kind == Kind::kOrthogonal ? matrix.dtype : values.dtype; }
};

class Direct {
 public:
  // Filling more elements takes longer than all of Python's part.
  static constexpr int64_t kMostElements = int64_t{1} << 20;
  static constexpr size_t kMostKnown = 4096;  // kept; then all are forgotten

  // `resolve(tensor, make, arguments, fan)` gives work for tensors like this one, or None if they are not for this
  // class:
  // ("fill", whether it is random, prepared row), ("orthogonal", True, matrix) or ("sparse", True, prepared row of the
  // values, that of the keys, rows, zeros). `torch` has the functions and types of torch that are used, by the members'
  // names. Each of `modes` gives something true if somebody else gets to see or change calls of torch.
  Direct(py::object resolve, const py::dict& torch)
      : resolve_(std::move(resolve)),
        tensor_types_(torch["tensor_types"]),
        modes_(torch["modes"]),
        generator_type_(torch["generator_type"]),
        is_on_cpu_(torch["is_on_cpu"]),
        is_neg_(torch["is_neg"]),
        untyped_storage_(torch["untyped_storage"]),
        storage_address_(torch["storage_address"]),
        storage_bytes_(torch["storage_bytes"]),
        storage_resizable_(torch["storage_resizable"]),
        new_word_(torch["new_word"]),
        random_(torch["random_"]),
        get_num_threads_(torch["get_num_threads"]),
        increment_version_(torch["increment_version"]),
        api_(dlpack::exchange_api_of(py::capsule(torch["exchange_api"]))) {}

  // Where a tensor is to be filled.
  struct Place {
    bool on_cuda;
    int device;       // of CUDA
    uint64_t stream;  // the device's current one
    int threads;      // of the CPU
  };

  // Fills a tensor as make(*arguments) says, and returns true; or does nothing, and returns false: the tensor, its
  // memory or the arguments are not of the usual kind. `takes(work, place)` says whether carry_out(work, seed, place)
  // can do it there.
  template <class Takes, class CarryOut>
  bool fill(py::handle tensor, py::handle make, const py::tuple& arguments, py::handle fan, py::handle generator,
            const Takes& takes, const CarryOut& carry_out) {
    if (!has_known_type(tensor) || !is_usual_generator(generator) || is_any_mode_on()) return false;
    Lies lies;
    if (!look(tensor, lies)) return false;
    if (!latest_.is_for(lies, make, arguments, fan)) {
      if (!find_as_latest(tensor, lies, make, arguments, fan)) return false;
      // That runs Python, which may do anything to the tensor.
      if (!look(tensor, lies) || !latest_.is_for(lies, make, arguments, fan)) return false;
    }
    Work work = latest_.work;
    if (work.kind == Work::Kind::kNone || lies.numel != work.numel() || lies.dtype != work.dtype()) return false;
    if (!is_writable(tensor, lies)) return false;
    if (!generator.is_none() && !is_true(is_on_cpu_, generator)) return false;
    work.values.data = work.matrix.data = lies.address;
    Place place{lies.device.type == dlpack::kCuda, lies.device.id, 0, 1};
    if (place.on_cuda) {
      void* stream = nullptr;
      if (api_.current_stream == nullptr) return false;
      if (api_.current_stream(lies.device.type, lies.device.id, &stream) != 0) throw py::error_already_set();
      place.stream = reinterpret_cast<uint64_t>(stream);
    } else if (lies.numel > kOneThread) {
      place.threads = py::cast<int>(call(get_num_threads_));
    }
    if (!takes(work, place)) return false;
    // This comes before the values: an interrupted fill leaves some of them.
    call(increment_version_, py::make_tuple(tensor));
    carry_out(work, work.is_random ? drawn_seed(generator) : 0, place);
    return true;
  }

  // Fills all tensors of a list in one pass, and returns true; or does nothing, and returns false: a tensor, its memory
  // or the arguments are not of the usual kind, or the memory of two overlaps. `resolve(tensor)` gives work for all
  // tensors of its shape and dtype. `name_ids` has 16 bytes a tensor. With `seed` None, the seed is drawn once, if
  // anything is random. carry_out(tasks, seed, threads) fills on the CPU.
  template <class CarryOut>
  bool fill_all(const py::tuple& tensors, py::handle resolve, const std::string& name_ids, py::handle seed,
                py::handle generator, const CarryOut& carry_out) {
    constexpr size_t kNameBytes = sizeof(Task::name_id);
    if (tensors.empty() || name_ids.size() != kNameBytes * tensors.size()) return false;
    if (!is_usual_generator(generator) || is_any_mode_on()) return false;
    if (!generator.is_none() && !is_true(is_on_cpu_, generator)) return false;
    // Python may do anything to the tensors while it resolves, so they are looked at again afterwards.
    std::unordered_map<std::string, Work> works;
    std::string key;
    Lies lies;
    bool is_random = false;
    for (const py::handle each : tensors) {
      if (!has_known_type(each) || !look(each, lies) || lies.device.type != dlpack::kCpu) return false;
      begin_key(key, lies);
      if (works.find(key) == works.end()) {
        const Work work = work_of(call(resolve, each));
        if (work.kind != Work::Kind::kFill) return false;
        is_random = is_random || work.is_random;
        works.emplace(key, work);
      }
    }
    std::vector<Task> tasks;
    std::vector<std::pair<uint64_t, uint64_t>> spans;  // begin and end
    tasks.reserve(tensors.size());
    spans.reserve(tensors.size());
    for (const py::handle each : tensors) {
      if (!look(each, lies) || lies.device.type != dlpack::kCpu || !is_writable(each, lies)) return false;
      begin_key(key, lies);
      const auto found = works.find(key);
      if (found == works.end() || found->second.numel() != lies.numel) return false;
      Task& task = tasks.emplace_back(found->second.values);
      task.data = lies.address;
      std::memcpy(task.name_id, name_ids.data() + kNameBytes * (tasks.size() - 1), kNameBytes);
      spans.emplace_back(lies.address, lies.address + static_cast<uint64_t>(lies.numel * element_bytes(lies.dtype)));
    }
    std::sort(spans.begin(), spans.end());
    for (size_t i = 1; i < spans.size(); ++i) {
      if (spans[i].first < spans[i - 1].second) return false;
    }
    const int threads = py::cast<int>(call(get_num_threads_));
    uint64_t number_of_seed = 0;
    if (is_random) number_of_seed = seed.is_none() ? drawn_seed(generator) : py::cast<uint64_t>(seed);
    try {
      carry_out(tasks, number_of_seed, threads);
    } catch (...) {  // an interrupted fill has written something, too
      call(increment_version_, tensors);
      throw;
    }
    call(increment_version_, tensors);
    return true;
  }

 private:
  // One thread fills so few elements, however many there may be.
  static constexpr int64_t kOneThread = 65536;

  // How a contiguous tensor lies.
  struct Lies {
    decltype(dlpack::Tensor::device) device;
    uint64_t address;
    int64_t numel;
    Dtype dtype;
    int32_t ndim;
    const int64_t* shape;
  };

  struct Known {
    Work work;
    py::object make;  // its address is in the key
  };

  // The work of the latest call. Most calls are like the one before, and seeing that takes less time than making a key.
  struct Latest {
    py::object make, arguments, fan;
    Dtype dtype{};
    std::vector<int64_t> shape;
    Work work;

    bool is_for(const Lies& lies, py::handle other_make, py::handle other_arguments, py::handle other_fan) const {
      return make.ptr() == other_make.ptr() && fan.ptr() == other_fan.ptr() && dtype == lies.dtype &&
             std::equal(shape.begin(), shape.end(), lies.shape, lies.shape + lies.ndim) &&
             has_arguments(other_arguments);
    }

   private:
    // Arguments that append() took, so equal ones are the same objects, or floats of the same bits. The latter are
    // made anew by many a caller.
    bool has_arguments(py::handle others) const {
      const Py_ssize_t size = PyTuple_GET_SIZE(others.ptr());
      if (!arguments || PyTuple_GET_SIZE(arguments.ptr()) != size) return false;
      for (Py_ssize_t i = 0; i < size; ++i) {
        PyObject* const mine = PyTuple_GET_ITEM(arguments.ptr(), i);
        PyObject* const other = PyTuple_GET_ITEM(others.ptr(), i);
        if (mine == other) continue;
        if (!PyFloat_CheckExact(mine) || !PyFloat_CheckExact(other)) return false;
        const double a = PyFloat_AS_DOUBLE(mine), b = PyFloat_AS_DOUBLE(other);
        if (std::memcmp(&a, &b, sizeof(a)) != 0) return false;
      }
      return true;
    }
  };

  // A tensor of one element, of 64 bits, for a seed.
  struct Word {
    py::object tensor;
    const uint64_t* bits;
  };

  bool has_known_type(py::handle tensor) const {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr()));
    for (const py::handle each : tensor_types_) {
      if (each.ptr() == type) return true;
    }
    return false;
  }

  bool is_usual_generator(py::handle generator) const {
    return generator.is_none() || reinterpret_cast<PyObject*>(Py_TYPE(generator.ptr())) == generator_type_.ptr();
  }

  bool is_any_mode_on() const {
    for (const py::handle mode : modes_) {
      const int is_on = PyObject_IsTrue(call(mode).ptr());
      if (is_on < 0) throw py::error_already_set();
      if (is_on > 0) return true;
    }
    return false;
  }

  // Whether a tensor of the usual kind may be written to.
  bool is_writable(py::handle tensor, const Lies& lies) const {
    return has_memory(tensor, lies) && !is_true(is_neg_, tensor) && has_version(tensor);
  }

  // Tensors of inference mode have no version. Asking for it takes half as long as asking is_inference().
  bool has_version(py::handle tensor) const {
    PyObject* const version = PyObject_GetAttr(tensor.ptr(), version_name_.ptr());
    if (version == nullptr) PyErr_Clear();
    Py_XDECREF(version);
    return version != nullptr;
  }

  // Where a tensor lies. False if it is not a contiguous one of the CPU or of CUDA in a native dtype. Torch refuses to
  // tell of tensors without memory of their own: sparse and nested ones, those inside torch.func.
  bool look(py::handle tensor, Lies& lies) const {
    dlpack::Tensor seen;
    if (api_.tensor_from(tensor.ptr(), &seen) != 0) {
      PyErr_Clear();
      return false;
    }
    if ((seen.device.type != dlpack::kCpu && seen.device.type != dlpack::kCuda) || seen.dtype.lanes != 1) return false;
    lies.device = seen.device;
    if (seen.dtype.code == dlpack::kFloat && seen.dtype.bits == 32) {
      lies.dtype = Dtype::kFloat32;
    } else if (seen.dtype.code == dlpack::kBfloat && seen.dtype.bits == 16) {
      lies.dtype = Dtype::kBfloat16;
    } else if (seen.dtype.code == dlpack::kFloat && seen.dtype.bits == 16) {
      lies.dtype = Dtype::kFloat16;
    } else if (seen.dtype.code == dlpack::kFloat && seen.dtype.bits == 64) {
      lies.dtype = Dtype::kFloat64;
    } else {
      return false;
    }
    int64_t numel = 1;
    for (int32_t dim = seen.ndim - 1; dim >= 0; --dim) {
      const int64_t size = seen.shape[dim];
      if (size != 1 && seen.strides[dim] != numel) return false;
      if (size < 1 || size > kMostElements / numel) return false;
      numel *= size;
    }
    lies.address = reinterpret_cast<uint64_t>(seen.data) + seen.byte_offset;
    lies.numel = numel;
    lies.ndim = seen.ndim;
    lies.shape = seen.shape;
    return lies.address != 0 && lies.address % static_cast<uint64_t>(element_bytes(lies.dtype)) == 0;
  }

  static bool append_text(std::string& key, py::handle text) {
    Py_ssize_t size = 0;
    const char* letters = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (letters == nullptr) {
      PyErr_Clear();
      return false;
    }
    key += 's';
    append_bytes(key, size);
    key.append(letters, static_cast<size_t>(size));
    return true;
  }

  // Begins a key with what of a tensor decides about the work.
  static void begin_key(std::string& key, const Lies& lies) {
    key.clear();
    append_bytes(key, lies.dtype);
    append_bytes(key, lies.ndim);
    for (int32_t dim = 0; dim < lies.ndim; ++dim) append_bytes(key, lies.shape[dim]);
  }

  // Everything that decides about the work. False if that cannot be told by the bits of numbers and the letters of
  // strings, which never change. Only exact types count: True equals 1, and is another argument.
  static bool append(std::string& key, const Lies& lies, py::handle make, const py::tuple& arguments, py::handle fan) {
    if (!PyUnicode_CheckExact(fan.ptr())) return false;
    begin_key(key, lies);
    append_bytes(key, make.ptr());
    if (!append_text(key, fan)) return false;
    for (const py::handle each : arguments) {
      if (PyFloat_CheckExact(each.ptr())) {
        key += 'f';
        append_bytes(key, PyFloat_AS_DOUBLE(each.ptr()));
      } else if (PyLong_CheckExact(each.ptr())) {
        int overflow = 0;
        const long long value = PyLong_AsLongLongAndOverflow(each.ptr(), &overflow);
        if (overflow != 0) return false;
        key += 'i';
        append_bytes(key, value);
      } else if (!PyUnicode_CheckExact(each.ptr()) || !append_text(key, each)) {
        return false;
      }
    }
    return true;
  }

  // Finds the work for a call, or resolves it, and makes it the latest. False if it is none for this class.
  bool find_as_latest(py::handle tensor, const Lies& lies, py::handle make, const py::tuple& arguments,
                      py::handle fan) {
    std::string key;
    if (!append(key, lies, make, arguments, fan)) return false;
    Latest latest{py::reinterpret_borrow<py::object>(make), arguments,
                  py::reinterpret_borrow<py::object>(fan),  lies.dtype,
                  {lies.shape, lies.shape + lies.ndim},     {}};
    const auto found = known_.find(key);
    if (found != known_.end()) {
      latest.work = found->second.work;
    } else {
      latest.work = work_of(call(resolve_, tensor, make, arguments, fan));
      if (known_.size() >= kMostKnown) known_.clear();
      known_.insert_or_assign(std::move(key), Known{latest.work, latest.make});
    }
    std::swap(latest_, latest);  // the one before is let go of at the end: that may run Python
    return true;
  }

  // The work that a Python tuple describes. None means that this class cannot do it.
  static Work work_of(const py::object& asked) {
    Work work;
    if (asked.is_none()) return work;
    const auto given = py::cast<py::tuple>(asked);
    const auto kind = py::cast<std::string>(given[0]);
    work.is_random = py::cast<bool>(given[1]);
    if (kind == "fill") {
      work.kind = Work::Kind::kFill;
      copy_bytes(given[2], work.values);
    } else if (kind == "orthogonal") {
      work.kind = Work::Kind::kOrthogonal;
      copy_bytes(given[2], work.matrix);
    } else if (kind == "sparse") {
      work.kind = Work::Kind::kSparse;
      copy_bytes(given[2], work.values);
      copy_bytes(given[3], work.keys);
      work.rows = py::cast<int64_t>(given[4]);
      work.zeros = py::cast<int64_t>(given[5]);
    } else {
      throw py::value_error("resolve: expected fill, orthogonal or sparse, got " + kind);
    }
    return work;
  }

  template <class Row>
  static void copy_bytes(const py::object& from, Row& to) {
    const auto bytes = py::cast<std::string>(from);
    if (bytes.size() != sizeof(Row)) {
      throw py::value_error("resolve: expected a row of " + std::to_string(sizeof(Row)) + " bytes, got " +
                            std::to_string(bytes.size()));
    }
    std::memcpy(&to, bytes.data(), sizeof(Row));
  }

  // Whether all elements lie in the tensor's storage, and torch allocated that: other memory may be mapped read-only.
  bool has_memory(py::handle tensor, const Lies& lies) const {
    const py::object storage = call(untyped_storage_, tensor);
    const uint64_t end = number(storage_address_, storage) + number(storage_bytes_, storage);
    const uint64_t bytes = static_cast<uint64_t>(lies.numel * element_bytes(lies.dtype));
    return lies.address + bytes <= end && is_true(storage_resizable_, storage);
  }

  // 64 bits from a generator of the CPU. The word is taken out of the pool meanwhile: another thread, or a signal's
  // handler, may draw at the same time.
  uint64_t drawn_seed(py::handle generator) {
    Word word;
    if (words_.empty()) {
      word.tensor = call(new_word_);
      dlpack::Tensor seen;
      if (api_.tensor_from(word.tensor.ptr(), &seen) != 0) throw py::error_already_set();
      word.bits = static_cast<const uint64_t*>(seen.data);
    } else {
      word = std::move(words_.back());
      words_.pop_back();
    }
    PyObject* const given[] = {nullptr, word.tensor.ptr(), least_.ptr(), Py_None, generator.ptr()};
    PyObject* const keyword = generator.is_none() ? nullptr : generator_keyword_.ptr();
    PyObject* const drawn = PyObject_Vectorcall(random_.ptr(), given + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, keyword);
    if (drawn == nullptr) throw py::error_already_set();
    Py_DECREF(drawn);
    const uint64_t seed = *word.bits;
    words_.push_back(std::move(word));
    return seed;
  }

  const py::object resolve_;
  const py::tuple tensor_types_, modes_;
  const py::object generator_type_, is_on_cpu_, is_neg_, untyped_storage_, storage_address_, storage_bytes_,
      storage_resizable_, new_word_, random_, get_num_threads_, increment_version_;
  // random_ without ends draws 63 bits. From here on, without an end, it draws all 64.
  const py::int_ least_{std::numeric_limits<int64_t>::min()};
  const py::str version_name_{"_version"};
  const py::tuple generator_keyword_ = py::make_tuple("generator");
  const dlpack::ExchangeApi& api_;
  std::unordered_map<std::string, Known> known_;
  Latest latest_;
  std::vector<Word> words_;
};

}  // namespace fastinit
