#include "kf/dispatch.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/operands.h"
#include "core/ranges.h"
#include "graph/composition_row.h"
#include "kf/error.h"

namespace kf {

namespace {

// Throws invalid_argument for a row that could not be called.
void check_row(const Kernel& k) {
  const auto refuse = [&](const std::string& expected, const std::string& got) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("kernel '{}': expected {}, got {}", k.name, expected, got), {{"kernel", k.name}});
  };
  if (k.name.empty()) refuse("a name", "none");
  if (static_cast<int>(k.op) >= kNumOps) refuse("an op", std::to_string(static_cast<int>(k.op)));
  if (k.families == 0) refuse("at least one family", "none");
  for (const auto& [name, given] :
       {std::pair{"supports", static_cast<bool>(k.supports)},
        std::pair{"prepare", static_cast<bool>(k.prepare)}, std::pair{"run", static_cast<bool>(k.run)}})
    if (!given) refuse(fmt::format("a function {}", name), "none");
}

[[noreturn]] void fail_name(const Kernel& k) {
  throw Error(ErrorCode::invalid_argument,
              fmt::format("kernel '{}': expected a name of its own, got that of another kernel", k.name),
              {{"kernel", k.name}});
}

bool allows(const Selection& selection, const Kernel& k) {
  if (selection.graph_safe && !k.graph_safe) return false;
  return selection.kernel.empty() ? (k.families & selection.families) != 0 : k.name == selection.kernel;
}

// Why a kernel that would serve may not.
std::string why_not_allowed(const Selection& selection, const Kernel& k) {
  if (selection.graph_safe && !k.graph_safe) return "one whose launches may not be recorded into a graph";
  if (!selection.kernel.empty()) return "not the kernel asked for, " + selection.kernel;
  return fmt::format("of family {}, configured is {}", family_names(k.families),
                     family_names(selection.families));
}

// Whether the row takes the call, as the selection wants it.
Support serves(const Selection& selection, const Kernel& k, const void* params, const PlanContext& ctx) {
  if (selection.batch_invariant && !k.batch_invariant)
    return Support::no("not batch-invariant: a row may get other bits in another batch");
  return k.supports(params, ctx);
}

// With every row and its reason: kernels that would serve but are not allowed say so.
[[noreturn]] void fail_unserved(Op op, const void* params, const Selection& selection,
                                const std::vector<const Kernel*>& rows, const PlanContext& ctx) {
  const std::string backend = ctx.dispatcher.backend().name;
  if (rows.empty())
    throw Error(ErrorCode::not_implemented,
                fmt::format("backend {} has no kernel for {}", backend, op_name(op)),
                {{"op", op_name(op)}, {"backend", backend}});
  std::string reasons;
  bool other_serves = false;
  for (const Kernel* k : rows) {
    const Support s = serves(selection, *k, params, ctx);
    reasons += fmt::format("\n  {}: ", k->name);
    reasons += !s ? s.reason() : "would serve, but is " + why_not_allowed(selection, *k);
    other_serves |= static_cast<bool>(s);
  }
  throw Error(
      ErrorCode::not_implemented,
      fmt::format("{}: no kernel of {} serves {}; each said:{}{}", op_name(op),
                  selection.kernel.empty() ? "family " + family_names(selection.families)
                                           : "name " + selection.kernel,
                  describe(op, params), reasons,
                  other_serves ? "\nallow_fallback would take the first of those that would serve" : ""),
      {{"op", op_name(op)}});
}

}  // namespace

Dispatcher::Dispatcher(const Backend& backend, DispatcherOptions options)
    : backend_(backend), sink_(options.sink) {
  if (options.num_threads < 0 || options.num_threads > kMaxThreads)
    throw_invalid(fmt::format("dispatcher: num_threads: expected 0 (the default) to {}, got {}", kMaxThreads,
                              options.num_threads));
  if (Support s = backend.available(); !s)
    throw Error(ErrorCode::unavailable, fmt::format("backend {}: {}", backend.name, s.reason()),
                {{"backend", backend.name}});
  caps_ = backend.capabilities(options.device_index);
  num_threads_ = options.num_threads > 0 ? options.num_threads : caps_.num_threads;
  std::vector<Kernel> own = backend.kernels();
  // The unfused composition of an op comes after its own kernels, before the reference.
  std::vector<Kernel> compositions = composition_kernels(backend.name);
  auto append = [this](std::vector<Kernel>& rows, bool references) {
    for (Kernel& k : rows) {
      if ((k.families == kReference) != references) continue;
      check_row(k);
      k.device_type = backend_.device_type;
      kernels_.push_back(std::make_unique<Kernel>(std::move(k)));
    }
  };
  append(own, false);
  append(compositions, false);
  append(own, true);
}

