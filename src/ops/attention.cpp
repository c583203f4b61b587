#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "core/quantized.h"
#include "ops/check.h"
#include "ops/key_blocks.h"
#include "ops/ops.h"
#include "ops/sequences.h"

namespace kf::ops {
namespace {

// ---- Shapes

// Exactly one of the three forms; tables are contiguous i32 of matching lengths.
void validate_tables(const char* op, const SequenceTables& t) {
  const bool cu_q = t.cu_seqlens_q.present(), cu_k = t.cu_seqlens_k.present();
  const bool pages = t.block_tables.present(), lens = t.context_lens.present();
  const bool dense = !cu_q && !cu_k && !pages && !lens;
  const bool packed = cu_q && cu_k && !pages && !lens;
  const bool paged = pages && lens && !cu_k;
  if (!dense && !packed && !paged) {
    std::string got;
    for (auto [name, present] : {std::pair{"cu_seqlens_q", cu_q}, std::pair{"cu_seqlens_k", cu_k},
                                 std::pair{"block_tables", pages}, std::pair{"context_lens", lens}})
      if (present) got += fmt::format("{}{}", got.empty() ? "" : ", ", name);
    fail_attr(
        op, "tables",
        "none (dense), cu_seqlens_q and cu_seqlens_k (packed), or block_tables and context_lens with an "
        "optional cu_seqlens_q (paged)",
        got);
  }
  for (auto [name, cu] :
       {std::pair{"cu_seqlens_q", &t.cu_seqlens_q}, std::pair{"cu_seqlens_k", &t.cu_seqlens_k}}) {
    if (!cu->present()) continue;
    check(op, name, *cu).rank(1).dtype(DType::i32).contiguous();
    if (cu->dim(0) == 0) check(op, name, *cu).fail("batch + 1 entries, at least one", "none");
  }
  if (packed)
    check(op, "cu_seqlens_k", t.cu_seqlens_k).dim(0, t.cu_seqlens_q.dim(0), "as many as cu_seqlens_q");
  if (paged) {
    check(op, "block_tables", t.block_tables).rank(2).dtype(DType::i32).last_dim_contiguous();
    const std::int64_t batch = t.block_tables.dim(0);
    check(op, "context_lens", t.context_lens).rank(1).dtype(DType::i32).contiguous().dim(0, batch, "batch");
    if (cu_q) check(op, "cu_seqlens_q", t.cu_seqlens_q).dim(0, batch + 1, "batch + 1");
  }
}

struct QueryDims {
  std::int64_t batch, num_heads, head_dim;
};

// q, or a tensor laid out like it.
QueryDims validate_queries(const char* op, const char* name, const TensorView& q, const SequenceTables& t) {
  check(op, name, q).rank(is_dense(t) ? 4 : 3).activation_dtype().last_dim_contiguous();
  if (t.paged() && !t.cu_seqlens_q.present())
    check(op, name, q)
        .dim(0, t.block_tables.dim(0), "batch: one query token a sequence without cu_seqlens_q");
  return {q.dim(0), q.dim(-2), q.dim(-1)};
}

void validate_keys(const char* op, const char* name, const TensorView& kv, const Quantization& quantization,
                   const SequenceTables& t, std::int64_t batch, std::int64_t num_heads,
                   std::int64_t head_dim) {
  const Check c = check(op, name, kv);
  c.rank(t.paged() || is_dense(t) ? 4 : 3).last_dim_contiguous();
  if (!is_activation_dtype(kv.dtype) && !needs_scales(kv.dtype))
    c.fail("f32, f16 or bf16; int4, i8, fp8_e4m3 or fp8_e5m2 with scales", dtype_name(kv.dtype));
  check_kv_quantization(op, name, kv, quantization);
  c.dim(-1, head_dim, "head_dim");
  if (is_dense(t)) c.dim(0, batch, "batch");
  const std::int64_t num_kv_heads = kv.dim(kv_heads_axis(t));
  if (num_kv_heads > 0 ? num_heads % num_kv_heads != 0 : num_heads > 0)
    c.fail(fmt::format("a number of K/V heads that divides {} query heads", num_heads),
           fmt::format("{} in shape {}", num_kv_heads, shape_string(kv)));
}

void validate_scores(const char* op, const char* name, const TensorView& s, const SequenceTables& t) {
  check(op, name, s).rank(is_dense(t) ? 4 : 3).dtype(DType::f32).last_dim_contiguous();
}

// The token dimensions of scores or lse against those of q.
void validate_score_rows(const char* op, const char* name, const TensorView& s, const TensorView& q,
                         const SequenceTables& t) {
  const Check c = check(op, name, s);
  if (is_dense(t)) {
    c.dim(0, q.dim(0), "batch").dim(1, q.dim(2), "num_heads").dim(2, q.dim(1), "seqlen_q");
  } else {
    c.dim(0, q.dim(1), "num_heads").dim(1, q.dim(0), "total_q");
  }
}

void validate_scale(const char* op, float scale, float softcap = 0.0f) {
  if (!std::isfinite(scale)) fail_attr(op, "softmax_scale", "a finite number", fmt::format("{}", scale));
  if (!(std::isfinite(softcap) && softcap >= 0.0f))
    fail_attr(op, "softcap", "a positive number, or 0 for none", fmt::format("{}", softcap));
}

void validate_window(const char* op, std::int64_t left, std::int64_t right) {
  for (auto [name, keys] : {std::pair{"window_left", left}, std::pair{"window_right", right}})
    if (keys < -1) fail_attr(op, name, "a number of keys, or -1 for all", std::to_string(keys));
}

// What biases the scores of `num_heads` heads: alibi_slopes, and attn_mask of `tokens` query tokens (of a sequence
// where the batch is dense) and, dense, `keys` keys.
void validate_biases(const char* op, const TensorView& slopes, const TensorView& mask,
                     const SequenceTables& t, std::int64_t batch, std::int64_t num_heads, std::int64_t tokens,
                     std::int64_t keys) {
  if (slopes.present()) {
    const Check c = check(op, "alibi_slopes", slopes);
    c.rank_between(1, 2).dtype(DType::f32).dim(-1, num_heads, "num_heads");
    if (slopes.rank == 2) c.dim(0, batch, "batch");
  }
  if (!mask.present()) return;
  const Check c = check(op, "attn_mask", mask);
  c.rank(is_dense(t) ? 4 : 3);
  if (mask.dtype != DType::boolean && !is_activation_dtype(mask.dtype))
    c.fail("boolean, f32, f16 or bf16", dtype_name(mask.dtype));
  const auto one_or = [&](int axis, std::int64_t size, const char* what) {
    if (mask.dim(axis) != 1) c.dim(axis, size, what);
  };
  if (is_dense(t)) {
    one_or(0, batch, "batch, or 1");
    one_or(1, num_heads, "num_heads, or 1");
    one_or(2, tokens, "seqlen_q, or 1");
    c.dim(3, keys, "seqlen_k");
  } else {
    one_or(0, num_heads, "num_heads, or 1");
    c.dim(1, tokens, "total_q");
  }
  c.last_dim_contiguous();
}

std::int64_t blocks_of(std::int64_t count, std::int64_t size) {
  return count > 0 ? (count - 1) / size + 1 : 0;
}

// A block layout for `tokens` query tokens and `keys` keys (of a sequence, where the batch is dense). num_kv_heads -1: not
// known.
void validate_sparse_keys(const char* op, const SparseKeys& s, const SequenceTables& t, std::int64_t batch,
                          std::int64_t num_heads, std::int64_t num_kv_heads, std::int64_t tokens,
                          std::int64_t keys) {
  if (s.keep_m < 0 || s.keep_n < 0 || s.keep_n > s.keep_m || (s.keep_m > 0 && s.keep_n == 0))
    fail_attr(op, "keep_n, keep_m", "1 <= keep_n <= keep_m, or 0 and 0: all are kept",
              fmt::format("{}, {}", s.keep_n, s.keep_m));
  const TensorView& layout = s.block_layout;
  if (!layout.present()) {
    for (auto [name, size] :
         {std::pair{"block_size_q", s.block_size_q}, std::pair{"block_size_k", s.block_size_k}})
      if (size != 0) fail_attr(op, name, "0 without a block_layout", std::to_string(size));
    return;
  }
  // Table entries are i32, and so are the keys that a kernel counts.
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  if (s.block_size_q < 0 || s.block_size_q > kLargest)
    fail_attr(op, "block_size_q", "a number of query tokens, or 0: all are one block",
              std::to_string(s.block_size_q));
  if (s.block_size_k < 1 || s.block_size_k > kLargest)
    fail_attr(op, "block_size_k", "the keys of a block of block_layout, at least 1",
              std::to_string(s.block_size_k));
  const Check c = check(op, "block_layout", layout);
  c.rank(4);
  if (layout.dtype != DType::boolean && layout.dtype != DType::i32)
    c.fail("boolean (a value for each key block) or i32 (lists of key blocks)", dtype_name(layout.dtype));
  if (layout.dim(0) != 1) c.dim(0, batch, "batch, or 1");
  const std::int64_t heads = layout.dim(1);
  if (heads != 1 && heads != num_heads && heads != num_kv_heads &&
      (num_kv_heads >= 0 || heads == 0 || num_heads % heads != 0))
    c.fail(num_kv_heads >= 0
               ? fmt::format("{} (num_heads), {} (num_kv_heads) or 1 in dimension 1", num_heads, num_kv_heads)
               : fmt::format("a number that divides {} heads in dimension 1", num_heads),
           shape_string(layout));
  if (s.block_size_q == 0) {
    c.dim(2, 1, "one query block without a block_size_q");
  } else if (is_dense(t)) {
    c.dim(2, blocks_of(tokens, s.block_size_q), "query blocks: seqlen_q / block_size_q, rounded up");
  }
  if (is_dense(t) && layout.dtype == DType::boolean)
    c.dim(3, blocks_of(keys, s.block_size_k), "key blocks: seqlen_k / block_size_k, rounded up");
  c.last_dim_contiguous();
}

// Of q and what is laid out like it: [batch, seqlen_q, num_heads, head_dim] or [total_q, num_heads, head_dim]; of
// scores likewise.
bool has_token_rank(const TensorView& t, const SequenceTables& tables) {
  return t.rank == (is_dense(tables) ? 4 : 3);
}
bool has_key_rank(const TensorView& t, const SequenceTables& tables) {
  return t.rank == (tables.paged() || is_dense(tables) ? 4 : 3);
}

// [batch, num_heads, seqlen_q] or [num_heads, total_q].
TensorView head_major(const TensorView& q, const SequenceTables& t) {
  if (is_dense(t))
    return TensorView::contiguous(nullptr, DType::f32, {q.dim(0), q.dim(2), q.dim(1)}, q.device);
  return TensorView::contiguous(nullptr, DType::f32, {q.dim(1), q.dim(0)}, q.device);
}

// ---- Values of the tables

// Tables on a device are checked there, by the kernels that read them.
bool tables_on_host(const SequenceTables& t) {
  for (const TensorView* table : {&t.cu_seqlens_q, &t.cu_seqlens_k, &t.block_tables, &t.context_lens})
    if (table->present() && !on_host(*table)) return false;
  return true;
}

void validate_cu_seqlens(const char* op, const char* name, const TensorView& cu, std::int64_t total) {
  const auto* v = cu.as<std::int32_t>();
  const std::int64_t batch = cu.dim(0) - 1;
  if (v[0] != 0) check(op, name, cu).fail("0 in entry 0", std::to_string(v[0]));
  for (std::int64_t b = 0; b < batch; ++b)
    if (v[b + 1] < v[b])
      check(op, name, cu)
          .fail(fmt::format("at least {} in entry {}: lengths add up", v[b], b + 1),
                std::to_string(v[b + 1]));
  if (v[batch] != total)
    check(op, name, cu)
        .fail(fmt::format("{} tokens in entry {}, the last", total, batch), std::to_string(v[batch]));
}

// `for_each_read(b, f)` calls f(keys) for the runs of keys of sequence b that are read.
template <class F>
void validate_pages(const char* op, const SequenceTables& t, std::int64_t num_pages, std::int64_t page_size,
                    const F& for_each_read) {
  const std::int64_t batch = t.block_tables.dim(0), max_pages = t.block_tables.dim(1);
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t len = t.context_lens.as<std::int32_t>()[b];
    if (len < 0 || len > max_pages * page_size)
      check(op, "context_lens", t.context_lens)
          .fail(fmt::format("0 to {} keys ({} pages of {}) for sequence {}", max_pages * page_size, max_pages,
                            page_size, b),
                std::to_string(len));
    const std::int32_t* pages = t.block_tables.as<std::int32_t>() + b * t.block_tables.stride(0);
    for_each_read(b, [&](KeyRange keys) {
      for (std::int64_t i = keys.begin / std::max<std::int64_t>(page_size, 1); i * page_size < keys.end; ++i)
        if (pages[i] < 0 || pages[i] >= num_pages)
          check(op, "block_tables", t.block_tables)
              .fail(fmt::format("a page of 0 to {} in entry {} of sequence {}, which has {} keys",
                                num_pages - 1, i, b, len),
                    std::to_string(pages[i]));
    });
  }
}

void validate_query_tokens(const char* op, const SequenceTables& t, std::int64_t total_q) {
  if (t.cu_seqlens_q.present() && tables_on_host(t))
    validate_cu_seqlens(op, "cu_seqlens_q", t.cu_seqlens_q, total_q);
}

template <class F>
void validate_key_tokens(const char* op, const SequenceTables& t, const TensorView& kv,
                         const F& for_each_read) {
  if (!tables_on_host(t)) return;
  if (t.cu_seqlens_k.present()) validate_cu_seqlens(op, "cu_seqlens_k", t.cu_seqlens_k, kv.dim(0));
  if (t.paged()) validate_pages(op, t, kv.dim(0), kv.dim(page_rows_axis(t)), for_each_read);
}
void validate_key_tokens(const char* op, const SequenceTables& t, const TensorView& kv) {
  validate_key_tokens(op, t, kv, [&](std::int64_t b, const auto& f) {
    if (const std::int64_t len = t.context_lens.as<std::int32_t>()[b]; len > 0) f(KeyRange{0, len});
  });
}

// Each sequence's keys have columns in the mask.
void validate_mask_width(const char* op, const TensorView& mask, const SequenceTables& t,
                         const Sequences& sequences) {
  if (!mask.present() || is_dense(t) || !tables_on_host(t)) return;
  for (std::int64_t b = 0; b < sequences.size(); ++b)
    if (sequences[b].kv_len > mask.dim(-1))
      check(op, "attn_mask", mask)
          .fail(fmt::format("at least {} columns, the keys of sequence {}", sequences[b].kv_len, b),
                shape_string(mask));
}

// A layout has the blocks of the longest sequence, and lists what there is in ascending order.
void validate_layout_data(const char* op, const SparseKeys& s, const SequenceTables& t,
                          const Sequences& sequences) {
  const TensorView& layout = s.block_layout;
  if (!layout.present() || !tables_on_host(t)) return;
  std::int64_t longest_keys = 0;
  for (std::int64_t b = 0; b < sequences.size(); ++b) {
    const std::int64_t tokens = blocks_of(sequences[b].seqlen_q, std::max<std::int64_t>(s.block_size_q, 1)),
                       keys = blocks_of(sequences[b].kv_len, s.block_size_k);
    longest_keys = std::max(longest_keys, keys);
    if (s.block_size_q > 0 && tokens > layout.dim(2))
      check(op, "block_layout", layout)
          .fail(fmt::format("at least {} query blocks, those of sequence {}", tokens, b),
                shape_string(layout));
    if (layout.dtype == DType::boolean && keys > layout.dim(3))
      check(op, "block_layout", layout)
          .fail(fmt::format("at least {} key blocks, those of sequence {}", keys, b), shape_string(layout));
  }
  if (layout.dtype != DType::i32 || !on_host(layout) || sequences.size() == 0) return;
  for (std::int64_t b = 0; b < layout.dim(0); ++b)
    for (std::int64_t h = 0; h < layout.dim(1); ++h)
      for (std::int64_t q = 0; q < layout.dim(2); ++q) {
        const std::int32_t* const list =
            layout.as<std::int32_t>() + b * layout.stride(0) + h * layout.stride(1) + q * layout.stride(2);
        for (std::int64_t i = 0; i < layout.dim(3); ++i) {
          const bool ends = list[i] == -1, after_end = i > 0 && list[i - 1] == -1;
          if (ends ||
              (!after_end && list[i] >= 0 && list[i] < longest_keys && (i == 0 || list[i] > list[i - 1])))
            continue;
          check(op, "block_layout", layout)
              .fail(fmt::format("key blocks of 0 to {}, ascending, and -1 after the last, in [{}, {}, {}]",
                                longest_keys - 1, b, h, q),
                    fmt::format("{} in entry {}{}", list[i], i,
                                i > 0 ? fmt::format(" after {}", list[i - 1]) : ""));
        }
      }
}

// No sequence has more keys than the score matrix has columns.
void validate_width(const char* op, const SequenceTables& t, const Sequences& sequences,
                    std::int64_t columns) {
  if (!tables_on_host(t)) return;
  for (std::int64_t b = 0; b < sequences.size(); ++b)
    if (sequences[b].kv_len > columns)
      fail_attr(op, "seqlen_k_max",
                fmt::format("at least {}, the keys of sequence {}", sequences[b].kv_len, b),
                std::to_string(columns));
}

// ---- Cost

// Query-key pairs of one sequence within a window.
double pairs(double seqlen_q, double seqlen_k, const Window& window) {
  // Rows that stand at keys 0 .. n - 1: how many keys there are before them.
  const auto before = [&](double n) {
    if (n <= 0) return 0.0;
    return n <= seqlen_k ? n * (n - 1) / 2 : seqlen_k * (seqlen_k - 1) / 2 + (n - seqlen_k) * seqlen_k;
  };
  // Keys up to `shift` after each row's own. Beyond the clamp it makes no difference.
  const auto keys_before = [&](double shift) {
    shift = std::clamp(shift, -seqlen_k, seqlen_q);
    return before(seqlen_k + shift) - before(seqlen_k - seqlen_q + shift);
  };
  return keys_before(double(window.right) + 1) - keys_before(-double(window.left));
}

struct Extent {
  double batch, seqlen_q, seqlen_k;

