// Where the sequences of an attention batch lie, whatever their form: dense, packed or paged. The reference,
// the unfused primitives and the fused kernels all walk a batch through this one description.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kf/ops/attention.h"

namespace kf::ops {

// Keys [begin, end) of a sequence.
struct KeyRange {
  std::int64_t begin = 0, end = 0;
};

// How many keys before and after its own a row may attend; unbounded sides are larger than any sequence.
struct Window {
  std::int64_t left, right;

  explicit Window(bool causal = false, std::int64_t window_left = -1, std::int64_t window_right = -1)
      : left(bound(window_left)), right(causal ? 0 : bound(window_right)) {}
  explicit Window(const AttentionParams& p) : Window(p.causal, p.window_left, p.window_right) {}
  explicit Window(const AttentionMaskParams& p) : Window(p.causal, p.window_left, p.window_right) {}

 private:
  static std::int64_t bound(std::int64_t keys) {
    constexpr std::int64_t kUnbounded = std::int64_t{1} << 60;
    return keys < 0 ? kUnbounded : std::min(keys, kUnbounded);
  }
};

struct SequenceSpan {
  std::int64_t index = 0;    // in the batch
  std::int64_t q_begin = 0;  // packed and paged: the first query token
  std::int64_t seqlen_q = 0;
  std::int64_t k_begin = 0;  // packed: the first key
  std::int64_t kv_len = 0;

  // The key that query token t stands at, which is before the first where there are fewer keys than queries.
  std::int64_t own_key(std::int64_t t) const { return kv_len - seqlen_q + t; }
  // The keys that query token t may attend. Neither end goes back from one token to the next.
  KeyRange visible_keys(std::int64_t t, const Window& window) const {
    return {std::clamp<std::int64_t>(own_key(t) - window.left, 0, kv_len),
            std::clamp<std::int64_t>(own_key(t) + window.right + 1, 0, kv_len)};
  }
  // Those that any of query tokens [begin, end) may attend.
  KeyRange visible_keys(std::int64_t begin, std::int64_t end, const Window& window) const {
    if (begin == end) return {};
    return {visible_keys(begin, window).begin, visible_keys(end - 1, window).end};
  }
};

// Rows of a tensor by (token, head) of one sequence: q, out, lse, scores. Offsets count elements.
struct TokenRows {
  std::int64_t base = 0, token_stride = 0, head_stride = 0;

  std::int64_t offset(std::int64_t token, std::int64_t head) const {
    return base + token * token_stride + head * head_stride;
  }
};

// Keys or values of one sequence. Key j of a head lies on page j / page_size; dense and packed sequences are
// one page, and have no page list.
struct KeyRows {
  std::int64_t base = 0, token_stride = 0, head_stride = 0;
  std::int64_t page_size = 1, page_stride = 0;
  const std::int32_t* pages = nullptr;

  std::int64_t offset(std::int64_t key, std::int64_t head) const {
    const std::int64_t in_page = base + row_of_page(key) * token_stride + head * head_stride;
    return pages ? in_page + pages[key / page_size] * page_stride : in_page;
  }
  std::int64_t row_of_page(std::int64_t key) const { return pages ? key % page_size : key; }
  // Calls f(first_key, count, offset) for runs of keys that lie `token_stride` apart: one look-up a page.
  template <class F>
  void for_each_run(std::int64_t begin, std::int64_t end, std::int64_t head, F&& f) const {
    for (std::int64_t key = begin; key < end;) {
      const std::int64_t count = std::min(end - key, page_size - key % page_size);
      f(key, count, offset(key, head));
      key += count;
    }
  }
  // Whether all of the first `kv_len` keys lie `token_stride` apart.
  bool is_one_run(std::int64_t kv_len) const {
    for (std::int64_t key = page_size; key < kv_len; key += page_size)
      if (offset(key, 0) != offset(key - page_size, 0) + page_size * token_stride) return false;
    return true;
  }
};

// Where the scales and zeros of one sequence's keys or values lie: rows of groups, as KeyRows has the data's.
struct ScaleRows {
  KeyRows scales, zeros;
  std::int64_t group_size = 0;  // elements; 0: the data need none
};

class Sequences {
 public:
  // The last three describe a dense batch; tables override them.
  Sequences(const SequenceTables& tables, std::int64_t dense_batch, std::int64_t dense_seqlen_q,
            std::int64_t dense_seqlen_k);
  explicit Sequences(const AttentionParams& p);
  explicit Sequences(const AttentionScoresParams& p);
  explicit Sequences(const AttentionMaskParams& p);
  explicit Sequences(const AttentionValuesParams& p);

  std::int64_t size() const { return batch_; }
  SequenceSpan operator[](std::int64_t b) const;

  // Of q or out: [batch, seqlen_q, num_heads, head_dim] or [total_q, num_heads, head_dim].
  TokenRows token_rows(const TensorView& x, const SequenceSpan& s) const;
  // Of lse or scores: [batch, num_heads, seqlen_q, ...] or [num_heads, total_q, ...].
  TokenRows head_major_rows(const TensorView& x, const SequenceSpan& s) const;
  // Of attn_mask: row (token, head) begins at the sequence's first key.
  TokenRows mask_rows(const TensorView& mask, const SequenceSpan& s) const;
  // Of k or v.
  KeyRows key_rows(const TensorView& kv, const SequenceSpan& s) const;
  ScaleRows scale_rows(const TensorView& kv, const Quantization& q, const SequenceSpan& s) const;

 private:
  const SequenceTables& tables_;
  bool dense_;
  std::int64_t batch_, dense_seqlen_q_, dense_seqlen_k_;
};

inline bool is_dense(const SequenceTables& t) { return !t.paged() && !t.cu_seqlens_q.present(); }
// Dimensions of a K or V tensor in its form.
int kv_heads_axis(const SequenceTables& tables);
int page_rows_axis(const SequenceTables& tables);  // paged only
// What scores are multiplied by: 1 / sqrt(head_dim) unless given.
inline double score_scale(float softmax_scale, std::int64_t head_dim) {
  return softmax_scale != 0.0f ? softmax_scale : 1.0 / std::sqrt(static_cast<double>(head_dim));
}
// ALiBi's slope of a head, from [num_heads] or [batch, num_heads].
inline float alibi_slope(const TensorView& slopes, std::int64_t sequence, std::int64_t head) {
  return slopes.as<float>()[(slopes.rank == 2 ? sequence * slopes.stride(0) : 0) + head * slopes.stride(-1)];
}
// The most keys that a sequence may have, from shapes alone.
std::int64_t max_kv_len(const SequenceTables& tables, const TensorView& kv);

}  // namespace kf::ops
