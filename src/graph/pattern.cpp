#include "graph/pattern.h"

#include <algorithm>
#include <stdexcept>

#include <fmt/format.h>

namespace kf {
namespace {

// A rule that does not fit its ops is a mistake in the rule table, found when the table is first read.
[[noreturn]] void fail_rule(const Rule& rule, const std::string& what) {
  throw std::logic_error(fmt::format("rule {}: {}", rule.name, what));
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const auto end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

class PatternBuilder {
 public:
  PatternBuilder(Pattern& p, const Rule& rule) : p_(p), rule_(rule) {}

  void build() {
    for (const PatternNode& n : rule_.pattern) p_.steps.push_back(step(n));
    p_.inputs = edges(rule_.replacement.op, rule_.replacement.inputs);
    p_.outputs = edges(rule_.replacement.op, rule_.replacement.outputs);
    p_.producers.resize(p_.values.size());
    for (std::size_t i = 0; i < p_.steps.size(); ++i)
      for (const PatternEdge& e : p_.steps[i].outputs) p_.producers[e.value] = {static_cast<int>(i), e.slot};
    for (const auto& [attr, source] : rule_.replacement.attrs) take(attr, source);
    for (std::size_t i = 0; i < p_.inputs.size(); ++i)
      for (const char* suffix : {"_group_size", "_n", "_m"}) take_companion(p_.inputs[i], suffix);
  }

 private:
  int value(std::string_view name) {
    const auto it = std::find(p_.values.begin(), p_.values.end(), name);
    if (it != p_.values.end()) return static_cast<int>(it - p_.values.begin());
    p_.values.emplace_back(name);
    return static_cast<int>(p_.values.size()) - 1;
  }

  std::vector<PatternEdge> edges(Op op, const NamePairs& pairs) {
    std::vector<PatternEdge> out;
    for (const auto& [slot_text, value_name] : pairs) {
      std::string_view slot = slot_text;
      const bool optional = slot.ends_with('?');
      if (optional) slot.remove_suffix(1);
      const int index = find_slot(op, slot);
      if (index < 0) fail_rule(rule_, fmt::format("{} has no operand {}", op_name(op), slot));
      out.push_back({index, value(value_name), optional});
      // An operand means what it is read with too.
      for (const char* suffix : {"_scales", "_zeros", "_mask", "_offsets"})
        if (const int companion = find_slot(op, std::string(slot) + suffix); companion >= 0)
          out.push_back({companion, value(value_name + suffix), true});
    }
    return out;
  }

  // Where the operand has such an attribute (a group size, a pattern of sparsity), it is that of the same operand in the
  // pattern.
  void take_companion(const PatternEdge& operand, const char* suffix) {
    const auto own = companion_attr(rule_.replacement.op, operand.slot, suffix);
    if (own.empty()) return;
    for (PatternStep& s : p_.steps)
      for (const PatternEdge& e : s.inputs)
        if (e.value == operand.value) s.taken.emplace_back(own, companion_attr(s.op, e.slot, suffix));
  }

  static std::string_view companion_attr(Op op, int slot, const char* suffix) {
    const std::string name = std::string(op_slots(op)[static_cast<std::size_t>(slot)].name) + suffix;
    for (const Attr& a : default_attrs(op))
      if (a.name == name) return a.name;
    return {};
  }

  PatternStep step(const PatternNode& n) {
    PatternStep s;
    s.op = n.op;
    s.inputs = edges(n.op, n.inputs);
    s.outputs = edges(n.op, n.outputs);
    for (const auto& [attr, values] : n.require) s.required.push_back({attr, split(values, '|')});
    for (const DimAttr& d : n.dims) {
      s.dims.push_back({d.attr, value(d.value), d.dim, {}});
      for (const std::string& name : d.unless) s.dims.back().unless.push_back(value(name));
    }
    s.commutative = n.op == Op::binary;
    return s;
  }

  void take(std::string_view attr, std::string_view source) {
    const auto parts = split(source, '.');
    for (std::size_t i = 0; i < rule_.pattern.size(); ++i) {
      if (parts.size() != 2 || rule_.pattern[i].name != parts[0]) continue;
      p_.steps[i].taken.emplace_back(attr, parts[1]);
      return;
    }
    fail_rule(rule_, fmt::format("attribute {} comes from {}, which is no node's", attr, source));
  }

  Pattern& p_;
  const Rule& rule_;
};

}  // namespace

Pattern::Pattern(const Rule& r) : rule(&r) { PatternBuilder(*this, r).build(); }

const std::vector<Pattern>& builtin_patterns() {
  static const std::vector<Pattern> kPatterns(builtin_rules().begin(), builtin_rules().end());
  return kPatterns;
}

bool is_free_attr(Op op, std::string_view name) {
  if (name == "out_dtype") return op == Op::attention_values;  // elsewhere it makes another op
  return name == "eps" || name == "norm_eps" || name == "seqlen_k_max";
}

}  // namespace kf
