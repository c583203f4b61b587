// The primitives of attention as an eager framework runs them: batched matmuls of the best library GEMM on
// each head's matrices, and a pass that biases and masks. What a GEMM cannot take as it lies (16-bit types, scattered
// pages) is first written out as f32 matrices.
#include <algorithm>
#include <limits>

#include <fmt/format.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>

#include "backends/cpu/attention/decode.h"
#include "backends/cpu/attention/gemv.h"
#include "backends/cpu/attention/kernels.h"
#include "backends/cpu/attention/kv_source.h"
#include "backends/cpu/attention/score_rows.h"
#include "backends/cpu/simd/convert_row.h"
#include "ops/key_blocks.h"

namespace kf::cpu {
namespace {

using ops::Sequences;
using ops::SequenceSpan;

constexpr std::int64_t kGemmRows =
    256;  // query rows of a task: few enough to balance, many enough for the GEMM
constexpr std::int64_t kGemvRows = 2;  // up to so many rows a GEMM is slower than vectors

// A matrix of one head: rows of head_dim elements, `stride` apart.
struct Matrix {
  float* data;
  std::int64_t stride;
};

// The heads of q, k, v or out as f32 matrices: where they lie, or copied to the workspace.
class HeadMatrices {
 public:
  // `tokens`: the most rows that all sequences together have in one head.
  static std::size_t workspace(const TensorView& x, std::int64_t tokens, std::int64_t num_heads,
                               bool scattered) {
    return copied(x, scattered) ? static_cast<std::size_t>(tokens * num_heads * x.dim(-1)) * sizeof(float)
                                : 0;
  }

  HeadMatrices(const TensorView& x, std::int64_t num_heads, bool scattered, void* workspace)
      : x_(x),
        num_heads_(num_heads),
        copied_(copied(x, scattered)),
        workspace_(static_cast<float*>(workspace)) {}

  // Head `head` of a sequence with `count` rows, of which the sequences before it have `before`.
  Matrix matrix(const ops::KeyRows& rows, std::int64_t before, std::int64_t count, std::int64_t head) const {
    // The stride of a lone row is free with us, but a GEMM wants one that rows would have. Without rows there is no first: a
    // table of pages may have no entry for it.
    if (in_place(rows, count))
      return {x_.as<float>() + (count > 0 ? rows.offset(0, head) : 0),
              std::max(rows.token_stride, x_.dim(-1))};
    const std::int64_t head_dim = x_.dim(-1);
    return {workspace_ + (before * num_heads_ + head * count) * head_dim, head_dim};
  }
  void read(const ops::KeyRows& rows, std::int64_t before, std::int64_t count, std::int64_t head) const {
    if (count == 0 || in_place(rows, count)) return;
    const Matrix to = matrix(rows, before, count, head);
    for (std::int64_t j = 0; j < count; ++j) {
      float* const row = to.data + j * to.stride;
      if (is_there(rows, j))
        convert_row(x_.dtype, x_.at(rows.offset(j, head)), DType::f32, row, x_.dim(-1));
      else
        std::fill_n(row, x_.dim(-1), 0.0f);
    }
  }
  // Of quantized keys or values.
  void read(const ops::KeyRows& rows, const KvScales& scales, std::int64_t before, std::int64_t count,
            std::int64_t head) const {
    if (!needs_scales(x_.dtype)) return read(rows, before, count, head);
    const Matrix to = matrix(rows, before, count, head);
    const std::int64_t size = scales.group_size();
    for (std::int64_t j = 0; j < count; ++j) {
      if (!is_there(rows, j)) {
        std::fill_n(to.data + j * to.stride, x_.dim(-1), 0.0f);
        continue;
      }
      const std::int64_t offset = rows.offset(j, head);
      const KvScales::Row row = scales.row(j, head);
      for (std::int64_t g = 0, i = 0; i < x_.dim(-1); ++g, i += size)
        decode_codes(x_.dtype, x_.at(offset + i), scales.scale(row, g), scales.zero(row, g), size,
                     to.data + j * to.stride + i);
    }
  }
  // Rows [begin, end) back to where they belong.
  void write(const ops::KeyRows& rows, std::int64_t before, std::int64_t count, std::int64_t head,
             std::int64_t begin, std::int64_t end) const {
    if (in_place(rows, count)) return;
    const Matrix from = matrix(rows, before, count, head);
    for (std::int64_t j = begin; j < end; ++j)
      convert_row(DType::f32, from.data + j * from.stride, x_.dtype, x_.at(rows.offset(j, head)), x_.dim(-1));
  }

