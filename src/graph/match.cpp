#include "graph/match.h"

#include <algorithm>

#include <fmt/format.h>

#include "kf/error.h"

namespace kf {
namespace {

bool contains(std::span<const int> list, int id) {
  return std::find(list.begin(), list.end(), id) != list.end();
}

// ---- Legality of a complete match

class Replacer {
 public:
  Replacer(const GraphRewriter& g, Match& m) : g_(g), m_(m), p_(*m.pattern) {}

  // Fills the match's replacement and the sides of the nodes between; false: not legal.
  bool build() {
    return interior_is_private() && operands_come_from_outside() && attributes_agree() && split_between() &&
           make_node();
  }

 private:
  bool is_output(int value) const {
    return std::any_of(p_.outputs.begin(), p_.outputs.end(),
                       [&](const PatternEdge& e) { return e.value == value; });
  }

  bool interior_is_private() const {
    for (std::size_t i = 0; i < p_.values.size(); ++i) {
      const ValueId v = m_.values[i];
      if (v.valid() && p_.producers[i].step >= 0 && !is_output(static_cast<int>(i)) &&
          g_.used_outside(v, m_.nodes))
        return false;
    }
    return true;
  }

  // An operand may not be a view, or an in-place version, of what the match itself computes.
  bool operands_come_from_outside() const {
    for (std::size_t i = 0; i < p_.values.size(); ++i) {
      if (p_.producers[i].step >= 0) continue;
      for (ValueId v = m_.values[i]; v.valid(); v = g_.graph().value(v).base)
        if (const int n = g_.def(v).node; n >= 0 && contains(m_.nodes, n)) return false;
    }
    return true;
  }

  bool attributes_agree() const {
    for (std::size_t i = 0; i < p_.steps.size(); ++i) {
      const PatternStep& step = p_.steps[i];
      const auto defaults = default_attrs(step.op);
      const auto attrs = attrs_of(g_.node(m_.nodes[i]).params);
      for (std::size_t a = 0; a < attrs.size(); ++a)
        if (!attribute_fits(step, attrs[a], defaults[a].value)) return false;
    }
    return true;
  }

  bool attribute_fits(const PatternStep& step, const Attr& attr, const AttrValue& default_value) const {
    for (const auto& r : step.required) {
      if (r.attr != attr.name) continue;
      const auto* name = std::get_if<std::string_view>(&attr.value);
      return name != nullptr && std::find(r.values.begin(), r.values.end(), *name) != r.values.end();
    }
    for (const auto& d : step.dims) {
      if (d.attr != attr.name) continue;
      for (int u : d.unless)
        if (m_.values[u].valid()) return true;
      const TensorView& t = g_.graph().value(m_.values[d.value]).tensor;
      return d.dim < t.rank && attr.value == AttrValue(t.dim(d.dim));
    }
    for (const auto& [theirs, own] : step.taken)
      if (own == attr.name) return true;
    return is_free_attr(step.op, attr.name) || attr.value == default_value;
  }

  // Which side of the replacement the nodes between the matched ones go to; false where one would be on both.
  bool split_between() {
    int first = g_.position(m_.nodes.front()), last = first;
    for (int id : m_.nodes) {
      first = std::min(first, g_.position(id));
      last = std::max(last, g_.position(id));
    }
    std::vector<int> seen;  // matched nodes and those that depend on them
    for (int at = first; at <= last; ++at) {
      const int id = g_.node_at(at);
      if (id < 0) continue;
      const bool matched = contains(m_.nodes, id);
      if (matched && depends_on(id, m_.after)) return false;
      if (matched || depends_on(id, seen)) seen.push_back(id);
      if (!matched) (contains(seen, id) ? m_.after : m_.before).push_back(id);
    }
    return true;
  }

  // By reading what one of `others` computes, or writing in place what one of them touches.
  bool depends_on(int id, std::span<const int> others) const {
    const Node& n = g_.node(id);
    for (auto [slot, v] : n.inputs)
      if (const int d = g_.def(g_.view_source(v)).node; d >= 0 && contains(others, d)) return true;
    const auto slots = op_slots(n.op());
    for (auto [slot, v] : n.inputs) {
      if (slots[slot].role != Role::inout) continue;
      const ValueId root = g_.graph().root(v);
      for (int other : others)
        for (auto [other_slot, w] : g_.node(other).inputs)
          if (g_.graph().root(w) == root) return true;
    }
    return false;
  }

