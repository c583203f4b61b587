// Rules read backwards: every composite op equals its composition of primitives, and the rows made of them.

#include <thread>

#include "graph_fixture.h"

namespace kf::testing {
namespace {

struct Composite {
  std::string name;
  AnyParams (*make)(cases::Maker&);
  std::vector<std::string> primitives;
};

TensorView f32(cases::Maker& m, std::initializer_list<std::int64_t> shape, float stddev = 1) {
  return m.normal(DType::f32, shape, stddev);
}

Prologue norm_prologue(cases::Maker& m, NormKind kind, std::int64_t n) {
  Prologue p;
  p.norm = kind;
  p.eps = 1e-3f;
  p.norm_weight = f32(m, {n});
  if (kind == NormKind::layer) p.norm_bias = f32(m, {n});
  return p;
}

Prologue activation_prologue(Activation kind) {
  Prologue p;
  p.activation = kind;
  return p;
}

AttentionParams dense_attention(cases::Maker& m, bool causal) {
  AttentionParams p;
  p.q = f32(m, {2, 3, 4, 8});
  p.k = f32(m, {2, 5, 2, 8});
  p.v = f32(m, {2, 5, 2, 8});
  p.lse = f32(m, {2, 4, 3});
  p.causal = causal;
  return p;
}

AnyParams paged_attention(cases::Maker& m) {
  AttentionParams p;
  p.q = f32(m, {5, 4, 8});
  p.k = f32(m, {6, 2, 4, 8});
  p.v = f32(m, {6, 2, 4, 8});
  p.tables.cu_seqlens_q = m.integers(DType::i32, {0, 3, 5});
  p.tables.block_tables = m.table({{4, 1}, {0, 5}});
  p.tables.context_lens = m.integers(DType::i32, {5, 8});
  p.softmax_scale = 0.3f;
  return p;
}

// Codes as they come, and scales for each token and head.
TensorView codes(cases::Maker& m, std::initializer_list<std::int64_t> shape) {
  m.storage().push_back(Tensor(DType::i8, shape));
  const TensorView t = m.storage().back();
  for (std::int64_t i = 0; i < t.numel(); ++i)
    cases::set_element(t, i, static_cast<double>(m.rng()() % 255) - 127);
  return t;
}

AnyParams quantized_attention(cases::Maker& m) {
  AttentionParams p = dense_attention(m, true);
  p.k = codes(m, {2, 5, 2, 8}), p.v = codes(m, {2, 5, 2, 8});
  p.k_quantization.scales = m.uniform(DType::f32, {2, 5, 2, 1}, 0.005f, 0.01f);
  p.v_quantization.scales = m.uniform(DType::f16, {1, 1, 2, 1}, 0.005f, 0.01f);
  p.v_quantization.zeros = codes(m, {1, 1, 2, 1});
  return p;
}

// All that attention's primitives know of.
AnyParams featured_attention(cases::Maker& m, bool causal) {
  AttentionParams p = dense_attention(m, causal);
  p.v = f32(m, {2, 5, 2, 16});
  p.window_left = 2;
  p.window_right = 1;
  p.softcap = 1.5f;
  p.alibi_slopes = m.uniform(DType::f32, {2, 4}, 0, 1);
  p.attn_mask = f32(m, {2, 1, 3, 5});
  return p;
}

AnyParams tree_attention(cases::Maker& m) {
  AttentionParams p = paged_attention(m).as<AttentionParams>();
  p.causal = false;
  p.attn_mask = m.filled(DType::boolean, {1, 5, 8}, 1);
  for (std::int64_t i = 0; i < 40; i += 3) cases::set_element(p.attn_mask, i, 0);
  return p;
}

AnyParams block_sparse_attention(cases::Maker& m, bool causal) {
  AttentionParams p = dense_attention(m, causal);
  p.sparsity = {
      .block_layout = m.filled(DType::boolean, {1, 4, 2, 3}, 1), .block_size_q = 2, .block_size_k = 2};
  for (std::int64_t i = 1; i < 24; i += 3) cases::set_element(p.sparsity.block_layout, i, 0);
  return p;
}

AnyParams kept_attention(cases::Maker& m) {
  AttentionParams p = dense_attention(m, false);
  p.sparsity.keep_n = 1, p.sparsity.keep_m = 2;
  return p;
}

AnyParams listed_attention(cases::Maker& m) {
  AttentionParams p = paged_attention(m).as<AttentionParams>();
  p.sparsity = {.block_layout = m.filled(DType::i32, {1, 2, 1, 3}, -1), .block_size_k = 4};
  cases::set_element(p.sparsity.block_layout, 0, 0), cases::set_element(p.sparsity.block_layout, 3, 1);
  return p;
}

LinearParams linear(cases::Maker& m) {
  LinearParams p;
  p.x = f32(m, {3, 16});
  p.weight = f32(m, {8, 16}, 0.3f);
  p.bias = f32(m, {8});
  return p;
}

AnyParams full_linear(cases::Maker& m) {
  LinearParams p = linear(m);
  p.residual = f32(m, {3, 8});
  p.activation = Activation::gelu;
  p.prologue = norm_prologue(m, NormKind::layer, 16);
  return p;
}

AnyParams gelu_linear(cases::Maker& m) {
  LinearParams p = linear(m);
  p.prologue = activation_prologue(Activation::gelu_tanh);
  return p;
}

AnyParams adapted_linear(cases::Maker& m) {
  LinearParams p = linear(m);
  p.residual = f32(m, {3, 8});
  p.activation = Activation::gelu;
  p.prologue = norm_prologue(m, NormKind::rms, 16);
  p.lora.a = f32(m, {4, 16}, 0.3f);
  p.lora.b = f32(m, {8, 4}, 0.3f);
  return p;
}

QkvLinearParams qkv(cases::Maker& m, Prologue prologue) {
  QkvLinearParams p;
  p.x = f32(m, {3, 16});
  p.q_weight = f32(m, {24, 16}, 0.3f);
  p.k_weight = f32(m, {8, 16}, 0.3f);
  p.v_weight = f32(m, {8, 16}, 0.3f);
  p.q_bias = f32(m, {24});
  p.prologue = prologue;
  return p;
}

GatedFfnParams ffn(cases::Maker& m, Prologue prologue) {
  GatedFfnParams p;
  p.x = f32(m, {3, 16});
  p.gate_weight = f32(m, {24, 16}, 0.3f);
  p.up_weight = f32(m, {24, 16}, 0.3f);
  p.down_weight = f32(m, {16, 24}, 0.3f);
  p.prologue = prologue;
  return p;
}

AnyParams full_ffn(cases::Maker& m) {
  GatedFfnParams p = ffn(m, norm_prologue(m, NormKind::rms, 16));
  p.residual = f32(m, {3, 16});
  return p;
}

AnyParams lm_head(cases::Maker& m) {
  LmHeadArgmaxParams p;
  p.x = f32(m, {3, 16});
  p.weight = f32(m, {50, 16});
  p.max = f32(m, {3});
  p.prologue = norm_prologue(m, NormKind::rms, 16);
  return p;
}

template <class P>
AnyParams residual_norm(cases::Maker& m) {
  P p;
  p.x = f32(m, {3, 16});
  p.weight = f32(m, {16});
  p.residual = f32(m, {3, 16});
  p.residual_out = f32(m, {3, 16});
  p.eps = 1e-3f;
  return p;
}

AnyParams gated_activation(cases::Maker& m) {
  GatedActivationParams p;
  const TensorView both = f32(m, {3, 32});  // gate and up as halves of one tensor
  p.gate = both.slice(1, 0, 16);
  p.up = both.slice(1, 16, 32);
  p.kind = Activation::relu;
  return p;
}

AnyParams qk_norm_rope(cases::Maker& m) {
  RopeParams p;
  p.x = f32(m, {3, 2, 8});
  p.positions = m.integers(DType::i32, {0, 4, 2});
  p.cos = m.uniform(DType::f32, {8, 4}, -1, 1);
  p.sin = m.uniform(DType::f32, {8, 4}, -1, 1);
  p.norm_weight = f32(m, {8});
  p.norm_eps = 1e-4f;
  p.interleaved = true;
  return p;
}

AnyParams rope_append(cases::Maker& m) {
  RopeAppendParams p;
  p.q = f32(m, {3, 4, 8});
  p.k = f32(m, {3, 2, 8});
  p.v = f32(m, {3, 2, 8});
  p.positions = m.integers(DType::i32, {0, 4, 2});
  p.cos = m.uniform(DType::f32, {8, 4}, -1, 1);
  p.sin = m.uniform(DType::f32, {8, 4}, -1, 1);
  p.q_norm_weight = f32(m, {8});
  p.k_norm_weight = f32(m, {8});
  p.slot_mapping = m.integers(DType::i64, {5, -1, 2});
  p.k_cache = f32(m, {2, 2, 4, 8});
  p.v_cache = f32(m, {2, 2, 4, 8});
  return p;
}

AnyParams quantized_rope_append(cases::Maker& m) {
  RopeAppendParams p = rope_append(m).as<RopeAppendParams>();
  p.k_cache = codes(m, {2, 2, 4, 8}), p.v_cache = codes(m, {2, 2, 4, 8});
  p.k_cache_quantization.scales = m.uniform(DType::f32, {2, 2, 4, 1}, 0.005f, 0.01f);
  p.v_cache_quantization.scales = m.uniform(DType::f32, {1, 1, 1, 1}, 0.005f, 0.01f);
  return p;
}

// The same call with its output in 8 bits.
template <class P>
AnyParams quantized(AnyParams params) {
  P& p = params.as<P>();
  p.out = {};
  p.quantization.dtype = CodeDType::i8;
  op_info(P::kOp).infer(params.data());
  p.out = {};
  return params;
}

const std::vector<Composite>& composites() {
  static const std::vector<Composite> kAll = {
      {"attention_causal",
       [](cases::Maker& m) -> AnyParams { return dense_attention(m, true); },
       {"attention_scores", "attention_mask", "softmax", "attention_values"}},
      {"attention_full",
       [](cases::Maker& m) -> AnyParams { return dense_attention(m, false); },
       {"attention_scores", "softmax", "attention_values"}},
      {"attention_paged",
       paged_attention,
       {"attention_scores", "attention_mask", "softmax", "attention_values"}},
      {"attention_featured",
       [](cases::Maker& m) -> AnyParams { return featured_attention(m, true); },
       {"attention_scores", "attention_mask", "softmax", "attention_values"}},
      {"attention_featured_full",
       [](cases::Maker& m) -> AnyParams { return featured_attention(m, false); },
       {"attention_scores", "attention_mask", "softmax", "attention_values"}},
      {"attention_softcap_full",
       [](cases::Maker& m) -> AnyParams {
         AttentionParams p = dense_attention(m, false);
         p.softcap = 2;
         return p;
       },
       {"attention_scores", "softmax", "attention_values"}},
      {"attention_quantized",
       quantized_attention,
       {"attention_scores", "attention_mask", "softmax", "attention_values"}},
      {"attention_tree",
       tree_attention,
       {"attention_scores", "attention_mask", "softmax", "attention_values"}},
      {"attention_block_sparse",
       [](cases::Maker& m) { return block_sparse_attention(m, true); },
       {"attention_scores", "attention_mask", "softmax", "attention_values"}},
      {"attention_block_sparse_full",
       [](cases::Maker& m) { return block_sparse_attention(m, false); },
       {"attention_scores", "attention_mask", "softmax", "attention_values"}},
      {"attention_kept",
       kept_attention,
       {"attention_scores", "attention_mask", "softmax", "attention_values"}},
      {"attention_listed",
       listed_attention,
       {"attention_scores", "attention_mask", "softmax", "attention_values"}},
      {"linear_full", full_linear, {"layer_norm", "linear", "activation", "binary"}},
      {"gelu_linear", gelu_linear, {"activation", "linear"}},
      {"linear_lora",
       adapted_linear,
       {"rms_norm", "linear", "linear", "linear", "binary", "activation", "binary"}},
      {"qkv", [](cases::Maker& m) -> AnyParams { return qkv(m, {}); }, {"linear", "linear", "linear"}},
      {"qkv_norm",
       [](cases::Maker& m) -> AnyParams { return qkv(m, norm_prologue(m, NormKind::layer, 16)); },
       {"layer_norm", "linear", "linear", "linear"}},
      {"qkv_activation",
       [](cases::Maker& m) -> AnyParams { return qkv(m, activation_prologue(Activation::relu)); },
       {"activation", "linear", "linear", "linear"}},
      {"ffn",
       [](cases::Maker& m) -> AnyParams { return ffn(m, {}); },
       {"linear", "linear", "activation", "binary", "linear"}},
      {"ffn_full", full_ffn, {"rms_norm", "linear", "linear", "activation", "binary", "linear", "binary"}},
      {"lm_head", lm_head, {"rms_norm", "linear", "argmax"}},
      {"residual_rms_norm", residual_norm<RmsNormParams>, {"binary", "rms_norm"}},
      {"residual_layer_norm", residual_norm<LayerNormParams>, {"binary", "layer_norm"}},
      {"gated_activation", gated_activation, {"activation", "binary"}},
      {"rms_norm_quantized",
       [](cases::Maker& m) { return quantized<RmsNormParams>(residual_norm<RmsNormParams>(m)); },
       {"binary", "rms_norm", "quantize"}},
      {"layer_norm_quantized",
       [](cases::Maker& m) { return quantized<LayerNormParams>(residual_norm<LayerNormParams>(m)); },
       {"binary", "layer_norm", "quantize"}},
      {"gated_activation_quantized",
       [](cases::Maker& m) { return quantized<GatedActivationParams>(gated_activation(m)); },
       {"activation", "binary", "quantize"}},
      {"activation_quantized",
       [](cases::Maker& m) -> AnyParams {
         ActivationParams p;
         p.x = f32(m, {3, 16});
         p.quantization.dtype = CodeDType::fp8_e4m3;
         p.quantization.static_scale = m.filled(DType::f32, {1}, 0.01f);
         return p;
       },
       {"activation", "quantize"}},
      {"qk_norm_rope", qk_norm_rope, {"rms_norm", "rope"}},
      {"rope_append", rope_append, {"rms_norm", "rope", "rms_norm", "rope", "append_kv"}},
      {"rope_append_quantized", quantized_rope_append, {"rms_norm", "rope", "rms_norm", "rope", "append_kv"}},
  };
  return kAll;
}

// The op's operands with outputs to write to; optional ones as the maker wanted them.
AnyParams with_outputs(const AnyParams& params, std::vector<Tensor>& storage) {
  AnyParams p = params;
  AnyParams inferred = params;
  op_info(p.op()).infer(inferred.data());
  for (const SlotInfo& s : op_slots(p.op())) {
    TensorView& t = s.in(p.data());
    if (s.role == Role::in || (s.optional && !t.present())) continue;
    const TensorView layout = s.in(inferred.data());
    const std::span<const std::int64_t> shape(layout.shape.data(), static_cast<std::size_t>(layout.rank));
    const Tensor fresh(layout.dtype, shape);
    for (std::int64_t i = 0; i < layout.numel(); ++i)
      cases::set_element(fresh, i, s.role == Role::inout ? cases::element(t, i) : NAN);
    t = fresh;
    storage.push_back(fresh);
  }
  return p;
}

Results outputs_of(const AnyParams& p) {
  Results results;
  for (const SlotInfo& s : op_slots(p.op()))
    if (s.writes() && s.in(p.data()).present()) results[std::string(s.name)] = elements(s.in(p.data()));
  return results;
}

class Composition : public ::testing::TestWithParam<Composite> {};

TEST_P(Composition, EqualsTheReference) {
  cases::Maker maker(GetParam().name);
  std::vector<Tensor> storage;
  const AnyParams params = GetParam().make(maker);
  const AnyParams whole = with_outputs(params, storage), composed = with_outputs(params, storage);

  default_dispatcher().run(whole.op(), whole.data(), kReferenceOnly);
  const auto graph = unfused_composition(composed);
  ASSERT_TRUE(graph.has_value());
  EXPECT_EQ(ops_of(*graph), GetParam().primitives);
  for (const Node& n : graph->nodes())
    EXPECT_FALSE(unfused_composition(n.params).has_value()) << op_name(n.op());

  Executable e(*graph, {}, default_dispatcher(), {.selection = kReferenceOnly});
  for (const SlotInfo& s : op_slots(composed.op())) {
    const TensorView& t = s.in(composed.data());
    if (t.present()) e.bind(s.name, t);
  }
  e.run();
  expect_near(outputs_of(whole), outputs_of(composed));
}

TEST_P(Composition, RunsAsAKernelRow) {
  cases::Maker maker(GetParam().name);
  std::vector<Tensor> storage;
  const AnyParams params = GetParam().make(maker);
  const AnyParams whole = with_outputs(params, storage);
  const Op op = whole.op();
  Dispatcher& d = default_dispatcher();
  d.run(op, whole.data(), kReferenceOnly);
  const Selection row{.kernel = "cpu::" + std::string(op_name(op)) + "_unfused"};
  const auto plan = d.plan(op, whole.data(), row);
  EXPECT_GE(plan->launches(), static_cast<int>(GetParam().primitives.size()));

  // One plan serves operands at other addresses, in several threads at once.
  std::vector<AnyParams> calls;
  for (int i = 0; i < 4; ++i) calls.push_back(with_outputs(params, storage));
  std::vector<std::thread> threads;
  for (AnyParams& call : calls)
    threads.emplace_back([&] {
      const auto workspace = allocate_host(plan->workspace_bytes());
      for (int repeat = 0; repeat < 3; ++repeat) plan->run(call.data(), {workspace.get(), 1, nullptr});
    });
  for (std::thread& t : threads) t.join();
  for (const AnyParams& call : calls) expect_near(outputs_of(whole), outputs_of(call));
}

INSTANTIATE_TEST_SUITE_P(Ops, Composition, ::testing::ValuesIn(composites()),
                         [](const auto& info) { return info.param.name; });

TEST(Compositions, EveryRuleIsReadBackwards) {
  std::map<Op, bool> covered;
  for (const Rule& r : builtin_rules()) covered.try_emplace(r.replacement.op, false);
  for (const Composite& c : composites()) {
    cases::Maker maker(c.name);
    covered[c.make(maker).op()] = true;
  }
  for (const auto& [op, done] : covered) EXPECT_TRUE(done) << op_name(op);
}

TEST(Compositions, PrimitivesHaveNone) {
  cases::Maker m("primitive");
  EXPECT_FALSE(unfused_composition(linear(m)).has_value());
  EXPECT_FALSE(unfused_composition(AnyParams(Op::softmax)).has_value());
}

TEST(Compositions, SinksHaveNone) {
  cases::Maker m("sinks");
  AttentionParams p = dense_attention(m, true);
  p.sinks = f32(m, {4});
  EXPECT_FALSE(unfused_composition(p).has_value());
}

}  // namespace
}  // namespace kf::testing
