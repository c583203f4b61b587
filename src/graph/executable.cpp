// A compiled graph with memory of its own.

#include <algorithm>
#include <optional>
#include <set>

#include <fmt/format.h>

#include "core/log.h"
#include "core/operands.h"
#include "core/ranges.h"
#include "graph/compiled_graph.h"
#include "graph/reflect.h"
#include "kf/error.h"
#include "kf/executable.h"

namespace kf {
namespace {

bool same_memory_order(const TensorView& planned, const TensorView& given) {
  return planned.numel() == 0 ? planned.dtype == given.dtype && planned.same_shape(given)
                              : planned.same_layout(given);
}

bool is_table(DType t) { return t == DType::i32 || t == DType::i64; }

// Steps whose host tables (ids, lengths, page tables) come from outside, one for all that share tables and
// layouts.
std::vector<int> steps_to_validate(const CompiledGraph& compiled) {
  std::set<std::string> seen;
  std::vector<int> steps;
  for (std::size_t i = 0; i < compiled.steps.size(); ++i) {
    const CompiledStep& step = compiled.steps[i];
    const Op op = step.params.op();
    std::string key;
    bool given = true;
    for (const SlotInfo& s : op_slots(op)) {
      const TensorView& t = s.in(step.params.data());
      if (!t.present() || s.role != Role::in || !is_table(t.dtype)) continue;
      for (const OperandAddress& o : step.operands) {
        if (o.field != s.field) continue;
        given = given && o.base != 0;
        key += fmt::format("{}+{};", o.base, o.bytes);
      }
      if (t.data != nullptr) key += fmt::format("{};", t.data);
    }
    if (key.empty() || !given) continue;
    append_plan_key(op, step.params.data(), key);
    if (seen.insert(std::move(key)).second) steps.push_back(static_cast<int>(i));
  }
  return steps;
}

// Steps that write in place what comes from outside: caches, which are bound one by one and must be apart.
std::vector<int> steps_that_write_inputs(const CompiledGraph& compiled) {
  std::vector<int> steps;
  for (std::size_t i = 0; i < compiled.steps.size(); ++i)
    for (const SlotInfo& s : op_slots(compiled.steps[i].params.op()))
      if (s.role == Role::inout) {
        steps.push_back(static_cast<int>(i));
        break;
      }
  return steps;
}

// What a step reads at its beginning.
struct StepReads {
  std::vector<MemoryRange> soon;                    // what the calling thread finds the call by
  std::vector<std::vector<MemoryRange>> by_thread;  // weights

  StepReads() = default;
  StepReads(const CompiledStep& step, int num_threads) {
    const Kernel& kernel = step.plan->kernel();
    soon = {{&step, sizeof step},
            {step.plan.get(), sizeof(Plan)},
            {&kernel, sizeof kernel},
            {step.params.data(), op_info(step.params.op()).params_bytes}};
    for (int thread = 0; kernel.reads_first && thread < num_threads; ++thread)
      by_thread.push_back(kernel.reads_first(step.params.data(), thread, num_threads));
  }
};

}  // namespace

struct Executable::Impl {
  Dispatcher& dispatcher;
  CompiledGraph compiled;
  std::shared_ptr<void> arena;
  std::vector<void*> bases;
  std::vector<std::vector<int>> steps_of_base;  // which steps have an operand there
  std::vector<int> validated_steps, writing_steps;
  bool telemetry, holds_threads;
  std::vector<StepReads> reads;  // of each step, and of what comes after the last; where threads are held
  std::optional<Launch> last_launch;
  std::shared_ptr<void> recording;