  // Keys of a sequence that any row sees.
  double keys_seen(const Window& window) const {
    const double first = std::clamp(seqlen_k - seqlen_q - double(window.left), 0.0, seqlen_k);
    return std::clamp(seqlen_k + double(window.right), 0.0, seqlen_k) - first;
  }
};

// Average lengths from shapes alone: packed batches count as even, paged sequences as full.
Extent extent(const TensorView& q, const TensorView& kv, const SequenceTables& t) {
  if (is_dense(t)) return {double(q.dim(0)), double(q.dim(1)), double(kv.dim(1))};
  const double batch = t.paged() ? double(t.block_tables.dim(0)) : double(t.cu_seqlens_q.dim(0) - 1);
  if (batch == 0) return {0, 0, 0};
  const double keys = t.paged() ? double(max_kv_len(t, kv)) : double(kv.dim(0)) / batch;
  return {batch, double(q.dim(0)) / batch, keys};
}

double key_bytes(const Extent& e, const TensorView& kv, const Quantization& q, const SequenceTables& t,
                 const Window& window = Window()) {
  const auto row_bytes = [](const TensorView& x) {
    const DTypeInfo& info = dtype_info(x.dtype);
    return double(x.dim(-1)) * info.block_bytes / info.block_elems;
  };
  double bytes = row_bytes(kv) * double(kv.dim(kv_heads_axis(t)));
  for (const TensorView* x : {&q.scales, &q.zeros})
    if (x->present()) bytes += row_bytes(*x) * double(x->dim(kv_heads_axis(t)));
  return e.batch * e.keys_seen(window) * bytes;
}

// What there is of an optional operand.
double bytes_of(const TensorView& t) { return t.present() ? double(t.nbytes()) : 0; }

}  // namespace

