#include "backends/cuda/attention/args.h"

#include <algorithm>
#include <bit>

#include "backends/cuda/supports.h"
#include "core/quantized.h"
#include "ops/sequences.h"

namespace kf::cuda::attention {
namespace {

int narrow(std::int64_t n) { return static_cast<int>(std::min<std::int64_t>(n, kUnbounded)); }

// [batch, seqlen, heads, ...] or [total, heads, ...].
Rows token_rows(const TensorView& x, bool dense) {
  return {x.data, x.dtype, dense ? x.stride(0) : 0, x.stride(dense ? 1 : 0), x.stride(dense ? 2 : 1)};
}

// [batch, heads, seqlen] or [heads, total]; a dimension of 1 may serve all.
Rows head_major_rows(const TensorView& x, bool dense, bool broadcast) {
  if (!x.present()) return {};
  const auto stride = [&](int axis) { return broadcast && x.dim(axis) == 1 ? 0 : x.stride(axis); };
  return dense ? Rows{x.data, x.dtype, stride(0), stride(2), stride(1)}
               : Rows{x.data, x.dtype, 0, x.stride(1), stride(0)};
}

struct KeyStrides {
  std::int64_t outer, token, head;
};
KeyStrides strides_of(const TensorView& kv, const SequenceTables& tables) {
  const std::int64_t head = kv.stride(ops::kv_heads_axis(tables));
  if (tables.paged()) return {kv.stride(0), kv.stride(ops::page_rows_axis(tables)), head};
  return ops::is_dense(tables) ? KeyStrides{kv.stride(0), kv.stride(1), head}
                               : KeyStrides{0, kv.stride(0), head};
}

KeyScales scales_of(const TensorView& scales, const TensorView& kv, const SequenceTables& tables) {
  if (!scales.present()) return {};
  const TensorView b = kv_broadcast(scales, kv);
  const KeyStrides s = strides_of(b, tables);
  return {b.data, b.dtype, s.outer, s.token, s.head, b.dim(-1) == 1 ? 0 : b.stride(-1)};
}

Keys keys_of(const TensorView& kv, const Quantization& q, const SequenceTables& tables) {
  const KeyStrides s = strides_of(kv, tables);
  return {kv.data,
          kv.dtype,
          s.outer,
          s.token,
          s.head,
          scales_of(q.scales, kv, tables),
          scales_of(q.zeros, kv, tables),
          narrow(kv_group_size(kv, q))};
}

}  // namespace

Args args_of(const AttentionParams& p) {
  const SequenceTables& t = p.tables;
  Args a{};
  a.dense = ops::is_dense(t);
  a.q = token_rows(p.q, a.dense);
  a.out = token_rows(p.out, a.dense);
  a.lse = head_major_rows(p.lse, a.dense, false);
  a.mask = head_major_rows(p.attn_mask, a.dense, true);
  a.k = keys_of(p.k, p.k_quantization, t);
  a.v = keys_of(p.v, p.v_quantization, t);
  const auto table = [](const TensorView& x) { return x.present() ? x.as<std::int32_t>() : nullptr; };
  a.cu_seqlens_q = table(t.cu_seqlens_q);
  a.cu_seqlens_k = table(t.cu_seqlens_k);
  a.block_tables = table(t.block_tables);
  a.context_lens = table(t.context_lens);
  if (t.paged()) {
    a.table_stride = t.block_tables.stride(0);
    a.max_pages = narrow(t.block_tables.dim(1));
    a.page_size = narrow(p.k.dim(ops::page_rows_axis(t)));
    a.page_shift = std::has_single_bit(static_cast<unsigned>(a.page_size))
                       ? std::countr_zero(static_cast<unsigned>(a.page_size))
                       : -1;
    a.num_pages = narrow(p.k.dim(0));
    a.batch = narrow(t.block_tables.dim(0));
  } else {
    a.batch = narrow(a.dense ? p.q.dim(0) : t.cu_seqlens_q.dim(0) - 1);
    a.total_k = a.dense ? 0 : narrow(p.k.dim(0));
  }
  if (a.dense) {
    a.seqlen_q = narrow(p.q.dim(1));
    a.seqlen_k = narrow(p.k.dim(1));
  }
  a.total_q = narrow(a.dense ? p.q.dim(0) * p.q.dim(1) : p.q.dim(0));
  a.num_heads = narrow(p.q.dim(-2));
  a.num_kv_heads = narrow(p.k.dim(ops::kv_heads_axis(t)));
  a.group = a.num_kv_heads > 0 ? a.num_heads / a.num_kv_heads : 1;
  // Granlund and Montgomery, "Division by invariant integers using multiplication", 1994.
  const auto group = static_cast<std::uint32_t>(std::max(a.group, 1));
  a.group_shift = static_cast<std::uint32_t>(std::bit_width(group - 1));
  a.group_factor = static_cast<std::uint32_t>((std::uint64_t{1} << (31 + a.group_shift)) / group + 1);
  a.head_dim = narrow(p.q.dim(-1));
  a.value_dim = narrow(p.v.dim(-1));
  a.scale = static_cast<float>(ops::score_scale(p.softmax_scale, p.q.dim(-1)));
  a.softcap = p.softcap;
  const auto bound = [](std::int64_t keys) { return keys < 0 ? kUnbounded : narrow(keys); };
  a.window_left = bound(p.window_left);
  a.window_right = p.causal ? 0 : bound(p.window_right);
  if (p.alibi_slopes.present()) {
    a.slopes = p.alibi_slopes.as<float>();
    a.slopes_batch_stride = p.alibi_slopes.rank == 2 ? p.alibi_slopes.stride(0) : 0;
    a.slopes_head_stride = p.alibi_slopes.stride(-1);
  }
  if (p.sinks.present()) {
    a.sinks = p.sinks.as<float>();
    a.sinks_stride = p.sinks.stride(0);
  }
  return a;
}

}  // namespace kf::cuda::attention
