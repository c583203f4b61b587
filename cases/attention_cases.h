// How cases of attention, and of the primitives it is made of, are put together.
//
// Tolerances. q, k and v are normal of deviation 1. A score sums D products, sum |q k| is 2/pi D, and is
// multiplied by D^-1/2: its f32 error is lambda u sqrt(D) 2/pi D D^-1/2 = lambda u 2/pi D (roundings as good
// as independent; Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019; lambda =
// 6). An error of a score is a relative error of its probability, and again of the sum that divides it; exp
// adds 3e-7 = 5 u, and sums over n keys lambda u sqrt(n). Weights sum to 1 and values are within 5
// deviations, which bounds what the output takes from all this. Outputs are rounded to their dtype once by
// either kernel: 2 u of it.
//
// A score's error also has what the features add: softcap tanh is within 4 u of the cap, and passes on no more error than
// it gets; a slope's product, its factor and the sum are rounded once each, 4 u of the largest bias with the conversion
// of the unit; likewise an additive mask and a sink, which are within 5. A scale of quantized keys and values that
// multiplies a sum, and not its terms, is one rounding of a score within 5, and one of a probability.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>

#include <fmt/format.h>

#include "case.h"
#include "core/quantized.h"
#include "kf/ops/attention.h"
#include "kf/quantize.h"

namespace kf::cases::attention {

inline constexpr double kLambda = 6.0;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

inline double score_error(std::int64_t head_dim) {
  return kLambda * unit_roundoff(DType::f32) * 2 / 3.14159 * static_cast<double>(head_dim);
}

// On a device's matrix units probabilities are rounded to q's dtype of 16 bits: u of each of them, of values within 5.
inline Tolerance attention_tolerance(DType out, std::int64_t head_dim, std::int64_t keys,
                                     double feature_error = 0) {
  const double u32 = unit_roundoff(DType::f32), sums = kLambda * u32 * std::sqrt(static_cast<double>(keys));
  return {.rtol = 2 * unit_roundoff(out),
          .atol = 5.0 * (2 * (score_error(head_dim) + feature_error) + 2 * (5 * u32 + sums)),
          .device_atol = out == DType::f32 ? 0 : 5 * unit_roundoff(out)};
}

struct Heads {
  std::int64_t query, kv, dim;
  std::int64_t own_value_dim = 0;  // 0: dim

  std::int64_t value_dim() const { return own_value_dim ? own_value_dim : dim; }
  std::string name() const {
    return fmt::format("h{}-{}-d{}", query, kv, dim) +
           (own_value_dim ? fmt::format("-v{}", own_value_dim) : "");
  }
};

// The dtype of keys and values, and where that is read with scales, what shares one.
struct KvFormat {
  enum Share { tensor, head, token, row };  // all; a head; a token; a token and head, or each group of it

  DType dtype = DType::f32;
  Share share = tensor;
  std::int64_t group_size = 0;
  bool zeros = false;
  DType scales = DType::f32;