// ---- attention

void infer(AttentionParams& p) {
  if (!has_token_rank(p.q, p.tables)) return;
  if (!p.out.present() && p.v.rank >= 1) {
    TensorView shape = p.q;
    shape.shape[shape.rank - 1] = p.v.dim(-1);
    p.out = contiguous_like(shape, p.q.dtype);
  }
  if (!p.lse.present()) p.lse = head_major(p.q, p.tables);
}

void validate(const AttentionParams& p) {
  constexpr const char* kOp = "attention";
  validate_tables(kOp, p.tables);
  const auto [batch, num_heads, head_dim] = validate_queries(kOp, "q", p.q, p.tables);
  validate_keys(kOp, "k", p.k, p.k_quantization, p.tables, batch, num_heads, head_dim);
  const Check v = check(kOp, "v", p.v);
  v.rank(p.k.rank).dtype_like(p.k, "k").last_dim_contiguous();
  for (int i = 0; i + 1 < p.k.rank; ++i) v.dim(i, p.k.dim(i), "as k has it");
  check_kv_quantization(kOp, "v", p.v, p.v_quantization);
  const Check out = check(kOp, "out", p.out);
  out.rank(p.q.rank).dtype_like(p.q, "q").last_dim_contiguous().no_overlap_in_itself();
  for (int i = 0; i + 1 < p.q.rank; ++i) out.dim(i, p.q.dim(i), "as q has it");
  out.dim(-1, p.v.dim(-1), "v's head_dim");
  if (p.lse.present()) {
    check(kOp, "lse", p.lse).rank(is_dense(p.tables) ? 3 : 2).dtype(DType::f32).no_overlap_in_itself();
    validate_score_rows(kOp, "lse", p.lse, p.q, p.tables);
  }
  validate_scale(kOp, p.softmax_scale, p.softcap);
  validate_window(kOp, p.window_left, p.window_right);
  validate_biases(kOp, p.alibi_slopes, p.attn_mask, p.tables, Sequences(p).size(), num_heads,
                  p.q.dim(is_dense(p.tables) ? 1 : 0), p.k.dim(1));
  if (p.sinks.present())
    check(kOp, "sinks", p.sinks).rank(1).dtype(DType::f32).dim(0, num_heads, "num_heads");
  validate_sparse_keys(kOp, p.sparsity, p.tables, Sequences(p).size(), num_heads,
                       p.k.dim(kv_heads_axis(p.tables)), p.q.dim(is_dense(p.tables) ? 1 : 0), p.k.dim(1));
}

