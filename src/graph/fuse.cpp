// Applying the rules: which, where, and whether it pays.

#include <algorithm>
#include <bit>
#include <unordered_map>

#include <fmt/format.h>

#include "core/log.h"
#include "graph/match.h"
#include "graph/measure.h"
#include "kf/error.h"
#include "kf/rules.h"
#include "kf/verdict_store.h"

namespace kf {
namespace {

// What a verdict depends on besides the call: the machine, how many threads work, and the user's own kernels.
std::string device_key(const Dispatcher& d) {
  std::string key = fmt::format("{} {} {} threads", d.caps().name, d.caps().isa, d.num_threads());
  for (const Kernel* k : d.kernels())
    if (k->families & kCustom) key += " " + k->name;
  return key;
}

void check_names(const FusionPolicy& policy) {
  for (const auto* names : {&policy.only, &policy.except}) {
    for (const std::string& name : *names) {
      const auto& rules = builtin_rules();
      if (std::any_of(rules.begin(), rules.end(), [&](const Rule& r) { return r.name == name; })) continue;
      std::string known;
      for (const Rule& r : rules) known += (known.empty() ? "" : ", ") + r.name;
      throw_invalid(fmt::format("fusion rule: expected one of {}, got {}", known, name));
    }
  }
}

bool enabled(const FusionPolicy& policy, const Rule& rule) {
  const auto names = [&](const std::vector<std::string>& list) {
    return std::find(list.begin(), list.end(), rule.name) != list.end();
  };
  return (policy.only.empty() || names(policy.only)) && !names(policy.except);
}

// The sizes that verdicts are measured at and remembered by. Prompts have any length, and what pays for 300
// tokens pays for 400, so large dimensions go up to the next power of two. Small ones, the batches of decoding,
// are few, and kernels differ from one to the next.
SymbolValues measured_sizes(const SymbolValues& symbols) {
  constexpr std::int64_t kExactUpTo = 16;
  SymbolValues rounded = symbols;
  for (auto& [name, size] : rounded)
    if (size > kExactUpTo) size = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(size)));
  return rounded;
}

struct Decision {
  bool keep = false;
  std::string reason;
};

// Decides on matches; equal ones (the same layer again) once.
class Judge {
 public:
  // `measured`: the graph that matches are found in, at the sizes to measure.
  Judge(const FusionPolicy& policy, Dispatcher& dispatcher, VerdictStore& store, Graph measured)
      : policy_(policy),
        dispatcher_(dispatcher),
        store_(store),
        device_(device_key(dispatcher)),
        measured_graph_(std::move(measured)) {}

  const Decision& decide(const GraphRewriter& graph, const Match& match) {
    const AnyParams& params = match.replacement.params;
    std::string key = match.pattern->rule->name;
    append_plan_key(params.op(), params.data(), key);
    // The unfused form is part of the question: its nodes may be fused ones already.
    for (int id : match.nodes) append_plan_key(graph.node(id).op(), graph.node(id).params.data(), key);
    const auto it = decisions_.find(key);
    if (it != decisions_.end()) return it->second;
    return decisions_.emplace(std::move(key), decide_anew(graph, match)).first->second;
  }

  bool measured() const { return measured_; }

 private:
  Decision decide_anew(const GraphRewriter& graph, const Match& match) {
    if (Support s = served(graph, match); !s) return {false, s.reason()};
    if (policy_.mode == FusionPolicy::Mode::all) return {true, "applied wherever it is served"};
    try {
      return decide_at(graph, match, measured_graph_);
    } catch (const Error&) {  // sizes that do not go together, rounded each for itself: the real ones do
    }
    try {
      return decide_at(graph, match, graph.graph());
    } catch (const Error& e) {
      // The replacement is served, as was asked: what is not is the matched nodes, which could not run as they are.
      const bool only_fused = e.code() == ErrorCode::not_implemented;
      return {only_fused,
              fmt::format("{}: {}", only_fused ? "only the fused form is served" : "could not be measured",
                          e.what())};
    }
  }

  Decision decide_at(const GraphRewriter& graph, const Match& match, const Graph& sizes) {
    const Trial trial(graph, match, sizes);
    Verdict v;
    v.rule = match.pattern->rule->name;
    v.signature = trial.signature();
    v.device = device_;
    if (const auto known = store_.find(v.rule, v.signature, v.device)) return {known->keep, known->reason};
    measure(trial, dispatcher_, v);
    store_.put(v);
    measured_ = true;
    return {v.keep, v.reason};
  }

  // Whether a fused kernel takes the replacement. Nothing is prepared: this is asked at every rebuild.
  Support served(const GraphRewriter& graph, const Match& match) {
    AnyParams params = match.replacement.params;
    bool weights_constant = true;
    const auto slots = op_slots(params.op());
    for (auto [slot, v] : match.replacement.inputs) {
      const Value& value = graph.graph().value(v);
      if (value.kind == ValueKind::constant)
        slots[slot].in(params.data()).data = value.tensor.data;
      else if (slots[slot].is_weight)
        weights_constant = false;
    }
    const PlanContext ctx{dispatcher_.caps(), dispatcher_, dispatcher_.num_threads(),
                          weights_constant ? &packs_ : nullptr};
    std::string reasons;
    for (const Kernel* k : dispatcher_.kernels(params.op())) {
      if ((k->families & kFusedFamilies) == 0) continue;
      const Support s = k->supports(params.data(), ctx);
      if (s) return Support::yes();
      reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", k->name, s.reason());
    }
    return Support::no(reasons.empty() ? fmt::format("no fused kernel of {}", op_name(params.op()))
                                       : reasons);
  }

  const FusionPolicy& policy_;
  Dispatcher& dispatcher_;
  VerdictStore& store_;
  std::string device_;
  Graph measured_graph_;
  PackCache packs_;  // stays empty: its presence tells kernels that weights are constant
  std::unordered_map<std::string, Decision> decisions_;
  bool measured_ = false;
};

}  // namespace

Graph fuse(const Graph& graph, const SymbolValues& symbols, const FusionPolicy& policy,
           Dispatcher& dispatcher, VerdictStore* store, std::vector<Applied>* applied) {
  check_names(policy);
  if (policy.mode == FusionPolicy::Mode::none) return graph.with_symbols(symbols);
  VerdictStore memory;
  VerdictStore& verdicts = store ? *store : memory;
  Judge judge(policy, dispatcher, verdicts, graph.with_symbols(measured_sizes(symbols)));
  GraphRewriter rewriter(graph.with_symbols(symbols));
  for (const Pattern& pattern : builtin_patterns()) {
    if (!enabled(policy, *pattern.rule)) continue;
    for (int anchor : rewriter.nodes_of(pattern.steps.back().op)) {
      if (!rewriter.alive(anchor)) continue;
      const auto match = find_match(rewriter, pattern, anchor);
      if (!match) continue;
      const Decision& decision = judge.decide(rewriter, *match);
      if (applied != nullptr)
        applied->push_back({pattern.rule->name, match->replacement.label, decision.keep, decision.reason});
      if (decision.keep) rewriter.apply(*match);
    }
  }
  if (judge.measured()) {
    try {
      verdicts.save();
    } catch (const Error& e) {
      log_warning(fmt::format("{}; the next run measures again", e.what()));
    }
  }
  return rewriter.take();
}

}  // namespace kf
