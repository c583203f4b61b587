// Attention over dense, packed or paged keys and values.
//
//   s[i, j] = softmax_scale * q[i] . k[j]
//   s       = softcap * tanh(s / softcap)                                              softcap > 0
//   s      += -alibi_slope * |i + seqlen_k - seqlen_q - j|                             alibi_slopes
//   s       = attn_mask[i, j] ? s : -inf, or s + attn_mask[i, j]                       attn_mask
//   out[i]  = sum_j exp(s[i, j] - lse[i]) v[j],   lse[i] = log(sum_j exp(s[i, j]) + exp(sink))
//
// over the keys j that row i of its sequence may attend: all seqlen_k of them, or those in its window and, with a block
// layout (SparseKeys), in its blocks. Row i stands at
// key p = i + seqlen_k - seqlen_q (bottom-right: the last row at the last key) and sees keys p - window_left ..
// p + window_right; -1 is unbounded, and causal is window_right = 0. A row that may attend nothing, or only scores of
// -inf, gives zeros, and lse -inf (with a sink: the sink).
//
// What lies outside a row's window, its block layout or its sequence has no part in it, whatever it is: NaN or infinite keys
// and values there do not show, and keys that no row sees need not be there (their pages may be -1). A key that
// attn_mask forbids weighs zero instead, so that a NaN or an infinity in its *value* shows, as 0 * NaN does in PyTorch.
//
// Exact, with an online softmax in f32 (Dao et al., FlashAttention, 2022). Query head h reads K/V head
// h / (num_heads / num_kv_heads) (Ainslie et al., GQA, 2023); K/V are never expanded. Sliding window: Beltagy et al.,
// Longformer, 2020, with the convention of FlashAttention; soft cap: Gemma 2, 2024; slopes: Press et al., ALiBi, 2022;
// sinks, which take part in the softmax and carry no value: GPT-OSS, 2025, after Xiao et al., StreamingLLM, 2023.
#pragma once

#include "kf/ops/common.h"
#include "kf/ops/quantization.h"

namespace kf {

// Where the sequences of a batch lie. Exactly one form:
//   dense   q [batch, seqlen_q, num_heads, head_dim],  k, v [batch, seqlen_k, num_kv_heads, head_dim]; no tables
//   packed  q [total_q, num_heads, head_dim],  k, v [total_k, num_kv_heads, head_dim]; cu_seqlens_q, cu_seqlens_k
//   paged   q [total_q, num_heads, head_dim],  k, v page pools in `kv_layout`; block_tables, context_lens, and
//           cu_seqlens_q (absent: one query token a sequence). With causal, a window or slopes, the last seqlen_q of a
//           sequence's context_len keys are those of the query tokens (chunked prefill: append first, then attend).
// Lengths of queries and keys are independent in every form: cross attention is `causal = false`.
struct SequenceTables {
  TensorView cu_seqlens_q;  // i32 [batch + 1]
  TensorView cu_seqlens_k;  // i32 [batch + 1]
  TensorView block_tables;  // i32 [batch, max_pages]; page ids, -1 pads, pages may be shared
  TensorView context_lens;  // i32 [batch]: keys of each sequence, those of the query tokens included
  KvLayout kv_layout = KvLayout::hnd;

  bool paged() const { return block_tables.present(); }
  void visit(FieldVisitor& v) {
    v.opt_table("cu_seqlens_q", cu_seqlens_q);
    v.opt_table("cu_seqlens_k", cu_seqlens_k);
    v.opt_table("block_tables", block_tables);
    v.opt_table("context_lens", context_lens);
    v.choice("kv_layout", kv_layout, kKvLayoutNames);
  }
};

// What lies beside keys, values or a cache of int4, i8, fp8_e4m3 or fp8_e5m2. An element is (q - zero) * scale, as of a
// weight. Scales have the operand's dimensions, each of full size or 1 (one for all), and in the place of head_dim the
// groups, head_dim / group_size: [batch, seqlen_k, num_kv_heads, 1] is one a token and head, [1, 1, num_kv_heads, 1] one a
// head, [1, 1, 1, 1] one in all; of a page pool [num_pages, num_kv_heads, page_size, groups] is one a group of each row.
// zeros are like scales. group_size is a multiple of 16 that divides head_dim; 0: the row.
inline void visit_kv_quantization(FieldVisitor& v, Quantization& q, const char* scales_name,
                                  const char* zeros_name, const char* group_size_name, Role role = Role::in) {
  v.tensor(scales_name, q.scales, role, true);
  v.tensor(zeros_name, q.zeros, role, true);
  v.attr(group_size_name, q.group_size);
}

// Which keys take part, beside what windows and masks say: blocks that a layout names, and the largest of their scores.
//
// Blocks (block-sparse attention: Child et al., Sparse Transformers, 2019; Zaheer et al., BigBird,
// 2020; a list of pages a head: Tang et al., Quest, 2024). A layout cuts the queries and the keys of each sequence into blocks:
// query token t, counted from the sequence's first in this call, lies in query block t / block_size_q, key j in key block
// j / block_size_k. The rows of a query block see the keys of the key blocks that the layout gives it, as far as their
// window lets them. Key blocks that no row sees are not read, and their pages may be -1.
struct SparseKeys {
  // Optional, [batch or 1, num_heads, num_kv_heads or 1, query blocks, columns], the last dimension contiguous; either
  //   boolean  column c: whether key block c takes part
  //   i32      the key blocks that take part, ascending; -1 follows the last
  // Blocks are those of the longest sequence; a packed or paged batch may have more of either, and shorter sequences leave
  // the rest. A list a head over a paged cache has block_size_k = page_size and one query block.
  TensorView block_layout;
  std::int64_t block_size_q = 0;  // query tokens of a block; 0: all are one block
  std::int64_t block_size_k = 0;  // keys of a block: with a layout at least 1

