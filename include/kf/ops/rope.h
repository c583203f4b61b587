// Rotary position embedding (Su et al., RoFormer, 2021) and writing keys and values to a cache.
#pragma once

#include "kf/ops/attention.h"

namespace kf {

// Pairs (x1, x2) of a head's first rotary_dim elements turn by the angle of the token's position:
//   (x1 cos - x2 sin, x2 cos + x1 sin)
// half-split pairs i with i + rotary_dim/2 (transformers, NeoX); interleaved pairs 2i with 2i + 1 (GPT-J, GGUF llama).
// rotary_dim is twice the width of the tables; elements beyond it pass through.
// With norm_weight, each head is RMS-normalised first (the QK-norm of Qwen3 and Gemma 3):
//   x <- x / sqrt(mean(x^2) + norm_eps) * (norm_weight_offset + norm_weight),   the offset 1 for Gemma 3
struct RopeParams {
  static constexpr Op kOp = Op::rope;
  TensorView x;            // [num_tokens, num_heads, head_dim]: activation dtype, head_dim contiguous
  TensorView positions;    // i32 [num_tokens]
  TensorView cos, sin;     // f32 [max_position, rotary_dim / 2]
  TensorView norm_weight;  // [head_dim], optional
  TensorView out;          // like x, may be x
  float norm_eps = 1e-6f;
  float norm_weight_offset = 0.0f;
  bool interleaved = false;

  void visit(FieldVisitor& v) {
    v.in("x", x);
    v.table("positions", positions);
    v.in("cos", cos);
    v.in("sin", sin);
    v.opt_weight("norm_weight", norm_weight);
    v.out("out", out);
    v.may_alias("out", "x");
    v.attr("norm_eps", norm_eps);
    v.attr("norm_weight_offset", norm_weight_offset);
    v.attr("interleaved", interleaved);
  }
};

// Writes the keys and values of new tokens: slot s is page s / page_size, row s % page_size; a negative slot is
// skipped. A plain cache [batch, capacity, num_kv_heads, head_dim] is NHD with page_size = capacity. No two tokens have
// one slot, and the caches share no element (they may be the halves of one pool).
//
// Caches of int4, i8 or fp8 are quantized as they are written, with what lies beside them as attention reads it. Scales (and
// zeros) that have each slot of the pool are computed from the token, as kf::quantize() computes them: of each head, or
// of all heads where their dimension is 1. Scales of which one serves all slots are given, and only read.
struct AppendKvParams {
  static constexpr Op kOp = Op::append_kv;
  TensorView k, v;              // [num_tokens, num_kv_heads, head_dim]: activation dtype
  TensorView slot_mapping;      // i64 or i32 [num_tokens]
  TensorView k_cache, v_cache;  // page pools in `kv_layout`; f32, f16 or bf16; int4, i8 or fp8 with scales
  KvLayout kv_layout = KvLayout::hnd;
  Quantization k_cache_quantization, v_cache_quantization;

  void visit(FieldVisitor& vis) {
    vis.in("k", k);
    vis.in("v", v);
    vis.table("slot_mapping", slot_mapping);
    vis.inout("k_cache", k_cache);
    vis.inout("v_cache", v_cache);
    vis.choice("kv_layout", kv_layout, kKvLayoutNames);
    visit_kv_quantization(vis, k_cache_quantization, "k_cache_scales", "k_cache_zeros", "k_cache_group_size",
                          Role::inout);
    visit_kv_quantization(vis, v_cache_quantization, "v_cache_scales", "v_cache_zeros", "v_cache_group_size",
                          Role::inout);
  }
};

// rope(q) -> q_out; rope(k) and v -> caches; in one call, with QK-norm where the weights are given. What is quantized is
// the turned head in f32, not rounded to its dtype before.
struct RopeAppendParams {
  static constexpr Op kOp = Op::rope_append;
  TensorView q;                 // [num_tokens, num_heads, head_dim]
  TensorView k, v;              // [num_tokens, num_kv_heads, head_dim]
  TensorView positions;         // i32 [num_tokens]
  TensorView cos, sin;          // f32 [max_position, rotary_dim / 2]
  TensorView q_norm_weight;     // [head_dim], optional
  TensorView k_norm_weight;     // [head_dim], optional
  TensorView slot_mapping;      // i64 or i32 [num_tokens]
  TensorView k_cache, v_cache;  // page pools in `kv_layout`
  TensorView q_out;             // like q, may be q
  float norm_eps = 1e-6f;
  float norm_weight_offset = 0.0f;
  bool interleaved = false;
  KvLayout kv_layout = KvLayout::hnd;
  Quantization k_cache_quantization, v_cache_quantization;  // as AppendKvParams has them

  void visit(FieldVisitor& vis) {
    vis.in("q", q);
    vis.in("k", k);
    vis.in("v", v);
    vis.table("positions", positions);
    vis.in("cos", cos);
    vis.in("sin", sin);
    vis.opt_weight("q_norm_weight", q_norm_weight);
    vis.opt_weight("k_norm_weight", k_norm_weight);
    vis.table("slot_mapping", slot_mapping);
    vis.inout("k_cache", k_cache);
    vis.inout("v_cache", v_cache);
    vis.out("q_out", q_out);
    vis.may_alias("q_out", "q");
    vis.attr("norm_eps", norm_eps);
    vis.attr("norm_weight_offset", norm_weight_offset);
    vis.attr("interleaved", interleaved);
    vis.choice("kv_layout", kv_layout, kKvLayoutNames);
    visit_kv_quantization(vis, k_cache_quantization, "k_cache_scales", "k_cache_zeros", "k_cache_group_size",
                          Role::inout);
    visit_kv_quantization(vis, v_cache_quantization, "v_cache_scales", "v_cache_zeros", "v_cache_group_size",
                          Role::inout);
  }
};

void rope(const RopeParams& p);
void append_kv(const AppendKvParams& p);
void rope_append(const RopeAppendParams& p);

// Llama 3's scaling of the rotary frequencies (Llama 3.1 model card; transformers' "llama3" rope type). With
// turns = original_max_position * f / (2 pi), the turns that a frequency f makes over the original context:
//   f <- f / factor                                  turns < low_freq_factor
//   f <- f                                           turns > high_freq_factor
//   f <- (1 - s) f / factor + s f                    between, s = (turns - low) / (high - low)
struct RopeScaling {
  float factor = 1.0f;  // 1: none
  float low_freq_factor = 1.0f;
  float high_freq_factor = 4.0f;
  std::int64_t original_max_position = 8192;
};
// Tables cos, sin f32 [max_position, rotary_dim / 2] of position * f_i, computed in double:
//   f_i = scaled(theta^(-2 i / rotary_dim) / freq_factors[i])
// rotary_dim is even; freq_factors f32 [rotary_dim / 2], positive, may be absent (1 throughout). Throws invalid_argument.
struct RopeTables {
  Tensor cos, sin;
};
RopeTables make_rope_tables(std::int64_t max_position, int rotary_dim, double theta,
                            const RopeScaling& scaling = {}, const TensorView& freq_factors = {});

}  // namespace kf