void validate_data(const AttentionParams& p) {
  validate_query_tokens("attention", p.tables, p.q.dim(0));
  const Sequences sequences(p);
  const Window window(p);
  validate_layout_data("attention", p.sparsity, p.tables, sequences);
  const std::int64_t num_heads = p.q.dim(-2),
                     layout_heads = p.sparsity.block_layout.present() && num_heads > 0
                                        ? std::max<std::int64_t>(p.sparsity.block_layout.dim(1), 1)
                                        : 1;
  validate_key_tokens("attention", p.tables, p.k, [&](std::int64_t b, const auto& f) {
    const SequenceSpan s = sequences[b];
    const std::int64_t tokens = query_block_tokens(p.sparsity, s.seqlen_q);
    for (std::int64_t begin = 0; begin < s.seqlen_q; begin += tokens) {
      const KeyRange seen = s.visible_keys(begin, std::min(begin + tokens, s.seqlen_q), window);
      for (std::int64_t h = 0; h < layout_heads; ++h)
        KeyBlocks(p.sparsity, b, query_block(p.sparsity, begin), h * (num_heads / layout_heads), num_heads)
            .for_each_run(seen, f);
    }
  });
  validate_mask_width("attention", p.attn_mask, p.tables, sequences);
}

// The share of the keys that a layout's lists can name. What a boolean layout allows is not known from its shape: all.
double listed_share(const SparseKeys& s, double seqlen_k) {
  const TensorView& t = s.block_layout;
  if (!t.present() || t.dtype != DType::i32 || seqlen_k <= 0) return 1;
  return std::min(1.0, double(t.dim(3)) * double(s.block_size_k) / seqlen_k);
}