  KvFormat(DType d = DType::f32) : dtype(d) {}
  KvFormat(DType d, Share s, std::int64_t group = 0, bool has_zeros = false, DType scales_dtype = DType::f32)
      : dtype(d), share(s), group_size(group), zeros(has_zeros), scales(scales_dtype) {}
  std::string name() const {
    static constexpr const char* kShares[] = {"tensor", "head", "token", "row"};
    if (!needs_scales(dtype)) return dtype_name(dtype);
    return fmt::format("{}-{}{}-{}{}", dtype_name(dtype), kShares[share],
                       group_size ? fmt::format("-g{}", group_size) : "", dtype_name(scales),
                       zeros ? "-zeros" : "");
  }
};

struct Types {
  DType q = DType::f32;
  KvFormat kv;
  std::string name() const {
    return q == kv.dtype ? dtype_name(q) : fmt::format("{}-kv-{}", dtype_name(q), kv.name());
  }
};

// Codes of these values, with scales of their own.
inline TensorView quantized(Maker& m, const KvFormat& f, const TensorView& values, int heads_axis,
                            Quantization& q) {
  const auto count = [&](int axis) -> std::int64_t {
    const bool full = f.share == KvFormat::row || (f.share == KvFormat::head && axis == heads_axis) ||
                      (f.share == KvFormat::token && axis != heads_axis);
    return full ? values.dim(axis) : 1;
  };
  const std::int64_t groups = f.group_size ? values.dim(-1) / f.group_size : 1;
  const auto like_scales = [&](DType dtype) {
    m.storage().push_back(values.rank == 4 ? Tensor::zeros(dtype, {count(0), count(1), count(2), groups})
                                           : Tensor::zeros(dtype, {count(0), count(1), groups}));
    return m.storage().back().view();
  };
  q.scales = like_scales(f.scales);
  if (f.zeros) q.zeros = like_scales(DType::i8);
  q.group_size = f.group_size;
  m.storage().emplace_back(f.dtype, std::span(values.shape.data(), static_cast<std::size_t>(values.rank)));
  const TensorView codes = m.storage().back();
  quantize_kv(values, codes, q);
  return codes;
}

// One batch in any form. Lengths of each sequence; dense batches are even.
struct Batch {
  std::vector<std::int64_t> seqlens_q, seqlens_k;
  enum Form { dense, packed, hnd, nhd } form = dense;
  std::int64_t page_size = 16;
  bool shared_pages = false;  // all sequences begin with the same pages

  std::int64_t total(const std::vector<std::int64_t>& lens) const {
    return std::accumulate(lens.begin(), lens.end(), std::int64_t{0});
  }
  std::int64_t longest() const {
    return seqlens_k.empty() ? 0 : *std::max_element(seqlens_k.begin(), seqlens_k.end());
  }
  std::string name() const {
    static constexpr const char* kForms[] = {"dense", "packed", "paged-hnd", "paged-nhd"};
    std::string s = kForms[form];
    if (form >= hnd) s += fmt::format("-{}{}", page_size, shared_pages ? "-shared" : "");
    if (form == dense && !seqlens_q.empty())
      return s + fmt::format("/b{}-q{}-k{}", seqlens_q.size(), seqlens_q[0], seqlens_k[0]);
    s += fmt::format("/q{}-k{}", fmt::join(seqlens_q, "_"), fmt::join(seqlens_k, "_"));
    return s;
  }
};

inline TensorView cumulative(Maker& m, const std::vector<std::int64_t>& lens) {
  std::vector<std::int64_t> sums = {0};
  for (const std::int64_t n : lens) sums.push_back(sums.back() + n);
  return m.integers(DType::i32, sums);
}

// Pages in a shuffled order; entries that a sequence does not need are -1. No columns where no sequence has keys.
inline TensorView page_table(Maker& m, const Batch& b, std::int32_t* num_pages) {
  std::int64_t width = 0;
  for (const std::int64_t n : b.seqlens_k)
    if (n > 0) width = std::max(width, (n + b.page_size - 1) / b.page_size + 1);
  std::vector<std::int32_t> pages(b.seqlens_k.size() * static_cast<std::size_t>(width) + 1);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), m.rng());
  *num_pages = static_cast<std::int32_t>(pages.size());
  std::vector<std::vector<std::int32_t>> rows;
  std::size_t next = 0;
  for (const std::int64_t n : b.seqlens_k) {
    std::vector<std::int32_t> row(static_cast<std::size_t>(width), -1);
    for (std::int64_t i = 0; i * b.page_size < n; ++i) {
      const bool shared = b.shared_pages && !rows.empty() && rows[0][static_cast<std::size_t>(i)] >= 0;
      row[static_cast<std::size_t>(i)] = shared ? rows[0][static_cast<std::size_t>(i)] : pages[next++];
    }
    rows.push_back(std::move(row));
  }
  return m.table(rows);
}

