#include "graph/measure.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>

#include <fmt/format.h>

#include "graph/sample_data.h"
#include "kf/error.h"
#include "kf/executable.h"
#include "kf/ops/quantization.h"

namespace kf {
namespace {

// Copies some of a graph's nodes to a graph of their own. What they read from outside becomes inputs, but
// constants stay constants.
class Extractor {
 public:
  Extractor(const GraphRewriter& source, const Match& match, const Graph& sizes)
      : source_(source), match_(match), sizes_(sizes) {}

  Graph unfused() {
    std::vector<int> nodes = match_.nodes;
    std::sort(nodes.begin(), nodes.end(),
              [&](int a, int b) { return source_.position(a) < source_.position(b); });
    bind_operands();
    for (int id : nodes) copy(source_.node(id), params_of(id));
    return finish();
  }

  Graph fused() {
    bind_operands();
    copy(match_.replacement, match_.replacement.params);
    return finish();
  }

 private:
  // Operands are named after the pattern, so that both forms have the same.
  void bind_operands() {
    const Pattern& p = *match_.pattern;
    for (std::size_t i = 0; i < p.values.size(); ++i) {
      const ValueId v = match_.values[i];
      if (!v.valid() || p.producers[i].step >= 0 || copies_.count(v.index)) continue;
      const Value value = sized(v);
      copies_[v.index] = value.kind == ValueKind::constant ? g_.constant(value.name, value.tensor)
                                                           : g_.input(p.values[i], value.tensor);
    }
  }

  Value sized(ValueId v) const {
    Value value = source_.graph().value(v);
    if (v.index >= static_cast<int>(sizes_.values().size()))
      throw_invalid(fmt::format("graph: {} was made by a rule and has no other size", value.name));
    value.tensor = sizes_.value(v).tensor;
    return value;
  }

  ValueId copy(ValueId v) {
    if (const auto it = copies_.find(v.index); it != copies_.end()) return it->second;
    // Whatever is not an operand lies between two matched nodes: a view, or an equivalent one of an operand.
    const Value value = sized(v);
    const TensorView& t = value.tensor;
    const ValueId made = g_.view(copy(value.base), {t.shape.begin(), t.shape.begin() + t.rank},
                                 {t.strides.begin(), t.strides.begin() + t.rank}, value.offset);
    return copies_[v.index] = made;
  }

  // Attributes may hold sizes, too. What a rule has made holds none.
  const AnyParams& params_of(int id) const {
    return id < static_cast<int>(sizes_.nodes().size()) ? sizes_.nodes()[id].params : source_.node(id).params;
  }

  void copy(const Node& n, const AnyParams& params) {
    const auto slots = op_slots(n.op());
    Bindings inputs;
    for (auto [slot, v] : n.inputs) inputs.emplace_back(slots[slot].name, copy_of_operand(v));
    std::vector<std::string_view> want;
    for (auto [slot, v] : n.outputs) want.push_back(slots[slot].name);
    const CallResult r = g_.call(params, inputs, want);
    for (auto [slot, v] : n.outputs) copies_[v.index] = r[slots[slot].name];
  }

  ValueId copy_of_operand(ValueId v) {
    for (const auto& [index, made] : copies_)
      if (source_.equivalent(v, ValueId{index})) return made;
    return copy(v);
  }

  // The values that the replacement takes over and that go on.
  Graph finish() {
    for (auto [slot, v] : match_.replacement.outputs) g_.output(std::to_string(v.index), copies_.at(v.index));
    return std::move(g_);
  }

  const GraphRewriter& source_;
  const Match& match_;
  const Graph& sizes_;
  Graph g_;
  std::map<int, ValueId> copies_;
};

// One form, ready to run on its own memory.
class Form {
 public:
  Form(const Graph& g, Dispatcher& d, unsigned families, PackCache& packs,
       const std::map<std::string, SampleData>& data)
      : graph_(g),
        dispatcher_(d),
        executable_(
            g, {}, d,
            {.selection = {.families = families, .kernel = {}}, .packs = &packs, .telemetry = false}) {
    for (const auto& [name, v] : g.inputs()) {
      // Caches are written, so each form has its own copy.
      storage_.push_back(copy_to(d, data.at(name)));
      executable_.bind(name, storage_.back().view);
    }
    d.synchronize();
  }

  double run_ms() {
    const auto start = std::chrono::steady_clock::now();
    executable_.run();
    dispatcher_.synchronize();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }
  // By the device's clock, many runs in a row, as they follow each other in a model.
  double device_ms() {
    const Backend& backend = dispatcher_.backend();
    const double ms = backend.time(dispatcher_.caps().device.index,
                                   [this](void* stream) { executable_.run({.stream = stream}); });
    executable_.run();  // the stream is gone: the last run is one on the default stream
    return ms;
  }
  bool recordable() const { return static_cast<bool>(executable_.recordable()); }
  std::size_t peak_bytes() const { return executable_.peak_activation_bytes(); }
  // On the host.
  std::vector<SampleData> outputs() const {
    std::vector<SampleData> all;
    for (const auto& [name, v] : graph_.outputs())
      all.push_back(copy_from(dispatcher_, executable_.output(name)));
    return all;
  }