Cost cost(const AttentionParams& p) {
  const Extent e = extent(p.q, p.k, p.tables);
  const Window window(p);
  const double heads = double(p.q.dim(-2)), dims = double(p.q.dim(-1) + p.v.dim(-1)),
               share = listed_share(p.sparsity, e.seqlen_k);
  return {share * 2 * dims * heads * e.batch * pairs(e.seqlen_q, e.seqlen_k, window),
          double(p.q.nbytes() + p.out.nbytes()) + bytes_of(p.attn_mask) + bytes_of(p.sparsity.block_layout) +
              share * (key_bytes(e, p.k, p.k_quantization, p.tables, window) +
                       key_bytes(e, p.v, p.v_quantization, p.tables, window))};
}

// ---- attention_scores

void infer(AttentionScoresParams& p) {
  if (p.scores.present() || !has_token_rank(p.q, p.tables) || !has_key_rank(p.k, p.tables)) return;
  if (p.tables.paged() && p.tables.block_tables.rank != 2) return;
  const std::int64_t columns = p.seqlen_k_max ? p.seqlen_k_max : max_kv_len(p.tables, p.k);
  // Symbolic sizes cannot be multiplied: such a call must name its seqlen_k_max.
  if (!p.seqlen_k_max && p.tables.paged() &&
      (p.tables.block_tables.dim(1) < 0 || p.k.dim(page_rows_axis(p.tables)) < 0))
    return;
  const TensorView& q = p.q;
  p.scores =
      is_dense(p.tables)
          ? TensorView::contiguous(nullptr, DType::f32, {q.dim(0), q.dim(2), q.dim(1), columns}, q.device)
          : TensorView::contiguous(nullptr, DType::f32, {q.dim(1), q.dim(0), columns}, q.device);
}

