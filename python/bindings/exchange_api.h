// DLPack's exchange of tensors by C functions (DLPack 1.3, dlpack.h: DLPackExchangeAPI): a library that has it puts a table
// of functions on its tensor type, and reading or making a tensor costs no call of Python. The system's dlpack.h may be
// older, so what is used of it is declared here.
#pragma once

#include <cstdint>

#include "bindings.h"
#include "kf/dlpack.h"

namespace kf::python {

// DLManagedTensorVersioned.
struct ManagedTensor {
  std::uint32_t major, minor;
  void* manager_ctx;
  void (*deleter)(ManagedTensor*);
  std::uint64_t flags;
  DLTensor tensor;
};

// DLPackExchangeAPI of major version 1. Functions return 0, or -1 with an error set.
struct ExchangeApi {
  std::uint32_t major, minor;
  ExchangeApi* previous;
  // A new tensor of the prototype's dtype, shape and device.
  int (*allocate)(DLTensor* prototype, ManagedTensor** out, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, ManagedTensor** out);
  // Takes the tensor over.
  int (*object_from_managed)(ManagedTensor* tensor, void** object);
  // Lends the object's memory, shape and strides for as long as the object stays. May be null.
  int (*borrow)(void* object, DLTensor* out);
  int (*current_stream)(DLDeviceType type, std::int32_t index, void** stream);
};

// The table of the object's type; null where it has none that is served.
const ExchangeApi* exchange_api(nb::handle object);

// An uninitialised tensor of the library's, laid out like `prototype`, contiguous. Writes its view back to `prototype`.
nb::object make_tensor(const ExchangeApi& api, TensorView& prototype);

}  // namespace kf::python