// A page pool whose slots hold NaN where no sequence has a key; so do scales of such slots.
inline TensorView page_pool(Maker& m, const Batch& b, const Heads& h, std::int64_t dim,
                            const KvFormat& format, const SequenceTables& t, std::int32_t num_pages,
                            Quantization& q) {
  const bool is_hnd = b.form == Batch::hnd;
  const DType dtype = needs_scales(format.dtype) ? DType::f32 : format.dtype;
  const TensorView pool = is_hnd ? m.normal(dtype, {num_pages, h.kv, b.page_size, dim})
                                 : m.normal(dtype, {num_pages, b.page_size, h.kv, dim});
  std::vector<bool> used(static_cast<std::size_t>(num_pages * b.page_size));
  for (std::size_t s = 0; s < b.seqlens_k.size(); ++s)
    for (std::int64_t j = 0; j < b.seqlens_k[s]; ++j) {
      const std::int64_t entry = static_cast<std::int64_t>(s) * t.block_tables.stride(0) + j / b.page_size;
      used[static_cast<std::size_t>(t.block_tables.as<std::int32_t>()[entry] * b.page_size +
                                    j % b.page_size)] = true;
    }
  const auto is_used = [&](std::int64_t row) {
    const std::int64_t slot =
        is_hnd ? row / (h.kv * b.page_size) * b.page_size + row % b.page_size : row / h.kv;
    return used[static_cast<std::size_t>(slot)];
  };
  for (std::int64_t i = 0; i < pool.numel(); ++i)
    if (!is_used(i / dim)) set_element(pool, i, kNan);
  if (!needs_scales(format.dtype)) return pool;
  const TensorView codes = quantized(m, format, pool, is_hnd ? 1 : 2, q);
  const std::int64_t groups = q.scales.dim(-1);
  if (format.share == KvFormat::row)
    for (std::int64_t i = 0; i < q.scales.numel(); ++i)
      if (!is_used(i / groups)) set_element(q.scales, i, kNan);
  return codes;
}

struct Operands {
  TensorView q, k, v;
  SequenceTables tables;
  Quantization k_quantization, v_quantization;
};

inline Operands operands(Maker& m, const Batch& b, const Heads& h, const Types& types) {
  Operands o;
  const auto normal = [&](std::initializer_list<std::int64_t> shape, int heads_axis, Quantization& q) {
    if (!needs_scales(types.kv.dtype)) return m.normal(types.kv.dtype, shape);
    return quantized(m, types.kv, m.normal(DType::f32, shape), heads_axis, q);
  };
  const auto batch = static_cast<std::int64_t>(b.seqlens_q.size());
  if (b.form == Batch::dense) {
    const std::int64_t seqlen_q = batch ? b.seqlens_q[0] : 3, seqlen_k = batch ? b.seqlens_k[0] : 3;
    o.q = m.normal(types.q, {batch, seqlen_q, h.query, h.dim});
    o.k = normal({batch, seqlen_k, h.kv, h.dim}, 2, o.k_quantization);
    o.v = normal({batch, seqlen_k, h.kv, h.value_dim()}, 2, o.v_quantization);
    return o;
  }
  const std::int64_t total_q = b.total(b.seqlens_q), total_k = b.total(b.seqlens_k);
  o.q = m.normal(types.q, {total_q, h.query, h.dim});
  if (b.form == Batch::packed) {
    o.k = normal({total_k, h.kv, h.dim}, 1, o.k_quantization);
    o.v = normal({total_k, h.kv, h.value_dim()}, 1, o.v_quantization);
    o.tables.cu_seqlens_q = cumulative(m, b.seqlens_q);
    o.tables.cu_seqlens_k = cumulative(m, b.seqlens_k);
    return o;
  }
  std::int32_t num_pages = 0;
  o.tables.kv_layout = b.form == Batch::hnd ? KvLayout::hnd : KvLayout::nhd;
  o.tables.block_tables = page_table(m, b, &num_pages);
  o.tables.context_lens = m.integers(DType::i32, b.seqlens_k);
  if (std::any_of(b.seqlens_q.begin(), b.seqlens_q.end(), [](std::int64_t n) { return n != 1; }))
    o.tables.cu_seqlens_q = cumulative(m, b.seqlens_q);
  o.k = page_pool(m, b, h, h.dim, types.kv, o.tables, num_pages, o.k_quantization);
  o.v = page_pool(m, b, h, h.value_dim(), types.kv, o.tables, num_pages, o.v_quantization);
  return o;
}