void validate(const AttentionScoresParams& p) {
  constexpr const char* kOp = "attention_scores";
  validate_tables(kOp, p.tables);
  const auto [batch, num_heads, head_dim] = validate_queries(kOp, "q", p.q, p.tables);
  validate_keys(kOp, "k", p.k, p.k_quantization, p.tables, batch, num_heads, head_dim);
  validate_scores(kOp, "scores", p.scores, p.tables);
  validate_score_rows(kOp, "scores", p.scores, p.q, p.tables);
  const std::int64_t columns = p.seqlen_k_max ? p.seqlen_k_max : max_kv_len(p.tables, p.k);
  check(kOp, "scores", p.scores).dim(-1, columns, "seqlen_k_max").no_overlap_in_itself();
  if (is_dense(p.tables) && columns < p.k.dim(1))
    fail_attr(kOp, "seqlen_k_max", fmt::format("at least {}, the keys of a sequence", p.k.dim(1)),
              std::to_string(columns));
  validate_scale(kOp, p.softmax_scale, p.softcap);
}

void validate_data(const AttentionScoresParams& p) {
  validate_query_tokens("attention_scores", p.tables, p.q.dim(0));
  validate_key_tokens("attention_scores", p.tables, p.k);
  validate_width("attention_scores", p.tables, Sequences(p), p.scores.dim(-1));
}

