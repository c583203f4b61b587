// The cases that tests and benchmarks share.
#include "runner.h"

#include "bindings.h"
#include "kernel_counter.h"
#include "kf/error.h"
#include "model_shapes.h"

namespace kf::python {
namespace {

const cases::Case& find_case(const std::string& name) {
  for (const cases::Case& c : cases::all_cases())
    if (c.name == name) return c;
  throw_invalid("case: no case of the name " + name);
}

nb::dict comparison_dict(const cases::Comparison& c) {
  nb::dict d;
  d["ok"] = c.ok;
  d["max_error"] = c.max_error;
  d["relative_error"] = c.relative_error;
  d["detail"] = c.detail;
  return d;
}

double read_bandwidth(const nb::list& arrays) {
  std::vector<Array> held;
  std::vector<TensorView> views;
  for (nb::handle a : arrays) {
    held.push_back(to_array(a, "arrays"));
    views.push_back(held.back().view);
  }
  return unlocked([&] { return cases::read_bandwidth(default_dispatcher(), views); });
}

nb::list list_cases() {
  return listed(cases::all_cases(), [&](const cases::Case& c) {
    nb::dict d;
    d["name"] = c.name;
    d["op"] = op_name(c.op);
    d["bench"] = c.bench;
    return d;
  });
}

nb::list check_case(const std::string& name, const std::string& backend) {
  const std::vector<cases::KernelCheck> checks = unlocked([&] {
    Dispatcher dispatcher(backend_by_name(backend));
    return cases::check_case(find_case(name), dispatcher);
  });
  return listed(checks, [&](const cases::KernelCheck& k) {
    nb::dict d = comparison_dict(k.result);
    d["kernel"] = k.kernel;
    d["families"] = k.families;
    d["supported"] = k.supported;
    d["reason"] = k.reason;
    return d;
  });
}

nb::dict time_case(const std::string& name, const Selection& baseline, const Selection& optimized,
                   double seconds, const std::string& backend) {
  const cases::Timing t = unlocked([&] {
    Dispatcher dispatcher(backend_by_name(backend));
    return cases::time_case(find_case(name), dispatcher, baseline, optimized, seconds);
  });
  nb::dict d = comparison_dict(t.check);
  d["baseline"] = t.baseline;
  d["optimized"] = t.optimized;
  d["iterations"] = t.iterations;
  d["baseline_ms"] = t.baseline_ms;
  d["optimized_ms"] = t.optimized_ms;
  d["baseline_bytes"] = t.baseline_bytes;
  d["optimized_bytes"] = t.optimized_bytes;
  d["flops"] = t.cost.flops;
  d["bytes"] = t.cost.bytes;
  return d;
}

nb::dict model_shape(const std::string& name) {
  const ModelConfig& c = cases::model_shape(name);
  nb::dict values;
  values["architecture"] = architecture_name(c.architecture);
  values["hidden_size"] = c.hidden_size;
  values["intermediate_size"] = c.intermediate_size;
  values["num_layers"] = c.num_layers;
  values["num_heads"] = c.num_heads;
  values["num_kv_heads"] = c.num_kv_heads;
  values["head_dim"] = c.head_dim;
  values["vocab_size"] = c.vocab_size;
  values["max_positions"] = c.max_positions;
  values["sliding_window"] = c.sliding_window;
  values["full_layers"] = c.full_layers;
  values["rms_norm_eps"] = c.rms_norm_eps;
  values["rope_theta"] = c.rope_theta;
  values["tie_embeddings"] = c.tie_embeddings;
  return values;
}

}  // namespace

void bind_cases(nb::module_& m) {
  m.def("cases", &list_cases, "Every case: its name, op, and whether it is of benchmark size.");
  m.def("check_case", &check_case, nb::arg("name"), nb::arg("backend") = "cpu",
        "Every kernel of the case's op in a backend against the reference of the CPU.");
  m.def("time_case", &time_case, nb::arg("name"), nb::arg("baseline"), nb::arg("optimized"),
        nb::arg("seconds"), nb::arg("backend") = "cpu",
        "Two kernels of a backend on the same operands, interleaved, the results compared in the same run.");
  m.def("model_shape", &model_shape, nb::arg("name"),
        "The configuration of a model that benchmarks build with random weights; raises with the names that "
        "there are.");
  m.def(
      "count_kernels",
      [](const nb::callable& work) {
        static KernelCounter counter;
        const int count = counter.count([&] { work(); });
        return nb::make_tuple(count, counter.problem());
      },
      nb::arg("work"),
      "(number, why none is counted): the kernels that a function runs on CUDA devices and waits for, as "
      "CUPTI\n"
      "counts them, those of a replayed graph one by one; -1 where nothing is counted.");
  m.def(
      "copy_bandwidth", [] { return unlocked([] { return cases::copy_bandwidth(default_dispatcher()); }); },
      "GB/s (read and written) that copies of large buffers reach.");
  m.def("read_bandwidth", &read_bandwidth, nb::arg("arrays"),
        "GB/s at which all threads together read these arrays of the host.");
  m.def(
      "multiply_add_peak",
      [] { return unlocked([] { return cases::multiply_add_peak(default_dispatcher()); }); },
      "GFLOP/s of f32 multiply-adds in registers.");
}

}  // namespace kf::python
