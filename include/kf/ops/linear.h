// Linear layers with what stands before and after them, in one call.
//
//   out = act( pro(x) @ weight^T + bias ) + residual        pro: identity, a norm, or an activation
//
// Arithmetic is f32 whatever the dtypes, unless InputQuantization (common.h) is asked for. Weights are
// [out_features, in_features] with any strides (a torch.nn.Linear weight as it is; an x @ W weight as its transposed view), f32,
// f16 or bf16; or low-bit, rows as they lie, which kernels dequantize in registers: a GGUF block format, or int4, i8 or fp8
// with scales beside it (Quantization). Of a sparse weight (Sparsity) the operand holds the values alone, and [out, in] is what
// they stand for.
#pragma once

#include "kf/ops/common.h"
#include "kf/ops/quantization.h"
#include "kf/ops/sparsity.h"

namespace kf {

// Low-rank adapters of a layer (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021): scale * (x @ a^T) @ b^T
// is added to x @ weight^T. One for the whole call, or several, of which every token names its own. They are no weights: what
// they hold may change from call to call.
struct Lora {
  TensorView a;      // [rank, in] or [adapters, rank, in]; f32, f16, bf16, rows contiguous; rank at most 512
  TensorView b;      // [out, rank] or [adapters, out, rank], likewise
  TensorView index;  // i32 [num_tokens], with several adapters: a token's, or -1 for none
  float scale = 1.0f;  // alpha / rank

  bool present() const { return a.present(); }
  void visit(FieldVisitor& v) {
    v.opt_in("lora_a", a);
    v.opt_in("lora_b", b);
    v.opt_table("lora_index", index);
    v.attr("lora_scale", scale);
  }
};

struct LinearParams {
  static constexpr Op kOp = Op::linear;
  TensorView x;         // [num_tokens, in]: activation dtype, last dimension contiguous
  TensorView weight;    // [out, in]
  TensorView bias;      // [out], optional
  TensorView residual;  // [num_tokens, out], optional, may be `out` itself
  TensorView out;       // [num_tokens, out], dtype of x
  Prologue prologue;
  Activation activation = Activation::none;
  Quantization weight_quantization;
  Sparsity weight_sparsity;
  Lora lora;                                                       // added before the bias
  InputQuantization input_quantization = InputQuantization::none;  // int8: weights i8, int4, q8_0, q4_0, q4_1

  void visit(FieldVisitor& v) {
    v.in("x", x);
    v.weight("weight", weight);
    v.opt_in("bias", bias);
    v.opt_in("residual", residual);
    v.out("out", out);
    v.may_alias("out", "residual");
    prologue.visit(v);
    v.choice("activation", activation, kActivationNames);
    weight_quantization.visit(v, "weight_scales", "weight_zeros", "weight_group_size");
    weight_sparsity.visit(v, "weight_mask", "weight_offsets", "weight_n", "weight_m");
    lora.visit(v);
    v.choice("input_quantization", input_quantization, kInputQuantizationNames);
  }
};

// Three linear layers over one input, as attention has them: q = pro(x) @ q_weight^T + q_bias, k and v alike.
// The three weights may be of different dtypes and widths (GQA).
struct QkvLinearParams {
  static constexpr Op kOp = Op::qkv_linear;
  TensorView x;                             // [num_tokens, in]
  TensorView q_weight, k_weight, v_weight;  // [q_out, in], [k_out, in], [v_out, in]
  TensorView q_bias, k_bias, v_bias;        // optional
  TensorView q, k, v;                       // [num_tokens, *_out], dtype of x; row strides are free
  Prologue prologue;
  Quantization q_weight_quantization, k_weight_quantization, v_weight_quantization;
  Sparsity q_weight_sparsity, k_weight_sparsity, v_weight_sparsity;
  InputQuantization input_quantization = InputQuantization::none;

