// Each rule, by running a graph before and after it; and what must not be fused.

#include "graph_fixture.h"

namespace kf::testing {
namespace {

using Ops = std::vector<std::string>;

void expect_fused(const GraphBuilder& b, const std::vector<std::string>& rules, const Ops& ops) {
  const Graph after = apply_rules(b.graph, rules);
  EXPECT_EQ(ops_of(after), ops) << after.to_text();
  expect_near(run_graph(b.graph, b.data), run_graph(after, b.data));
}

void expect_untouched(const GraphBuilder& b, const std::vector<std::string>& rules) {
  EXPECT_EQ(ops_of(apply_rules(b.graph, rules)), ops_of(b.graph));
}

// ---- Attention

struct AttentionForm {
  const char* name;
  bool causal, lse;
  enum { dense, packed, paged } layout;
};

class AttentionRule : public ::testing::TestWithParam<AttentionForm> {};

TEST_P(AttentionRule, EqualsItsParts) {
  const AttentionForm form = GetParam();
  GraphBuilder b(form.name);
  AttentionScoresParams scores;
  AttentionMaskParams mask;
  AttentionValuesParams values;
  scores.softmax_scale = 0.2f;
  Bindings tables;
  ValueId q, k, v;
  if (form.layout == AttentionForm::dense) {
    q = b.floats("q", {2, 3, 4, 8});
    k = b.floats("k", {2, 5, 2, 8});
    v = b.floats("v", {2, 5, 2, 8});
    mask.seqlen_k = 5;
  } else if (form.layout == AttentionForm::packed) {
    q = b.floats("q", {5, 4, 8});
    k = b.floats("k", {7, 2, 8});
    v = b.floats("v", {7, 2, 8});
    tables = {{"cu_seqlens_q", b.input("cu_q", b.make.integers(DType::i32, {0, 3, 5}))},
              {"cu_seqlens_k", b.input("cu_k", b.make.integers(DType::i32, {0, 3, 7}))}};
  } else {
    q = b.floats("q", {5, 4, 8});
    k = b.floats("k", {6, 4, 2, 8});
    v = b.floats("v", {6, 4, 2, 8});
    scores.tables.kv_layout = mask.tables.kv_layout = values.tables.kv_layout = KvLayout::nhd;
    tables = {{"cu_seqlens_q", b.input("cu_q", b.make.integers(DType::i32, {0, 3, 5}))},
              {"block_tables", b.input("pages", b.make.table({{4, 1}, {0, 5}}))},
              {"context_lens", b.input("lens", b.make.integers(DType::i32, {5, 8}))}};
  }
  const auto with_tables = [&](Bindings inputs) {
    inputs.insert(inputs.end(), tables.begin(), tables.end());
    return inputs;
  };
  ValueId s = b.call(scores, with_tables({{"q", q}, {"k", k}}));
  if (form.causal) s = b.call(mask, with_tables({{"scores", s}}));
  const CallResult softmax = b.graph.call(SoftmaxParams{}, {{"x", s}}, {"lse"});
  b.graph.output("out", b.call(values, with_tables({{"probs", softmax["out"]}, {"v", v}})));
  if (form.lse) b.graph.output("lse", softmax["lse"]);
  expect_fused(b, {form.causal ? "attention_causal" : "attention_full"}, {"attention"});
  const Graph after = apply_rules(b.graph, {form.causal ? "attention_causal" : "attention_full"});
  EXPECT_EQ(after.nodes()[0].output("lse").valid(), form.lse);
}

INSTANTIATE_TEST_SUITE_P(Forms, AttentionRule,
                         ::testing::Values(AttentionForm{"dense", true, false, AttentionForm::dense},
                                           AttentionForm{"dense_full_lse", false, true, AttentionForm::dense},
                                           AttentionForm{"packed", true, true, AttentionForm::packed},
                                           AttentionForm{"paged", true, true, AttentionForm::paged},
                                           AttentionForm{"paged_full", false, false, AttentionForm::paged}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(FusionRules, MaskOfAnotherLengthIsNoCausalAttention) {
  GraphBuilder b("mask");
  const ValueId q = b.floats("q", {1, 3, 2, 8}), k = b.floats("k", {1, 5, 2, 8}),
                v = b.floats("v", {1, 5, 2, 8});
  AttentionMaskParams mask;
  mask.seqlen_k = 4;
  const ValueId s = b.call(mask, {{"scores", b.call(AttentionScoresParams{}, {{"q", q}, {"k", k}})}});
  const ValueId p = b.call(SoftmaxParams{}, {{"x", s}});
  b.graph.output("out", b.call(AttentionValuesParams{}, {{"probs", p}, {"v", v}}));
  expect_untouched(b, {"attention_causal", "attention_full"});
}

// A window, slopes and a mask go with the mask node, the cap with the scores; causal or not is two rules.
TEST(FusionRules, BiasedAttention) {
  for (const bool causal : {true, false}) {
    GraphBuilder b(causal ? "biased_causal" : "biased");
    AttentionScoresParams scores;
    scores.softcap = 2.0f;
    AttentionMaskParams mask;
    mask.seqlen_k = 7;
    mask.causal = causal;
    mask.window_left = 3;
    mask.window_right = 2;
    const ValueId q = b.floats("q", {2, 5, 4, 8}), k = b.floats("k", {2, 7, 2, 8}),
                  v = b.floats("v", {2, 7, 2, 24});
    const ValueId slopes = b.input("slopes", b.make.uniform(DType::f32, {4}, 0, 1)),
                  bias = b.floats("bias", {1, 4, 5, 7});
    const ValueId s = b.call(
        mask,
        {{"scores", b.call(scores, {{"q", q}, {"k", k}})}, {"alibi_slopes", slopes}, {"attn_mask", bias}});
    const ValueId p = b.call(SoftmaxParams{}, {{"x", s}});
    b.graph.output("out", b.call(AttentionValuesParams{}, {{"probs", p}, {"v", v}}));
    const std::string rule = causal ? "attention_causal" : "attention_masked";
    expect_fused(b, {rule}, {"attention"});
    expect_untouched(b, {"attention_full", causal ? "attention_masked" : "attention_causal"});
  }
}

// ---- Rope and the cache

struct RopeGraph : GraphBuilder {
  RopeGraph(std::string_view seed, bool qk_norm) : GraphBuilder(seed) {
    const auto tables = make_rope_tables(16, 8, 10000.0);
    cos = graph.constant("cos", tables.cos);
    sin = graph.constant("sin", tables.sin);
    kept = tables;
    positions = input("positions", make.integers(DType::i32, {3, 4, 5}));
    const ValueId q = floats("q", {3, 4, 8}), k = floats("k", {3, 2, 8}), v = floats("v", {3, 2, 8});
    const ValueId q_rotated = rope(qk_norm ? norm(q, "q_norm") : q);
    const ValueId k_rotated = rope(qk_norm ? norm(k, "k_norm") : k);
    const CallResult r =
        graph.call(AppendKvParams{}, {{"k", k_rotated},
                                      {"v", v},
                                      {"slot_mapping", input("slots", make.integers(DType::i64, {5, -1, 2}))},
                                      {"k_cache", floats("k_cache", {2, 2, 4, 8})},
                                      {"v_cache", floats("v_cache", {2, 2, 4, 8})}});
    graph.output("q_out", q_rotated);
    graph.output("k_cache_out", r["k_cache"]);
    graph.output("v_cache_out", r["v_cache"]);
  }
  ValueId rope(ValueId x) {
    return call(RopeParams{}, {{"x", x}, {"positions", positions}, {"cos", cos}, {"sin", sin}});
  }
  ValueId norm(ValueId x, const char* name) {
    RmsNormParams p;
    p.eps = 1e-5f;
    p.weight_offset = 0.5f;
    return call(p, {{"x", x}, {"weight", weight(name, {8})}});
  }
  RopeTables kept;
  ValueId cos, sin, positions;
};

TEST(FusionRules, RopeAppend) { expect_fused(RopeGraph("rope", false), {"rope_append"}, {"rope_append"}); }

TEST(FusionRules, QkNormRope) {
  expect_fused(RopeGraph("qk", true), {"qk_norm_rope"}, {"rope", "rope", "append_kv"});
  expect_fused(RopeGraph("qk", true), {"qk_norm_rope", "rope_append"}, {"rope_append"});
}

// ---- Linear layers

struct QkvGraph : GraphBuilder {
  explicit QkvGraph(std::string_view seed, Op norm_op = Op::linear, bool bias = true) : GraphBuilder(seed) {
    ValueId x = floats("x", {3, 16});
    if (norm_op == Op::rms_norm)
      x = call(RmsNormParams{.weight_offset = 0.5f}, {{"x", x}, {"weight", weight("norm", {16})}});
    if (norm_op == Op::layer_norm)
      x = call(LayerNormParams{},
               {{"x", x}, {"weight", weight("norm", {16})}, {"bias", weight("norm_bias", {16})}});
    normed = x;
    // Each projection is used before the next is made.
    graph.output("q", activation(Activation::silu, project(x, "wq", 24, bias)));
    graph.output("k", graph.reshape(project(x, "wk", 8, bias), {3, 2, 4}));
    graph.output("v", project(x, "wv", 8, false));
  }
  ValueId project(ValueId x, const std::string& name, std::int64_t out, bool bias) {
    Bindings inputs = {{"x", x}, {"weight", weight(name, {out, 16})}};
    if (bias) inputs.emplace_back("bias", weight(name + ".bias", {out}));
    return call(LinearParams{}, inputs);
  }
  ValueId normed;
};

TEST(FusionRules, QkvMerge) {
  const QkvGraph b("qkv");
  expect_fused(b, {"qkv_merge"}, {"qkv_linear", "activation"});
  const Graph after = apply_rules(b.graph, {"qkv_merge"});
  const auto& p = after.nodes()[0].params.as<QkvLinearParams>();
  EXPECT_EQ(p.q.dim(1), 24);
  EXPECT_TRUE(p.k_bias.present());
  EXPECT_FALSE(p.v_bias.present());
}

TEST(FusionRules, QkvTakesItsNorm) {
  expect_fused(QkvGraph("qkv_rms", Op::rms_norm), {"qkv_merge", "rms_norm_qkv"},
               {"qkv_linear", "activation"});
  expect_fused(QkvGraph("qkv_ln", Op::layer_norm), {"qkv_merge", "layer_norm_qkv"},
               {"qkv_linear", "activation"});
  QkvGraph used("qkv_used", Op::rms_norm);
  used.graph.output("normed", used.normed);
  expect_fused(used, {"qkv_merge", "rms_norm_qkv"}, {"rms_norm", "qkv_linear", "activation"});
}

TEST(FusionRules, QkvDependingOnItselfIsNotMerged) {
  GraphBuilder b("cycle");
  const ValueId x = b.floats("x", {1, 8});
  const ValueId q = b.linear(x, b.weight("wq", {8, 8}));
  const ValueId k = b.linear(x, b.weight("wk", {8, 8}));
  const ValueId bias = b.graph.reshape(b.activation(Activation::relu, q), {8});
  const ValueId v = b.call(LinearParams{}, {{"x", x}, {"weight", b.weight("wv", {8, 8})}, {"bias", bias}});
  b.graph.output("k", k);
  b.graph.output("v", v);
  expect_untouched(b, {"qkv_merge"});
}

struct FfnGraph : GraphBuilder {
  explicit FfnGraph(std::string_view seed, Op norm_op = Op::rms_norm) : GraphBuilder(seed) {
    x = floats("x", {3, 16});
    const ValueId w = weight("norm", {16});
    y = norm_op == Op::rms_norm ? call(RmsNormParams{.weight_offset = 0.5f}, {{"x", x}, {"weight", w}})
                                : call(LayerNormParams{}, {{"x", x}, {"weight", w}});
    gate = linear(y, weight("gate", {24, 16}));
    up = linear(y, weight("up", {24, 16}));
    // The product's operands in the other order than the rule writes them.
    product = binary(BinaryKind::mul, up, activation(Activation::gelu, gate));
    down = linear(product, weight("down", {16, 24}));
    sum = binary(BinaryKind::add, x, down);
    graph.output("out", sum);
  }
  ValueId x, y, gate, up, product, down, sum;
};

TEST(FusionRules, GatedFfn) {
  expect_fused(FfnGraph("ffn"), {"gated_ffn"}, {"rms_norm", "gated_ffn", "binary"});
  expect_fused(FfnGraph("ffn"), {"gated_ffn", "ffn_residual"}, {"rms_norm", "gated_ffn"});
  expect_fused(FfnGraph("ffn"), {"gated_ffn", "rms_norm_ffn", "ffn_residual"}, {"gated_ffn"});
  expect_fused(FfnGraph("ffn_ln", Op::layer_norm), {"gated_ffn", "layer_norm_ffn", "ffn_residual"},
               {"gated_ffn"});
  expect_fused(FfnGraph("ffn"), {"gated_activation"},
               {"rms_norm", "linear", "linear", "gated_activation", "linear", "binary"});
}

TEST(FusionRules, InteriorValuesThatOthersNeedStay) {
  FfnGraph as_output("ffn");
  as_output.graph.output("product", as_output.product);
  expect_untouched(as_output, {"gated_ffn"});
  FfnGraph used("ffn");
  used.graph.output("gate", used.activation(Activation::relu, used.gate));
  expect_untouched(used, {"gated_ffn"});
  FfnGraph viewed("ffn");
  viewed.graph.output("half", viewed.graph.view(viewed.product, {3, 12}, {24, 1}, 12));
  expect_untouched(viewed, {"gated_ffn"});
}

TEST(FusionRules, LinearEpilogues) {
  GraphBuilder b("epilogue");
  const ValueId x = b.floats("x", {3, 16});
  const ValueId h =
      b.call(LinearParams{}, {{"x", x}, {"weight", b.weight("w", {16, 16})}, {"bias", b.weight("b", {16})}});
  b.graph.output("out", b.binary(BinaryKind::add, b.activation(Activation::gelu_tanh, h), x));
  expect_fused(b, {"linear_activation"}, {"linear", "binary"});
  expect_fused(b, {"linear_activation", "linear_residual"}, {"linear"});
  expect_untouched(b, {"linear_residual"});
}

// y = x W^T + (x A^T) B^T, and the whole layer around it.
struct AdapterGraph : GraphBuilder {
  explicit AdapterGraph(std::int64_t rank, DType dtype = DType::f32) : GraphBuilder("adapter") {
    const ValueId x = floats("x", {3, 32});
    const ValueId y = call(RmsNormParams{}, {{"x", x}, {"weight", weight("norm", {32})}});
    const ValueId base =
        call(LinearParams{}, {{"x", y}, {"weight", weight("w", {24, 32})}, {"bias", weight("b", {24})}});
    const ValueId a = graph.constant("a", make.normal(dtype, {rank, 32}, 0.3f));
    const ValueId low = linear(y, a);
    const ValueId sum = binary(BinaryKind::add, base, linear(low, weight("lora_b", {24, rank})));
    graph.output("out", activation(Activation::silu, sum));
  }
};

TEST(FusionRules, Adapters) {
  expect_fused(AdapterGraph(4), {"lora_linear"}, {"rms_norm", "linear", "activation"});
  expect_fused(AdapterGraph(4), {"lora_linear", "linear_activation", "rms_norm_linear"}, {"linear"});
}

TEST(FusionRules, ASecondLayerIsNoAdapter) {
  expect_fused(AdapterGraph(16), {"lora_linear"}, {"rms_norm", "linear", "activation"});
  expect_untouched(AdapterGraph(17), {"lora_linear"});
  expect_untouched(AdapterGraph(8, DType::q8_0), {"lora_linear"});
}

TEST(FusionRules, LinearPrologues) {
  for (const auto& [kind, rule] :
       {std::pair{Activation::silu, "silu_linear"}, std::pair{Activation::gelu, "gelu_linear"},
        std::pair{Activation::gelu_tanh, "gelu_linear"}, std::pair{Activation::relu, "relu_linear"}}) {
    GraphBuilder b(rule);
    b.graph.output("out", b.linear(b.activation(kind, b.floats("x", {3, 16})), b.weight("w", {8, 16})));
    expect_fused(b, {rule}, {"linear"});
  }
  for (Op op : {Op::rms_norm, Op::layer_norm}) {
    GraphBuilder b("norm");
    const Bindings norm = {{"x", b.floats("x", {3, 16})}, {"weight", b.weight("n", {16})}};
    const ValueId y = b.graph.call(AnyParams(op), norm).out();
    b.graph.output("out", b.linear(y, b.weight("w", {8, 16})));
    expect_fused(b, {std::string(op_name(op)) + "_linear"}, {"linear"});
  }
}

TEST(FusionRules, AttributesThatWouldBeLostForbid) {
  GraphBuilder b("lost");
  LinearParams activated;
  activated.activation = Activation::silu;
  const ValueId y = b.call(activated, {{"x", b.floats("x", {3, 16})}, {"weight", b.weight("w", {8, 16})}});
  b.graph.output("out", b.activation(Activation::relu, y));
  expect_untouched(b, {"linear_activation"});
}

TEST(FusionRules, LmHeadArgmax) {
  GraphBuilder b("head");
  const ValueId x = b.call(RmsNormParams{}, {{"x", b.floats("x", {3, 16})}, {"weight", b.weight("n", {16})}});
  const CallResult r =
      b.graph.call(ArgmaxParams{}, {{"logits", b.linear(x, b.weight("w", {50, 16}))}}, {"max"});
  b.graph.output("ids", r["ids"]);
  b.graph.output("max", r["max"]);
  expect_fused(b, {"lm_head_argmax"}, {"rms_norm", "lm_head_argmax"});
  expect_fused(b, {"lm_head_argmax", "rms_norm_lm_head"}, {"lm_head_argmax"});
}

// ---- Norms

TEST(FusionRules, ResidualNorm) {
  for (Op op : {Op::rms_norm, Op::layer_norm}) {
    for (bool sum_goes_on : {true, false}) {
      GraphBuilder b(op_name(op));
      const ValueId sum = b.binary(BinaryKind::add, b.floats("x", {3, 16}), b.floats("r", {3, 16}));
      b.graph.output("out", b.graph.call(AnyParams(op), {{"x", sum}, {"weight", b.weight("w", {16})}}).out());
      if (sum_goes_on) b.graph.output("sum", b.activation(Activation::silu, sum));
      const std::string rule = std::string("residual_") + op_name(op);
      expect_fused(b, {rule}, sum_goes_on ? Ops{op_name(op), "activation"} : Ops{op_name(op)});
      EXPECT_EQ(apply_rules(b.graph, {rule}).nodes()[0].output("residual_out").valid(), sum_goes_on);
    }
  }
}

// ---- Outputs in 8 bits

// Writes y in 8 bits, with scales of its own or a given one.
void add_quantize(GraphBuilder& b, ValueId y, CodeDType codes, bool given) {
  Bindings inputs = {{"x", y}};
  if (given) inputs.emplace_back("static_scale", b.input("scale", b.make.filled(DType::f32, {1}, 0.02f)));
  QuantizeParams p;
  p.quantization.dtype = codes;
  const CallResult q = given ? b.graph.call(p, inputs) : b.graph.call(p, inputs, {"out_scales"});
  b.graph.output("codes", q["out"]);
  if (!given) b.graph.output("scales", q["out_scales"]);
}

TEST(FusionRules, QuantizedOutputs) {
  for (const CodeDType codes : {CodeDType::i8, CodeDType::fp8_e4m3, CodeDType::fp8_e5m2}) {
    for (const bool given : {false, true}) {
      for (Op op : {Op::rms_norm, Op::layer_norm}) {
        GraphBuilder b(op_name(op));
        const ValueId sum = b.binary(BinaryKind::add, b.floats("x", {3, 16}), b.floats("r", {3, 16}));
        add_quantize(b, b.graph.call(AnyParams(op), {{"x", sum}, {"weight", b.weight("w", {16})}}).out(),
                     codes, given);
        expect_fused(b, {std::string(op_name(op)) + "_quantize"}, {"binary", op_name(op)});
        expect_fused(b, {std::string("residual_") + op_name(op), std::string(op_name(op)) + "_quantize"},
                     {op_name(op)});
      }
      GraphBuilder b("gated");
      add_quantize(
          b,
          b.call(GatedActivationParams{}, {{"gate", b.floats("g", {3, 16})}, {"up", b.floats("u", {3, 16})}}),
          codes, given);
      expect_fused(b, {"gated_activation_quantize"}, {"gated_activation"});
      GraphBuilder c("activation");
      add_quantize(c, c.activation(Activation::gelu, c.floats("x", {3, 16})), codes, given);
      expect_fused(c, {"activation_quantize"}, {"activation"});
    }
  }
}

TEST(FusionRules, WhatIsReadUnquantizedStays) {
  GraphBuilder b("read_twice");
  const ValueId y = b.activation(Activation::silu, b.floats("x", {3, 16}));
  add_quantize(b, y, CodeDType::i8, false);
  b.graph.output("y", y);
  expect_untouched(b, {"activation_quantize"});
}

// ---- Views between matched nodes

TEST(FusionRules, ReshapesThatKeepTheRowsAreSeenThrough) {
  GraphBuilder b("rows");
  const ValueId sum = b.binary(BinaryKind::add, b.floats("x", {2, 3, 16}), b.floats("r", {2, 3, 16}));
  const ValueId rows = b.graph.reshape(sum, {6, 16});
  b.graph.output("out", b.call(RmsNormParams{}, {{"x", rows}, {"weight", b.weight("w", {16})}}));
  expect_fused(b, {"residual_rms_norm"}, {"rms_norm"});
}

TEST(FusionRules, ReshapesThatChangeTheRowsAreNot) {
  GraphBuilder b("heads");
  const ValueId sum = b.binary(BinaryKind::add, b.floats("x", {3, 16}), b.floats("r", {3, 16}));
  const ValueId heads = b.graph.reshape(sum, {3, 2, 8});
  b.graph.output("out", b.call(RmsNormParams{}, {{"x", heads}, {"weight", b.weight("w", {8})}}));
  expect_untouched(b, {"residual_rms_norm"});
}

TEST(FusionRules, ElementwiseOpsTakeAnyShape) {
  GraphBuilder b("elementwise");
  const ValueId x = b.floats("x", {3, 16}), up = b.floats("up", {3, 2, 8});
  const ValueId a = b.graph.reshape(b.activation(Activation::silu, b.graph.reshape(x, {3, 2, 8})), {3, 2, 8});
  b.graph.output("out", b.binary(BinaryKind::mul, a, up));
  expect_fused(b, {"gated_activation"}, {"gated_activation"});

  GraphBuilder c("linear");
  const ValueId y = c.linear(c.floats("x", {3, 16}), c.weight("w", {16, 16}));
  c.graph.output("out", c.activation(Activation::relu, c.graph.reshape(y, {3, 4, 4})));
  expect_fused(c, {"linear_activation"}, {"linear"});
}

// ---- fuse()

TEST(Fuse, UnknownRulesAreNamed) {
  FfnGraph b("names");
  EXPECT_THROW(fuse(b.graph, {}, {.only = {"no_such_rule"}}, default_dispatcher()), Error);
}

TEST(Fuse, PoliciesChooseRules) {
  FfnGraph b("policies");
  const auto ops = [&](const FusionPolicy& policy) {
    return fuse(b.graph, {}, policy, default_dispatcher()).nodes().size();
  };
  using Mode = FusionPolicy::Mode;
  EXPECT_EQ(ops({.mode = Mode::none}), b.graph.nodes().size());
  EXPECT_EQ(ops({.mode = Mode::all, .only = {"gated_activation"}}), b.graph.nodes().size() - 1);
  EXPECT_LT(ops({.mode = Mode::all}), ops({.mode = Mode::all, .except = {"gated_ffn"}}));
}

TEST(Fuse, FusedKernelsGiveTheSame) {
  FfnGraph b("kernels");
  const Graph fused = fuse(b.graph, {}, {.mode = FusionPolicy::Mode::all}, default_dispatcher());
  EXPECT_LT(fused.nodes().size(), b.graph.nodes().size());
  expect_near(run_graph(b.graph, b.data),
              run_graph(fused, b.data, {.families = kFused | kLibrary | kCustom | kVanilla}));
}

TEST(Fuse, MeasuresOnceAndRemembers) {
  FfnGraph b("measured");
  VerdictStore store;
  std::vector<Applied> first, second;
  fuse(b.graph, {}, {}, default_dispatcher(), &store, &first);
  const std::vector<Verdict> verdicts = store.list();
  ASSERT_FALSE(verdicts.empty());
  for (const Verdict& v : verdicts) {
    EXPECT_GT(v.unfused_ms, 0) << v.rule;
    EXPECT_GT(v.fused_ms, 0) << v.rule;
    EXPECT_LT(v.max_error, 1e-4) << v.rule;
  }
  // A verdict that is put overrules the measured one, and nothing is measured again.
  Verdict overruled = verdicts.front();
  overruled.keep = !overruled.keep;
  overruled.reason = "overruled";
  store.put(overruled);
  fuse(b.graph, {}, {.only = {overruled.rule}}, default_dispatcher(), &store, &second);
  EXPECT_EQ(store.list().size(), verdicts.size());
  for (const Applied& a : second) {
    EXPECT_EQ(a.kept, overruled.keep);
    EXPECT_EQ(a.reason, "overruled");
  }
}

// A norm and its linear layer over rows of which there are `num_tokens`, a symbol.
struct SymbolicRows : GraphBuilder {
  SymbolicRows() : GraphBuilder("rounded") {
    const ValueId x = graph.input("x", DType::f32, {graph.symbol("num_tokens"), 16});
    const ValueId y =
        call(RmsNormParams{.weight_offset = 0.5f}, {{"x", x}, {"weight", weight("norm", {16})}});
    graph.output("out", linear(y, weight("w", {8, 16})));
  }
};

TEST(Fuse, VerdictsAreSharedBySizesUpToAPowerOfTwo) {
  SymbolicRows b;
  VerdictStore store;
  const auto verdicts_after = [&](std::int64_t num_tokens) {
    fuse(b.graph, {{"num_tokens", num_tokens}}, {}, default_dispatcher(), &store);
    return store.list().size();
  };
  const std::size_t once = verdicts_after(100);
  ASSERT_GT(once, 0u);
  for (const Verdict& v : store.list()) EXPECT_NE(v.signature.find("128"), std::string::npos) << v.signature;
  EXPECT_EQ(verdicts_after(65), once);
  EXPECT_EQ(verdicts_after(128), once);
  EXPECT_EQ(verdicts_after(129), 2 * once);
  // Kernels for a few tokens differ: these sizes are exact.
  EXPECT_EQ(verdicts_after(9), 3 * once);
  EXPECT_EQ(verdicts_after(16), 4 * once);
}

TEST(Fuse, SizesThatDoNotGoTogetherAreMeasuredAsTheyAre) {
  GraphBuilder b("apart");
  const ValueId x = b.graph.input("x", DType::f32, {b.graph.symbol("num_tokens"), 16});
  const ValueId sum = b.binary(BinaryKind::add, x, b.floats("r", {100, 16}));
  b.graph.output("out", b.call(RmsNormParams{}, {{"x", sum}, {"weight", b.weight("w", {16})}}));
  VerdictStore store;
  fuse(b.graph, {{"num_tokens", 100}}, {}, default_dispatcher(), &store);
  ASSERT_EQ(store.list().size(), 1u);
  EXPECT_EQ(store.list().front().signature.find("128"), std::string::npos);
  EXPECT_GT(store.list().front().unfused_ms, 0);
}

}  // namespace
}  // namespace kf::testing
