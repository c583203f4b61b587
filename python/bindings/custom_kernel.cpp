#include "custom_kernel.h"

#include <memory>
#include <mutex>
#include <set>

#include <fmt/format.h>

#include "kf/error.h"
#include "kf/replay.h"

namespace kf::python {
namespace {

// While a kernel is being checked it is planned again, by name, and must not be checked again.
thread_local bool checking = false;

// A call's fields as a dictionary; absent operands and outputs that are not wanted are None.
class FieldsToDict final : public FieldVisitor {
 public:
  explicit FieldsToDict(bool with_memory) : with_memory_(with_memory) {}
  nb::dict fields;

  void tensor(const char* name, TensorView& t, Role, bool) override {
    TensorView view = t;
    if (!with_memory_) view.data = nullptr;
    fields[name] = t.present() ? lend(view) : nb::none();
  }
  void attr(const char* name, bool& value) override { fields[name] = value; }
  void attr(const char* name, std::int64_t& value) override { fields[name] = value; }
  void attr(const char* name, float& value) override { fields[name] = value; }
  void attr(const char* name, int& value, std::span<const char* const> names) override {
    fields[name] = names[static_cast<std::size_t>(value)];
  }

 private:
  bool with_memory_;
};

nb::dict fields_of(Op op, const void* params, bool with_memory) {
  FieldsToDict visitor(with_memory);
  op_info(op).visit(const_cast<void*>(params), visitor);  // only read
  return visitor.fields;
}

// What decides, beside sizes, how a call is computed: which operands there are, their dtypes, ranks and row lengths, and the
// attributes.
class FormKey final : public FieldVisitor {
 public:
  std::string key;

  void tensor(const char* name, TensorView& t, Role, bool) override {
    if (t.present()) put(name, dtype_name(t.dtype), t.rank, t.rank > 0 ? t.dim(-1) : 0);
  }
  void attr(const char* name, bool& value) override { put(name, value); }
  void attr(const char* name, std::int64_t& value) override { put(name, value); }
  void attr(const char* name, float& value) override { put(name, value); }
  void attr(const char* name, int& value, std::span<const char* const>) override { put(name, value); }

 private:
  template <class... Values>
  void put(const Values&... values) {
    ((key += fmt::format("{} ", values)), ...);
  }
};

// The forms that a kernel was checked for.
class CheckedForms {
 public:
  bool contains(const std::string& form) const {
    std::lock_guard lock(mutex_);
    return forms_.contains(form);
  }
  void add(const std::string& form) {
    std::lock_guard lock(mutex_);
    forms_.insert(form);
  }

 private:
  mutable std::mutex mutex_;
  std::set<std::string> forms_;
};

// Rows are destroyed where no Python may run: what they hold of it goes with the interpreter's lock.
std::shared_ptr<nb::object> shared(const nb::object& object) {
  return {new nb::object(object), [](nb::object* held) {
            nb::gil_scoped_acquire lock;
            delete held;
          }};
}

void check(const PythonKernel& k, const std::string& reference_name, const void* params,
           const PlanContext& ctx) {
  constexpr double kReferenceFlops = 1e8;  // plain loops take a second for more
  Selection baseline{.families = kReference, .kernel = reference_name};
  if (!ctx.dispatcher.on_host())  // few backends but the CPU's have references
    baseline.families = kReference | kVanilla | kFused;
  else if (reference_name.empty() && op_info(k.op).cost(params).flops > kReferenceFlops)
    baseline.families = kVanilla;
  checking = true;
  struct Done {
    ~Done() { checking = false; }
  } done;
  const Replayed r = replay(k.op, params, ctx.dispatcher, {.families = 0, .kernel = k.name}, baseline, 0.0);
  if (r.agreed) return;
  const std::string problem =
      !r.problem.empty()
          ? r.problem
          : fmt::format("its results differ from {} by {:.3g} of the largest value", r.baseline, r.max_error);
  throw Error(
      ErrorCode::invalid_argument,
      fmt::format("{} {}: {} (on generated data, for {})", k.families == kCustom ? "custom kernel" : "kernel",
                  k.name, problem, describe(k.op, params)),
      {{"kernel", k.name}, {"op", op_name(k.op)}, {"reference", r.baseline}});
}

}  // namespace

std::vector<Kernel> python_kernel_rows(const PythonKernel& k) {
  const std::string reference_name = k.reference.is_none() ? "" : k.name + "::reference";
  const auto row = [&k](const std::string& name, unsigned families, const nb::object& run) {
    Kernel r;
    r.device_type = k.device_type;
    r.name = name;
    r.op = k.op;
    r.families = families;
    r.condition = k.condition;
    r.graph_safe = k.graph_safe;
    r.run = [op = k.op, run = shared(run)](const void* params, const void*, const RunContext& ctx) {
      nb::gil_scoped_acquire lock;
      (*run)(fields_of(op, params, true), reinterpret_cast<std::uintptr_t>(ctx.stream));
    };
    return r;
  };
  Kernel main = row(k.name, k.families, k.run);
  main.supports = [op = k.op, supports = shared(k.supports)](const void* params, const PlanContext&) {
    nb::gil_scoped_acquire lock;
    const nb::object reason = (*supports)(fields_of(op, params, false));
    return reason.is_none() ? Support::yes() : Support::no(nb::cast<std::string>(nb::str(reason)));
  };
  PythonKernel named = k;  // without Python objects: the row's own functions hold these
  named.supports = named.run = named.reference = nb::object();
  main.prepare = [named, reference_name, checked = std::make_shared<CheckedForms>()](const void* params,
                                                                                     const PlanContext& ctx) {
    if (!checking && named.check_sizes) {
      check(named, reference_name, params, ctx);
    } else if (!checking) {
      FormKey form;
      op_info(named.op).visit(const_cast<void*>(params), form);  // only read
      if (!checked->contains(form.key)) {
        check(named, reference_name, params, ctx);
        checked->add(form.key);
      }
    }
    return Prepared{.launches = named.launches, .graph_safe = named.graph_safe};
  };
  std::vector<Kernel> rows{main};
  if (!reference_name.empty()) {
    Kernel reference = row(reference_name, kReference, k.reference);
    reference.supports = [](const void*, const PlanContext&) {
      return checking ? Support::yes() : Support::no("serves only to check its kernel");
    };
    reference.prepare = [](const void*, const PlanContext&) { return Prepared{}; };
    rows.push_back(std::move(reference));
  }
  return rows;
}

}  // namespace kf::python