  Impl(const Graph& graph, Dispatcher& d, const Options& options)
      : dispatcher(d),
        compiled(compile(graph, d, options.selection, options.packs, OutputPlace::arena)),
        telemetry(options.telemetry),
        holds_threads(d.backend().hold_threads &&
                      std::ranges::all_of(compiled.steps, [](const CompiledStep& s) {
                        return s.plan->kernel().on_held_threads;
                      })) {
    if (compiled.arena_bytes > 0) arena = d.allocate(compiled.arena_bytes);
    steps_of_base.resize(compiled.base_offsets.size());
    for (std::size_t b = 0; b < compiled.base_offsets.size(); ++b)
      bases.push_back(in_arena(compiled.base_offsets[b]));
    for (std::size_t i = 0; i < compiled.steps.size(); ++i)
      for (const OperandAddress& o : compiled.steps[i].operands) {
        std::vector<int>& steps = steps_of_base[o.base];
        if (steps.empty() || steps.back() != static_cast<int>(i)) steps.push_back(static_cast<int>(i));
      }
    for (CompiledStep& step : compiled.steps) step.set_addresses(step.params.data(), bases.data());
    validated_steps = steps_to_validate(compiled);
    writing_steps = steps_that_write_inputs(compiled);
    if (!holds_threads) return;
    for (const CompiledStep& step : compiled.steps) reads.emplace_back(step, d.num_threads());
    reads.emplace_back();
    for (std::size_t i = compiled.steps.size(); i-- > 0;)  // one that reads no weights leaves the time to those after it
      if (reads[i].by_thread.empty()) reads[i].by_thread = reads[i + 1].by_thread;
  }

  ~Impl() {
    try {
      finish();  // the arena goes, and must not be in use
    } catch (const std::exception& e) {
      log_warning(fmt::format("a graph's last run: {}", e.what()));
    }
  }

  void finish() const {
    if (last_launch && !dispatcher.on_host()) dispatcher.synchronize(*last_launch);
  }

  void* in_arena(std::int64_t offset) const {
    return offset < 0 || arena == nullptr ? nullptr : static_cast<std::byte*>(arena.get()) + offset;
  }

  void rebase(std::int32_t base, void* data) {
    if (bases[base] == data) return;
    if (recording) finish();  // a replay may be under way
    recording = nullptr;
    bases[base] = data;
    for (int i : steps_of_base[base]) {
      CompiledStep& step = compiled.steps[i];
      step.set_addresses(step.params.data(), bases.data());
    }
  }

  const External* find(const std::vector<External>& list, std::string_view name) const {
    for (const External& e : list)
      if (e.name == name) return &e;
    return nullptr;
  }

  // An output's memory must be its own: a step may write it while others still read theirs.
  void check_apart(const External& e, const TensorView& tensor) const {
    const bool is_output = find(compiled.outputs, e.name) == &e;
    for (const auto* list : {&compiled.inputs, &compiled.outputs})
      for (const External& other : *list) {
        if (other.base == e.base || (!is_output && list == &compiled.inputs) ||
            (other.base < 0 || bases[other.base] == nullptr))
          continue;
        TensorView t = other.layout;
        t.data = static_cast<std::byte*>(bases[other.base]) + other.bytes;
        if (share_memory(tensor, t))
          throw_invalid(fmt::format("bind: {}: expected memory of its own, got memory shared with {}", e.name,
                                    other.name));
      }
  }

  // That all are there; what the host can read of them has valid values.
  void check_operands() const {
    for (const External& e : compiled.inputs)
      if (bases[e.base] == nullptr && e.layout.numel() > 0)
        throw_invalid(fmt::format("run: input {} is not bound: expected {}", e.name, to_string(e.layout)));
    for (int i : writing_steps) check_memory(compiled.steps[i].params.op(), compiled.steps[i].params.data());
    for (int i : validated_steps) {
      const CompiledStep& step = compiled.steps[i];
      op_info(step.params.op()).validate_data(step.params.data());
    }
  }

  void enqueue(const Launch& launch, bool told, HeldThreads* threads = nullptr) const {
    for (std::size_t i = 0; i < compiled.steps.size(); ++i) {
      const CompiledStep& step = compiled.steps[i];
      if (threads != nullptr) threads->expect(reads[i + 1].soon, reads[i + 1].by_thread);
      void* workspace = static_cast<std::byte*>(arena.get()) + step.workspace;
      if (told) {
        dispatcher.execute(*step.plan, step.params.data(), workspace, launch);
        continue;
      }
      const RangeScope range(dispatcher.backend().ranges, step.plan->kernel().name.c_str());
      step.plan->run(step.params.data(), {workspace, dispatcher.num_threads(), launch.stream});
    }
  }