  bool make_node() {
    const Rule& rule = *p_.rule;
    Node node{AnyParams(rule.replacement.op), label(), {}, {}};
    const auto slots = op_slots(node.op());
    for (const PatternEdge& e : p_.inputs) {
      const ValueId v = m_.values[e.value];
      if (!v.valid()) continue;
      set_tensor(slots[e.slot].in(node.params.data()), v);
      node.inputs.emplace_back(e.slot, v);
    }
    if (!take_attributes(node.params)) return false;

    op_info(node.op()).infer(node.params.data());
    for (const SlotInfo& s : slots)
      if (s.role == Role::out && s.optional) wanted_or_absent(s, node.params);
    for (const PatternEdge& e : p_.outputs) {
      const ValueId v = m_.values[e.value];
      const TensorView& made = slots[e.slot].in(node.params.data());
      if (!v.valid() || !made.present()) continue;
      const TensorView& old = g_.graph().value(v).tensor;
      if (made.dtype != old.dtype || made.numel() != old.numel()) return false;
      node.outputs.emplace_back(e.slot, v);
    }
    try {
      op_info(node.op()).validate(node.params.data());
    } catch (const Error&) {
      return false;  // shapes that the nodes take one by one, but not the op that would replace them
    }
    if (rule.condition != nullptr && !rule.condition(node.params)) return false;
    m_.replacement = std::move(node);
    return true;
  }

  void set_tensor(TensorView& t, ValueId v) const {
    t = g_.graph().value(v).tensor;
    t.data = nullptr;
  }

  void wanted_or_absent(const SlotInfo& s, AnyParams& params) const {
    for (const PatternEdge& e : p_.outputs)
      if (op_slots(params.op())[e.slot].name == s.name && m_.values[e.value].valid() &&
          g_.used_outside(m_.values[e.value], m_.nodes))
        return;
    s.in(params.data()) = {};
  }

  bool take_attributes(AnyParams& params) const {
    std::vector<Attr> taken;
    for (std::size_t i = 0; i < p_.steps.size(); ++i) {
      for (const auto& [attr, own] : p_.steps[i].taken) {
        const AttrValue value = *get_attr(g_.node(m_.nodes[i]).params, own);
        for (const Attr& t : taken)
          if (t.name == attr && t.value != value) return false;
        taken.push_back({attr, value});
        set_attr(params, attr, value);
      }
    }
    for (const auto& [attr, text] : p_.rule->replacement.constant_attrs) set_attr_text(params, attr, text);
    return true;
  }

  // What the labels of the matched nodes share ("layers.3"), and the rule.
  std::string label() const {
    std::string_view prefix = g_.node(m_.nodes.front()).label;
    for (int id : m_.nodes) {
      const std::string& other = g_.node(id).label;
      std::size_t n = 0;
      while (n < prefix.size() && n < other.size() && prefix[n] == other[n]) ++n;
      prefix = prefix.substr(0, n);
    }
    const auto dot = prefix.rfind('.');
    return dot == std::string_view::npos ? p_.rule->name
                                         : fmt::format("{}.{}", prefix.substr(0, dot), p_.rule->name);
  }

  const GraphRewriter& g_;
  Match& m_;
  const Pattern& p_;
};

// ---- Unification, from the last step backwards

class Matcher {
 public:
  Matcher(const GraphRewriter& g, const Pattern& p, int anchor) : g_(g), p_(p), anchor_(anchor) {}

  std::optional<Match> find() {
    if (g_.node(anchor_).op() != p_.steps.back().op) return std::nullopt;
    int commutative = 0;
    for (const PatternStep& s : p_.steps) commutative += s.commutative;
    for (exchanged_ = 0; exchanged_ < 1u << commutative; ++exchanged_) {
      State s{std::vector<int>(p_.steps.size(), -1), std::vector<ValueId>(p_.values.size())};
      if (!unify(s, static_cast<int>(p_.steps.size()) - 1, anchor_)) continue;
      if (auto match = complete(s)) return match;
    }
    return std::nullopt;
  }

