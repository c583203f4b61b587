// Attention, the three primitives it is made of and the merge of two, in plain loops over every form of batch,
// accumulated in double.
#include "backends/cpu/reference/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <omp.h>

#include "backends/cpu/reference/scalar.h"
#include "core/quantized.h"
#include "ops/keep_largest.h"
#include "ops/key_blocks.h"

namespace kf::cpu::reference {
namespace {

using ops::Sequences;
using ops::SequenceSpan;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A row of `n` elements as doubles.
void read_row(const TensorView& t, std::int64_t offset, std::int64_t n, double* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = read(t, offset + i);
}

// The keys or values of a sequence as doubles.
class Keys {
 public:
  Keys(const Sequences& sequences, const TensorView& kv, const Quantization& q, const SequenceSpan& s)
      : kv_(kv), q_(q), rows_(sequences.key_rows(kv, s)), scales_(sequences.scale_rows(kv, q, s)) {}

  void read(std::int64_t key, std::int64_t head, double* out) const {
    const std::int64_t n = kv_.dim(-1), offset = rows_.offset(key, head);
    if (scales_.group_size == 0) return read_row(kv_, offset, n, out);
    const std::int64_t scales = scales_.scales.offset(key, head), zeros = scales_.zeros.offset(key, head);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t group = i / scales_.group_size;
      const double zero = q_.zeros.present() ? read_element(q_.zeros, zeros + group) : 0.0f;
      out[i] = (read_element(kv_, offset + i) - zero) * read_element(q_.scales, scales + group);
    }
  }
  // These keys of a head, key j at out + j * head_dim.
  void read(const ops::KeyRange& keys, std::int64_t head, double* out) const {
    for (std::int64_t j = keys.begin; j < keys.end; ++j) read(j, head, out + j * kv_.dim(-1));
  }