  // Of every keep_m neighbouring keys of a sequence, counted from its first, a row keeps the keep_n with the largest scores,
  // as cap, slopes and mask leave them; the others weigh zero. 0: all are kept. Of equal scores the earlier keys are kept; a
  // NaN counts as infinity; keys that the row does not see are none of the keep_n. (Dynamic n:m sparse attention: Chen et
  // al., Dynamic N:M Fine-grained Structured Sparse Attention Mechanism, 2022.)
  std::int64_t keep_n = 0, keep_m = 0;

  void visit(FieldVisitor& v) {
    v.opt_in("block_layout", block_layout);
    v.attr("block_size_q", block_size_q);
    v.attr("block_size_k", block_size_k);
    v.attr("keep_n", keep_n);
    v.attr("keep_m", keep_m);
  }
};

struct AttentionParams {
  static constexpr Op kOp = Op::attention;
  TensorView q;    // activation dtype; head_dim contiguous, other strides free
  TensorView k;    // dtype of its own: f32, f16, bf16; int4, i8, fp8_e4m3 or fp8_e5m2 with k_quantization
  TensorView v;    // like k, but for a head_dim and scales of its own
  TensorView out;  // like q, with v's head_dim
  // f32, natural log, optional: dense [batch, num_heads, seqlen_q], else [num_heads, total_q]
  TensorView lse;
  SequenceTables tables;
  float softmax_scale = 0.0f;  // 0: 1 / sqrt(head_dim) of q and k
  bool causal = true;
  std::int64_t window_left = -1;   // keys before a row's own that it sees; -1: all
  std::int64_t window_right = -1;  // keys after it; causal: none, whatever this says
  float softcap = 0.0f;            // 0: none
  TensorView alibi_slopes;         // f32 [num_heads] or [batch, num_heads], optional
  // Optional; boolean (true: may attend) or an activation dtype (added; -inf: may not). Dense [batch, num_heads,
  // seqlen_q, seqlen_k], of which the first three may be 1 or have stride 0: the same for all. Packed and paged
  // [num_heads or 1, total_q, columns]: row t is the batch's query token t, column j key j of its sequence; at least as
  // many columns as the longest sequence has keys. A tree of draft tokens over a paged cache is such a mask.
  TensorView attn_mask;
  TensorView sinks;  // f32 [num_heads], optional
  SparseKeys sparsity;
  // They are dequantized in registers, or as they are packed for the cache, and never expanded in memory.
  Quantization k_quantization, v_quantization;

  void visit(FieldVisitor& vis) {
    vis.in("q", q);
    vis.in("k", k);
    vis.in("v", v);
    vis.out("out", out);
    vis.opt_out("lse", lse);
    tables.visit(vis);
    vis.attr("softmax_scale", softmax_scale);
    vis.attr("causal", causal);
    vis.attr("window_left", window_left);
    vis.attr("window_right", window_right);
    vis.attr("softcap", softcap);
    vis.opt_in("alibi_slopes", alibi_slopes);
    vis.opt_in("attn_mask", attn_mask);
    vis.opt_in("sinks", sinks);
    sparsity.visit(vis);
    visit_kv_quantization(vis, k_quantization, "k_scales", "k_zeros", "k_group_size");
    visit_kv_quantization(vis, v_quantization, "v_scales", "v_zeros", "v_group_size");
  }
};

// The three primitives that attention is made of when it is not fused, each writing its whole result. `seqlen_k_max`
// is the width of the score matrix: at least the longest sequence's keys. Sinks have no unfused form.

// scores[h, t, j] = softcap * tanh(softmax_scale * q[t, h] . k[j, h / group] / softcap), j over the keys of t's
// sequence; columns beyond them are -inf.
struct AttentionScoresParams {
  static constexpr Op kOp = Op::attention_scores;
  TensorView q, k;  // as in AttentionParams
  // f32: dense [batch, num_heads, seqlen_q, seqlen_k_max], else [num_heads, total_q, seqlen_k_max]
  TensorView scores;
  SequenceTables tables;
  float softmax_scale = 0.0f;
  float softcap = 0.0f;           // 0: none
  std::int64_t seqlen_k_max = 0;  // 0: dense seqlen_k, packed total_k, paged max_pages * page_size
  Quantization k_quantization;

