// What is compiled in and what the machine offers.
#include "bindings.h"

namespace kf::python {
namespace {

nb::dict caps_dict(const DeviceCaps& c) {
  nb::dict d;
  d["device"] = to_string(c.device);
  d["name"] = c.name;
  d["isa"] = c.isa;
  d["num_threads"] = c.num_threads;
  d["l1_bytes"] = c.l1_bytes;
  d["l2_bytes"] = c.l2_bytes;
  d["l3_bytes"] = c.l3_bytes;
  d["memory_bytes"] = c.memory_bytes;
  return d;
}

nb::list backends() {
  nb::list all;
  for (const Backend* b : all_backends()) {
    nb::dict d;
    d["name"] = b->name;
    const Support s = b->available();
    d["available"] = static_cast<bool>(s);
    d["reason"] = s.reason();
    nb::list devices;
    if (s) devices.append(caps_dict(b->capabilities(0)));
    d["devices"] = devices;
    all.append(d);
  }
  return all;
}

nb::list kernels() {
  nb::list all;
  for (const Kernel* k : default_dispatcher().kernels()) {
    nb::dict d;
    d["name"] = k->name;
    d["op"] = op_name(k->op);
    d["families"] = family_names(k->families);
    d["condition"] = k->condition;
    all.append(d);
  }
  return all;
}

}  // namespace

void bind_info(nb::module_& m) {
  m.def("backends", &backends, "Every backend compiled in: its devices, or why it cannot be used here.");
  m.def("kernels", &kernels, "Every kernel of the CPU, in the dispatcher's order.");
  m.def(
      "num_threads", [] { return default_dispatcher().num_threads(); }, "Threads that a call uses.");
}

}  // namespace kf::python
