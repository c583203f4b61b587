#include "kf/dispatch.h"

#include <chrono>

#include <fmt/format.h>

#include "graph/composition_row.h"
#include "kf/error.h"

namespace kf {

Dispatcher::Dispatcher(const Backend& backend, DispatcherOptions options)
    : backend_(backend), sink_(options.sink) {
  if (Support s = backend.available(); !s)
    throw Error(ErrorCode::unavailable, fmt::format("backend {}: {}", backend.name, s.reason()));
  caps_ = backend.capabilities(options.device_index);
  num_threads_ = options.num_threads > 0 ? options.num_threads : caps_.num_threads;
  std::vector<Kernel> own = backend.kernels();
  // The unfused composition of an op comes after its own kernels, before the reference.
  std::vector<Kernel> compositions = composition_kernels(backend.name);
  auto append = [this](std::vector<Kernel>& rows, bool references) {
    for (Kernel& k : rows)
      if ((k.families == kReference) == references) kernels_.push_back(std::make_unique<Kernel>(std::move(k)));
  };
  append(own, false);
  append(compositions, false);
  append(own, true);
}

void Dispatcher::check_device(Op op, const void* params) const {
  for (const Slot& s : slots_of(op, const_cast<void*>(params)))
    if (s.tensor->present() && s.tensor->device != caps_.device)
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{}: {}: expected a tensor on {}, got one on {}", op_name(op), s.name,
                              to_string(caps_.device), to_string(s.tensor->device)),
                  {{"op", op_name(op)}, {"operand", s.name}});
}

std::vector<Explained> Dispatcher::explain(Op op, const void* params, const Selection& selection) {
  check_device(op, params);
  op_info(op).validate(params);
  const PlanContext ctx{caps_, *this, num_threads_, nullptr};
  std::vector<Explained> rows;
  int first_allowed = -1, first_other = -1;
  for (const Kernel* k : kernels(op)) {
    Explained e;
    e.kernel = k->name;
    e.families = family_names(k->families);
    const Support s = k->supports(params, ctx);
    e.supported = static_cast<bool>(s);
    e.reason = s.reason();
    e.allowed = selection.kernel.empty() ? (k->families & selection.families) != 0 : k->name == selection.kernel;
    if (e.supported && !e.allowed)
      e.reason = selection.kernel.empty()
                     ? fmt::format("of family {}, configured is {}", e.families, family_names(selection.families))
                     : fmt::format("not the kernel asked for, {}", selection.kernel);
    const int i = static_cast<int>(rows.size());
    if (e.supported && e.allowed && first_allowed < 0) first_allowed = i;
    if (e.supported && !e.allowed && first_other < 0) first_other = i;
    rows.push_back(std::move(e));
  }
  if (first_allowed >= 0)
    rows[static_cast<std::size_t>(first_allowed)].selected = true;
  else if (first_other >= 0 && selection.allow_fallback)
    rows[static_cast<std::size_t>(first_other)].selected = true;
  return rows;
}

std::shared_ptr<const Plan> Dispatcher::make_plan(Op op, const void* params, const Selection& selection,
                                                  PackCache* packs) {
  const PlanContext ctx{caps_, *this, num_threads_, packs};
  const Kernel* chosen = nullptr;
  const Kernel* other = nullptr;  // first that would serve, outside the configured families
  std::string reasons;
  for (const Kernel* k : kernels(op)) {
    const bool allowed =
        selection.kernel.empty() ? (k->families & selection.families) != 0 : k->name == selection.kernel;
    if (!allowed && (other != nullptr || !selection.allow_fallback)) {
      reasons += fmt::format("\n  {}: of family {}", k->name, family_names(k->families));
      continue;
    }
    const Support s = k->supports(params, ctx);
    if (!s) {
      reasons += fmt::format("\n  {}: {}", k->name, s.reason());
    } else if (allowed) {
      chosen = k;
      break;
    } else {
      other = k;
    }
  }
  const bool fallback = chosen == nullptr && other != nullptr;
  if (fallback) chosen = other;
  if (chosen == nullptr)
    throw Error(
        ErrorCode::not_implemented,
        fmt::format("{}: no kernel of {} serves {}; each said:{}{}", op_name(op),
                    selection.kernel.empty() ? "family " + family_names(selection.families)
                                             : "name " + selection.kernel,
                    describe(op, params), reasons,
                    selection.allow_fallback ? "" : "\nallow_fallback would take the first other kernel that serves"),
        {{"op", op_name(op)}});
  auto plan = std::make_shared<Plan>();
  plan->kernel_ = chosen;
  plan->prepared_ = chosen->prepare(params, ctx);
  plan->cost_ = op_info(op).cost(params);
  plan->shapes_ = describe(op, params);
  plan->fallback_ = fallback;
  return plan;
}