  void visit(FieldVisitor& v) {
    v.in("q", q);
    v.in("k", k);
    v.out("scores", scores);
    tables.visit(v);
    v.attr("softmax_scale", softmax_scale);
    v.attr("softcap", softcap);
    v.attr("seqlen_k_max", seqlen_k_max);
    visit_kv_quantization(v, k_quantization, "k_scales", "k_zeros", "k_group_size");
  }
};

// out = scores, biased by alibi_slopes and attn_mask, where a row may attend; -inf elsewhere. The heads of a block layout
// are a number that divides the scores'.
struct AttentionMaskParams {
  static constexpr Op kOp = Op::attention_mask;
  TensorView scores;  // f32, as AttentionScoresParams writes them
  TensorView out;     // like scores, may be scores
  SequenceTables tables;
  std::int64_t seqlen_k = 0;  // dense only: keys a sequence
  // As in AttentionParams.
  bool causal = true;
  std::int64_t window_left = -1;
  std::int64_t window_right = -1;
  TensorView alibi_slopes;
  TensorView attn_mask;
  SparseKeys sparsity;

  void visit(FieldVisitor& v) {
    v.in("scores", scores);
    v.out("out", out);
    v.may_alias("out", "scores");
    tables.visit(v);
    v.attr("seqlen_k", seqlen_k);
    v.attr("causal", causal);
    v.attr("window_left", window_left);
    v.attr("window_right", window_right);
    v.opt_in("alibi_slopes", alibi_slopes);
    v.opt_in("attn_mask", attn_mask);
    sparsity.visit(v);
  }
};

// out[t, h] = sum_j probs[h, t, j] v[j, h / group]
struct AttentionValuesParams {
  static constexpr Op kOp = Op::attention_values;
  TensorView probs;  // f32, like scores
  TensorView v;      // as in AttentionParams
  TensorView out;    // like AttentionParams::out
  SequenceTables tables;
  int out_dtype = 0;  // DType of `out` when inferred
  Quantization v_quantization;

  void visit(FieldVisitor& vis) {
    vis.in("probs", probs);
    vis.in("v", v);
    vis.out("out", out);
    tables.visit(vis);
    static constexpr const char* kNames[] = {"f32", "f16", "bf16"};
    vis.attr("out_dtype", out_dtype, kNames);
    visit_kv_quantization(vis, v_quantization, "v_scales", "v_zeros", "v_group_size");
  }
};

// Attention over two sets of keys from the attention over each:
//
//   lse = log(exp(lse_a) + exp(lse_b)),   out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b
//
// A part whose lse is -inf has none in the result, whatever its values; where both are, out is zero and lse -inf.
// Batches with a common prefix (cascade inference: Juravsky et al., Hydragen, 2024) attend to the prefix once, as one
// sequence and not causally, each to its own suffix causally, and merge. Sinks go into one of the parts only.
struct MergeAttentionParams {
  static constexpr Op kOp = Op::merge_attention;
  // activation dtype: [batch, seqlen_q, num_heads, head_dim] or [total_q, num_heads, head_dim]
  TensorView out_a;
  TensorView lse_a;         // f32, natural log: [batch, num_heads, seqlen_q] or [num_heads, total_q]
  TensorView out_b, lse_b;  // likewise
  TensorView out;           // like out_a; may be out_a or out_b
  TensorView lse;           // like lse_a, optional; may be lse_a or lse_b

  void visit(FieldVisitor& v) {
    v.in("out_a", out_a);
    v.in("lse_a", lse_a);
    v.in("out_b", out_b);
    v.in("lse_b", lse_b);
    v.out("out", out);
    v.opt_out("lse", lse);
    v.may_alias("out", "out_a");
    v.may_alias("out", "out_b");
    v.may_alias("lse", "lse_a");
    v.may_alias("lse", "lse_b");
  }
};

void attention(const AttentionParams& p);
void attention_scores(const AttentionScoresParams& p);
void attention_mask(const AttentionMaskParams& p);
void attention_values(const AttentionValuesParams& p);
void merge_attention(const MergeAttentionParams& p);

}  // namespace kf