 private:
  const TensorView& kv_;
  const Quantization& q_;
  const ops::KeyRows rows_;
  const ops::ScaleRows scales_;
};

double capped(double score, double softcap) {
  return softcap > 0 ? softcap * std::tanh(score / softcap) : score;
}

// The score of a query token and a key with what alibi_slopes and attn_mask make of it.
double biased(double score, const Sequences& sequences, const SequenceSpan& s, const TensorView& slopes,
              const TensorView& mask, std::int64_t head, std::int64_t token, std::int64_t key) {
  if (slopes.present())
    score -= ops::alibi_slope(slopes, s.index, head) * std::abs(static_cast<double>(s.own_key(token) - key));
  if (mask.present()) {
    const std::int64_t at = sequences.mask_rows(mask, s).offset(token, head) + key;
    if (mask.dtype != DType::boolean)
      score += read(mask, at);
    else if (!mask.as<std::uint8_t>()[at])
      score = -kInfinity;
  }
  return score;
}

double dot(const double* a, const double* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Calls body(span, head, scratch) for every sequence and query head, on all threads, each with its own
// scratch of `doubles` in the workspace.
template <class Body>
void for_each_head(const Sequences& sequences, std::int64_t num_heads, std::size_t doubles,
                   const RunContext& ctx, const Body& body) {
#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(ctx.num_threads)
  for (std::int64_t b = 0; b < sequences.size(); ++b)
    for (std::int64_t h = 0; h < num_heads; ++h)
      body(sequences[b], h,
           static_cast<double*>(ctx.workspace) + static_cast<std::size_t>(omp_get_thread_num()) * doubles);
}

// Queries a K/V head.
std::int64_t group_size(const TensorView& queries, const TensorView& kv, const SequenceTables& tables) {
  return std::max<std::int64_t>(
      queries.dim(-2) / std::max<std::int64_t>(kv.dim(ops::kv_heads_axis(tables)), 1), 1);
}

// ---- attention

// K and V of a head, a row of scores, a row of q and one of out.
std::size_t attention_doubles(const AttentionParams& p) {
  const std::int64_t kv_len = ops::max_kv_len(p.tables, p.k), dims = p.q.dim(-1) + p.v.dim(-1);
  return static_cast<std::size_t>(kv_len * dims + kv_len + dims);
}

}  // namespace

std::size_t workspace(const AttentionParams& p, const PlanContext& ctx) {
  return static_cast<std::size_t>(ctx.num_threads) * attention_doubles(p) * sizeof(double);
}

void attention(const AttentionParams& p, const RunContext& ctx) {
  const Sequences sequences(p);
  const std::int64_t head_dim = p.q.dim(-1), value_dim = p.v.dim(-1), group = group_size(p.q, p.k, p.tables);
  const double scale = ops::score_scale(p.softmax_scale, head_dim);
  const ops::Window window(p);
  for_each_head(
      sequences, p.q.dim(-2), attention_doubles(p), ctx,
      [&](const SequenceSpan& s, std::int64_t head, double* scratch) {
        double* const keys = scratch;
        double* const values = keys + s.kv_len * head_dim;
        double* const scores = values + s.kv_len * value_dim;
        double* const query = scores + s.kv_len;
        double* const row = query + head_dim;
        const Keys all_keys(sequences, p.k, p.k_quantization, s),
            all_values(sequences, p.v, p.v_quantization, s);
        const std::int64_t block_tokens = ops::query_block_tokens(p.sparsity, s.seqlen_q);
        ops::KeyBlocks blocks;
        for (std::int64_t t = 0; t < s.seqlen_q; ++t) {
          if (t % block_tokens == 0) {  // what any row of the query block sees, and nothing else
            blocks = ops::KeyBlocks(p.sparsity, s.index, ops::query_block(p.sparsity, t), head, p.q.dim(-2));
            blocks.for_each_run(s.visible_keys(t, std::min(t + block_tokens, s.seqlen_q), window),
                                [&](const ops::KeyRange& run) {
                                  all_keys.read(run, head / group, keys);
                                  all_values.read(run, head / group, values);
                                });
          }
          const ops::KeyRange seen = s.visible_keys(t, window);
          read_row(p.q, sequences.token_rows(p.q, s).offset(t, head), head_dim, query);
          // What the row does not see is -inf to those that choose among its scores.
          std::fill(scores + seen.begin, scores + seen.end, -kInfinity);
          blocks.for_each_run(seen, [&](const ops::KeyRange& run) {
            for (std::int64_t j = run.begin; j < run.end; ++j) {
              const double score = capped(scale * dot(query, keys + j * head_dim, head_dim), p.softcap);
              scores[j] = biased(score, sequences, s, p.alibi_slopes, p.attn_mask, head, t, j);
            }
          });
          if (p.sparsity.keep_m > 0)
            ops::keep_largest(scores + seen.begin, seen.end - seen.begin, seen.begin % p.sparsity.keep_m,
                              p.sparsity.keep_n, p.sparsity.keep_m);
          const double sink = p.sinks.present() ? read(p.sinks, head * p.sinks.stride(0)) : -kInfinity;
          double largest = sink;
          for (std::int64_t j = seen.begin; j < seen.end; ++j) largest = std::max(largest, scores[j]);
          // Scores of -inf weigh nothing, even where there are no others.
          const auto weight_of = [&](double x) { return x == -kInfinity ? 0.0 : std::exp(x - largest); };
          double sum = 0;
          std::fill_n(row, value_dim, 0.0);
          blocks.for_each_run(seen, [&](const ops::KeyRange& run) {
            for (std::int64_t j = run.begin; j < run.end; ++j) {
              const double weight = weight_of(scores[j]);
              sum += weight;
              for (std::int64_t i = 0; i < value_dim; ++i) row[i] += weight * values[j * value_dim + i];
            }
          });
          if (sum == 0) std::fill_n(row, value_dim, 0.0);
          sum += weight_of(sink);
          const std::int64_t out = sequences.token_rows(p.out, s).offset(t, head);
          for (std::int64_t i = 0; i < value_dim; ++i) write(p.out, out + i, sum == 0.0 ? 0.0 : row[i] / sum);
          if (p.lse.present())
            write(p.lse, sequences.head_major_rows(p.lse, s).offset(t, head), largest + std::log(sum));
        }
      });
}

// ---- primitives

static std::size_t scores_doubles(const AttentionScoresParams& p) {
  return static_cast<std::size_t>(2 * p.q.dim(-1));
}

std::size_t workspace(const AttentionScoresParams& p, const PlanContext& ctx) {
  return static_cast<std::size_t>(ctx.num_threads) * scores_doubles(p) * sizeof(double);
}

void attention_scores(const AttentionScoresParams& p, const RunContext& ctx) {
  const Sequences sequences(p);
  const std::int64_t head_dim = p.q.dim(-1), group = group_size(p.q, p.k, p.tables);
  const double scale = ops::score_scale(p.softmax_scale, head_dim);
  for_each_head(sequences, p.q.dim(-2), scores_doubles(p), ctx,
                [&](const SequenceSpan& s, std::int64_t head, double* scratch) {
                  double* const query = scratch;
                  double* const key = scratch + head_dim;
                  const Keys keys(sequences, p.k, p.k_quantization, s);
                  for (std::int64_t t = 0; t < s.seqlen_q; ++t) {
                    read_row(p.q, sequences.token_rows(p.q, s).offset(t, head), head_dim, query);
                    float* const row =
                        p.scores.as<float>() + sequences.head_major_rows(p.scores, s).offset(t, head);
                    for (std::int64_t j = 0; j < p.scores.dim(-1); ++j) {
                      double score = -kInfinity;
                      if (j < s.kv_len) {
                        keys.read(j, head / group, key);
                        score = capped(scale * dot(query, key, head_dim), p.softcap);
                      }
                      row[j] = static_cast<float>(score);
                    }
                  }
                });
}

void attention_mask(const AttentionMaskParams& p, const RunContext& ctx) {
  const Sequences sequences(p);
  const std::int64_t num_heads = p.scores.dim(p.scores.rank == 4 ? 1 : 0);
  const ops::Window window(p);
  for_each_head(sequences, num_heads, 0, ctx, [&](const SequenceSpan& s, std::int64_t head, double*) {
    for (std::int64_t t = 0; t < s.seqlen_q; ++t) {
      const float* const row = p.scores.as<float>() + sequences.head_major_rows(p.scores, s).offset(t, head);
      float* const out = p.out.as<float>() + sequences.head_major_rows(p.out, s).offset(t, head);
      const ops::KeyBlocks blocks(p.sparsity, s.index, ops::query_block(p.sparsity, t), head, num_heads);
      std::int64_t done = 0;
      const auto forbid = [&](std::int64_t until) {
        for (; done < until; ++done) out[done] = -static_cast<float>(kInfinity);
      };
      blocks.for_each_run(s.visible_keys(t, window), [&](const ops::KeyRange& run) {
        forbid(run.begin);
        for (; done < run.end; ++done)
          out[done] =
              static_cast<float>(biased(row[done], sequences, s, p.alibi_slopes, p.attn_mask, head, t, done));
      });
      forbid(p.scores.dim(-1));
      if (p.sparsity.keep_m > 0)
        ops::keep_largest(out, p.scores.dim(-1), 0, p.sparsity.keep_n, p.sparsity.keep_m);
    }
  });
}

static std::size_t values_doubles(const AttentionValuesParams& p) {
  return static_cast<std::size_t>(2 * p.v.dim(-1));  // sums, and a row of values
}

std::size_t workspace(const AttentionValuesParams& p, const PlanContext& ctx) {
  return static_cast<std::size_t>(ctx.num_threads) * values_doubles(p) * sizeof(double);
}

void attention_values(const AttentionValuesParams& p, const RunContext& ctx) {
  const Sequences sequences(p);
  const std::int64_t head_dim = p.v.dim(-1), group = group_size(p.out, p.v, p.tables);
  for_each_head(sequences, p.out.dim(-2), values_doubles(p), ctx,
                [&](const SequenceSpan& s, std::int64_t head, double* sums) {
                  const Keys values(sequences, p.v, p.v_quantization, s);
                  double* const value = sums + head_dim;
                  for (std::int64_t t = 0; t < s.seqlen_q; ++t) {
                    const float* const probs =
                        p.probs.as<float>() + sequences.head_major_rows(p.probs, s).offset(t, head);
                    std::fill_n(sums, head_dim, 0.0);
                    for (std::int64_t j = 0; j < s.kv_len; ++j) {
                      values.read(j, head / group, value);
                      for (std::int64_t i = 0; i < head_dim; ++i)
                        sums[i] += static_cast<double>(probs[j]) * value[i];
                    }
                    const std::int64_t out = sequences.token_rows(p.out, s).offset(t, head);
                    for (std::int64_t i = 0; i < head_dim; ++i) write(p.out, out + i, sums[i]);
                  }
                });
}

// ---- merge

void merge_attention(const MergeAttentionParams& p, const RunContext&) {
  const bool dense = p.out.rank == 4;
  const std::int64_t batch = dense ? p.out.dim(0) : 1, tokens = p.out.dim(-3), num_heads = p.out.dim(-2);
  const auto row = [&](const TensorView& t, std::int64_t b, std::int64_t token, std::int64_t head) {
    return (dense ? b * t.stride(0) : 0) + token * t.stride(-3) + head * t.stride(-2);
  };
  const auto lse_at = [&](const TensorView& t, std::int64_t b, std::int64_t token, std::int64_t head) {
    return (dense ? b * t.stride(0) : 0) + head * t.stride(-2) + token * t.stride(-1);
  };
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t h = 0; h < num_heads; ++h) {
        const double lse_a = read(p.lse_a, lse_at(p.lse_a, b, t, h)),
                     lse_b = read(p.lse_b, lse_at(p.lse_b, b, t, h)), largest = std::max(lse_a, lse_b);
        const auto weight_of = [&](double lse) { return lse == -kInfinity ? 0.0 : std::exp(lse - largest); };
        const double weight_a = weight_of(lse_a), weight_b = weight_of(lse_b), sum = weight_a + weight_b;
        for (std::int64_t i = 0; i < p.out.dim(-1); ++i) {
          double value = 0;
          if (lse_a != -kInfinity) value += weight_a / sum * read(p.out_a, row(p.out_a, b, t, h) + i);
          if (lse_b != -kInfinity) value += weight_b / sum * read(p.out_b, row(p.out_b, b, t, h) + i);
          write(p.out, row(p.out, b, t, h) + i, value);
        }
        if (p.lse.present()) write(p.lse, lse_at(p.lse, b, t, h), largest + std::log(sum));
      }
}

}  // namespace kf::cpu::reference
