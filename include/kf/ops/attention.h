// Attention over dense, packed or paged keys and values.
//
//   out[i] = sum_j softmax_j( softmax_scale * q[i] . k[j] ) v[j]        over the keys j that row i may attend
//
// Exact, with an online softmax in f32 (Dao et al., FlashAttention, 2022). Query head h reads K/V head
// h / (num_heads / num_kv_heads) (Ainslie et al., GQA, 2023); K/V are never expanded. Causal is aligned
// bottom-right: row i of seqlen_q sees keys 0 .. seqlen_k - seqlen_q + i. A row that may attend nothing gives zeros
// and lse -inf.
#pragma once

#include "kf/ops/common.h"

namespace kf {

// Where the sequences of a batch lie. Exactly one form:
//   dense   q [batch, seqlen_q, num_heads, head_dim],  k, v [batch, seqlen_k, num_kv_heads, head_dim]; no tables
//   packed  q [total_q, num_heads, head_dim],  k, v [total_k, num_kv_heads, head_dim]; cu_seqlens_q, cu_seqlens_k
//   paged   q [total_q, num_heads, head_dim],  k, v page pools in `kv_layout`; block_tables, context_lens, and
//           cu_seqlens_q (absent: one query token a sequence). The last seqlen_q of a sequence's context_len keys
//           are those of the query tokens (chunked prefill: append first, then attend).
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

struct AttentionParams {
  static constexpr Op kOp = Op::attention;
  TensorView q;    // activation dtype; head_dim contiguous, other strides free
  TensorView k;    // dtype of its own (f32, f16, bf16)
  TensorView v;    // like k
  TensorView out;  // like q
  TensorView lse;  // f32, natural log, optional: dense [batch, num_heads, seqlen_q], else [num_heads, total_q]
  SequenceTables tables;
  float softmax_scale = 0.0f;  // 0: 1 / sqrt(head_dim)
  bool causal = true;

  void visit(FieldVisitor& vis) {
    vis.in("q", q);
    vis.in("k", k);
    vis.in("v", v);
    vis.out("out", out);
    vis.opt_out("lse", lse);
    tables.visit(vis);
    vis.attr("softmax_scale", softmax_scale);
    vis.attr("causal", causal);
  }
};

// The three primitives that attention is made of when it is not fused, each writing its whole result. `seqlen_k_max`
// is the width of the score matrix: at least the longest sequence's keys.

// scores[h, t, j] = softmax_scale * q[t, h] . k[j, h / group], j over the keys of t's sequence; columns beyond them
// are -inf.
struct AttentionScoresParams {
  static constexpr Op kOp = Op::attention_scores;
  TensorView q, k;    // as in AttentionParams
  TensorView scores;  // f32: dense [batch, num_heads, seqlen_q, seqlen_k_max], else [num_heads, total_q, seqlen_k_max]
  SequenceTables tables;
  float softmax_scale = 0.0f;
  std::int64_t seqlen_k_max = 0;  // 0: dense seqlen_k, packed total_k, paged max_pages * page_size

  void visit(FieldVisitor& v) {
    v.in("q", q);
    v.in("k", k);
    v.out("scores", scores);
    tables.visit(v);
    v.attr("softmax_scale", softmax_scale);
    v.attr("seqlen_k_max", seqlen_k_max);
  }
};

// out = scores where the causal rule allows, -inf elsewhere.
struct AttentionMaskParams {
  static constexpr Op kOp = Op::attention_mask;
  TensorView scores;  // f32, as AttentionScoresParams writes them
  TensorView out;     // like scores, may be scores
  SequenceTables tables;
  std::int64_t seqlen_k = 0;  // dense only: keys a sequence

  void visit(FieldVisitor& v) {
    v.in("scores", scores);
    v.out("out", out);
    v.may_alias("out", "scores");
    tables.visit(v);
    v.attr("seqlen_k", seqlen_k);
  }
};

// out[t, h] = sum_j probs[h, t, j] v[j, h / group]
struct AttentionValuesParams {
  static constexpr Op kOp = Op::attention_values;
  TensorView probs;  // f32, like scores
  TensorView v;      // as in AttentionParams
  TensorView out;    // like AttentionParams::q
  SequenceTables tables;
  int out_dtype = 0;  // DType of `out` when inferred

  void visit(FieldVisitor& vis) {
    vis.in("probs", probs);
    vis.in("v", v);
    vis.out("out", out);
    tables.visit(vis);
    static constexpr const char* kNames[] = {"f32", "f16", "bf16"};
    vis.attr("out_dtype", out_dtype, kNames);
  }
};

void attention(const AttentionParams& p);
void attention_scores(const AttentionScoresParams& p);
void attention_mask(const AttentionMaskParams& p);
void attention_values(const AttentionValuesParams& p);

}  // namespace kf
