#include "exchange_api.h"

#include <span>

#include "kf/error.h"

namespace kf::python {
namespace {

const ExchangeApi* look_up(PyObject* type) {
  nb::object capsule = nb::getattr(nb::handle(type), "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  auto* api = static_cast<ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (api != nullptr && api->major != 1) api = api->previous;
  return api != nullptr && api->borrow != nullptr ? api : nullptr;
}

// Reports what the library's allocator says.
void set_error(void*, const char*, const char* message) { PyErr_SetString(PyExc_MemoryError, message); }

}  // namespace

const ExchangeApi* exchange_api(nb::handle object) {
  // A few types for the life of the process, each found by comparing pointers; guarded by the GIL.
  struct Known {
    PyObject* type;
    const ExchangeApi* api;
  };
  static Known known[8];
  static int count = 0;
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  for (int i = 0; i < count; ++i)
    if (known[i].type == type) return known[i].api;
  const ExchangeApi* api = look_up(type);
  if (count < 8) {
    Py_INCREF(type);  // so that no other type gets its address
    known[count++] = {type, api};
  }
  return api;
}

nb::object make_tensor(const ExchangeApi& api, TensorView& prototype) {
  DLTensor like{nullptr,
                dlpack_device(prototype.device),
                prototype.rank,
                dlpack_dtype(prototype.dtype),
                prototype.shape.data(),
                nullptr,
                0};
  ManagedTensor* made = nullptr;
  void* object = nullptr;
  void* data = nullptr;
  const bool allocated = api.allocate(&like, &made, nullptr, &set_error) == 0;
  if (allocated) data = static_cast<char*>(made->tensor.data) + made->tensor.byte_offset;
  if (!allocated || api.object_from_managed(made, &object) != 0) {
    if (PyErr_ExceptionMatches(PyExc_MemoryError)) {
      PyErr_Clear();
      throw Error(ErrorCode::resource_exhausted, "no memory for " + to_string(prototype));
    }
    throw nb::python_error();
  }
  prototype = TensorView::contiguous(
      data, prototype.dtype, std::span(prototype.shape.data(), static_cast<std::size_t>(prototype.rank)),
      prototype.device);
  return nb::steal(static_cast<PyObject*>(object));
}

}  // namespace kf::python
