// KernelFusionManager: ops run as a configuration says, with counts of what ran.
#include <array>
#include <set>
#include <span>

#include "bindings.h"
#include "bound_call.h"
#include "core/shared_library.h"
#include "custom_kernel.h"
#include "kf/error.h"
#include "kf/replay.h"

namespace kf::python {
namespace {

class PyManager {
 public:
  // Over all backends; over one, where it is named.
  PyManager(const KernelFusionConfig& config, const std::string& backend)
      : only_{backend.empty() ? nullptr : &backend_by_name(backend)},
        manager_(config, std::span(only_.data(), backend.empty() ? 0 : 1)) {}

  nb::object call(const std::string& op, const nb::dict& fields, const KernelFusionConfig& config,
                  const nb::object& transposed, bool rows, std::optional<std::uintptr_t> stream) {
    BoundCall bound(op_named(op), fields, {transposed, rows});
    bound.make_outputs();
    const Launch launch{.stream = stream ? reinterpret_cast<void*>(*stream) : bound.queue()};
    {
      nb::gil_scoped_release release;
      manager_.run(bound.op(), bound.params(), config, launch);
    }
    return bound.results();
  }

  nb::list explain(const std::string& op, const nb::dict& fields, const KernelFusionConfig& config,
                   const nb::object& transposed, bool rows) {
    const BoundCall bound(op_named(op), fields, {transposed, rows});
    return explained_rows(manager_.explain(bound.op(), bound.params(), config));
  }

  nb::dict plan(const std::string& op, const nb::dict& fields, const KernelFusionConfig& config,
                const nb::object& transposed, bool rows) {
    const BoundCall bound(op_named(op), fields, {transposed, rows});
    const std::shared_ptr<const Plan> p =
        unlocked([&] { return manager_.plan(bound.op(), bound.params(), config); });
    nb::dict d;
    d["op"] = op;
    d["kernel"] = p->kernel().name;
    d["shapes"] = p->shapes();
    d["workspace_bytes"] = p->workspace_bytes();
    d["launches"] = p->launches();
    d["flops"] = p->cost().flops;
    d["bytes"] = p->cost().bytes;
    d["graph_safe"] = p->graph_safe();
    d["fallback"] = p->is_fallback();
    d["fallback_reason"] = p->fallback_reason();
    return d;
  }

  nb::list counts() const { return count_rows(manager_.log()); }
  nb::list distinct() const { return distinct_rows(manager_.log()); }

  nb::list spans(std::uint64_t after, bool own) const {
    nb::list all;
    for (const CallLog::Span& s : manager_.log().spans(after, own))
      all.append(nb::make_tuple(op_name(s.op), s.kernel, s.shapes, s.start, s.seconds, s.thread, s.number));
    return all;
  }

  // The remembered call of this kernel and shapes against the unfused composition; None: not remembered.
  nb::object replay(const std::string& kernel, const std::string& shapes, double seconds) {
    for (const CallLog::Distinct& c : manager_.log().distinct()) {
      if (c.kernel != kernel || c.shapes != shapes) continue;
      const Replayed r = unlocked([&] {
        Dispatcher& d = manager_.dispatcher(device_of(c.params));
        const bool tf32 = manager_.config().enable_tf32;
        return kf::replay(c.params.op(), c.params.data(), d, {.families = 0, .kernel = kernel, .tf32 = tf32},
                          {.families = kVanilla, .kernel = {}, .tf32 = tf32}, seconds);
      });
      nb::dict out;
      out["kernel"] = r.kernel;
      out["baseline"] = r.baseline;
      out["seconds"] = r.seconds;
      out["baseline_seconds"] = r.baseline_seconds;
      out["bytes"] = r.bytes;
      out["baseline_bytes"] = r.baseline_bytes;
      out["launches"] = r.launches;
      out["baseline_launches"] = r.baseline_launches;
      out["max_error"] = r.max_error;
      out["agreed"] = r.agreed;
      out["problem"] = r.problem;
      return out;
    }
    return nb::none();
  }

  nb::list kernels() const {
    return listed(manager_.kernels(), [&](const Kernel* k) {
      nb::dict d = kernel_dict(*k);
      d["graph_safe"] = k->graph_safe;
      d["device"] = device_type_name(k->device_type);
      return d;
    });
  }

  // For tensors on these devices; by default on the host, CUDA devices and whatever else has a backend: `supports` says
  // which it takes.
  void add_kernel(const std::string& name, const std::string& op, const std::string& condition,
                  bool graph_safe, const nb::object& supports, const nb::object& run,
                  const nb::object& reference, const std::string& family, int launches, bool check_sizes,
                  const std::optional<std::vector<std::string>>& device_names) {
    const unsigned families = make_selection({family}, "", false).families;
    std::set<DeviceType> devices;
    if (device_names) {
      for (const std::string& device : *device_names) devices.insert(parse_device(device).type);
    } else {
      devices = {DeviceType::cpu, DeviceType::cuda};
      for (const Backend* b : all_backends()) devices.insert(b->device_type);
    }
    for (const DeviceType device : devices)
      for (Kernel& row : python_kernel_rows({name, condition, op_named(op).op, families, device, graph_safe,
                                             launches, check_sizes, supports, run, reference}))
        manager_.register_custom_kernel(std::move(row));
  }

