// Backends that are written in Python: devices whose operators are functions of Python (torch_npu, torch_mlu_ops).
#include <cstdint>

#include <fmt/format.h>

#include "bindings.h"
#include "bound_call.h"
#include "custom_kernel.h"
#include "kf/dlpack.h"
#include "kf/host_reference.h"

namespace kf::python {
namespace {

// Held for the life of the process, as the backend is: nothing of it is destroyed when the interpreter is gone.
using Held = nb::object*;
Held hold(const nb::object& object) { return new nb::object(object); }

DeviceType device_type_named(const std::string& name) { return parse_device(name).type; }

TensorView bytes_at(void* data, std::size_t bytes, Device device) {
  return TensorView::contiguous(data, DType::u8, {static_cast<std::int64_t>(bytes)}, device);
}

std::uintptr_t handle_of(void* stream) { return reinterpret_cast<std::uintptr_t>(stream); }

// Functions of Python that allocate and copy, as the core calls them. What they raise is passed on, but by `free`.
DeviceMemory memory_of(DeviceType type, const nb::object& functions) {
  DeviceMemory m;
  m.allocate = [f = hold(functions.attr("allocate"))](int index, std::size_t bytes, void* stream) {
    nb::gil_scoped_acquire lock;
    return reinterpret_cast<void*>(nb::cast<std::uintptr_t>((*f)(index, bytes, handle_of(stream))));
  };
  m.free = [f = hold(functions.attr("free"))](int index, void* memory, void* stream) {
    nb::gil_scoped_acquire lock;
    try {
      (*f)(index, reinterpret_cast<std::uintptr_t>(memory), handle_of(stream));
    } catch (nb::python_error& e) {
      e.discard_as_unraisable("free");
    }
  };
  m.copy = [type, f = hold(functions.attr("copy"))](int index, void* to, const void* from, std::size_t bytes,
                                                    CopyDirection direction, void* stream) {
    nb::gil_scoped_acquire lock;
    const Device host{}, device{type, index};
    (*f)(
        lend(bytes_at(to, bytes, direction == CopyDirection::to_host ? host : device)),
        lend(bytes_at(const_cast<void*>(from), bytes, direction == CopyDirection::to_device ? host : device)),
        handle_of(stream));
  };
  m.synchronize = [f = hold(functions.attr("synchronize"))](int index, void* stream) {
    nb::gil_scoped_acquire lock;
    (*f)(index, handle_of(stream));
  };
  return m;
}

DeviceCaps caps_from(Device device, const nb::dict& d) {
  DeviceCaps caps;
  caps.device = device;
  caps.name = nb::cast<std::string>(d["name"]);
  caps.isa = nb::cast<std::string>(d["isa"]);
  caps.memory_bytes = nb::cast<std::size_t>(d["memory_bytes"]);
  return caps;
}

std::vector<Kernel> kernels_from(const std::string& backend, DeviceType type, const nb::object& rows) {
  std::vector<Kernel> all;
  for (nb::handle row : rows()) {
    const auto text = [&](const char* name) { return nb::cast<std::string>(row.attr(name)); };
    const unsigned families = make_selection({text("family")}, "", false).families;
    for (Kernel& k : python_kernel_rows(
             {text("name"), text("words"), op_named(text("op")).op, families, type,
              nb::cast<bool>(row.attr("graph_safe")), nb::cast<int>(row.attr("launches")), false,
              nb::borrow(row.attr("supports")), nb::borrow(row.attr("run")), nb::none()}))
      all.push_back(std::move(k));
  }
  for (Kernel& k : host_reference_kernels(backend)) all.push_back(std::move(k));
  return all;
}

void register_hosted(const std::string& name, const std::string& device_type, const nb::object& available,
                     const nb::object& capabilities, const nb::object& rows, const nb::object& memory) {
  Backend b;
  b.name = name;
  b.device_type = device_type_named(device_type);
  b.available = [f = hold(available)] {
    nb::gil_scoped_acquire lock;
    return support_of((*f)());
  };
  b.capabilities = [type = b.device_type, f = hold(capabilities)](int index) {
    nb::gil_scoped_acquire lock;
    return caps_from({type, index}, nb::cast<nb::dict>((*f)(index)));
  };
  b.kernels = [name, type = b.device_type, f = hold(rows)] {
    nb::gil_scoped_acquire lock;
    return kernels_from(name, type, *f);
  };
  if (!memory.is_none()) b.memory = memory_of(b.device_type, memory);
  register_backend(std::move(b));
}

}  // namespace

void bind_hosted_backend(nb::module_& m) {
  m.def("register_backend", &register_hosted, nb::arg("name"), nb::arg("device_type"), nb::arg("available"),
        nb::arg("capabilities"), nb::arg("rows"), nb::arg("memory").none(),
        "Adds a backend. available() -> why not, or None; capabilities(index) -> {name, isa, memory_bytes}; "
        "rows() -> "
        "rows,\n"
        "best first (name, words, op, family, graph_safe, launches, supports, run); memory has "
        "allocate(index, bytes, "
        "stream)\n"
        "-> address, free(index, address, stream), copy(to, from, stream) of bytes and synchronize(index, "
        "stream).");
  m.def(
      "set_dlpack_device",
      [](int code, const std::string& device_type) {
        set_dlpack_device(static_cast<DLDeviceType>(code), device_type_named(device_type));
      },
      nb::arg("code"), nb::arg("device_type"),
      "What a device type of DLPack means in this process: kDLExtDev (12) the device of PyTorch's plug-in.");
}

}  // namespace kf::python