 private:
  const Graph& graph_;
  Dispatcher& dispatcher_;
  Executable executable_;
  std::vector<SampleData> storage_;
};

// How far apart two forms of the same arithmetic may be: f32 sums in another order; for 16-bit data also
// intermediates that one of them rounds; for low-bit weights activations that kernels may quantize to 8 bits.
double tolerance(const Graph& unfused) {
  double bound = 1e-4;
  for (const Value& v : unfused.values()) {
    const DType t = v.tensor.dtype;
    if (t == DType::f16) bound = std::max(bound, 1e-2);
    if (t == DType::bf16) bound = std::max(bound, 4e-2);
    if (dtype_info(t).is_block || needs_scales(t)) bound = std::max(bound, 2e-2);
  }
  return bound;
}

double largest_error(const std::vector<SampleData>& unfused, const std::vector<SampleData>& fused) {
  double worst = 0;
  for (std::size_t i = 0; i < unfused.size(); ++i)
    worst = std::max(worst, relative_difference(unfused[i].view, fused[i].view));
  return worst;
}

struct Times {
  double unfused_ms, fused_ms;
};

// Interleaved, so that both meet the same disturbances; the least of each, which disturbances only add to.
Times time_interleaved(Form& unfused, Form& fused) {
  constexpr double kEnoughMs = 40, kTooLongMs = 500;
  constexpr int kEnoughRounds = 7, kFewestRounds = 3;
  Times best{unfused.run_ms(), fused.run_ms()};
  double spent = best.unfused_ms + best.fused_ms;
  for (int round = 1;
       round < kFewestRounds || (spent < kTooLongMs && (round < kEnoughRounds || spent < kEnoughMs));
       ++round) {
    const Times t{unfused.run_ms(), fused.run_ms()};
    best = {std::min(best.unfused_ms, t.unfused_ms), std::min(best.fused_ms, t.fused_ms)};
    spent += t.unfused_ms + t.fused_ms;
  }
  return best;
}

// Rounds of device time: the least of each.
Times time_on_device(Form& unfused, Form& fused) {
  Times best{unfused.device_ms(), fused.device_ms()};
  return {std::min(best.unfused_ms, unfused.device_ms()), std::min(best.fused_ms, fused.device_ms())};
}

// Launches that cannot be recorded are timed by the host's clock.
bool has_device_clock(const Dispatcher& d, const Form& unfused, const Form& fused) {
  return d.backend().time && unfused.recordable() && fused.recordable();
}

// Whether the fused form is kept. What it may cost is within the noise of a measurement, and of one run's clock: at equal
// speed fewer launches are better, and a graph that keeps less in memory is worth a little time.
bool worth_it(const Verdict& v) {
  constexpr double kNoise = 1.02, kForLessMemory = 1.05, kClockMs = 0.0005;
  return v.fused_ms <= (v.fused_bytes < v.unfused_bytes ? kForLessMemory : kNoise) * v.unfused_ms + kClockMs;
}

}  // namespace

Trial::Trial(const GraphRewriter& graph, const Match& match, const Graph& sizes)
    : unfused(Extractor(graph, match, sizes).unfused()), fused(Extractor(graph, match, sizes).fused()) {}

std::string Trial::signature() const {
  std::string text;
  for (const Graph* g : {&fused, &unfused})
    for (const Node& n : g->nodes())
      text += fmt::format("{}{} {}", text.empty() ? "" : "; ", op_name(n.op()),
                          describe(n.op(), n.params.data()));
  return text;
}

void measure(const Trial& trial, Dispatcher& dispatcher, Verdict& verdict) {
  PackCache packs;
  const auto data = sample_inputs(trial.unfused);
  Form unfused(trial.unfused, dispatcher, kFusedFamilies | kVanilla, packs, data);
  Form fused(trial.fused, dispatcher, kFusedFamilies, packs, data);
  unfused.run_ms();  // the first run of each is the one compared, and warms up
  fused.run_ms();

  verdict.unfused_bytes = static_cast<double>(unfused.peak_bytes());
  verdict.fused_bytes = static_cast<double>(fused.peak_bytes());
  verdict.max_error = largest_error(unfused.outputs(), fused.outputs());
  const double bound = tolerance(trial.unfused);
  if (!(verdict.max_error <= bound)) {
    verdict.keep = false;
    verdict.reason =
        fmt::format("results differ by {:.2g} of the largest, {:.2g} allowed", verdict.max_error, bound);
    return;
  }
  const bool on_device = has_device_clock(dispatcher, unfused, fused);
  verdict.unfused_ms = verdict.fused_ms = std::numeric_limits<double>::infinity();
  // A verdict against a rule is remembered for long, and a busy moment must not give it: it takes three times the rounds.
  constexpr int kTrials = 3;
  for (int trial = 0; trial < kTrials && !verdict.keep; ++trial) {
    const Times t = on_device ? time_on_device(unfused, fused) : time_interleaved(unfused, fused);
    verdict.unfused_ms = std::min(verdict.unfused_ms, t.unfused_ms);
    verdict.fused_ms = std::min(verdict.fused_ms, t.fused_ms);
    verdict.keep = worth_it(verdict);
  }
  verdict.reason = fmt::format("{:.4g} ms unfused, {:.4g} ms fused", verdict.unfused_ms, verdict.fused_ms);
}

}  // namespace kf