 private:
  struct State {
    std::vector<int> nodes;
    std::vector<ValueId> values;
  };

  bool unify(State& s, int step, int node) const {
    if (s.nodes[step] >= 0) return s.nodes[step] == node;
    const PatternStep& wanted = p_.steps[step];
    const Node& n = g_.node(node);
    if (n.op() != wanted.op || contains(s.nodes, node)) return false;
    s.nodes[step] = node;
    for (auto [slot, v] : n.outputs) {
      const PatternEdge* e = wanted.output(slot);
      if (e == nullptr) return false;
      s.values[e->value] = v;
    }
    std::size_t bound = 0;
    for (const PatternEdge& e : wanted.inputs) {
      const ValueId v = input(n, exchange(step, e.slot));
      if (!v.valid()) {
        if (e.optional) continue;
        return false;
      }
      ++bound;
      if (!unify_value(s, e.value, v, n.op())) return false;
    }
    return bound == n.inputs.size();
  }

  bool unify_value(State& s, int value, ValueId v, Op consumer) const {
    const auto producer = p_.producers[value];
    if (producer.step < 0) {
      ValueId& bound = s.values[value];
      if (bound.valid()) return g_.equivalent(bound, v);
      bound = v;
      return true;
    }
    const auto def = g_.def(g_.see_through(v, consumer));
    return def.node >= 0 && def.slot == producer.slot && unify(s, producer.step, def.node);
  }

  // Steps that no dataflow leads to share an operand with those found (three linear layers of one input): the
  // nearest before the anchor is tried first.
  std::optional<Match> complete(const State& s) const {
    int step = static_cast<int>(p_.steps.size()) - 1;
    while (step >= 0 && s.nodes[step] >= 0) --step;
    if (step < 0) {
      if (!optional_operands_agree(s)) return std::nullopt;
      Match m{&p_, s.nodes, s.values, {}, {}, {}};
      if (Replacer(g_, m).build()) return m;
      return std::nullopt;
    }
    for (int node : candidates(s, step)) {
      State t = s;
      if (!unify(t, step, node)) continue;
      if (auto match = complete(t)) return match;
    }
    return std::nullopt;
  }

  // An optional operand that one step has, all have that list it: without its table a step means something else.
  bool optional_operands_agree(const State& s) const {
    for (std::size_t i = 0; i < p_.steps.size(); ++i)
      for (const PatternEdge& e : p_.steps[i].inputs)
        if (s.values[e.value].valid() &&
            !input(g_.node(s.nodes[i]), exchange(static_cast<int>(i), e.slot)).valid())
          return false;
    return true;
  }

  std::vector<int> candidates(const State& s, int step) const {
    constexpr std::size_t kMaxTried = 8;
    std::vector<int> nodes;
    for (const PatternEdge& e : p_.steps[step].inputs) {
      if (p_.producers[e.value].step >= 0 || !s.values[e.value].valid()) continue;
      for (int user : g_.users(s.values[e.value]))
        if (g_.node(user).op() == p_.steps[step].op && g_.position(user) < g_.position(anchor_) &&
            !contains(s.nodes, user))
          nodes.push_back(user);
      break;
    }
    std::sort(nodes.begin(), nodes.end(), [&](int a, int b) { return g_.position(a) > g_.position(b); });
    if (nodes.size() > kMaxTried) nodes.resize(kMaxTried);
    return nodes;
  }

  static ValueId input(const Node& n, int slot) {
    for (auto [i, v] : n.inputs)
      if (i == slot) return v;
    return {};
  }

  // The slot that stands for `slot` in the orientation being tried.
  int exchange(int step, int slot) const {
    if (!p_.steps[step].commutative || slot > 1) return slot;
    int index = 0;  // of this step among the commutative ones
    for (int i = 0; i < step; ++i) index += p_.steps[i].commutative;
    return exchanged_ >> index & 1u ? 1 - slot : slot;
  }

  const GraphRewriter& g_;
  const Pattern& p_;
  int anchor_;
  unsigned exchanged_ = 0;
};

}  // namespace

std::optional<Match> find_match(const GraphRewriter& graph, const Pattern& pattern, int anchor) {
  return Matcher(graph, pattern, anchor).find();
}

}  // namespace kf
