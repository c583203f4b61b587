// Fusion rules: what may become one op. Data, so that they can be listed, switched off, measured, and read
// backwards: the pattern is also the unfused composition of the op that replaces it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kf/dispatch.h"
#include "kf/graph.h"

namespace kf {

class VerdictStore;

using NamePairs = std::vector<std::pair<std::string, std::string>>;

// An attribute that repeats a dimension of an operand: checked going forward, filled in going backward.
struct DimAttr {
  std::string attr;   // "seqlen_k"
  std::string value;  // the pattern value, "k"
  int dim = 0;
  std::vector<std::string> unless;  // without meaning where one of these pattern values is bound
};

struct PatternNode {
  std::string name;  // "h": how attributes refer to it
  Op op;
  // slot -> pattern value. A value not produced by a pattern node is an operand of the whole. A trailing '?'
  // on the slot: bound when the node has it, absent when not. Slots not listed must be absent. A weight listed stands
  // for its scales, zeros and group size too.
  NamePairs inputs;
  NamePairs outputs;
  // attribute -> required value ("kind" -> "mul"), or values ("silu|relu"). An attribute that is neither
  // required nor taken over by the replacement must have its default value.
  NamePairs require = {};
  std::vector<DimAttr> dims = {};
};

struct Replacement {
  Op op;
  NamePairs inputs;   // slot -> pattern value; '?' as in a pattern
  NamePairs outputs;  // slot -> pattern value; an optional slot is left out where nobody else uses the value
  // attribute -> "node.attribute"; the same attribute from several nodes: they must agree
  NamePairs attrs = {};
  NamePairs constant_attrs = {};  // attribute -> value
};

struct Rule {
  std::string name;  // "residual_rms_norm"
  std::string flag;  // the KernelFusionConfig switch that governs it: "fuse_rmsnorm"
  std::string summary;
  // In dependence order, one node that all others feed or share an operand with last. Values used outside
  // must be outputs of the replacement.
  std::vector<PatternNode> pattern;
  Replacement replacement;
  // Beyond the pattern: given the params of the replacement (shapes, attributes; no data), may it be applied?
  Support (*condition)(const AnyParams& replacement) = nullptr;
};

const std::vector<Rule>& builtin_rules();  // in the order of application

// Which rules apply.
struct FusionPolicy {
  enum class Mode : std::uint8_t { none, all, measured };
  Mode mode = Mode::measured;
  std::vector<std::string> only;    // non-empty: just these rules
  std::vector<std::string> except;  // never these
};

struct Applied {  // what rewriting did, for explain
  std::string rule, label;
  bool kept = false;
  std::string reason;
};

// A rewritten copy for these symbol values, which it no longer has as symbols. A rule is applied only where a
// fused kernel serves its replacement. Measures where the policy says so and the store does not know.
Graph fuse(const Graph& graph, const SymbolValues& symbols, const FusionPolicy& policy,
           Dispatcher& dispatcher, VerdictStore* store = nullptr, std::vector<Applied>* applied = nullptr);

// The unfused composition of an op as a graph of primitive ops, from the rules read backwards, recursively;
// operands are inputs and outputs named after the op's slots. nullopt: a primitive, or a form that no rule
// makes.
std::optional<Graph> unfused_composition(const AnyParams& params);

}  // namespace kf
