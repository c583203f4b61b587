#include "kf/checked_kernel.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <set>

#include <fmt/format.h>

#include "kf/dispatch.h"
#include "kf/error.h"
#include "kf/replay.h"

namespace kf {
namespace {

// While a kernel is being checked it is planned again, by name, and must not be checked again.
thread_local bool checking = false;

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

struct Checked {
  std::string name;
  Op op;
  unsigned families;
  CheckOptions options;
  CheckedForms forms;
};

void check(const Checked& k, const void* params, const PlanContext& ctx) {
  constexpr double kReferenceFlops = 1e8;  // plain loops take a second for more
  const std::string& reference = k.options.reference;
  Selection baseline{.families = kReference, .kernel = reference, .tf32 = ctx.tf32};
  const bool large = op_info(k.op).cost(params).flops > kReferenceFlops;
  if (!ctx.dispatcher.on_host()) {
    // Not every backend has references.
    const auto rows = ctx.dispatcher.kernels(k.op);
    const bool has_reference =
        std::ranges::any_of(rows, [](const Kernel* row) { return row->families == kReference; });
    baseline.families = kReference;
    if (!has_reference) baseline.families |= kFused;
    if (!has_reference || large) baseline.families |= kVanilla;
  } else if (reference.empty() && large) {
    baseline.families = kVanilla;
  }
  checking = true;
  struct Done {
    ~Done() { checking = false; }
  } done;
  const Selection this_row{.families = 0, .kernel = k.name, .tf32 = ctx.tf32};
  const Replayed r = replay(k.op, params, ctx.dispatcher, this_row, baseline, 0.0);
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

void check_once(Checked& k, const void* params, const PlanContext& ctx) {
  if (checking) return;
  if (k.options.sizes) return check(k, params, ctx);  // plans are cached by layout
  FormKey form;
  op_info(k.op).visit(const_cast<void*>(params), form);  // only read
  if (k.forms.contains(form.key)) return;
  check(k, params, ctx);
  k.forms.add(form.key);
}

}  // namespace

bool checking_kernel() { return checking; }

Kernel checked_kernel(Kernel kernel, CheckOptions options) {
  const std::shared_ptr<Checked> checked(
      new Checked{kernel.name, kernel.op, kernel.families, std::move(options), {}});
  kernel.prepare = [checked, prepare = std::move(kernel.prepare)](const void* params,
                                                                  const PlanContext& ctx) {
    check_once(*checked, params, ctx);
    return prepare(params, ctx);
  };
  return kernel;
}

}  // namespace kf
