// Where and how tensors lie, compared with where they lay before.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "torch_tensors.h"

namespace fastinit {

// How tensors lie in memory: address, device, dtype, shape and strides of each, and the size of its storage, which may
// become too small where it is.
class Layout {
 public:
  // The layout of all tensors, or null if torch does not tell. `untyped_storage(tensor)` and `storage_bytes(storage)`
  // are torch's.
  static std::unique_ptr<Layout> of(const py::capsule& exchange_api, const py::list& tensors,
                                    const py::object& untyped_storage, const py::object& storage_bytes) {
    std::unique_ptr<Layout> layout(new Layout(dlpack::exchange_api_of(exchange_api), storage_bytes));
    layout->bytes_.reserve(64 * tensors.size());
    layout->storages_.reserve(tensors.size());
    for (const py::handle each : tensors) {
      if (!layout->append(each, layout->bytes_)) return nullptr;
      const py::object storage = call(untyped_storage, each);
      layout->storages_.push_back({py::weakref(storage), number(storage_bytes, storage)});
    }
    return layout;
  }

  // Whether tensors lie so. The storages are those of before, as long as they live: to ask a tensor for its storage
  // takes longer than all the rest.
  bool is_of(const py::list& tensors) const {
    if (tensors.size() != storages_.size()) return false;
    std::string_view rest = bytes_;
    std::string bytes;
    for (size_t i = 0; i < storages_.size(); ++i) {
      bytes.clear();
      if (!append(tensors[i], bytes) || rest.substr(0, bytes.size()) != bytes) return false;
      rest.remove_prefix(bytes.size());
      const py::object storage = storages_[i].reference();  // None if it is gone
      if (storage.is_none() || number(storage_bytes_, storage) != storages_[i].bytes) return false;
    }
    return true;
  }

 private:
  struct Storage {
    py::weakref reference;
    uint64_t bytes;
  };

  Layout(const dlpack::ExchangeApi& api, py::object storage_bytes)
      : api_(api), storage_bytes_(std::move(storage_bytes)) {}

  // False if torch does not tell, as of tensors without memory, or not all: a complex tensor may be a lazily conjugated
  // or negated view.
  bool append(py::handle tensor, std::string& to) const {
    dlpack::Tensor seen;
    if (api_.tensor_from(tensor.ptr(), &seen) != 0) {
      PyErr_Clear();
      return false;
    }
    if (seen.dtype.code == dlpack::kComplex) return false;
    append_bytes(to, reinterpret_cast<uint64_t>(seen.data) + seen.byte_offset);
    append_bytes(to, seen.device);
    append_bytes(to, seen.dtype);
    append_bytes(to, seen.ndim);
    for (int32_t dim = 0; dim < seen.ndim; ++dim) {
      append_bytes(to, seen.shape[dim]);
      append_bytes(to, seen.strides[dim]);
    }
    return true;
  }

  const dlpack::ExchangeApi& api_;
  const py::object storage_bytes_;
  std::string bytes_;
  std::vector<Storage> storages_;
};

}  // namespace fastinit