Cost cost(const AttentionScoresParams& p) {
  const Extent e = extent(p.q, p.k, p.tables);
  const double heads = double(p.q.dim(-2)), head_dim = double(p.q.dim(-1));
  return {2 * head_dim * heads * e.batch * e.seqlen_q * e.seqlen_k,
          double(p.q.nbytes() + p.scores.nbytes()) + key_bytes(e, p.k, p.k_quantization, p.tables)};
}

// ---- attention_mask

void infer(AttentionMaskParams& p) {
  if (p.scores.present() && !p.out.present()) p.out = contiguous_like(p.scores, DType::f32);
}

void validate(const AttentionMaskParams& p) {
  constexpr const char* kOp = "attention_mask";
  validate_tables(kOp, p.tables);
  validate_scores(kOp, "scores", p.scores, p.tables);
  check(kOp, "out", p.out).shape_like(p.scores, "scores").dtype(DType::f32).last_dim_contiguous();
  check(kOp, "out", p.out).no_overlap_in_itself();
  if (p.tables.paged() && !p.tables.cu_seqlens_q.present())
    check(kOp, "scores", p.scores).dim(1, p.tables.block_tables.dim(0), "batch: one query token a sequence");
  if (is_dense(p.tables) && (p.seqlen_k < 0 || p.seqlen_k > p.scores.dim(-1)))
    fail_attr(kOp, "seqlen_k", fmt::format("0 to {}, the columns of scores", p.scores.dim(-1)),
              std::to_string(p.seqlen_k));
  validate_window(kOp, p.window_left, p.window_right);
  const bool dense = is_dense(p.tables);
  validate_biases(kOp, p.alibi_slopes, p.attn_mask, p.tables, Sequences(p).size(),
                  p.scores.dim(dense ? 1 : 0), p.scores.dim(dense ? 2 : 1), p.seqlen_k);
  validate_sparse_keys(kOp, p.sparsity, p.tables, Sequences(p).size(), p.scores.dim(dense ? 1 : 0), -1,
                       p.scores.dim(dense ? 2 : 1), p.seqlen_k);
}

void validate_data(const AttentionMaskParams& p) {
  const SequenceTables& t = p.tables;
  if (is_dense(t)) validate_layout_data("attention_mask", p.sparsity, t, Sequences(p));
  if (is_dense(t) || !tables_on_host(t)) return;
  validate_query_tokens("attention_mask", t, p.scores.dim(1));
  if (t.cu_seqlens_k.present())
    validate_cu_seqlens("attention_mask", "cu_seqlens_k", t.cu_seqlens_k,
                        t.cu_seqlens_k.as<std::int32_t>()[t.cu_seqlens_k.dim(0) - 1]);
  for (std::int64_t b = 0; t.paged() && b < t.context_lens.dim(0); ++b)
    if (const std::int32_t len = t.context_lens.as<std::int32_t>()[b]; len < 0)
      check("attention_mask", "context_lens", t.context_lens)
          .fail("lengths of 0 or more", std::to_string(len));
  validate_width("attention_mask", t, Sequences(p), p.scores.dim(-1));
  validate_mask_width("attention_mask", p.attn_mask, t, Sequences(p));
  validate_layout_data("attention_mask", p.sparsity, t, Sequences(p));
}

Cost cost(const AttentionMaskParams& p) {
  return {0, double(p.scores.nbytes() + p.out.nbytes()) + bytes_of(p.attn_mask) +
                 bytes_of(p.sparsity.block_layout)};
}

// ---- attention_values

