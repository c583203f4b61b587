// Fusion rules, what a configuration makes of them, and the verdicts about them.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bindings.h"
#include "dict_fields.h"

namespace kf::python {
namespace {

// Calls f(name, field) for every field of a verdict.
template <class V, class F>
void each_field(V& v, const F& f) {
  f("rule", v.rule);
  f("signature", v.signature);
  f("device", v.device);
  f("version", v.version);
  f("keep", v.keep);
  f("unfused_ms", v.unfused_ms);
  f("fused_ms", v.fused_ms);
  f("unfused_bytes", v.unfused_bytes);
  f("fused_bytes", v.fused_bytes);
  f("max_error", v.max_error);
  f("reason", v.reason);
}

nb::dict verdict_dict(const Verdict& v) {
  nb::dict d;
  each_field(v, [&](const char* name, const auto& value) { d[name] = value; });
  return d;
}

// Any known fields of a verdict; the rest keep their defaults.
Verdict verdict_from(const nb::dict& values) {
  Verdict v;
  DictFields fields("verdict", values);
  each_field(v, [&](const char* name, auto& value) { fields.read(name, value); });
  fields.finish();
  return v;
}

}  // namespace

void bind_fusion(nb::module_& m) {
  m.def(
      "rules",
      [] {
        return listed(builtin_rules(), [&](const Rule& r) {
          nb::dict d;
          d["name"] = r.name;
          d["flag"] = r.flag;
          d["summary"] = r.summary;
          std::vector<std::string> ops;
          for (const PatternNode& n : r.pattern) ops.emplace_back(op_name(n.op));
          d["pattern"] = ops;
          d["replacement"] = op_name(r.replacement.op);
          return d;
        });
      },
      "Every fusion rule in the order of application.");

  m.def(
      "rules_off",
      [](const nb::dict& config) {
        return KernelFusionManager(fusion_config_from(config)).fusion_policy().except;
      },
      nb::arg("config"), "The rules that a configuration's switches turn off.");

  nb::class_<VerdictStore>(m, "VerdictStore", "Measured fusions on disk. Without a path: in memory only.")
      .def(nb::init<std::string>(), nb::arg("path") = "")
      .def_static("default_path", &VerdictStore::default_path)
      .def("list",
           [](const VerdictStore& store) {
             nb::list all;
             for (const Verdict& v : store.list()) all.append(verdict_dict(v));
             return all;
           })
      .def(
          "find",
          [](const VerdictStore& store, const std::string& rule, const std::string& signature,
             const std::string& device) -> std::optional<nb::dict> {
            const std::optional<Verdict> v = store.find(rule, signature, device);
            return v ? std::optional(verdict_dict(*v)) : std::nullopt;
          },
          nb::arg("rule"), nb::arg("signature"), nb::arg("device"),
          "The verdict that counts in this build; None: it would be measured.")
      .def(
          "put", [](VerdictStore& store, const nb::dict& verdict) { store.put(verdict_from(verdict)); },
          nb::arg("verdict"), "Overrules the verdict of the same rule, signature, device and version.")
      .def("clear", &VerdictStore::clear)
      .def("save", &VerdictStore::save);
}

}  // namespace kf::python