  void visit(FieldVisitor& vis) {
    vis.in("x", x);
    vis.weight("q_weight", q_weight);
    vis.weight("k_weight", k_weight);
    vis.weight("v_weight", v_weight);
    vis.opt_in("q_bias", q_bias);
    vis.opt_in("k_bias", k_bias);
    vis.opt_in("v_bias", v_bias);
    vis.out("q", q);
    vis.out("k", k);
    vis.out("v", v);
    prologue.visit(vis);
    q_weight_quantization.visit(vis, "q_weight_scales", "q_weight_zeros", "q_weight_group_size");
    k_weight_quantization.visit(vis, "k_weight_scales", "k_weight_zeros", "k_weight_group_size");
    v_weight_quantization.visit(vis, "v_weight_scales", "v_weight_zeros", "v_weight_group_size");
    q_weight_sparsity.visit(vis, "q_weight_mask", "q_weight_offsets", "q_weight_n", "q_weight_m");
    k_weight_sparsity.visit(vis, "k_weight_mask", "k_weight_offsets", "k_weight_n", "k_weight_m");
    v_weight_sparsity.visit(vis, "v_weight_mask", "v_weight_offsets", "v_weight_n", "v_weight_m");
    vis.choice("input_quantization", input_quantization, kInputQuantizationNames);
  }
};

// The gated FFN of a transformer layer (Shazeer, "GLU Variants Improve Transformer", 2020):
//   out = ( act(y @ gate_weight^T) * (y @ up_weight^T) ) @ down_weight^T + residual,   y = pro(x)
struct GatedFfnParams {
  static constexpr Op kOp = Op::gated_ffn;
  TensorView x;            // [num_tokens, hidden]
  TensorView gate_weight;  // [intermediate, hidden]
  TensorView up_weight;    // [intermediate, hidden]
  TensorView down_weight;  // [hidden_out, intermediate]
  TensorView residual;     // [num_tokens, hidden_out], optional, may be `out` itself
  TensorView out;          // [num_tokens, hidden_out], dtype of x
  Prologue prologue;
  Activation activation = Activation::silu;
  Quantization gate_weight_quantization, up_weight_quantization, down_weight_quantization;
  Sparsity gate_weight_sparsity, up_weight_sparsity, down_weight_sparsity;
  InputQuantization input_quantization = InputQuantization::none;  // of y and of the hidden values

  void visit(FieldVisitor& v) {
    v.in("x", x);
    v.weight("gate_weight", gate_weight);
    v.weight("up_weight", up_weight);
    v.weight("down_weight", down_weight);
    v.opt_in("residual", residual);
    v.out("out", out);
    v.may_alias("out", "residual");
    prologue.visit(v);
    v.choice("activation", activation, kActivationNames);
    gate_weight_quantization.visit(v, "gate_weight_scales", "gate_weight_zeros", "gate_weight_group_size");
    up_weight_quantization.visit(v, "up_weight_scales", "up_weight_zeros", "up_weight_group_size");
    down_weight_quantization.visit(v, "down_weight_scales", "down_weight_zeros", "down_weight_group_size");
    gate_weight_sparsity.visit(v, "gate_weight_mask", "gate_weight_offsets", "gate_weight_n",
                               "gate_weight_m");
    up_weight_sparsity.visit(v, "up_weight_mask", "up_weight_offsets", "up_weight_n", "up_weight_m");
    down_weight_sparsity.visit(v, "down_weight_mask", "down_weight_offsets", "down_weight_n",
                               "down_weight_m");
    v.choice("input_quantization", input_quantization, kInputQuantizationNames);
  }
};

// The last layer and the greedy choice: ids[t] = argmax_n ( pro(x[t]) . weight[n] ), the lowest n among equals, a NaN
// before all else (as torch.argmax). The logits are never written.
struct LmHeadArgmaxParams {
  static constexpr Op kOp = Op::lm_head_argmax;
  TensorView x;       // [num_tokens, hidden]
  TensorView weight;  // [vocab, hidden]
  TensorView ids;     // i32 [num_tokens]
  TensorView max;     // f32 [num_tokens], optional: the winning logit
  Prologue prologue;
  Quantization weight_quantization;
  Sparsity weight_sparsity;
  InputQuantization input_quantization = InputQuantization::none;

  void visit(FieldVisitor& v) {
    v.in("x", x);
    v.weight("weight", weight);
    v.out("ids", ids);
    v.opt_out("max", max);
    prologue.visit(v);
    weight_quantization.visit(v, "weight_scales", "weight_zeros", "weight_group_size");
    weight_sparsity.visit(v, "weight_mask", "weight_offsets", "weight_n", "weight_m");
    v.choice("input_quantization", input_quantization, kInputQuantizationNames);
  }
};

void linear(const LinearParams& p);
void qkv_linear(const QkvLinearParams& p);
void gated_ffn(const GatedFfnParams& p);
void lm_head_argmax(const LmHeadArgmaxParams& p);

}  // namespace kf
