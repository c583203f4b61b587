#include "backends/cuda/attention/unfused.h"

#include <algorithm>

#include <fmt/format.h>

#include "backends/cuda/attention/unfused_kernel.h"
#include "backends/cuda/supports.h"
#include "ops/sequences.h"

namespace kf::cuda {

using namespace attention;

namespace {

// Sizes that are counted in 32 bits, and in the dimensions of a grid.
Support fits(const TensorView& scores, std::int64_t num_heads) {
  constexpr std::int64_t kMaxColumns = 1 << 21, kMaxRows = 1 << 27, kMaxHeads = 65535;
  if (scores.dim(-1) > kMaxColumns || num_rows(scores) > kMaxRows || num_heads > kMaxHeads)
    return Support::no(fmt::format("scores {}: too many for one grid", shape_string(scores)));
  return Support::yes();
}

// Of scores [batch, heads, seqlen, columns] or [heads, total, columns].
Rows score_rows(const TensorView& x) {
  const bool dense = x.rank == 4;
  return dense ? Rows{x.data, x.dtype, x.stride(0), x.stride(2), x.stride(1)}
               : Rows{x.data, x.dtype, 0, x.stride(1), x.stride(0)};
}

std::int64_t max_units(const Args& a) {
  const std::int64_t group = a.group;
  if (a.dense)
    return std::int64_t{a.batch} * a.num_kv_heads * ((a.seqlen_q * group + kUnfusedRows - 1) / kUnfusedRows);
  return a.num_kv_heads * (a.total_q * group / kUnfusedRows + a.batch);
}

// The call that both products are parts of. Neither q nor keys of the other are looked at.
Args args_of(const TensorView& rows, const TensorView& kv, const Quantization& quantization,
             const SequenceTables& tables) {
  AttentionParams whole;
  whole.q = whole.out = rows;
  whole.k = whole.v = kv;
  whole.k_quantization = whole.v_quantization = quantization;
  whole.tables = tables;
  whole.causal = false;
  Args a = attention::args_of(whole);
  a.fault = table_fault(rows.device.index);
  return a;
}

}  // namespace

Support attention_scores_supports(const AttentionScoresParams& p, const PlanContext&) {
  return fits(p.scores, p.q.dim(-2));
}
void attention_scores_run(const AttentionScoresParams& p, const RunContext& ctx) {
  UnfusedArgs a{args_of(p.q, p.k, p.k_quantization, p.tables), score_rows(p.scores),
                static_cast<int>(p.scores.dim(-1))};
  a.batch.scale = static_cast<float>(ops::score_scale(p.softmax_scale, p.q.dim(-1)));
  a.batch.softcap = p.softcap;
  if (p.scores.numel() > 0) launch_scores(a, max_units(a.batch), p.scores, ctx);
}

Support attention_values_supports(const AttentionValuesParams& p, const PlanContext&) {
  return fits(p.probs, p.out.dim(-2));
}
void attention_values_run(const AttentionValuesParams& p, const RunContext& ctx) {
  const UnfusedArgs a{args_of(p.out, p.v, p.v_quantization, p.tables), score_rows(p.probs),
                      static_cast<int>(p.probs.dim(-1))};
  if (p.out.numel() > 0) launch_values(a, max_units(a.batch), p.out, ctx);
}

Support attention_mask_supports(const AttentionMaskParams& p, const PlanContext&) {
  if (p.sparsity.keep_m > kMaskColumns)
    return Support::no(fmt::format("keep_m {}: this kernel takes up to {}", p.sparsity.keep_m, kMaskColumns));
  return fits(p.scores, p.scores.dim(p.scores.rank == 4 ? 1 : 0));
}
void attention_mask_run(const AttentionMaskParams& p, const RunContext& ctx) {
  if (p.scores.numel() == 0) return;
  const SequenceTables& t = p.tables;
  const bool dense = ops::is_dense(t);
  MaskArgs a{};
  Args& b = a.batch;
  b.dense = dense;
  b.batch = static_cast<int>(dense       ? p.scores.dim(0)
                             : t.paged() ? t.context_lens.dim(0)
                                         : t.cu_seqlens_q.dim(0) - 1);
  const auto table = [](const TensorView& x) { return x.present() ? x.as<std::int32_t>() : nullptr; };
  b.cu_seqlens_q = table(t.cu_seqlens_q);
  b.cu_seqlens_k = table(t.cu_seqlens_k);
  b.context_lens = table(t.context_lens);
  b.max_pages = 1;
  b.page_size = static_cast<int>(p.scores.dim(-1));
  b.total_k = kUnbounded;
  b.num_heads = static_cast<int>(p.scores.dim(dense ? 1 : 0));
  const std::int64_t tokens = p.scores.dim(-2);
  b.seqlen_q = static_cast<int>(tokens);
  b.seqlen_k = static_cast<int>(p.seqlen_k);
  b.total_q = static_cast<int>(dense ? p.scores.dim(0) * tokens : tokens);
  const auto bound = [](std::int64_t keys) {
    return keys < 0 ? kUnbounded : static_cast<int>(std::min<std::int64_t>(keys, kUnbounded));
  };
  b.window_left = bound(p.window_left);
  b.window_right = p.causal ? 0 : bound(p.window_right);
  b.scale = 1;
  if (p.alibi_slopes.present()) {
    b.slopes = p.alibi_slopes.as<float>();
    b.slopes_batch_stride = p.alibi_slopes.rank == 2 ? p.alibi_slopes.stride(0) : 0;
    b.slopes_head_stride = p.alibi_slopes.stride(-1);
  }
  if (const TensorView& m = p.attn_mask; m.present()) {
    const auto stride = [&](int axis) { return m.dim(axis) == 1 ? 0 : m.stride(axis); };
    b.mask = dense ? Rows{m.data, m.dtype, stride(0), stride(2), stride(1)}
                   : Rows{m.data, m.dtype, 0, stride(1), stride(0)};
  }
  b.fault = table_fault(p.scores.device.index);
  a.from = score_rows(p.scores);
  a.to = score_rows(p.out);
  a.columns = static_cast<int>(p.scores.dim(-1));
  a.keep_n = static_cast<int>(p.sparsity.keep_n);
  a.keep_m = static_cast<int>(p.sparsity.keep_m);
  a.heads_a_layout = a.block_size_k = 1;
  if (const TensorView& l = p.sparsity.block_layout; l.present()) {
    const auto stride = [&](int axis) { return l.dim(axis) == 1 ? 0 : l.stride(axis); };
    if (l.dtype == DType::boolean) {
      a.bits = l.as<std::uint8_t>();
    } else {
      a.list = l.as<std::int32_t>();
    }
    a.layout_batch_stride = stride(0);
    a.layout_head_stride = stride(1);
    a.layout_block_stride = l.stride(2);
    a.layout_columns = static_cast<int>(l.dim(3));
    a.heads_a_layout = b.num_heads / static_cast<int>(l.dim(1));
    a.block_size_q = static_cast<int>(std::min<std::int64_t>(p.sparsity.block_size_q, kUnbounded));
    a.block_size_k = static_cast<int>(std::min<std::int64_t>(p.sparsity.block_size_k, kUnbounded));
  }
  launch_mask(a, p.scores, ctx);
}

}  // namespace kf::cuda
