// Rules read backwards: what an op is made of.

#include <algorithm>

#include "graph/pattern.h"
#include "graph/reflect.h"
#include "kf/rules.h"

namespace kf {
namespace {

using SlotValues = std::vector<std::pair<int, ValueId>>;  // slot index -> value

bool has_edge(const std::vector<PatternEdge>& edges, int slot) {
  return std::any_of(edges.begin(), edges.end(), [&](const PatternEdge& e) { return e.slot == slot; });
}

// Whether the rule makes ops of exactly this form.
bool makes(const Pattern& p, const AnyParams& params) {
  const Replacement& r = p.rule->replacement;
  if (r.op != params.op()) return false;
  const auto slots = op_slots(params.op());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const bool known = has_edge(p.inputs, static_cast<int>(i)) || has_edge(p.outputs, static_cast<int>(i));
    if (slots[i].in(params.data()).present() && !known) return false;
  }
  for (const PatternEdge& e : p.inputs)
    if (!e.optional && !slots[e.slot].in(params.data()).present()) return false;

  AnyParams constants(r.op);
  for (const auto& [attr, text] : r.constant_attrs) set_attr_text(constants, attr, text);
  const auto expected = attrs_of(constants);
  const auto actual = attrs_of(params);
  for (std::size_t i = 0; i < actual.size(); ++i) {
    bool taken = false;
    for (const PatternStep& s : p.steps) {
      for (const auto& [attr, own] : s.taken) {
        if (attr != actual[i].name) continue;
        taken = true;
        for (const auto& required : s.required)
          if (required.attr == own &&
              std::find(required.values.begin(), required.values.end(),
                        std::get<std::string_view>(actual[i].value)) == required.values.end())
            return false;
      }
    }
    if (!taken && !is_free_attr(params.op(), actual[i].name) && actual[i].value != expected[i].value)
      return false;
  }
  return true;
}

const Pattern* rule_making(const AnyParams& params) {
  for (const Pattern& p : builtin_patterns())
    if (makes(p, params)) return &p;
  return nullptr;
}

class Composer {
 public:
  explicit Composer(Graph& g) : g_(g) {}

  // Adds the primitive nodes of an op; returns its outputs, the optional ones as far as `want` has them.
  SlotValues expand(const AnyParams& params, const SlotValues& inputs, const std::vector<int>& want) {
    const Pattern* p = rule_making(params);
    if (p == nullptr) return call(params, inputs, want);

    std::vector<ValueId> values(p->values.size());
    std::vector<char> wanted(p->values.size(), 0);
    for (const PatternEdge& e : p->inputs) values[e.value] = find(inputs, e.slot);
    const auto slots = op_slots(params.op());
    for (const PatternEdge& e : p->outputs)
      wanted[e.value] = !slots[e.slot].optional || std::find(want.begin(), want.end(), e.slot) != want.end();

    for (const PatternStep& step : p->steps) {
      SlotValues step_inputs;
      std::vector<int> step_want;
      for (const PatternEdge& e : step.inputs)
        if (values[e.value].valid()) step_inputs.emplace_back(e.slot, values[e.value]);
      for (const PatternEdge& e : step.outputs)
        if (wanted[e.value]) step_want.push_back(e.slot);
      const SlotValues made = expand(step_params(step, params, values), step_inputs, step_want);
      for (const PatternEdge& e : step.outputs) values[e.value] = find(made, e.slot);
    }
    SlotValues outputs;
    for (const PatternEdge& e : p->outputs)
      if (wanted[e.value]) outputs.emplace_back(e.slot, values[e.value]);
    return outputs;
  }

 private:
  static ValueId find(const SlotValues& list, int slot) {
    for (auto [i, v] : list)
      if (i == slot) return v;
    return {};
  }

  // A pattern node with the attributes that the whole op took over from it. Its tensors tell which form it
  // has.
  AnyParams step_params(const PatternStep& step, const AnyParams& whole,
                        const std::vector<ValueId>& values) const {
    AnyParams params(step.op);
    for (const auto& r : step.required) set_attr(params, r.attr, r.values.front());
    for (const auto& [attr, own] : step.taken) set_attr(params, own, *get_attr(whole, attr));
    for (const auto& d : step.dims) {
      const TensorView& t = g_.value(values[d.value]).tensor;
      const bool means_nothing =
          std::any_of(d.unless.begin(), d.unless.end(), [&](int u) { return values[u].valid(); });
      if (!means_nothing && d.dim < t.rank) set_attr(params, d.attr, t.dim(d.dim));
    }
    for (const PatternEdge& e : step.inputs)
      if (values[e.value].valid())
        op_slots(step.op)[e.slot].in(params.data()) = g_.value(values[e.value]).tensor;
    return params;
  }

  SlotValues call(const AnyParams& params, const SlotValues& inputs, const std::vector<int>& want) {
    const auto slots = op_slots(params.op());
    Bindings bindings;
    for (auto [slot, v] : inputs) bindings.emplace_back(slots[slot].name, v);
    std::vector<std::string_view> names;
    for (int slot : want) names.push_back(slots[slot].name);
    SlotValues outputs;
    for (const auto& [name, v] : g_.call(params, bindings, names).outputs)
      outputs.emplace_back(find_slot(params.op(), name), v);
    return outputs;
  }

  Graph& g_;
};

}  // namespace

std::optional<Graph> unfused_composition(const AnyParams& params) {
  if (rule_making(params) == nullptr) return std::nullopt;
  Graph g;
  const auto slots = op_slots(params.op());
  SlotValues inputs;
  std::vector<int> want;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const TensorView& t = slots[i].in(params.data());
    if (!t.present()) continue;
    if (slots[i].reads()) inputs.emplace_back(static_cast<int>(i), g.input(std::string(slots[i].name), t));
    if (slots[i].writes()) want.push_back(static_cast<int>(i));
  }
  for (auto [slot, v] : Composer(g).expand(params, inputs, want)) {
    const TensorView& t = slots[slot].in(params.data());
    const std::string name(slots[slot].name);
    if (slots[slot].role == Role::inout || !t.present())
      g.output(name, v);
    else
      g.output(name, v, t);
  }
  return g;
}

}  // namespace kf