 private:
  static bool copied(const TensorView& x, bool scattered) {
    if (x.dtype != DType::f32 || scattered) return true;
    for (int i = 0; i + 1 < x.rank; ++i)  // a GEMM wants rows that do not overlap
      if (x.dim(i) > 1 && x.stride(i) < x.dim(-1)) return true;
    return false;
  }
  bool in_place(const ops::KeyRows& rows, std::int64_t count) const {
    return !copied_ || (x_.dtype == DType::f32 && rows.token_stride >= x_.dim(-1) && rows.is_one_run(count) &&
                        are_there(rows, count));
  }
  // Attention asks for the pages alone that its rows see; as a composition it reads all keys, and those of a page that is
  // not there, which the mask hides, as zeros.
  bool is_there(const ops::KeyRows& rows, std::int64_t key) const {
    if (rows.pages == nullptr) return true;
    const std::int32_t page = rows.pages[key / rows.page_size];
    return page >= 0 && page < x_.dim(0);
  }
  bool are_there(const ops::KeyRows& rows, std::int64_t count) const {
    for (std::int64_t key = 0; rows.pages != nullptr && key < count; key += rows.page_size)
      if (!is_there(rows, key)) return false;
    return true;
  }

  const TensorView& x_;
  const std::int64_t num_heads_;
  const bool copied_;
  float* const workspace_;
};

// Query rows as if they were keys: one run.
ops::KeyRows as_run(const ops::TokenRows& rows, std::int64_t count) {
  ops::KeyRows r;
  r.base = rows.base;
  r.token_stride = rows.token_stride;
  r.head_stride = rows.head_stride;
  r.page_size = std::max<std::int64_t>(count, 1);
  return r;
}

// Rows of the sequences before `s`, or as many as they may have.
std::int64_t queries_before(const SequenceTables& t, const SequenceSpan& s) {
  return ops::is_dense(t) ? s.index * s.seqlen_q : s.q_begin;
}
std::int64_t keys_before(const SequenceTables& t, const TensorView& kv, const SequenceSpan& s) {
  return t.cu_seqlens_k.present() ? s.k_begin : s.index * ops::max_kv_len(t, kv);
}
std::int64_t all_queries(const TensorView& q) { return q.rank == 4 ? q.dim(0) * q.dim(1) : q.dim(0); }
std::int64_t all_keys(const SequenceTables& t, const TensorView& kv, std::int64_t batch) {
  return t.cu_seqlens_k.present() ? kv.dim(0) : batch * ops::max_kv_len(t, kv);
}

// Calls body(span, head) on all threads of the enclosing parallel region, and waits for all.
template <class Body>
void for_each_head(const Sequences& sequences, std::int64_t num_heads, const Body& body) {
#pragma omp for collapse(2) schedule(dynamic, 1)
  for (std::int64_t b = 0; b < sequences.size(); ++b)
    for (std::int64_t h = 0; h < num_heads; ++h) body(sequences[b], h);
}

// The same by blocks of query rows: body(span, head, begin, end).
template <class Body>
void for_each_row_block(const Sequences& sequences, std::int64_t num_heads, std::int64_t longest,
                        const Body& body) {
#pragma omp for collapse(3) schedule(dynamic, 1)
  for (std::int64_t b = 0; b < sequences.size(); ++b)
    for (std::int64_t h = 0; h < num_heads; ++h)
      for (std::int64_t begin = 0; begin < longest; begin += kGemmRows) {
        const SequenceSpan s = sequences[b];
        if (begin < s.seqlen_q) body(s, h, begin, std::min(begin + kGemmRows, s.seqlen_q));
      }
}

std::int64_t longest_queries(const Sequences& sequences) {
  std::int64_t longest = 0;
  for (std::int64_t b = 0; b < sequences.size(); ++b) longest = std::max(longest, sequences[b].seqlen_q);
  return longest;
}

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// ---- scores

std::size_t scores_q_workspace(const AttentionScoresParams& p) {
  return aligned(HeadMatrices::workspace(p.q, all_queries(p.q), p.q.dim(-2), false));
}

}  // namespace

std::size_t unfused::workspace(const AttentionScoresParams& p, const PlanContext&) {
  return scores_q_workspace(p) + HeadMatrices::workspace(p.k, all_keys(p.tables, p.k, Sequences(p).size()),
                                                         p.k.dim(ops::kv_heads_axis(p.tables)),
                                                         p.tables.paged());
}

void unfused::run(const AttentionScoresParams& p, const RunContext& ctx) {
  const Sequences sequences(p);
  const std::int64_t num_heads = p.q.dim(-2), num_kv_heads = p.k.dim(ops::kv_heads_axis(p.tables));
  if (p.scores.numel() == 0 || num_kv_heads == 0) return;
  const std::int64_t head_dim = p.q.dim(-1), group = num_heads / num_kv_heads, columns = p.scores.dim(-1);
  const float scale = static_cast<float>(ops::score_scale(p.softmax_scale, head_dim));
  const HeadMatrices queries(p.q, num_heads, false, ctx.workspace);
  const HeadMatrices keys(p.k, num_kv_heads, p.tables.paged(),
                          static_cast<char*>(ctx.workspace) + scores_q_workspace(p));
  const std::int64_t longest = longest_queries(sequences);

#pragma omp parallel num_threads(ctx.num_threads)
  {
    for_each_head(sequences, num_heads, [&](const SequenceSpan& s, std::int64_t head) {
      queries.read(as_run(sequences.token_rows(p.q, s), s.seqlen_q), queries_before(p.tables, s), s.seqlen_q,
                   head);
      if (head % group == 0)
        keys.read(sequences.key_rows(p.k, s), KvScales(sequences, s, p.k, p.k_quantization),
                  keys_before(p.tables, p.k, s), s.kv_len, head / group);
    });
    for_each_row_block(
        sequences, num_heads, longest,
        [&](const SequenceSpan& s, std::int64_t head, std::int64_t begin, std::int64_t end) {
          const Matrix q = queries.matrix(as_run(sequences.token_rows(p.q, s), s.seqlen_q),
                                          queries_before(p.tables, s), s.seqlen_q, head);
          const Matrix k =
              keys.matrix(sequences.key_rows(p.k, s), keys_before(p.tables, p.k, s), s.kv_len, head / group);
          const ops::TokenRows rows = sequences.head_major_rows(p.scores, s);
          const auto row = [&](std::int64_t t) {
            return static_cast<float*>(p.scores.at(rows.offset(t, head)));
          };
          if (s.kv_len > 0 && end - begin > kGemvRows && rows.token_stride >= s.kv_len) {
            dnnl_sgemm('N', 'T', end - begin, s.kv_len, head_dim, scale, q.data + begin * q.stride, q.stride,
                       k.data, k.stride, 0.0f, row(begin), rows.token_stride);
          } else {
            for (std::int64_t t = begin; t < end; ++t)
              vector_times_rows(q.data + t * q.stride, k.data, k.stride, s.kv_len, head_dim, scale, row(t));
          }
          for (std::int64_t t = begin; t < end; ++t) {
            if (p.softcap > 0.0f) cap_row(row(t), s.kv_len, p.softcap);
            std::fill(row(t) + s.kv_len, row(t) + columns, -std::numeric_limits<float>::infinity());
          }
        });
  }
}

// ---- mask

void unfused::run(const AttentionMaskParams& p, const RunContext& ctx) {
  const Sequences sequences(p);
  const std::int64_t num_heads = p.scores.dim(p.scores.rank == 4 ? 1 : 0), columns = p.scores.dim(-1);
  if (p.scores.numel() == 0) return;
  const std::int64_t longest = longest_queries(sequences);
  const ops::Window window(p);
#pragma omp parallel num_threads(ctx.num_threads)
  for_each_row_block(sequences, num_heads, longest,
                     [&](const SequenceSpan& s, std::int64_t head, std::int64_t begin, std::int64_t end) {
                       constexpr float kForbidden = -std::numeric_limits<float>::infinity();
                       const ops::TokenRows from = sequences.head_major_rows(p.scores, s),
                                            to = sequences.head_major_rows(p.out, s);
                       const ops::TokenRows mask =
                           p.attn_mask.present() ? sequences.mask_rows(p.attn_mask, s) : ops::TokenRows{};
                       for (std::int64_t t = begin; t < end; ++t) {
                         const float* const scores =
                             static_cast<const float*>(p.scores.at(from.offset(t, head)));
                         float* const out = static_cast<float*>(p.out.at(to.offset(t, head)));
                         const auto [first, last] = s.visible_keys(t, window);
                         std::fill(out, out + first, kForbidden);
                         if (out != scores) std::copy(scores + first, scores + last, out + first);
                         std::fill(out + last, out + columns, kForbidden);
                         if (p.alibi_slopes.present())
                           add_slope(out + first, last - first,
                                     ops::alibi_slope(p.alibi_slopes, s.index, head), s.own_key(t) - first);
                         if (p.attn_mask.present())
                           apply_mask(out + first, last - first, p.attn_mask, mask.offset(t, head) + first);
                         if (p.sparsity.block_layout.present()) {
                           const ops::KeyBlocks blocks(p.sparsity, s.index, ops::query_block(p.sparsity, t),
                                                       head, num_heads);
                           std::int64_t done = first;
                           blocks.for_each_run({first, last}, [&](const ops::KeyRange& run) {
                             std::fill(out + done, out + run.begin, kForbidden);
                             done = run.end;
                           });
                           std::fill(out + done, out + last, kForbidden);
                         }
                         if (p.sparsity.keep_m > 0)
                           keep_largest(out + first, last - first, first % p.sparsity.keep_m,
                                        p.sparsity.keep_n, p.sparsity.keep_m);
                       }
                     });
}

// ---- values

namespace {

std::size_t values_out_workspace(const AttentionValuesParams& p) {
  return aligned(HeadMatrices::workspace(p.out, all_queries(p.out), p.out.dim(-2), false));
}

}  // namespace

std::size_t unfused::workspace(const AttentionValuesParams& p, const PlanContext&) {
  return values_out_workspace(p) + HeadMatrices::workspace(p.v, all_keys(p.tables, p.v, Sequences(p).size()),
                                                           p.v.dim(ops::kv_heads_axis(p.tables)),
                                                           p.tables.paged());
}

void unfused::run(const AttentionValuesParams& p, const RunContext& ctx) {
  const Sequences sequences(p);
  const std::int64_t num_heads = p.out.dim(-2), num_kv_heads = p.v.dim(ops::kv_heads_axis(p.tables));
  if (p.out.numel() == 0 || num_kv_heads == 0) return;
  const std::int64_t head_dim = p.out.dim(-1), group = num_heads / num_kv_heads;
  const HeadMatrices outs(p.out, num_heads, false, ctx.workspace);
  const HeadMatrices values(p.v, num_kv_heads, p.tables.paged(),
                            static_cast<char*>(ctx.workspace) + values_out_workspace(p));
  const std::int64_t longest = longest_queries(sequences);

#pragma omp parallel num_threads(ctx.num_threads)
  {
    for_each_head(sequences, num_kv_heads, [&](const SequenceSpan& s, std::int64_t kv_head) {
      values.read(sequences.key_rows(p.v, s), KvScales(sequences, s, p.v, p.v_quantization),
                  keys_before(p.tables, p.v, s), s.kv_len, kv_head);
    });
    for_each_row_block(
        sequences, num_heads, longest,
        [&](const SequenceSpan& s, std::int64_t head, std::int64_t begin, std::int64_t end) {
          const Matrix v = values.matrix(sequences.key_rows(p.v, s), keys_before(p.tables, p.v, s), s.kv_len,
                                         head / group);
          const ops::KeyRows out_rows = as_run(sequences.token_rows(p.out, s), s.seqlen_q);
          const Matrix out = outs.matrix(out_rows, queries_before(p.tables, s), s.seqlen_q, head);
          const ops::TokenRows rows = sequences.head_major_rows(p.probs, s);
          const auto row = [&](std::int64_t t) {
            return static_cast<float*>(p.probs.at(rows.offset(t, head)));
          };
          if (s.kv_len > 0 && end - begin > kGemvRows && rows.token_stride >= s.kv_len) {
            dnnl_sgemm('N', 'N', end - begin, head_dim, s.kv_len, 1.0f, row(begin), rows.token_stride, v.data,
                       v.stride, 0.0f, out.data + begin * out.stride, out.stride);
          } else {
            for (std::int64_t t = begin; t < end; ++t)
              weighted_sum_of_rows(row(t), v.data, v.stride, s.kv_len, head_dim, out.data + t * out.stride);
          }
          outs.write(out_rows, queries_before(p.tables, s), s.seqlen_q, head, begin, end);
        });
  }
}

}  // namespace kf::cpu
