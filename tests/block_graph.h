// The layers of a transformer block in primitive ops, over weights of any kind: what rules that fuse layers are tried on, since
// they have to pass on all that stands beside a weight.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "graph_fixture.h"

namespace kf::testing {

// A layer's parameters, and its weight's operands: {"weight", ...}, {"weight_scales", ...}. Tensors are kept by the graph's maker.
struct LayerWeight {
  LinearParams params;
  std::vector<std::pair<std::string, TensorView>> operands;
};

struct BlockGraph : GraphBuilder {
  // The weight of a layer by its name: q, k, v, gate, up, down or head.
  using MakeWeight =
      std::function<LayerWeight(cases::Maker&, const std::string& name, std::int64_t out, std::int64_t in)>;

  // `inputs` makes weights inputs instead of constants. Those of layer q are called q, q_scales and so on.
  explicit BlockGraph(MakeWeight make_weight, bool inputs = false)
      : GraphBuilder("block"), make_weight_(std::move(make_weight)), inputs_(inputs) {
    const ValueId x = floats("x", {3, 64});
    const ValueId y = call(RmsNormParams{}, {{"x", x}, {"weight", weight("norm", {64})}});
    graph.output("q", layer("q", y, 64, 64));
    graph.output("k", layer("k", y, 32, 64));
    graph.output("v", layer("v", y, 32, 64));
    const ValueId gate = layer("gate", x, 96, 64), up = layer("up", x, 96, 64);
    const ValueId h = binary(BinaryKind::mul, activation(Activation::silu, gate), up);
    const ValueId sum = binary(BinaryKind::add, layer("down", h, 64, 96), x);
    graph.output("out", sum);
    graph.output("ids", graph.call(ArgmaxParams{}, {{"logits", layer("head", sum, 200, 64)}})["ids"]);
  }

  // The graph after rules, which makes the fused ops of it; unfused, fused and taken apart again it computes the same.
  Graph fused() const {
    Graph after =
        apply_rules(graph, {"qkv_merge", "gated_ffn", "lm_head_argmax", "rms_norm_qkv", "ffn_residual"});
    EXPECT_EQ(ops_of(after), (std::vector<std::string>{"qkv_linear", "gated_ffn", "lm_head_argmax"}))
        << after.to_text();
    expect_near(run_graph(graph, data), run_graph(after, data));
    const Results by_fused = run_graph(after, data, {.families = kFused, .kernel = {}});
    expect_near(run_graph(graph, data), by_fused, 1e-4);
    expect_near(run_graph(after, data, {.families = kVanilla, .kernel = {}}), by_fused, 1e-4);
    return after;
  }

 private:
  ValueId layer(const std::string& name, ValueId x, std::int64_t out, std::int64_t in) {
    const LayerWeight w = make_weight_(make, name, out, in);
    Bindings operands = {{"x", x}};
    for (const auto& [operand, t] : w.operands) {
      const std::string what = name + operand.substr(std::string("weight").size());
      operands.emplace_back(operand,
                            inputs_ ? graph.input(what, t.dtype, {t.shape.begin(), t.shape.begin() + t.rank})
                                    : graph.constant(what, t));
    }
    return call(w.params, operands);
  }
  MakeWeight make_weight_;
  bool inputs_;
};

}  // namespace kf::testing