  void add_cuda_kernel(const std::string& name, const std::string& op, const std::string& condition,
                       bool graph_safe, const std::string& source, const std::string& entry,
                       const std::vector<std::string>& args, const std::vector<std::string>& options,
                       const std::vector<std::string>& dtypes, const std::vector<std::string>& transposed,
                       const std::vector<std::string>& settled, const nb::object& shape,
                       const nb::object& supports, const nb::object& reference) {
    CudaSource s{.source = source, .entry = entry, .args = args, .shape = {}, .options = options};
    s.dtypes.clear();
    for (const std::string& d : dtypes) s.dtypes.push_back(parse_dtype(d));
    s.graph_safe = graph_safe;
    s.transposed = transposed;
    s.settled = settled;
    for (Kernel& row :
         cuda_kernel_rows(name, op_named(op).op, condition, std::move(s), shape, supports, reference))
      manager_.register_custom_kernel(std::move(row));
  }

  void reset() { manager_.reset(); }

 private:
  static Device device_of(const AnyParams& params) {
    AnyParams copy = params;
    for (const Slot& s : slots_of(copy.op(), copy.data()))
      if (s.tensor->present()) return s.tensor->device;
    return {};
  }

  std::array<const Backend*, 1> only_;
  KernelFusionManager manager_;
};

}  // namespace

void bind_manager(nb::module_& m) {
  nb::class_<KernelFusionConfig>(m, "Config", "A checked configuration, from a dictionary of its fields.")
      .def("__init__", [](KernelFusionConfig* self, const nb::dict& fields) {
        new (self) KernelFusionConfig(fusion_config_from(fields));
      });
  nb::class_<PyManager>(m, "Manager", "Runs ops as a configuration says, and counts what ran.")
      .def(nb::init<const KernelFusionConfig&, const std::string&>(), nb::arg("config"),
           nb::arg("backend") = "")
      .def("call", &PyManager::call, nb::arg("op"), nb::arg("fields"), nb::arg("config"),
           nb::arg("transposed") = nb::tuple(), nb::arg("rows") = false, nb::arg("stream") = nb::none(),
           "Runs an op, on the queue that the operands' library works on now where stream is None; returns "
           "its "
           "output, a tuple of several, or None.")
      .def("explain", &PyManager::explain, nb::arg("op"), nb::arg("fields"), nb::arg("config"),
           nb::arg("transposed") = nb::tuple(), nb::arg("rows") = false,
           "Every kernel of the op in order: taken, or why not.")
      .def("plan", &PyManager::plan, nb::arg("op"), nb::arg("fields"), nb::arg("config"),
           nb::arg("transposed") = nb::tuple(), nb::arg("rows") = false,
           "The choice of a kernel, ahead of the first call.")
      .def("counts", &PyManager::counts, "Calls so far by op and kernel.")
      .def("distinct", &PyManager::distinct, "The distinct calls so far.")
      .def(
          "spans", &PyManager::spans, nb::arg("after") = 0, nb::arg("own") = false,
          "Timed calls with a number above `after`, `own`: of this thread alone: (op, kernel, shapes, start, "
          "seconds, thread, number).")
      .def("replay", &PyManager::replay, nb::arg("kernel"), nb::arg("shapes"), nb::arg("seconds"),
           "A remembered call again, beside its unfused composition.")
      .def("kernels", &PyManager::kernels, "Every kernel of the devices that calls came for, in order.")
      .def("add_kernel", &PyManager::add_kernel, nb::arg("name"), nb::arg("op"), nb::arg("condition"),
           nb::arg("graph_safe"), nb::arg("supports"), nb::arg("run"), nb::arg("reference").none(),
           nb::arg("family") = "custom", nb::arg("launches") = 1, nb::arg("check_sizes") = true,
           nb::arg("devices") = nb::none(), "Puts a kernel of Python before the others of its op.")
      .def("add_cuda_kernel", &PyManager::add_cuda_kernel, nb::arg("name"), nb::arg("op"),
           nb::arg("condition"), nb::arg("graph_safe"), nb::arg("source"), nb::arg("entry"), nb::arg("args"),
           nb::arg("options"), nb::arg("dtypes"), nb::arg("transposed"), nb::arg("settled"), nb::arg("shape"),
           nb::arg("supports"), nb::arg("reference").none(),
           "Puts CUDA source before the other kernels of its op on CUDA devices.")
      .def("reset", &PyManager::reset, "Forgets counts, calls and spans.");
  m.def("add_library_folder", &add_library_folder, nb::arg("folder"),
        "Where libraries that are opened at run time are looked for first.");
  m.def(
      "compile_cuda",
      [](const std::string& name, const std::string& source, const std::string& entry,
         const std::vector<std::string>& options, const std::string& architecture, const std::string& dtype) {
        const CudaSource s{.source = source, .entry = entry, .args = {}, .shape = {}, .options = options};
        CompiledCuda c;
        const DType type = parse_dtype(dtype);
        {
          nb::gil_scoped_release release;
          c = compile_cuda(name, s, architecture, type);
        }
        nb::dict d;
        d["image"] = nb::bytes(c.image.data(), c.image.size());
        d["symbol"] = c.symbol;
        d["parameters"] = c.parameters;
        d["log"] = c.log;
        d["cached"] = c.cached;
        return d;
      },
      nb::arg("name"), nb::arg("source"), nb::arg("entry"), nb::arg("options"), nb::arg("architecture"),
      nb::arg("dtype") = "f32", "CUDA source compiled by NVRTC for an architecture.");
}

}  // namespace kf::python
