// Fusion rules and the verdicts about them.
#include "bindings.h"

namespace kf::python {

void bind_fusion(nb::module_& m) {
  m.def(
      "rules",
      [] {
        nb::list all;
        for (const Rule& r : builtin_rules()) {
          nb::dict d;
          d["name"] = r.name;
          d["flag"] = r.flag;
          d["summary"] = r.summary;
          std::vector<std::string> ops;
          for (const PatternNode& n : r.pattern) ops.emplace_back(op_name(n.op));
          d["pattern"] = ops;
          d["replacement"] = op_name(r.replacement.op);
          all.append(d);
        }
        return all;
      },
      "Every fusion rule in the order of application.");

  nb::class_<VerdictStore>(m, "VerdictStore", "Measured fusions on disk. Without a path: in memory only.")
      .def(nb::init<std::string>(), nb::arg("path") = "")
      .def_static("default_path", &VerdictStore::default_path)
      .def("list",
           [](const VerdictStore& store) {
             nb::list all;
             for (const Verdict& v : store.list()) {
               nb::dict d;
               d["rule"] = v.rule;
               d["signature"] = v.signature;
               d["device"] = v.device;
               d["version"] = v.version;
               d["keep"] = v.keep;
               d["unfused_ms"] = v.unfused_ms;
               d["fused_ms"] = v.fused_ms;
               d["unfused_bytes"] = v.unfused_bytes;
               d["fused_bytes"] = v.fused_bytes;
               d["max_error"] = v.max_error;
               d["reason"] = v.reason;
               all.append(d);
             }
             return all;
           })
      .def("clear", &VerdictStore::clear)
      .def("save", &VerdictStore::save);
}

}  // namespace kf::python