std::shared_ptr<const Plan> Dispatcher::plan(Op op, const void* params, const Selection& selection,
                                             PackCache* packs) {
  // Plans over constant weights hold their packs, so they are not shared by layout.
  if (packs != nullptr) {
    check_device(op, params);
    op_info(op).validate(params);
    return make_plan(op, params, selection, packs);
  }
  std::string key;
  key.reserve(512);
  append_plan_key(op, params, key);
  key.append(reinterpret_cast<const char*>(&selection.families), sizeof selection.families);
  key.push_back(selection.allow_fallback ? 1 : 0);
  key += selection.kernel;
  {
    std::lock_guard lock(mutex_);
    if (auto it = plans_.find(key); it != plans_.end()) return it->second;
  }
  check_device(op, params);
  op_info(op).validate(params);
  auto plan = make_plan(op, params, selection, nullptr);
  constexpr std::size_t kMaxPlans = 4096;  // a bound for callers whose shapes never repeat
  std::lock_guard lock(mutex_);
  if (plans_.size() >= kMaxPlans) plans_.clear();
  plans_.emplace(std::move(key), plan);
  return plan;
}

void Dispatcher::execute(const Plan& plan, const void* params, void* workspace) const {
  const RunContext ctx{workspace, num_threads_, nullptr};
  if (sink_ == nullptr) return plan.run(params, ctx);
  CallRecord record{plan.kernel().op, plan.kernel().name.c_str(), plan.shapes().c_str(), plan.cost(),
                    plan.launches(),  plan.is_fallback(),         -1.0};
  if (sink_->wants_time()) {
    const auto start = std::chrono::steady_clock::now();
    plan.run(params, ctx);
    record.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  } else {
    plan.run(params, ctx);
  }
  sink_->on_call(record);
}

void Dispatcher::run(Op op, const void* params, const Selection& selection) {
  const std::shared_ptr<const Plan> p = plan(op, params, selection);
  op_info(op).validate_data(params);
  if (p->workspace_bytes() == 0) return execute(*p, params, nullptr);
  // Workspaces are handed out and taken back, so that concurrent calls have one each and repeated ones reuse it.
  std::pair<std::shared_ptr<void>, std::size_t> workspace;
  {
    std::lock_guard lock(mutex_);
    if (!workspaces_.empty()) {
      workspace = std::move(workspaces_.back());
      workspaces_.pop_back();
    }
  }
  if (workspace.second < p->workspace_bytes())
    workspace = {allocate_host(p->workspace_bytes()), p->workspace_bytes()};
  execute(*p, params, workspace.first.get());
  std::lock_guard lock(mutex_);
  workspaces_.push_back(std::move(workspace));
}

void Dispatcher::add_kernel(Kernel kernel) {
  std::lock_guard lock(mutex_);
  kernels_.insert(kernels_.begin(), std::make_unique<Kernel>(std::move(kernel)));
  plans_.clear();
}

std::vector<const Kernel*> Dispatcher::kernels() const {
  std::lock_guard lock(mutex_);
  std::vector<const Kernel*> out;
  for (const auto& k : kernels_) out.push_back(k.get());
  return out;
}

std::vector<const Kernel*> Dispatcher::kernels(Op op) const {
  std::lock_guard lock(mutex_);
  std::vector<const Kernel*> out;
  for (const auto& k : kernels_)
    if (k->op == op) out.push_back(k.get());
  return out;
}

Dispatcher& default_dispatcher() {
  static Dispatcher dispatcher(backend_by_name("cpu"));
  return dispatcher;
}

}  // namespace kf
