#include "custom_kernel.h"

#include <memory>

#include "kf/checked_kernel.h"
#include "op_fields.h"

namespace kf::python {
namespace {

// A call's fields as a dictionary; absent operands and outputs that are not wanted are None.
nb::dict fields_of(Op op, const void* params, bool with_memory) {
  nb::dict fields;
  for (const Field& f : Fields(op, params)) {
    if (!f.is_tensor()) {
      fields[f.name] = attribute(f);
      continue;
    }
    TensorView view = *f.view;
    if (!with_memory) view.data = nullptr;
    fields[f.name] = view.present() ? lend(view) : nb::none();
  }
  return fields;
}

// Rows are destroyed where no Python may run: what they hold of it goes with the interpreter's lock.
std::shared_ptr<nb::object> shared(const nb::object& object) {
  return {new nb::object(object), [](nb::object* held) {
            nb::gil_scoped_acquire lock;
            delete held;
          }};
}

using Run = std::function<void(const void*, const void*, const RunContext&)>;
// The state of a Python row: whether the call lets f32 be rounded to TF32.
std::shared_ptr<void> tf32_of(const PlanContext& ctx) { return std::make_shared<bool>(ctx.tf32); }

using Supports = std::function<Support(const void*, const PlanContext&)>;

Run run_of(Op op, const nb::object& run) {
  return [op, run = shared(run)](const void* params, const void* tf32, const RunContext& ctx) {
    nb::gil_scoped_acquire lock;
    (*run)(fields_of(op, params, true), reinterpret_cast<std::uintptr_t>(ctx.stream),
           *static_cast<const bool*>(tf32));
  };
}

Supports supports_of(Op op, const nb::object& supports) {
  return [op, supports = shared(supports)](const void* params, const PlanContext&) {
    nb::gil_scoped_acquire lock;
    return support_of((*supports)(fields_of(op, params, false)));
  };
}

std::string reference_name(const std::string& kernel, const nb::object& reference) {
  return reference.is_none() ? "" : kernel + "::reference";
}

// The row of a reference, which serves no calls but those of the check.
void add_reference(std::vector<Kernel>& rows, const nb::object& run) {
  if (run.is_none()) return;
  Kernel r = rows.front();
  r.name = reference_name(r.name, run);
  r.families = kReference;
  r.run = run_of(r.op, run);
  r.supports = [](const void*, const PlanContext&) {
    return checking_kernel() ? Support::yes() : Support::no("serves only to check its kernel");
  };
  r.prepare = [](const void*, const PlanContext& ctx) { return Prepared{.state = tf32_of(ctx)}; };
  rows.push_back(std::move(r));
}

}  // namespace

std::vector<Kernel> python_kernel_rows(const PythonKernel& k) {
  Kernel main;
  main.device_type = k.device_type;
  main.name = k.name;
  main.op = k.op;
  main.families = k.families;
  main.condition = k.condition;
  main.graph_safe = k.graph_safe;
  main.run = run_of(k.op, k.run);
  main.supports = supports_of(k.op, k.supports);
  main.prepare = [launches = k.launches, graph_safe = k.graph_safe](const void*, const PlanContext& ctx) {
    return Prepared{.state = tf32_of(ctx), .launches = launches, .graph_safe = graph_safe};
  };
  std::vector<Kernel> rows{checked_kernel(
      std::move(main), {.reference = reference_name(k.name, k.reference), .sizes = k.check_sizes})};
  add_reference(rows, k.reference);
  return rows;
}

std::vector<Kernel> cuda_kernel_rows(const std::string& name, Op op, const std::string& condition,
                                     CudaSource source, const nb::object& shape, const nb::object& supports,
                                     const nb::object& reference) {
  source.shape = [op, shape = shared(shape)](const CallSizes& call) {
    nb::gil_scoped_acquire lock;
    const nb::tuple t = nb::cast<nb::tuple>((*shape)(fields_of(op, call.params(), false)));
    LaunchShape s;
    for (std::size_t i = 0; i < 3; ++i) {
      s.grid[i] = nb::cast<std::int64_t>(t[0][i]);
      s.block[i] = nb::cast<std::int64_t>(t[1][i]);
    }
    s.shared_bytes = nb::cast<std::int64_t>(t[2]);
    return s;
  };
  Kernel k = cuda_kernel(name, op, std::move(source), {.reference = reference_name(name, reference)});
  k.condition = condition;
  k.supports = [of_form = supports_of(op, supports), supports = k.supports](const void* params,
                                                                            const PlanContext& ctx) {
    if (const Support s = of_form(params, ctx); !s) return s;
    return supports(params, ctx);
  };
  std::vector<Kernel> rows{std::move(k)};
  add_reference(rows, reference);
  return rows;
}

}  // namespace kf::python
