// What the graph tests share: building small graphs over generated data, rewriting them by chosen rules, and
// running them on reference kernels, so that only the graph is under test.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "case.h"
#include "graph/match.h"
#include "kf/kf.h"

namespace kf::testing {

using Results = std::map<std::string, std::vector<double>>;

inline const Selection kReferenceOnly{.families = kReference, .kernel = {}};

// A graph and the data of its inputs.
class GraphBuilder {
 public:
  explicit GraphBuilder(std::string_view seed) : make(seed) {}

  ValueId input(const std::string& name, const TensorView& t) {
    data[name] = t;
    return graph.input(name, t.dtype, {t.shape.begin(), t.shape.begin() + t.rank});
  }
  ValueId floats(const std::string& name, std::initializer_list<std::int64_t> shape) {
    return input(name, make.normal(DType::f32, shape));
  }
  ValueId weight(const std::string& name, std::initializer_list<std::int64_t> shape) {
    return graph.constant(name, make.normal(DType::f32, shape, 0.3f));
  }
  template <class P>
  ValueId call(P params, const Bindings& inputs, std::string label = {}) {
    return graph.call(params, inputs, {}, std::move(label)).out();
  }
  ValueId linear(ValueId x, ValueId w) { return call(LinearParams{}, {{"x", x}, {"weight", w}}); }
  ValueId binary(BinaryKind kind, ValueId a, ValueId b) {
    BinaryParams p;
    p.kind = kind;
    return call(p, {{"a", a}, {"b", b}});
  }
  ValueId activation(Activation kind, ValueId x) {
    ActivationParams p;
    p.kind = kind;
    return call(p, {{"x", x}});
  }

  Graph graph;
  cases::Maker make;
  std::map<std::string, TensorView> data;
};

inline std::vector<double> elements(const TensorView& t) {
  std::vector<double> out;
  for (std::int64_t i = 0; i < t.numel(); ++i) out.push_back(cases::element(t, i));
  return out;
}

inline Results run_graph(const Graph& g, const std::map<std::string, TensorView>& data,
                         const Selection& selection = kReferenceOnly, const SymbolValues& symbols = {}) {
  Executable e(g, symbols, default_dispatcher(), {.selection = selection});
  std::vector<Tensor> copies;  // inputs may be written in place
  for (const auto& [name, v] : g.inputs()) {
    const TensorView& t = data.at(name);
    Tensor copy(t.dtype, std::span(t.shape.data(), static_cast<std::size_t>(t.rank)));
    for (std::int64_t i = 0; i < t.numel(); ++i) cases::set_element(copy, i, cases::element(t, i));
    e.bind(name, copy);
    copies.push_back(copy);
  }
  e.run();
  Results results;
  for (const auto& [name, v] : g.outputs()) results[name] = elements(e.output(name));
  return results;
}

inline void expect_near(const Results& expected, const Results& actual, double tolerance = 2e-5) {
  ASSERT_EQ(expected.size(), actual.size());
  for (const auto& [name, want] : expected) {
    const std::vector<double>& got = actual.at(name);
    ASSERT_EQ(want.size(), got.size()) << name;
    for (std::size_t i = 0; i < want.size(); ++i) {
      if (want[i] == got[i]) continue;
      ASSERT_NEAR(want[i], got[i], tolerance * (1 + std::abs(want[i]))) << name << "[" << i << "]";
    }
  }
}

// Applies these rules wherever they match, whether or not a fused kernel serves the result.
inline Graph apply_rules(const Graph& g, const std::vector<std::string>& rules,
                         const SymbolValues& symbols = {}) {
  GraphRewriter rewriter(g.with_symbols(symbols));
  for (const std::string& name : rules) {
    bool known = false;
    for (const Pattern& p : builtin_patterns()) {
      if (p.rule->name != name) continue;
      known = true;
      for (int anchor : rewriter.nodes_of(p.steps.back().op))
        if (rewriter.alive(anchor))
          if (const auto match = find_match(rewriter, p, anchor)) rewriter.apply(*match);
    }
    EXPECT_TRUE(known) << name;
  }
  return rewriter.take();
}

inline std::vector<std::string> ops_of(const Graph& g) {
  std::vector<std::string> names;
  for (const Node& n : g.nodes()) names.emplace_back(op_name(n.op()));
  return names;
}

}  // namespace kf::testing