void infer(AttentionValuesParams& p) {
  if (p.out.present() || !has_token_rank(p.probs, p.tables) || p.v.rank < 1) return;
  if (p.out_dtype < 0 || p.out_dtype >= kNumDTypes) return;
  const TensorView& s = p.probs;
  const DType dtype = static_cast<DType>(p.out_dtype);
  p.out = is_dense(p.tables)
              ? TensorView::contiguous(nullptr, dtype, {s.dim(0), s.dim(2), s.dim(1), p.v.dim(-1)}, s.device)
              : TensorView::contiguous(nullptr, dtype, {s.dim(1), s.dim(0), p.v.dim(-1)}, s.device);
}

void validate(const AttentionValuesParams& p) {
  constexpr const char* kOp = "attention_values";
  validate_tables(kOp, p.tables);
  validate_scores(kOp, "probs", p.probs, p.tables);
  const auto [batch, num_heads, head_dim] = validate_queries(kOp, "out", p.out, p.tables);
  const Check out = check(kOp, "out", p.out);
  if (is_dense(p.tables)) {
    out.dim(0, p.probs.dim(0), "batch")
        .dim(1, p.probs.dim(2), "seqlen_q")
        .dim(2, p.probs.dim(1), "num_heads");
  } else {
    out.dim(0, p.probs.dim(1), "total_q").dim(1, p.probs.dim(0), "num_heads");
  }
  validate_keys(kOp, "v", p.v, p.v_quantization, p.tables, batch, num_heads, head_dim);
  check(kOp, "out", p.out).no_overlap_in_itself();
  if (is_dense(p.tables) && p.probs.dim(-1) < p.v.dim(1))
    check(kOp, "probs", p.probs)
        .fail(fmt::format("at least {} columns, the keys of a sequence", p.v.dim(1)), shape_string(p.probs));
}

void validate_data(const AttentionValuesParams& p) {
  validate_query_tokens("attention_values", p.tables, p.out.dim(0));
  validate_key_tokens("attention_values", p.tables, p.v);
  validate_width("attention_values", p.tables, Sequences(p), p.probs.dim(-1));
}

Cost cost(const AttentionValuesParams& p) {
  const Extent e = extent(p.out, p.v, p.tables);
  const double heads = double(p.out.dim(-2)), head_dim = double(p.out.dim(-1));
  return {2 * head_dim * heads * e.batch * e.seqlen_q * e.seqlen_k,
          double(p.probs.nbytes() + p.out.nbytes()) + key_bytes(e, p.v, p.v_quantization, p.tables)};
}

// ---- merge_attention

void infer(MergeAttentionParams& p) {
  if (p.out_a.present() && !p.out.present()) p.out = contiguous_like(p.out_a, p.out_a.dtype);
  if (p.lse_a.present() && !p.lse.present()) p.lse = contiguous_like(p.lse_a, DType::f32);
}

void validate(const MergeAttentionParams& p) {
  constexpr const char* kOp = "merge_attention";
  check(kOp, "out_a", p.out_a).rank_between(3, 4).activation_dtype().last_dim_contiguous();
  check(kOp, "out_b", p.out_b)
      .shape_like(p.out_a, "out_a")
      .dtype_like(p.out_a, "out_a")
      .last_dim_contiguous();
  const TensorView& o = p.out_a;
  const Check lse = check(kOp, "lse_a", p.lse_a);
  lse.rank(o.rank - 1).dtype(DType::f32);
  if (o.rank == 4)
    lse.dim(0, o.dim(0), "batch").dim(1, o.dim(2), "num_heads").dim(2, o.dim(1), "seqlen_q");
  else
    lse.dim(0, o.dim(1), "num_heads").dim(1, o.dim(0), "total_q");
  check(kOp, "lse_b", p.lse_b).shape_like(p.lse_a, "lse_a").dtype(DType::f32);
  check(kOp, "out", p.out)
      .shape_like(o, "out_a")
      .dtype_like(o, "out_a")
      .last_dim_contiguous()
      .no_overlap_in_itself();
  if (p.lse.present())
    check(kOp, "lse", p.lse).shape_like(p.lse_a, "lse_a").dtype(DType::f32).no_overlap_in_itself();
}

void validate_data(const MergeAttentionParams&) {}

Cost cost(const MergeAttentionParams& p) {
  return {3 * double(p.out.numel()), double(p.out_a.nbytes() + p.out_b.nbytes() + p.out.nbytes()) +
                                         double(p.lse_a.nbytes() + p.lse_b.nbytes()) + bytes_of(p.lse)};
}

}  // namespace kf::ops