std::vector<Explained> Dispatcher::explain(Op op, const void* params, const Selection& selection) {
  check_layouts(op, params, caps_.device);
  op_info(op).validate(params);
  const PlanContext ctx{caps_, *this, num_threads_, nullptr, selection.tf32};
  std::vector<Explained> rows;
  int first_allowed = -1, first_other = -1;
  for (const Kernel* k : kernels(op)) {
    Explained e;
    e.kernel = k->name;
    e.families = family_names(k->families);
    const Support s = serves(selection, *k, params, ctx);
    e.supported = static_cast<bool>(s);
    e.reason = s.reason();
    e.allowed = allows(selection, *k);
    if (e.supported && !e.allowed) e.reason = why_not_allowed(selection, *k);
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
  const PlanContext ctx{caps_, *this, num_threads_, packs, selection.tf32};
  const std::vector<const Kernel*> rows = kernels(op);
  const Kernel* chosen = nullptr;
  const Kernel* other = nullptr;  // first that would serve, outside the configured families
  std::string declined;           // what the configured ones say
  for (const Kernel* k : rows) {
    const bool allowed = allows(selection, *k);
    if (!allowed && (other != nullptr || !selection.allow_fallback)) continue;
    if (const Support s = serves(selection, *k, params, ctx); !s) {
      if (allowed) declined += fmt::format("{}{}: {}", declined.empty() ? "" : "; ", k->name, s.reason());
      continue;
    }
    if (allowed) {
      chosen = k;
      break;
    }
    other = k;
  }
  const bool fallback = chosen == nullptr && other != nullptr;
  if (fallback) chosen = other;
  if (chosen == nullptr) fail_unserved(op, params, selection, rows, ctx);
  auto plan = std::make_shared<Plan>();
  plan->kernel_ = chosen;
  plan->prepared_ = chosen->prepare(params, ctx);
  plan->cost_ = op_info(op).cost(params);
  plan->shapes_ = describe(op, params);
  if (fallback)
    plan->fallback_reason_ =
        !declined.empty() ? declined : "there is no kernel of " + family_names(selection.families);
  return plan;
}

std::shared_ptr<const Plan> Dispatcher::plan(Op op, const void* params, const Selection& selection,
                                             PackCache* packs) {
  // Plans over constant weights hold their packs, so they are not shared by layout.
  if (packs != nullptr) {
    check_layouts(op, params, caps_.device);
    op_info(op).validate(params);
    return make_plan(op, params, selection, packs);
  }
  thread_local std::string key;  // kept, so that a call that finds its plan allocates nothing
  key.clear();
  append_plan_key(op, params, key);
  key.append(reinterpret_cast<const char*>(&selection.families), sizeof selection.families);
  key.push_back(static_cast<char>((selection.allow_fallback ? 1 : 0) | (selection.graph_safe ? 2 : 0) |
                                  (selection.batch_invariant ? 4 : 0) | (selection.tf32 ? 8 : 0)));
  key += selection.kernel;
  std::uint64_t table_version = 0;
  {
    std::lock_guard lock(mutex_);
    table_version = table_version_;
    if (auto it = plans_.find(key); it != plans_.end()) {
      plan_ages_.splice(plan_ages_.begin(), plan_ages_, it->second.age);
      return it->second.plan;
    }
  }
  const std::string layout = key;  // planning may plan other ops on the way
  check_layouts(op, params, caps_.device);
  op_info(op).validate(params);
  auto plan = make_plan(op, params, selection, nullptr);
  constexpr std::size_t kMaxPlans = 4096;  // a bound for callers whose shapes never repeat
  std::lock_guard lock(mutex_);
  if (table_version != table_version_) return plan;  // a kernel came meanwhile: the next call is to see it
  const auto [it, is_new] = plans_.try_emplace(layout);
  if (!is_new) return it->second.plan;  // another thread's, made meanwhile
  plan_ages_.push_front(&it->first);
  it->second = {plan, plan_ages_.begin()};
  if (plans_.size() > kMaxPlans) {
    plans_.erase(plans_.find(*plan_ages_.back()));
    plan_ages_.pop_back();
  }
  return plan;
}

void Dispatcher::execute(const Plan& plan, const void* params, void* workspace, const Launch& launch) const {
  const RunContext ctx{workspace, num_threads_, launch.stream};
  const RangeScope range(backend_.ranges, plan.kernel().name.c_str());
  if (sink_ == nullptr) return plan.run(params, ctx);
  CallRecord record{plan.kernel().op, plan.kernel().name.c_str(), plan.shapes().c_str(),         plan.cost(),
                    plan.launches(),  plan.is_fallback(),         plan.fallback_reason().c_str()};
  record.params = params;
  if (sink_->wants_time()) {
    synchronize(launch);  // what was enqueued before is not this call's time
    const auto start = std::chrono::steady_clock::now();
    plan.run(params, ctx);
    synchronize(launch);
    record.start = std::chrono::duration<double>(start.time_since_epoch()).count();
    record.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  } else {
    plan.run(params, ctx);
  }
  sink_->on_call(record);
}

// A kernel whose launches may not be replayed would spoil a recording that is under way, or give stale results later.
void Dispatcher::refuse_recording(const Plan& plan, const Launch& launch) const {
  const auto& is_recording = backend_.recorder.is_recording;
  if (!is_recording || !is_recording(caps_.device.index, launch.stream)) return;
  throw Error(
      ErrorCode::invalid_argument,
      fmt::format(
          "{}: {} may not be recorded (it is not marked graph-safe), and the stream is being recorded: "
          "select graph-safe kernels (use_cuda_graph), or run it outside",
          op_name(plan.kernel().op), plan.kernel().name),
      {{"kernel", plan.kernel().name}});
}

void Dispatcher::run(Op op, const void* params, const Selection& selection, const Launch& launch) {
  const std::shared_ptr<const Plan> p = plan(op, params, selection);
  if (!p->graph_safe()) refuse_recording(*p, launch);
  check_memory(op, params);
  op_info(op).validate_data(params);
  if (p->workspace_bytes() == 0) return execute(*p, params, nullptr, launch);
  if (!on_host()) return execute(*p, params, allocate(p->workspace_bytes(), launch).get(), launch);
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
  execute(*p, params, workspace.first.get(), launch);
  std::lock_guard lock(mutex_);
  workspaces_.push_back(std::move(workspace));
}

std::shared_ptr<void> Dispatcher::allocate(std::size_t bytes, const Launch& launch) const {
  if (on_host()) return allocate_host(bytes);
  void* memory = backend_.memory.allocate(caps_.device.index, std::max<std::size_t>(bytes, 1), launch.stream);
  const auto free = [&backend = backend_, index = caps_.device.index, stream = launch.stream](void* p) {
    backend.memory.free(index, p, stream);
  };
  return {memory, free};
}

StoredTensor Dispatcher::make_tensor(DType dtype, std::span<const std::int64_t> shape,
                                     const Launch& launch) const {
  TensorView view = TensorView::contiguous(nullptr, dtype, shape, caps_.device);
  std::shared_ptr<void> memory = allocate(view.nbytes(), launch);
  view.data = memory.get();
  return {std::move(memory), view};
}

std::shared_ptr<void> Dispatcher::allocate_staging(std::size_t bytes) const {
  if (!backend_.memory.allocate_host) return allocate_host(bytes);
  return {backend_.memory.allocate_host(caps_.device.index, std::max<std::size_t>(bytes, 1)),
          [&backend = backend_](void* p) { backend.memory.free_host(p); }};
}

void Dispatcher::copy(void* to, const void* from, std::size_t bytes, CopyDirection direction,
                      const Launch& launch) const {
  if (bytes == 0) return;
  if (on_host())
    std::memcpy(to, from, bytes);
  else
    backend_.memory.copy(caps_.device.index, to, from, bytes, direction, launch.stream);
}

void Dispatcher::synchronize(const Launch& launch) const {
  if (!on_host()) backend_.memory.synchronize(caps_.device.index, launch.stream);
}

void Dispatcher::add_kernel(Kernel kernel) {
  check_row(kernel);
  if (kernel.device_type != backend_.device_type)
    throw Error(ErrorCode::invalid_argument,
                fmt::format("kernel '{}': expected one for {}, got one for {}", kernel.name,
                            device_type_name(backend_.device_type), device_type_name(kernel.device_type)),
                {{"kernel", kernel.name}});
  std::lock_guard lock(mutex_);
  for (const auto& k : kernels_)
    if (k->name == kernel.name) fail_name(kernel);
  kernels_.insert(kernels_.begin(), std::make_unique<Kernel>(std::move(kernel)));
  ++table_version_;
  plans_.clear();
  plan_ages_.clear();
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

DispatcherSet::DispatcherSet(DispatcherOptions options, std::span<const Backend* const> backends)
    : options_(options), given_(backends) {}

// What a backend answers may take locks of its own (Python's, of a backend written there), so it is asked without this one.
Dispatcher& DispatcherSet::on(Device device) {
  const auto find = [&]() -> Dispatcher* {
    for (const auto& d : made_)
      if (d->caps().device == device) return d.get();
    return nullptr;
  };
  {
    std::lock_guard lock(mutex_);
    if (Dispatcher* d = find()) return *d;
  }
  const Backend* chosen = nullptr;
  std::vector<std::string> names;
  for (const Backend* b : backends()) {
    names.push_back(b->name);
    if (b->device_type != device.type) continue;
    if (chosen == nullptr) chosen = b;
    if (!b->available()) continue;
    chosen = b;
    break;
  }
  if (chosen == nullptr)
    throw Error(ErrorCode::unavailable,
                fmt::format("no backend for tensors on {} is compiled in; there are {}", to_string(device),
                            fmt::join(names, ", ")),
                {{"device", to_string(device)}});
  DispatcherOptions options = options_;
  options.device_index = device.index;
  auto made = std::make_unique<Dispatcher>(*chosen, options);
  std::lock_guard lock(mutex_);
  if (Dispatcher* d = find()) return *d;  // another thread's, made meanwhile
  for (const Kernel& k : added_)
    if (k.device_type == device.type) made->add_kernel(k);
  return *made_.emplace_back(std::move(made));
}

Dispatcher& DispatcherSet::serving(Op op, const void* params) { return on(device_of(op, params)); }

void DispatcherSet::add_kernel(Kernel kernel) {
  check_row(kernel);
  std::vector<std::string> own;
  for (const Backend* b : backends())
    if (b->device_type == kernel.device_type)
      for (Kernel& k : b->kernels()) own.push_back(std::move(k.name));
  std::lock_guard lock(mutex_);
  for (const Kernel& k : added_)  // a kernel for several device types has a row for each
    if (k.name == kernel.name && k.device_type == kernel.device_type) fail_name(kernel);
  // Dispatchers look for the name themselves; those that are made later would stumble over it.
  const bool is_made = std::ranges::any_of(
      made_, [&](const auto& d) { return d->backend().device_type == kernel.device_type; });
  if (!is_made && std::ranges::find(own, kernel.name) != own.end()) fail_name(kernel);
  for (const auto& d : made_)
    if (d->backend().device_type == kernel.device_type) d->add_kernel(kernel);
  added_.push_back(std::move(kernel));
}

std::vector<const Dispatcher*> DispatcherSet::made() const {
  std::lock_guard lock(mutex_);
  std::vector<const Dispatcher*> all;
  for (const auto& d : made_) all.push_back(d.get());
  return all;
}

namespace {

DispatcherSet& default_dispatchers() {
  // Never destroyed: rows of Python could not be, once the interpreter is gone.
  static DispatcherSet* const set = new DispatcherSet;
  return *set;
}

}  // namespace

Dispatcher& default_dispatcher(Device device) { return default_dispatchers().on(device); }
Dispatcher& default_dispatcher(Op op, const void* params) {
  return default_dispatchers().serving(op, params);
}

}  // namespace kf