inline Batch even(std::int64_t batch, std::int64_t seqlen_q, std::int64_t seqlen_k) {
  const auto n = static_cast<std::size_t>(batch);
  return {std::vector(n, seqlen_q), std::vector(n, seqlen_k)};
}

// A block layout: random, with this share of the key blocks for each query block, and some query blocks with none.
struct Layout {
  enum Heads { one, kv, query };

  std::int64_t block_q = 0, block_k = 16;
  double density = 0.5;
  Heads heads = one;
  bool lists = false;  // of key blocks, and not a value for each
  bool one_batch = false;

  std::string name() const {
    static constexpr const char* kHeads[] = {"1h", "kvh", "qh"};
    return fmt::format("-blocks{}x{}-{}%-{}{}{}", block_q, block_k, std::lround(100 * density), kHeads[heads],
                       one_batch ? "-1b" : "", lists ? "-lists" : "");
  }
};

// What a call has beside its queries, keys and values.
struct Features {
  bool causal = true;
  std::int64_t window_left = -1, window_right = -1;
  float softcap = 0;
  enum Slopes { no_slopes, slopes, slopes_of_batch } alibi = no_slopes;
  std::optional<DType> mask;
  // Of the mask: one for the whole batch, for all heads, for all queries (as a dense batch may have it).
  bool one_batch = false, one_head = false, one_query = false;
  bool expanded = false;  // these by stride 0 and not by size 1
  bool sinks = false;
  std::optional<Layout> layout;
  std::int64_t keep_n = 0, keep_m = 0;

  std::string name() const {
    std::string s = causal ? "-causal" : "";
    if (window_left >= 0 || window_right >= 0) s += fmt::format("-window{}_{}", window_left, window_right);
    if (softcap > 0) s += "-cap" + fmt::to_string(softcap);
    if (alibi) s += alibi == slopes ? "-alibi" : "-alibi-batch";
    if (mask)
      s += fmt::format("-mask-{}{}{}{}{}", dtype_name(*mask), one_batch ? "-1b" : "", one_head ? "-1h" : "",
                       one_query ? "-1q" : "", expanded ? "-expanded" : "");
    if (layout) s += layout->name();
    if (keep_m) s += fmt::format("-keep{}of{}", keep_n, keep_m);
    return s + (sinks ? "-sinks" : "");
  }
};

inline constexpr float kLargestSlope = 0.5f;

inline double feature_error(const Features& f, const Batch& b) {
  double error = f.softcap;
  if (f.alibi) {
    const std::int64_t queries =
        b.seqlens_q.empty() ? 0 : *std::max_element(b.seqlens_q.begin(), b.seqlens_q.end());
    error += kLargestSlope * static_cast<double>(queries + b.longest());
  }
  if (f.mask) error += 5;
  if (f.sinks) error += 5;
  if (f.keep_m) error += 5;  // the unit of a score, after the choice
  return 4 * unit_roundoff(DType::f32) * error;
}

// Broadcast dimensions are of size 1, or repeat.
inline TensorView attn_mask(Maker& m, const Batch& b, const Heads& h, const Features& f) {
  const bool dense = b.form == Batch::dense;
  const auto batch = static_cast<std::int64_t>(b.seqlens_q.size());
  const std::int64_t heads = f.one_head ? 1 : h.query;
  const auto make = [&](std::initializer_list<std::int64_t> shape) {
    TensorView t = f.mask == DType::boolean ? m.filled(DType::boolean, shape, 1) : m.normal(*f.mask, shape);
    // A third is forbidden, and every seventh row all of it; large finite biases are within 5.
    const double forbidden = f.mask == DType::boolean ? 0 : -kInfinity;
    for (std::int64_t i = 0; i < t.numel(); ++i) {
      const std::int64_t row = i / t.dim(-1);
      if (row % 7 == 3 || m.rng()() % 3 == 0) set_element(t, i, forbidden);
    }
    return m.strided(t, 3);
  };
  if (!dense) {
    TensorView t = make({heads, b.total(b.seqlens_q), b.longest() + 2});
    if (f.expanded && f.one_head) t.shape[0] = h.query, t.strides[0] = 0;
    return t;
  }
  const std::int64_t seqlen_q = b.seqlens_q[0], seqlen_k = b.seqlens_k[0];
  TensorView t = make({f.one_batch ? 1 : batch, heads, f.one_query ? 1 : seqlen_q, seqlen_k});
  if (f.expanded) {
    const std::int64_t full[] = {batch, h.query, seqlen_q};
    for (int i = 0; i < 3; ++i)
      if (t.dim(i) == 1) t.shape[i] = full[i], t.strides[i] = 0;
  }
  return t;
}

