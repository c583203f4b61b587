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

nb::list backend_names() {
  nb::list all;
  for (const Backend* b : all_backends()) all.append(b->name);
  return all;
}

nb::list backends(const std::string& only) {
  nb::list all;
  for (const Backend* b : all_backends()) {
    if (!only.empty() && b->name != only) continue;
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

nb::dict row_dict(const Backend& backend, const Kernel& k) {
  nb::dict d = kernel_dict(k);
  d["backend"] = backend.name;
  return d;
}

nb::list kernels() {
  nb::list all;
  for (const Backend* b : all_backends()) {
    if (b->available()) {
      Dispatcher d(*b);  // not the default one: another backend may be first for the device
      for (const Kernel* k : d.kernels()) all.append(row_dict(*b, *k));
    } else {
      for (const Kernel& k : b->kernels()) all.append(row_dict(*b, k));
    }
  }
  return all;
}

nb::list plugins() {
  return listed(plugin_reports(), [&](const PluginReport& r) {
    nb::dict d;
    d["path"] = r.path;
    d["backend"] = r.backend;
    d["version"] = r.version;
    d["error"] = r.error;
    return d;
  });
}

}  // namespace

nb::dict kernel_dict(const Kernel& k) {
  nb::dict d;
  d["name"] = k.name;
  d["op"] = op_name(k.op);
  d["families"] = family_names(k.families);
  d["condition"] = k.condition;
  return d;
}

void bind_info(nb::module_& m) {
  m.def("backends", &backends, nb::arg("only") = "",
        "Every backend, or the one of this name: its devices, or why it cannot be used here.");
  m.def("backend_names", &backend_names, "Every backend, without a look at its devices.");
  m.def(
      "load_plugin", [](const std::string& path) { return load_plugin(path).name; }, nb::arg("path"),
      "The name of the backend in this shared library, which is one of backends() from now on.");
  m.def("plugins", &plugins, "Every plug-in that was loaded or was to be: path, backend, version, error.");
  m.def("kernels", &kernels,
        "Every kernel of every backend, in the dispatcher's order; of one that cannot be used here, its own "
        "table without the unfused compositions.");
  m.def(
      "num_threads", [] { return default_dispatcher().num_threads(); }, "Threads that a call uses.");
}

}  // namespace kf::python