  std::string names() const {
    std::string text;
    for (const auto* list : {&compiled.inputs, &compiled.outputs})
      for (const External& e : *list) text += (text.empty() ? "" : ", ") + e.name;
    return text;
  }
};

Executable::Executable(const Graph& graph, const SymbolValues& symbols, Dispatcher& dispatcher,
                       const Options& options)
    : impl_(std::make_unique<Impl>(graph.with_symbols(symbols), dispatcher, options)) {}
Executable::~Executable() = default;
Executable::Executable(Executable&&) noexcept = default;

void Executable::bind(std::string_view name, const TensorView& tensor) {
  const External* e = impl_->find(impl_->compiled.inputs, name);
  if (e == nullptr) e = impl_->find(impl_->compiled.outputs, name);
  if (e == nullptr) throw_invalid(fmt::format("bind: expected one of {}, got {}", impl_->names(), name));
  if (e->base < 0) throw_invalid(fmt::format("bind: output {} is a constant and cannot be bound", name));
  if (!e->is_whole)
    throw_invalid(fmt::format("bind: output {} lies within another value and cannot be bound", name));
  if (!tensor.present() || !same_memory_order(e->layout, tensor))
    throw_invalid(fmt::format("bind: {}: expected {}, got {}", name, to_string(e->layout),
                              tensor.present() ? to_string(tensor) : "an absent tensor"));
  check_memory("bind", e->name.c_str(), tensor);
  impl_->check_apart(*e, tensor);
  impl_->rebase(e->base, tensor.data);
}

TensorView Executable::output(std::string_view name) const {
  const External* e = impl_->find(impl_->compiled.outputs, name);
  if (e == nullptr) throw_invalid(fmt::format("output: expected one of {}, got {}", impl_->names(), name));
  TensorView t = e->layout;
  if (e->base > 0 && impl_->bases[e->base] != nullptr)
    t.data = static_cast<std::byte*>(impl_->bases[e->base]) + e->bytes;
  return t;
}

void Executable::run(const Launch& launch) {
  Impl& m = *impl_;
  const bool told = m.telemetry && m.dispatcher.sink() != nullptr;
  if (m.recording && !told) {
    m.last_launch = launch;
    const Dispatcher& d = m.dispatcher;
    return d.backend().recorder.replay(d.caps().device.index, m.recording.get(), launch.stream);
  }
  m.check_operands();
  m.last_launch = launch;
  if (!m.holds_threads) return m.enqueue(launch, told);
  m.dispatcher.backend().hold_threads(m.dispatcher.num_threads(),
                                      [&](HeldThreads& threads) { m.enqueue(launch, told, &threads); });
}

Support Executable::recordable() const {
  const Backend& backend = impl_->dispatcher.backend();
  if (!backend.recorder.record)
    return Support::no(fmt::format("backend {} records no launches", backend.name));
  for (const CompiledStep& step : impl_->compiled.steps)
    if (!step.plan->graph_safe())
      return Support::no(fmt::format("{}: launches of {} may not be recorded",
                                     step.label.empty() ? op_name(step.params.op()) : step.label,
                                     step.plan->kernel().name));
  return Support::yes();
}

void Executable::record() {
  if (const Support s = recordable(); !s)
    throw Error(ErrorCode::not_implemented, fmt::format("record: {}", s.reason()));
  Impl& m = *impl_;
  m.check_operands();
  const Dispatcher& d = m.dispatcher;
  m.recording = d.backend().recorder.record(d.caps().device.index,
                                            [&m](void* stream) { m.enqueue({.stream = stream}, false); });
}

bool Executable::recorded() const { return impl_->recording != nullptr; }

std::size_t Executable::peak_activation_bytes() const { return impl_->compiled.arena_bytes; }
int Executable::launches() const {
  const Impl& m = *impl_;
  return m.recording ? m.dispatcher.backend().recorder.launches(m.recording.get()) : m.compiled.launches;
}

std::string Executable::to_text() const {
  std::string text;
  for (const CompiledStep& s : impl_->compiled.steps)
    text += fmt::format("{}: {} [{}] {}\n", s.label.empty() ? "-" : s.label, op_name(s.params.op()),
                        s.plan->kernel().name, s.plan->shapes());
  return text;
}

}  // namespace kf