inline TensorView alibi_slopes(Maker& m, const Batch& b, const Heads& h, const Features& f) {
  const auto batch = static_cast<std::int64_t>(b.seqlens_q.size());
  if (f.alibi == Features::slopes) return m.uniform(DType::f32, {h.query}, 0.0f, kLargestSlope);
  return m.uniform(DType::f32, {batch, h.query}, 0.0f, kLargestSlope);
}

// To eighths, of which sums of products are exact, and so are scores where 1 / sqrt(head_dim) is a power of two: kernels and
// reference then choose the same of each n:m, and there are ties among them.
inline void round_to_eighths(const TensorView& t) {
  for (std::int64_t i = 0; t.present() && i < t.numel(); ++i)
    if (const double x = element(t, i); std::isfinite(x)) set_element(t, i, std::round(8 * x) / 8);
}

inline SparseKeys sparse_keys(Maker& m, const Batch& b, const Heads& h, const Layout& l) {
  // Without sequences a batch is as operands() has it.
  const auto blocks = [](const std::vector<std::int64_t>& lens, std::int64_t size) {
    const std::int64_t longest = lens.empty() ? 3 : *std::max_element(lens.begin(), lens.end());
    return (longest + size - 1) / size;
  };
  // A packed or paged batch may have more blocks than its sequences.
  const std::int64_t more = b.form == Batch::dense ? 0 : 1,
                     rows = l.block_q ? blocks(b.seqlens_q, l.block_q) + more : 1,
                     columns = blocks(b.seqlens_k, l.block_k),
                     batch = l.one_batch ? 1 : static_cast<std::int64_t>(b.seqlens_q.size()),
                     heads = l.heads == Layout::one  ? 1
                             : l.heads == Layout::kv ? h.kv
                                                     : h.query;
  const TensorView bits = m.filled(DType::boolean, {batch, heads, rows, columns + more}, 1);
  std::bernoulli_distribution taken(l.density);
  const auto sees = [&](std::int64_t row) { return l.density == 1 || row % 5 != 3; };
  for (std::int64_t i = 0; i < bits.numel(); ++i)
    set_element(bits, i, sees(i / (columns + more)) && taken(m.rng()));
  SparseKeys s{.block_layout = m.strided(bits, 3), .block_size_q = l.block_q, .block_size_k = l.block_k};
  if (!l.lists) return s;
  const TensorView lists = m.filled(DType::i32, {batch, heads, rows, columns + 1}, -1);
  for (std::int64_t row = 0; row < batch * heads * rows; ++row)
    for (std::int64_t c = 0, n = 0; c < columns; ++c)
      if (element(bits, row * (columns + more) + c) != 0)
        set_element(lists, row * (columns + 1) + n++, static_cast<double>(c));
  s.block_layout = m.strided(lists, 2);
  return s;
}

// What attention and attention_mask have alike.
template <class P>
inline void set_biases(Maker& m, const Batch& b, const Heads& h, const Features& f, P& p) {
  p.causal = f.causal, p.window_left = f.window_left, p.window_right = f.window_right;
  if (f.alibi) p.alibi_slopes = alibi_slopes(m, b, h, f);
  if (f.mask) p.attn_mask = attn_mask(m, b, h, f);
  if (f.layout) p.sparsity = sparse_keys(m, b, h, *f.layout);
  p.sparsity.keep_n = f.keep_n, p.sparsity.keep_m = f.keep_m;
  if (f.keep_m) {
    if (p.attn_mask.present() && p.attn_mask.dtype != DType::boolean) round_to_eighths(p.attn_mask);
    round_to_eighths(p.alibi_slopes);
  }
}

