#include "ops/sequences.h"

#include <limits>

#include "core/quantized.h"

namespace kf::ops {
namespace {

std::int64_t count_sequences(const SequenceTables& t, std::int64_t dense_batch) {
  if (t.paged()) return t.block_tables.dim(0);
  return t.cu_seqlens_q.present() ? t.cu_seqlens_q.dim(0) - 1 : dense_batch;
}

}  // namespace

Sequences::Sequences(const SequenceTables& tables, std::int64_t dense_batch, std::int64_t dense_seqlen_q,
                     std::int64_t dense_seqlen_k)
    : tables_(tables),
      dense_(is_dense(tables)),
      batch_(count_sequences(tables, dense_batch)),
      dense_seqlen_q_(dense_seqlen_q),
      dense_seqlen_k_(dense_seqlen_k) {}

Sequences::Sequences(const AttentionParams& p) : Sequences(p.tables, p.q.dim(0), p.q.dim(1), p.k.dim(1)) {}
Sequences::Sequences(const AttentionScoresParams& p)
    : Sequences(p.tables, p.q.dim(0), p.q.dim(1), p.k.dim(1)) {}
Sequences::Sequences(const AttentionMaskParams& p)
    : Sequences(p.tables, p.scores.dim(0), p.scores.dim(2), p.seqlen_k) {}
Sequences::Sequences(const AttentionValuesParams& p)
    : Sequences(p.tables, p.probs.dim(0), p.probs.dim(2), p.v.dim(1)) {}

SequenceSpan Sequences::operator[](std::int64_t b) const {
  if (dense_) return {b, 0, dense_seqlen_q_, 0, dense_seqlen_k_};
  SequenceSpan s{b, b, 1, 0, 0};
  if (tables_.cu_seqlens_q.present()) {
    const auto* cu = tables_.cu_seqlens_q.as<std::int32_t>();
    s.q_begin = cu[b];
    s.seqlen_q = cu[b + 1] - cu[b];
  }
  if (tables_.paged()) {
    s.kv_len = tables_.context_lens.as<std::int32_t>()[b];
  } else {
    const auto* cu = tables_.cu_seqlens_k.as<std::int32_t>();
    s.k_begin = cu[b];
    s.kv_len = cu[b + 1] - cu[b];
  }
  return s;
}

TokenRows Sequences::token_rows(const TensorView& x, const SequenceSpan& s) const {
  if (dense_) return {s.index * x.stride(0), x.stride(1), x.stride(2)};
  return {s.q_begin * x.stride(0), x.stride(0), x.stride(1)};
}

TokenRows Sequences::head_major_rows(const TensorView& x, const SequenceSpan& s) const {
  if (dense_) return {s.index * x.stride(0), x.stride(2), x.stride(1)};
  return {s.q_begin * x.stride(1), x.stride(1), x.stride(0)};
}

TokenRows Sequences::mask_rows(const TensorView& mask, const SequenceSpan& s) const {
  const auto stride = [&](int axis) { return mask.dim(axis) == 1 ? 0 : mask.stride(axis); };
  if (dense_) return {s.index * stride(0), stride(2), stride(1)};
  return {s.q_begin * mask.stride(1), mask.stride(1), stride(0)};
}

KeyRows Sequences::key_rows(const TensorView& kv, const SequenceSpan& s) const {
  KeyRows r;
  r.head_stride = kv.stride(kv_heads_axis(tables_));
  if (tables_.paged()) {
    const int rows_axis = page_rows_axis(tables_);
    r.token_stride = kv.stride(rows_axis);
    r.page_size = std::max<std::int64_t>(kv.dim(rows_axis), 1);
    r.page_stride = kv.stride(0);
    r.pages = tables_.block_tables.as<std::int32_t>() + s.index * tables_.block_tables.stride(0);
  } else {
    r.token_stride = kv.stride(dense_ ? 1 : 0);
    r.base = dense_ ? s.index * kv.stride(0) : s.k_begin * kv.stride(0);
    r.page_size = std::max<std::int64_t>(s.kv_len, 1);
  }
  return r;
}

ScaleRows Sequences::scale_rows(const TensorView& kv, const Quantization& q, const SequenceSpan& s) const {
  ScaleRows rows;
  if (!q.scales.present()) return rows;
  rows.scales = key_rows(kv_broadcast(q.scales, kv), s);
  if (q.zeros.present()) rows.zeros = key_rows(kv_broadcast(q.zeros, kv), s);
  rows.group_size = kv_group_size(kv, q);
  return rows;
}

int kv_heads_axis(const SequenceTables& tables) {
  if (tables.paged()) return tables.kv_layout == KvLayout::hnd ? 1 : 2;
  return is_dense(tables) ? 2 : 1;
}

int page_rows_axis(const SequenceTables& tables) { return tables.kv_layout == KvLayout::hnd ? 2 : 1; }

std::int64_t max_kv_len(const SequenceTables& tables, const TensorView& kv) {
  if (tables.paged()) {
    std::int64_t keys = 0;
    const bool overflow =
        __builtin_mul_overflow(tables.block_tables.dim(1), kv.dim(page_rows_axis(tables)), &keys);
    return overflow ? std::numeric_limits<std::int64_t>::max() : keys;
  }
  return kv.dim(is_dense(tables) ? 1 : 0);
}

}  // namespace kf::ops
