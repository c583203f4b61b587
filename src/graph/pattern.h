// A rule with its names looked up: slots and values as numbers, so that trying a pattern costs little.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "graph/reflect.h"
#include "kf/rules.h"

namespace kf {

struct PatternEdge {
  int slot = 0;   // index into op_slots()
  int value = 0;  // pattern value
  bool optional = false;
};

struct PatternStep {
  Op op{};
  std::vector<PatternEdge> inputs, outputs;
  struct Required {
    std::string_view attr;
    std::vector<std::string_view> values;
  };
  std::vector<Required> required;
  struct Dim {
    std::string_view attr;
    int value = 0, dim = 0;
    std::vector<int> unless;
  };
  std::vector<Dim> dims;
  // Attributes that the replacement takes over: (its attribute, this node's).
  std::vector<std::pair<std::string_view, std::string_view>> taken;
  bool commutative = false;  // its first two inputs may be exchanged

  const PatternEdge* output(int slot) const { return find(outputs, slot); }

 private:
  static const PatternEdge* find(const std::vector<PatternEdge>& edges, int slot) {
    for (const PatternEdge& e : edges)
      if (e.slot == slot) return &e;
    return nullptr;
  }
};

// Views into `rule`, which must outlive it.
struct Pattern {
  explicit Pattern(const Rule& rule);

  const Rule* rule;
  std::vector<PatternStep> steps;
  std::vector<std::string> values;  // names
  // By value: the step and slot that produce it; step -1: an operand of the whole.
  struct Producer {
    int step = -1, slot = -1;
  };
  std::vector<Producer> producers;
  std::vector<PatternEdge> inputs, outputs;  // of the replacement
};

// Of builtin_rules(), in their order.
const std::vector<Pattern>& builtin_patterns();

// Whether an attribute means nothing where a rule does not take it over: it follows from shapes, or belongs
// to an optional part that is absent.
bool is_free_attr(Op op, std::string_view name);

}  // namespace kf