class Cases {
 public:
  explicit Cases(CaseList& list) : list_(list) {}

  void attention(const Batch& b, const Heads& h, const Types& types = {}, bool causal = true,
                 bool bench = false) {
    featured(b, h, types, {.causal = causal}, bench);
  }
  void featured(const Batch& b, const Heads& h, const Types& types, const Features& f, bool bench = false,
                const std::string& suffix = "") {
    const double scaled = needs_scales(types.kv.dtype) ? 4 * unit_roundoff(DType::f32) * 5 : 0;
    const Tolerance tolerance =
        attention_tolerance(types.q, h.dim, b.longest(), feature_error(f, b) + scaled);
    add(fmt::format("attention/{}/{}/{}{}{}", types.name(), b.name(), h.name(), f.name(), suffix), tolerance,
        bench, [=](Maker& m) {
          const Operands o = operands(m, b, h, types);
          AttentionParams p;
          p.q = o.q, p.k = o.k, p.v = o.v, p.tables = o.tables;
          p.k_quantization = o.k_quantization, p.v_quantization = o.v_quantization;
          p.softcap = f.softcap;
          set_biases(m, b, h, f, p);
          if (f.keep_m) {
            round_to_eighths(p.q);
            if (!needs_scales(types.kv.dtype)) round_to_eighths(p.k);
            for (std::int64_t i = 0; i < p.k_quantization.scales.numel() && needs_scales(types.kv.dtype); ++i)
              set_element(p.k_quantization.scales, i, 1.0 / 16);
          }
          if (f.sinks) p.sinks = m.normal(DType::f32, {h.query});
          return p;
        });
  }
  // A case of its own: `change` edits the params of a plain one.
  template <class F>
  void special(const std::string& name, const Batch& b, const Heads& h, Tolerance tolerance, F change,
               const Types& types = {}) {
    add("attention/" + name, tolerance, false, [=](Maker& m) {
      const Operands o = operands(m, b, h, types);
      AttentionParams p;
      p.q = o.q, p.k = o.k, p.v = o.v, p.tables = o.tables;
      p.k_quantization = o.k_quantization, p.v_quantization = o.v_quantization;
      change(m, p);
      return p;
    });
  }
  void primitives(const Batch& b, const Heads& h, const Types& types = {}) {
    const std::string suffix = fmt::format("/{}/{}/{}", types.name(), b.name(), h.name());
    const double u32 = unit_roundoff(DType::f32);
    add("attention_scores" + suffix, {2 * u32, score_error(h.dim)}, false, [=](Maker& m) {
      const Operands o = operands(m, b, h, types);
      AttentionScoresParams p;
      p.q = o.q, p.k = o.k, p.tables = o.tables;
      p.k_quantization = o.k_quantization;
      return p;
    });
    if (!needs_scales(types.kv.dtype)) mask(b, h, {});
    // Probabilities are uniform up to 2 / keys: they sum to about 1.
    const auto keys = static_cast<double>(std::max<std::int64_t>(b.longest(), 1));
    const double sums = 5.0 * kLambda * u32 * std::sqrt(keys);
    add("attention_values" + suffix, {2 * unit_roundoff(types.q), sums}, false, [=](Maker& m) {
      const Operands o = operands(m, b, h, types);
      AttentionValuesParams p;
      p.probs = score_matrix(m, b, h, 0.0f, static_cast<float>(2 / keys));
      p.v = o.v;
      p.v_quantization = o.v_quantization;
      p.tables = o.tables;
      p.out_dtype = static_cast<int>(types.q);
      return p;
    });
  }
  void capped_scores(const Batch& b, const Heads& h, float softcap) {
    const double u32 = unit_roundoff(DType::f32);
    add(fmt::format("attention_scores/f32/{}/{}-cap{}", b.name(), h.name(), fmt::to_string(softcap)),
        {2 * u32, score_error(h.dim) + 4 * u32 * softcap}, false, [=](Maker& m) {
          const Operands o = operands(m, b, h, {});
          AttentionScoresParams p;
          p.q = o.q, p.k = o.k, p.tables = o.tables, p.softcap = softcap;
          return p;
        });
  }
  // A bias is rounded, added, and the sum is rounded.
  void mask(const Batch& b, const Heads& h, const Features& f) {
    const double u32 = unit_roundoff(DType::f32), error = f.alibi || f.mask ? feature_error(f, b) : 0;
    add(fmt::format("attention_mask/f32/{}/{}{}", b.name(), h.name(), f.name()),
        {error > 0 ? 2 * u32 : 0, error}, false, [=](Maker& m) {
          const Operands o = operands(m, b, h, {});
          AttentionMaskParams p;
          p.scores = score_matrix(m, b, h, -1.0f, 1.0f);
          p.tables = o.tables;
          p.seqlen_k = b.form == Batch::dense ? o.k.dim(1) : 0;
          set_biases(m, b, h, f, p);
          return p;
        });
  }
  // Parts of one attention's size. Their weights are exp of a difference, rounded before and after, where |x| exp(-|x|)
  // is below 0.4, divided by their sum: 8 u of values within 5. lse is the larger one and a log of at most log 2.
  void merge(const std::string& name, std::vector<std::int64_t> shape, DType dtype, bool bench = false,
             std::function<void(Maker&, MergeAttentionParams&)> change = {}) {
    const double u32 = unit_roundoff(DType::f32);
    add(fmt::format("merge_attention/{}/{}", dtype_name(dtype), name),
        {2 * unit_roundoff(dtype), 5.0 * 8 * u32}, bench, [=](Maker& m) {
          const auto tensor = [&](DType type, bool lse) {
            if (shape.size() == 4)
              return lse ? m.normal(type, {shape[0], shape[2], shape[1]}, 3)
                         : m.normal(type, {shape[0], shape[1], shape[2], shape[3]});
            return lse ? m.normal(type, {shape[1], shape[0]}, 3)
                       : m.normal(type, {shape[0], shape[1], shape[2]});
          };
          MergeAttentionParams p;
          p.out_a = tensor(dtype, false), p.lse_a = tensor(DType::f32, true);
          p.out_b = tensor(dtype, false), p.lse_b = tensor(DType::f32, true);
          if (change) change(m, p);
          return p;
        });
  }

