// Looking at torch's tensors without torch's headers, so that one compiled file serves any torch: through DLPack's
// exchange table, which torch publishes for this purpose, and through torch's functions as Python objects.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <string>

namespace fastinit {
namespace py = pybind11;

// From dlpack.h, version 1: structs whose layout does not change within a major version.
namespace dlpack {

struct Tensor {
  void* data;
  struct {
    int32_t type;
    int32_t id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
  } dtype;
  const int64_t* shape;
  const int64_t* strides;
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major;
  uint32_t minor;
  ExchangeApi* previous;
  void* others[3];
  int (*tensor_from)(void* object, Tensor* out);  // null if the framework has none
  int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};

// The table in a capsule. Its functions return 0, or raise a Python exception.
inline const ExchangeApi& exchange_api_of(const py::capsule& exchange_api) {
  const auto* api = static_cast<const ExchangeApi*>(exchange_api.get_pointer());
  while (api != nullptr && api->major > 1) api = api->previous;
  if (api == nullptr || api->major != 1 || api->tensor_from == nullptr) {
    throw py::value_error("exchange_api: expected one of DLPack 1 that describes tensors");
  }
  return *api;
}

constexpr int32_t kCpu = 1;
constexpr int32_t kCuda = 2;
constexpr uint8_t kFloat = 2;
constexpr uint8_t kBfloat = 4;
constexpr uint8_t kComplex = 5;

}  // namespace dlpack

// Calls of functions that are Python objects, as torch's are here.
template <class... Arguments>
py::object call(py::handle function, const Arguments&... arguments) {
  PyObject* const given[] = {nullptr, arguments.ptr()...};
  PyObject* const result = PyObject_Vectorcall(
      function.ptr(), given + 1, sizeof...(arguments) | PY_VECTORCALL_ARGUMENTS_OFFSET, /*kwnames=*/nullptr);
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

template <class... Arguments>
bool is_true(py::handle function, const Arguments&... arguments) {
  return call(function, arguments...).ptr() == Py_True;
}

template <class... Arguments>
uint64_t number(py::handle function, const Arguments&... arguments) {
  const uint64_t value = PyLong_AsUnsignedLongLong(call(function, arguments...).ptr());
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  return value;
}

// The bytes of keys and layouts, which are made to be compared.
template <class Number>
void append_bytes(std::string& to, Number number) {
  char bytes[sizeof(number)];
  std::memcpy(bytes, &number, sizeof(number));
  to.append(bytes, sizeof(bytes));
}

}  // namespace fastinit
