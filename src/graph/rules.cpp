// Every fusion rule. Their order is the order of application: what is small grows (a norm joins the merged q,
// k and v; a residual joins the FFN that the norm has joined), and what reads more than one value comes
// before what would take a part of it away.

#include "kf/rules.h"
#include "kf/ops/attention.h"
#include "kf/ops/linear.h"

namespace kf {
namespace {

NamePairs joined(NamePairs a, const NamePairs& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Names that stand for themselves: slot "k" of the pattern node is value "k" is slot "k" of the replacement.
NamePairs same(std::initializer_list<const char*> names) {
  NamePairs pairs;
  for (std::string name : names) {
    std::string value = name;
    if (value.back() == '?') value.pop_back();
    pairs.emplace_back(name, value);
  }
  return pairs;
}

// ---- Attention

// Causal or not, with or without a window, slopes, a mask and a block layout; `full`: none of them, and no mask in the pattern.
enum class Masking : std::uint8_t { causal, masked, full };

Rule attention(Masking masking, std::string name, std::string summary) {
  const NamePairs tables = same({"cu_seqlens_q?", "cu_seqlens_k?", "block_tables?", "context_lens?"});
  const NamePairs biases =
      masking == Masking::full ? NamePairs{} : same({"alibi_slopes?", "attn_mask?", "block_layout?"});
  const std::string masked = masking == Masking::full ? "s" : "masked";
  NamePairs attrs = {{"softmax_scale", "scores.softmax_scale"},
                     {"softcap", "scores.softcap"},
                     {"kv_layout", "scores.kv_layout"},
                     {"kv_layout", "values.kv_layout"}};
  std::vector<PatternNode> pattern;
  pattern.push_back(
      {"scores", Op::attention_scores, joined({{"q", "q"}, {"k", "k"}}, tables), {{"scores", "s"}}});
  if (masking != Masking::full) {
    pattern.push_back(
        {"mask", Op::attention_mask, joined(joined({{"scores", "s"}}, tables), biases), {{"out", masked}}});
    pattern.back().dims = {{"seqlen_k", "k", 1, {"cu_seqlens_q", "block_tables"}}};
    for (const char* attr :
         {"kv_layout", "window_left", "window_right", "block_size_q", "block_size_k", "keep_n", "keep_m"})
      attrs.emplace_back(attr, std::string("mask.") + attr);
    if (masking == Masking::masked) attrs.emplace_back("causal", "mask.causal");
  }
  pattern.push_back({"softmax", Op::softmax, {{"x", masked}}, {{"out", "p"}, {"lse?", "lse"}}});
  pattern.push_back(
      {"values", Op::attention_values, joined({{"probs", "p"}, {"v", "v"}}, tables), {{"out", "out"}}});
  Rule rule{
      std::move(name),
      "attention_backend",
      std::move(summary),
      std::move(pattern),
      {Op::attention, joined(joined(same({"q", "k", "v"}), tables), biases), same({"out", "lse?"}), attrs}};
  if (masking == Masking::masked) {
    // What is causal is the other rule's, also where that one is switched off.
    rule.condition = [](const AnyParams& p) {
      return p.as<AttentionParams>().causal ? Support::no("causal") : Support::yes();
    };
  } else {
    rule.replacement.constant_attrs = {{"causal", masking == Masking::causal ? "true" : "false"}};
  }
  return rule;
}

Rule qk_norm_rope() {
  return {"qk_norm_rope",
          "fuse_rope",
          "the norm of each head while it is rotated",
          {{"norm", Op::rms_norm, {{"x", "x"}, {"weight", "norm_weight"}}, {{"out", "y"}}},
           {"rope", Op::rope, joined({{"x", "y"}}, same({"positions", "cos", "sin"})), {{"out", "out"}}}},
          {Op::rope,
           same({"x", "positions", "cos", "sin", "norm_weight"}),
           {{"out", "out"}},
           {{"norm_eps", "norm.eps"},
            {"norm_weight_offset", "norm.weight_offset"},
            {"interleaved", "rope.interleaved"}}}};
}

Rule rope_append() {
  const NamePairs tables = same({"positions", "cos", "sin"});
  const NamePairs caches = {{"k_cache", "new_k_cache"}, {"v_cache", "new_v_cache"}};
  return {
      "rope_append",
      "fuse_rope",
      "q rotated, k rotated and written to the cache together with v",
      {{"rope_q",
        Op::rope,
        joined({{"x", "q"}, {"norm_weight?", "q_norm_weight"}}, tables),
        {{"out", "q_out"}}},
       {"rope_k",
        Op::rope,
        joined({{"x", "k"}, {"norm_weight?", "k_norm_weight"}}, tables),
        {{"out", "k_out"}}},
       {"append", Op::append_kv, joined({{"k", "k_out"}}, same({"v", "slot_mapping", "k_cache", "v_cache"})),
        caches}},
      {Op::rope_append,
       joined(same({"q", "k", "v", "q_norm_weight?", "k_norm_weight?", "slot_mapping", "k_cache", "v_cache"}),
              tables),
       joined({{"q_out", "q_out"}}, caches),
       {{"norm_eps", "rope_q.norm_eps"},
        {"norm_eps", "rope_k.norm_eps"},
        {"norm_weight_offset", "rope_q.norm_weight_offset"},
        {"norm_weight_offset", "rope_k.norm_weight_offset"},
        {"interleaved", "rope_q.interleaved"},
        {"interleaved", "rope_k.interleaved"},
        {"kv_layout", "append.kv_layout"}}}};
}

// ---- Linear layers

// An adapter for the whole call, its scale within b.
Rule lora_linear() {
  Rule rule{"lora_linear",
            "fuse_lora",
            "a low-rank adapter added by the linear layer that it belongs to",
            {{"base", Op::linear, same({"x", "weight", "bias?"}), {{"out", "y"}}},
             {"down", Op::linear, {{"x", "x"}, {"weight", "lora_a"}}, {{"out", "t"}}},
             {"up", Op::linear, {{"x", "t"}, {"weight", "lora_b"}}, {{"out", "d"}}},
             {"add", Op::binary, {{"a", "y"}, {"b", "d"}}, {{"out", "out"}}, {{"kind", "add"}}}},
            {Op::linear, same({"x", "weight", "bias?", "lora_a", "lora_b"}), {{"out", "out"}}}};
  rule.condition = [](const AnyParams& params) {
    const auto& p = params.as<LinearParams>();
    constexpr std::int64_t kMaxRank = 512;
    for (const TensorView* t : {&p.lora.a, &p.lora.b})
      if (t->rank != 2 || !is_activation_dtype(t->dtype) || (t->dim(1) > 1 && t->stride(1) != 1))
        return Support::no(to_string(*t) + ": an adapter is f32, f16 or bf16, its rows contiguous");
    // A second layer that is as wide as the first is no low-rank adapter.
    if (p.lora.a.dim(0) > kMaxRank || 2 * p.lora.a.dim(0) > p.x.dim(1))
      return Support::no("a rank of " + std::to_string(p.lora.a.dim(0)) + " for " +
                         std::to_string(p.x.dim(1)) + " features");
    return Support::yes();
  };
  return rule;
}

Rule qkv_merge() {
  const auto projection = [](const std::string& n) -> PatternNode {
    return {n, Op::linear, {{"x", "x"}, {"weight", n + "_weight"}, {"bias?", n + "_bias"}}, {{"out", n}}};
  };
  return {"qkv_merge",
          "fuse_qkv",
          "three linear layers over one input as one",
          {projection("q"), projection("k"), projection("v")},
          {Op::qkv_linear,
           same({"x", "q_weight", "k_weight", "v_weight", "q_bias?", "k_bias?", "v_bias?"}),
           same({"q", "k", "v"}),
           {{"input_quantization", "q.input_quantization"},
            {"input_quantization", "k.input_quantization"},
            {"input_quantization", "v.input_quantization"}}}};
}

Rule gated_ffn() {
  return {"gated_ffn",
          "fuse_ffn",
          "gate, up, activation, product and down as one",
          {{"gate", Op::linear, {{"x", "x"}, {"weight", "gate_weight"}}, {{"out", "g"}}},
           {"up", Op::linear, {{"x", "x"}, {"weight", "up_weight"}}, {{"out", "u"}}},
           {"act", Op::activation, {{"x", "g"}}, {{"out", "a"}}},
           {"mul", Op::binary, {{"a", "a"}, {"b", "u"}}, {{"out", "h"}}, {{"kind", "mul"}}},
           {"down", Op::linear, {{"x", "h"}, {"weight", "down_weight"}}, {{"out", "out"}}}},
          {Op::gated_ffn,
           same({"x", "gate_weight", "up_weight", "down_weight"}),
           {{"out", "out"}},
           {{"activation", "act.kind"},
            {"input_quantization", "gate.input_quantization"},
            {"input_quantization", "up.input_quantization"},
            {"input_quantization", "down.input_quantization"}}}};
}

Rule lm_head_argmax() {
  return {"lm_head_argmax",
          "fuse_lm_head",
          "the last layer and the greedy choice, without the logits",
          {{"head", Op::linear, same({"x", "weight"}), {{"out", "logits"}}},
           {"argmax", Op::argmax, {{"logits", "logits"}}, same({"ids", "max?"})}},
          {Op::lm_head_argmax,
           same({"x", "weight"}),
           same({"ids", "max?"}),
           {{"input_quantization", "head.input_quantization"}}}};
}

// Ops with a Prologue: what they take besides x and the prologue.
struct Consumer {
  const char* name;
  Op op;
  NamePairs inputs, outputs;
  std::vector<std::string> attrs;
};

std::vector<Consumer> consumers() {
  return {{"linear",
           Op::linear,
           same({"weight", "bias?", "residual?", "lora_a?", "lora_b?", "lora_index?"}),
           {{"out", "out"}},
           {"activation", "lora_scale", "input_quantization"}},
          {"qkv",
           Op::qkv_linear,
           same({"q_weight", "k_weight", "v_weight", "q_bias?", "k_bias?", "v_bias?"}),
           same({"q", "k", "v"}),
           {"input_quantization"}},
          {"ffn",
           Op::gated_ffn,
           same({"gate_weight", "up_weight", "down_weight", "residual?"}),
           {{"out", "out"}},
           {"activation", "input_quantization"}},
          {"lm_head", Op::lm_head_argmax, same({"weight"}), same({"ids", "max?"}), {"input_quantization"}}};
}

NamePairs carried_attrs(const Consumer& c) {
  NamePairs attrs;
  for (const std::string& a : c.attrs) attrs.emplace_back(a, std::string(c.name) + "." + a);
  return attrs;
}

// The norm in front of a linear layer, computed while the layer reads its input.
Rule norm_prologue(Op norm, const Consumer& c) {
  const bool rms = norm == Op::rms_norm;
  NamePairs norm_inputs = {{"x", "x"}, {"weight", "norm_weight"}};
  NamePairs inputs = joined(same({"x", "norm_weight"}), c.inputs);
  if (!rms) {
    norm_inputs.emplace_back("bias?", "norm_bias");
    inputs.emplace_back("norm_bias?", "norm_bias");
  }
  Rule rule{
      std::string(op_name(norm)) + "_" + c.name,
      "fuse_ln_linear",
      std::string(rms ? "RMSNorm" : "LayerNorm") + " computed while " + op_name(c.op) + " reads its input",
      {{"norm", norm, norm_inputs, {{"out", "y"}}},
       {c.name, c.op, joined({{"x", "y"}}, c.inputs), c.outputs}},
      {c.op, inputs, c.outputs, joined({{"eps", "norm.eps"}}, carried_attrs(c))}};
  if (rms) rule.replacement.attrs.emplace_back("norm_weight_offset", "norm.weight_offset");
  rule.replacement.constant_attrs = {{"norm", rms ? "rms" : "layer"}};
  return rule;
}

// The activation in front of a linear layer, likewise.
Rule activation_prologue(std::string name, std::string flag, const std::string& kinds, const Consumer& c) {
  return {std::move(name),
          std::move(flag),
          std::string("activation computed while ") + op_name(c.op) + " reads its input",
          {{"act", Op::activation, {{"x", "x"}}, {{"out", "y"}}, {{"kind", kinds}}},
           {c.name, c.op, joined({{"x", "y"}}, c.inputs), c.outputs}},
          {c.op, joined({{"x", "x"}}, c.inputs), c.outputs,
           joined({{"pre_activation", "act.kind"}}, carried_attrs(c))}};
}

Rule linear_activation() {
  const NamePairs operands =
      same({"x", "weight", "bias?", "norm_weight?", "norm_bias?", "lora_a?", "lora_b?", "lora_index?"});
  return {"linear_activation",
          "fuse_ffn",
          "the activation applied to a linear layer's result before it is written",
          {{"linear", Op::linear, operands, {{"out", "y"}}},
           {"act", Op::activation, {{"x", "y"}}, {{"out", "out"}}, {{"kind", "silu|gelu|gelu_tanh|relu"}}}},
          {Op::linear,
           operands,
           {{"out", "out"}},
           {{"lora_scale", "linear.lora_scale"},
            {"activation", "act.kind"},
            {"norm", "linear.norm"},
            {"eps", "linear.eps"},
            {"norm_weight_offset", "linear.norm_weight_offset"},
            {"pre_activation", "linear.pre_activation"},
            {"input_quantization", "linear.input_quantization"}}}};
}

// The residual stream added to a layer's result before it is written.
Rule residual_epilogue(std::string name, Op op, const NamePairs& operands) {
  const NamePairs inputs = joined(same({"x", "norm_weight?", "norm_bias?"}), operands);
  Rule rule{std::move(name),
            "fuse_residual",
            std::string("the residual added to ") + op_name(op) + "'s result before it is written",
            {{"layer", op, inputs, {{"out", "y"}}},
             {"add", Op::binary, {{"a", "y"}, {"b", "residual"}}, {{"out", "out"}}, {{"kind", "add"}}}},
            {op,
             joined(inputs, {{"residual", "residual"}}),
             {{"out", "out"}},
             {{"activation", "layer.activation"},
              {"norm", "layer.norm"},
              {"eps", "layer.eps"},
              {"norm_weight_offset", "layer.norm_weight_offset"},
              {"pre_activation", "layer.pre_activation"},
              {"input_quantization", "layer.input_quantization"}}}};
  if (op == Op::linear) rule.replacement.attrs.emplace_back("lora_scale", "layer.lora_scale");
  return rule;
}

// ---- Elementwise and norms

Rule gated_activation() {
  return {"gated_activation",
          "fuse_ffn",
          "act(gate) * up in one pass",
          {{"act", Op::activation, {{"x", "gate"}}, {{"out", "a"}}},
           {"mul", Op::binary, {{"a", "a"}, {"b", "up"}}, {{"out", "out"}}, {{"kind", "mul"}}}},
          {Op::gated_activation, same({"gate", "up"}), {{"out", "out"}}, {{"kind", "act.kind"}}}};
}

Rule residual_norm(Op norm, std::string flag) {
  const NamePairs weights = norm == Op::rms_norm ? same({"weight"}) : same({"weight", "bias?"});
  Rule rule{std::string("residual_") + op_name(norm),
            std::move(flag),
            "the residual added and the sum normalised in one pass",
            {{"add", Op::binary, {{"a", "x"}, {"b", "residual"}}, {{"out", "sum"}}, {{"kind", "add"}}},
             {"norm", norm, joined({{"x", "sum"}}, weights), {{"out", "out"}}}},
            {norm,
             joined(same({"x", "residual"}), weights),
             {{"out", "out"}, {"residual_out", "sum"}},
             {{"eps", "norm.eps"}}}};
  if (norm == Op::rms_norm) rule.replacement.attrs.emplace_back("weight_offset", "norm.weight_offset");
  return rule;
}

// What an op makes in 8 bits: `attrs` are those that the op keeps.
Rule quantized_output(Op op, std::string flag, const NamePairs& inputs, NamePairs outputs,
                      const std::vector<std::string>& attrs) {
  NamePairs made = {{"out", "y"}};
  made.insert(made.end(), outputs.begin(), outputs.end());
  NamePairs taken = {{"out_dtype", "quantize.out_dtype"}};
  for (const std::string& a : attrs) taken.emplace_back(a, "op." + a);
  return {std::string(op_name(op)) + "_quantize",
          std::move(flag),
          std::string("the result of ") + op_name(op) + " written in 8 bits",
          {{"op", op, inputs, made},
           {"quantize",
            Op::quantize,
            {{"x", "y"}, {"static_scale?", "static_scale"}},
            {{"out", "out"}},
            {{"out_dtype", "i8|fp8_e4m3|fp8_e5m2"}}}},
          {op, joined(inputs, same({"static_scale?"})), joined({{"out", "out"}}, outputs), taken}};
}

std::vector<Rule> make_rules() {
  std::vector<Rule> rules = {
      attention(Masking::causal, "attention_causal",
                "scores, causal mask, softmax and values in one pass, without the score matrix"),
      attention(Masking::full, "attention_full",
                "scores, softmax and values in one pass, without the score matrix"),
      attention(
          Masking::masked, "attention_masked",
          "scores, a mask that is not causal, softmax and values in one pass, without the score matrix"),
      qk_norm_rope(),
      rope_append(),
      lora_linear(),
      qkv_merge(),
      gated_ffn(),
      lm_head_argmax()};
  const std::vector<Consumer> all = consumers();
  const Consumer& linear = all.front();
  rules.push_back(linear_activation());
  rules.push_back(gated_activation());
  for (const Consumer& c : all)
    for (Op norm : {Op::rms_norm, Op::layer_norm}) rules.push_back(norm_prologue(norm, c));
  rules.push_back(activation_prologue("silu_linear", "fuse_silu_linear", "silu", linear));
  rules.push_back(activation_prologue("gelu_linear", "fuse_gelu_linear", "gelu|gelu_tanh", linear));
  rules.push_back(activation_prologue("relu_linear", "fuse_ffn", "relu", linear));
  for (const Consumer& c : all)
    if (c.op != Op::linear)
      rules.push_back(activation_prologue(std::string("activation_") + c.name, "fuse_ffn",
                                          "silu|gelu|gelu_tanh|relu", c));
  rules.push_back(residual_epilogue("linear_residual", Op::linear,
                                    same({"weight", "bias?", "lora_a?", "lora_b?", "lora_index?"})));
  rules.push_back(
      residual_epilogue("ffn_residual", Op::gated_ffn, same({"gate_weight", "up_weight", "down_weight"})));
  rules.push_back(residual_norm(Op::rms_norm, "fuse_rmsnorm"));
  rules.push_back(residual_norm(Op::layer_norm, "fuse_ln"));
  rules.push_back(quantized_output(Op::rms_norm, "fuse_rmsnorm", same({"x", "weight", "residual?"}),
                                   same({"residual_out?"}), {"eps", "weight_offset"}));
  rules.push_back(quantized_output(Op::layer_norm, "fuse_ln", same({"x", "weight", "bias?", "residual?"}),
                                   same({"residual_out?"}), {"eps"}));
  rules.push_back(quantized_output(Op::gated_activation, "fuse_ffn", same({"gate", "up"}), {}, {"kind"}));
  rules.push_back(quantized_output(Op::activation, "fuse_ffn", same({"x"}), {}, {"kind"}));
  return rules;
}

}  // namespace

const std::vector<Rule>& builtin_rules() {
  static const std::vector<Rule> kRules = make_rules();
  return kRules;
}

}  // namespace kf