 private:
  // A few columns wider than the longest sequence.
  static TensorView score_matrix(Maker& m, const Batch& b, const Heads& h, float lo, float hi) {
    const std::int64_t columns = b.longest() + 3, batch = static_cast<std::int64_t>(b.seqlens_q.size());
    if (b.form == Batch::dense)
      return m.uniform(DType::f32, {batch, h.query, batch ? b.seqlens_q[0] : 3, columns}, lo, hi);
    return m.uniform(DType::f32, {h.query, b.total(b.seqlens_q), columns}, lo, hi);
  }
  template <class F>
  void add(const std::string& name, Tolerance tolerance, bool bench, F make) {
    Case c;
    c.name = name;
    c.make = [make](Maker& m) { return AnyParams(make(m)); };
    c.op = name.starts_with("attention_scores")   ? Op::attention_scores
           : name.starts_with("attention_mask")   ? Op::attention_mask
           : name.starts_with("attention_values") ? Op::attention_values
           : name.starts_with("merge_attention")  ? Op::merge_attention
                                                  : Op::attention;
    c.tolerance = tolerance;
    c.bench = bench;
    if ((c.op == Op::attention && !bench) || c.op == Op::merge_attention) c.want = {"lse"};
    list_.push_back(std::move(c));
  }
  CaseList& list_;
};

// In attention_quantized.cpp and attention_sparse.cpp.
void add_quantized(Cases& cases);
void add_block_sparse(Cases& cases);
void add_kept(Cases& cases);

}  // namespace kf::cases::attention
