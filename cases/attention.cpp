// Cases of attention and of the primitives it is made of.
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

namespace kf::cases {
namespace {

constexpr double kLambda = 6.0;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double score_error(std::int64_t head_dim) {
  return kLambda * unit_roundoff(DType::f32) * 2 / 3.14159 * static_cast<double>(head_dim);
}

// On a device's matrix units probabilities are rounded to q's dtype of 16 bits: u of each of them, of values within 5.
Tolerance attention_tolerance(DType out, std::int64_t head_dim, std::int64_t keys, double feature_error = 0) {
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
TensorView quantized(Maker& m, const KvFormat& f, const TensorView& values, int heads_axis, Quantization& q) {
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

TensorView cumulative(Maker& m, const std::vector<std::int64_t>& lens) {
  std::vector<std::int64_t> sums = {0};
  for (const std::int64_t n : lens) sums.push_back(sums.back() + n);
  return m.integers(DType::i32, sums);
}

// Pages in a shuffled order; entries that a sequence does not need are -1.
TensorView page_table(Maker& m, const Batch& b, std::int32_t* num_pages) {
  std::int64_t width = 1;
  for (const std::int64_t n : b.seqlens_k) width = std::max(width, (n + b.page_size - 1) / b.page_size + 1);
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
TensorView page_pool(Maker& m, const Batch& b, const Heads& h, std::int64_t dim, const KvFormat& format,
                     const SequenceTables& t, std::int32_t num_pages, Quantization& q) {
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

Operands operands(Maker& m, const Batch& b, const Heads& h, const Types& types) {
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

Batch even(std::int64_t batch, std::int64_t seqlen_q, std::int64_t seqlen_k) {
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

constexpr float kLargestSlope = 0.5f;

double feature_error(const Features& f, const Batch& b) {
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
TensorView attn_mask(Maker& m, const Batch& b, const Heads& h, const Features& f) {
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

TensorView alibi_slopes(Maker& m, const Batch& b, const Heads& h, const Features& f) {
  const auto batch = static_cast<std::int64_t>(b.seqlens_q.size());
  if (f.alibi == Features::slopes) return m.uniform(DType::f32, {h.query}, 0.0f, kLargestSlope);
  return m.uniform(DType::f32, {batch, h.query}, 0.0f, kLargestSlope);
}

// To eighths, of which sums of products are exact, and so are scores where 1 / sqrt(head_dim) is a power of two: kernels and
// reference then choose the same of each n:m, and there are ties among them.
void round_to_eighths(const TensorView& t) {
  for (std::int64_t i = 0; t.present() && i < t.numel(); ++i)
    if (const double x = element(t, i); std::isfinite(x)) set_element(t, i, std::round(8 * x) / 8);
}

SparseKeys sparse_keys(Maker& m, const Batch& b, const Heads& h, const Layout& l) {
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
void set_biases(Maker& m, const Batch& b, const Heads& h, const Features& f, P& p) {
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

// `count` heads of a merged [tokens, all heads * head_dim] buffer.
TensorView heads_of(const TensorView& merged, std::int64_t first, std::int64_t count, std::int64_t head_dim) {
  TensorView t = merged.slice(1, first * head_dim, (first + count) * head_dim);
  t.rank = 4;
  t.shape = {1, merged.dim(0), count, head_dim};
  t.strides = {merged.dim(0) * merged.stride(0), merged.stride(0), head_dim, 1};
  return t;
}

void add_forms(Cases& cases) {
  const Types f32{}, f16{DType::f16, DType::f16}, bf16{DType::bf16, DType::bf16};
  const Types mixed[] = {{DType::f32, DType::f16}, {DType::f32, DType::bf16}, {DType::bf16, DType::f32}};
  std::vector<Batch> batches = {even(2, 33, 33), even(1, 1, 1),     even(1, 1, 307),
                                even(3, 7, 101), even(1, 131, 131), even(1, 113, 271),
                                even(2, 12, 5),  even(1, 3, 0),     even(0, 3, 3)};
  batches.push_back({{0, 5, 1, 37, 100}, {3, 0, 19, 37, 131}, Batch::packed});
  batches.push_back({{}, {}, Batch::packed});
  for (const auto form : {Batch::hnd, Batch::nhd})
    for (const std::int64_t page_size : {1, 5, 16, 64})
      for (const bool shared : {false, true}) {
        batches.push_back({{1, 1, 1, 1}, {1, 0, 300, 67}, form, page_size, shared});
        batches.push_back({{4, 0, 61, 9, 1}, {129, 7, 61, 2, 530}, form, page_size, shared});
      }
  for (const Batch& b : batches) {
    for (const bool causal : {true, false}) cases.attention(b, {6, 2, 64}, f32, causal);
    cases.primitives(b, {6, 2, 64});
    cases.attention(b, {4, 4, 40}, f16);
    cases.attention(b, {8, 1, 32}, bf16);
    for (const Types& types : mixed) cases.attention(b, {8, 2, 64}, types, false);
  }
  for (const Types& types : {f16, bf16, mixed[0], mixed[2]})
    for (const auto form : {Batch::dense, Batch::packed, Batch::hnd, Batch::nhd})
      cases.primitives({{9, 9}, {23, 23}, form}, {6, 2, 32}, types);
}

void add_head_shapes(Cases& cases) {
  for (std::int64_t head_dim = 32; head_dim <= 256; head_dim += 8) {
    cases.attention(even(1, 19, 37), {4, 2, head_dim});
    cases.attention(even(1, 1, 37), {4, 2, head_dim}, {DType::f32, DType::f16});
  }
  cases.attention(even(1, 19, 37), {2, 1, 20});  // only the reference and the unfused form take it
  for (std::int64_t group = 1; group <= 12; ++group) cases.attention(even(1, 1, 290), {2 * group, 2, 64});
  for (const Heads& h :
       {Heads{4, 4, 64}, Heads{9, 3, 64}, Heads{32, 8, 32}, Heads{16, 2, 64}, Heads{20, 1, 64}}) {
    cases.attention(even(1, 67, 67), h);
    cases.attention(even(1, 3, 523), h);
  }
  cases.attention(even(1, 1, 9001), {4, 2, 64});
}

void add_hostile(Cases& cases) {
  const Heads h{4, 2, 64};
  const Tolerance plain = attention_tolerance(DType::f32, h.dim, 150);
  const auto first_row = [](const TensorView& t, float value) {
    for (std::int64_t i = 0; i < t.dim(-1); ++i) set_element(t, i, value);
  };
  cases.special("merged-qkv", even(1, 50, 50), h, plain, [h](Maker& m, AttentionParams& p) {
    const TensorView merged = m.strided(m.normal(DType::f32, {50, 8 * h.dim}), 7);
    p.q = heads_of(merged, 0, 4, h.dim), p.k = heads_of(merged, 4, 2, h.dim),
    p.v = heads_of(merged, 6, 2, h.dim);
  });
  cases.special("strided-heads", even(2, 1, 150), h, plain, [](Maker& m, AttentionParams& p) {
    p.q = m.strided(p.q, 5), p.k = m.strided(p.k, 3), p.v = m.strided(p.v, 9);
  });
  cases.special("broadcast-keys", even(2, 20, 30), h, plain, [](Maker&, AttentionParams& p) {
    p.k.strides[0] = p.v.strides[0] = 0;  // one K and V for the whole batch
    p.k.strides[2] = 0;
  });
  cases.special("scale", even(1, 9, 150), h, plain,
                [](Maker&, AttentionParams& p) { p.softmax_scale = 0.01f; });
  cases.special("negative-scale", even(1, 9, 150), h, plain,
                [](Maker&, AttentionParams& p) { p.softmax_scale = -0.125f; });
  for (const std::int64_t seqlen_q : {1, 40}) {
    const std::string suffix = fmt::format("/q{}", seqlen_q);
    const Batch b = even(1, seqlen_q, 150);
    cases.special("nan-query" + suffix, b, h, plain,
                  [=](Maker&, AttentionParams& p) { first_row(p.q, kNan); });
    cases.special("nan-key" + suffix, b, h, plain, [=](Maker&, AttentionParams& p) { first_row(p.k, kNan); });
    cases.special("infinite-key" + suffix, b, h, plain,
                  [=](Maker&, AttentionParams& p) { set_element(p.k, 0, kInfinity); });
    cases.special("nan-value" + suffix, b, h, plain,
                  [=](Maker&, AttentionParams& p) { first_row(p.v, kNan); });
    cases.special("infinite-value" + suffix, b, h, plain,
                  [=](Maker&, AttentionParams& p) { first_row(p.v, kInfinity); });
    // All scores alike and large: 65504 * 65504 / 8 * 64 is beyond the range of f16, and exp must not
    // overflow. The softmax is even: what is left is the error of sums of values of 65504, and for lse that
    // of a sum of D like terms.
    Tolerance large = plain;
    large.atol = 65504 * plain.atol;
    large.rtol = kLambda * unit_roundoff(DType::f32) * std::sqrt(static_cast<double>(h.dim));
    cases.special("f16-maximum" + suffix, b, h, large, [](Maker& m, AttentionParams& p) {
      p.q = m.filled(DType::f32, {1, p.q.dim(1), 4, 64}, 65504.0f);
      p.k = m.filled(DType::f16, {1, 150, 2, 64}, 65504.0f);
      p.v = m.filled(DType::f16, {1, 150, 2, 64}, 65504.0f);
    });
    cases.special("denormals" + suffix, b, h, plain, [](Maker& m, AttentionParams& p) {
      p.k = m.uniform(DType::f32, {1, 150, 2, 64}, 0.0f, 1e-39f);
      p.v = m.uniform(DType::f32, {1, 150, 2, 64}, 0.0f, 1e-39f);
    });
  }
}

// Each feature alone and some together, over every form of batch and stage of serving.
void add_features(Cases& cases) {
  const Heads h{6, 2, 64};
  const auto in_form = [](Batch b, Batch::Form form) {
    b.form = form, b.page_size = 5;
    return b;
  };
  // Prefill, chunks of a prefill, decode; packed and paged batches mix them, and have more queries than keys as well.
  const Batch even_batches[] = {even(2, 61, 61), even(1, 150, 150), even(2, 19, 301), even(3, 1, 290),
                                even(2, 12, 5)};
  const Batch uneven[] = {{{1, 70, 13, 5, 0}, {300, 70, 141, 2, 9}}, {{1, 1, 1}, {7, 600, 0}}};
  std::vector<Batch> batches(std::begin(even_batches), std::end(even_batches));
  for (const auto form : {Batch::packed, Batch::hnd, Batch::nhd})
    for (const Batch& b : uneven) batches.push_back(in_form(b, form));

  std::vector<Features> alone;
  for (const bool causal : {true, false})
    for (const std::int64_t left : {0, 1, 30, 128}) {
      alone.push_back({.causal = causal, .window_left = left, .window_right = causal ? -1 : left / 2});
      if (!causal) alone.push_back({.causal = false, .window_left = left});
    }
  alone.push_back({.causal = false, .window_right = 3});
  for (const bool causal : {true, false}) {
    for (const float softcap : {1.5f, 50.0f}) alone.push_back({.causal = causal, .softcap = softcap});
    alone.push_back({.causal = causal, .alibi = Features::slopes});
    alone.push_back({.causal = causal, .sinks = true});
    alone.push_back({.causal = causal, .mask = DType::boolean, .one_head = true});
    alone.push_back({.causal = causal, .mask = DType::f32});
  }
  alone.push_back({.alibi = Features::slopes_of_batch});
  alone.push_back({.mask = DType::f16, .one_head = true, .expanded = true});
  alone.push_back({.mask = DType::bf16, .one_batch = true, .one_query = true});
  alone.push_back({.mask = DType::boolean, .one_batch = true, .one_head = true, .one_query = true});
  alone.push_back({.mask = DType::boolean, .one_batch = true, .one_query = true, .expanded = true});

  for (const Batch& b : batches) {
    for (const Features& f : alone) {
      if (b.form != Batch::dense && (f.one_batch || f.one_query)) continue;  // dense batches' alone
      cases.featured(b, h, {}, f);
      if (!f.sinks && f.softcap == 0) cases.mask(b, h, f);
    }
    cases.capped_scores(b, h, 1.5f);
    for (const auto& [dim, value_dim] : {std::pair{64, 32}, {40, 128}, {192, 128}, {8, 256}, {256, 8}})
      cases.featured(b, {4, 2, dim, value_dim}, {DType::f32, DType::f16}, {});
  }

  std::mt19937_64 rng(20);
  const auto one_of = [&](auto choices) { return choices[rng() % choices.size()]; };
  const DType plain[] = {DType::f32, DType::f16, DType::bf16};
  for (int i = 0; i < 160; ++i) {
    Features f;
    f.causal = rng() % 2 == 0;
    if (rng() % 2) f.window_left = one_of(std::array{0, 2, 17, 64, 200});
    if (rng() % 4 == 0) f.window_right = one_of(std::array{0, 3, 40});
    if (rng() % 2) f.softcap = one_of(std::array{2.0f, 30.0f});
    if (rng() % 2) f.alibi = rng() % 2 ? Features::slopes : Features::slopes_of_batch;
    if (rng() % 2) f.mask = one_of(std::array{DType::boolean, DType::f32, DType::f16, DType::bf16});
    f.sinks = rng() % 4 == 0;
    const Batch& b = batches[rng() % batches.size()];
    if (f.mask) {
      f.one_head = rng() % 2, f.expanded = rng() % 2;
      if (b.form == Batch::dense) f.one_batch = rng() % 2, f.one_query = rng() % 3 == 0;
    }
    const std::int64_t kv = one_of(std::array{1, 2, 3}), group = one_of(std::array{1, 2, 3, 8}),
                       dim = 8 << rng() % 5;
    const Heads heads{kv * group, kv, dim, rng() % 3 ? 0 : std::int64_t{8} << rng() % 5};
    const Types types{plain[rng() % 3], plain[rng() % 3]};
    cases.featured(b, heads, types, f, false, fmt::format("-{}", i));
  }
}

// Quantized keys and values: every dtype and what may share a scale, over the forms and stages; with the features; and
// what codes and scales may hold.
void add_quantized(Cases& cases) {
  using Kv = KvFormat;
  const DType dtypes[] = {DType::int4, DType::i8, DType::fp8_e4m3, DType::fp8_e5m2};
  std::vector<KvFormat> formats;
  for (const DType dtype : dtypes) {
    const bool is_integer = dtype == DType::int4 || dtype == DType::i8;
    for (const auto share : {Kv::tensor, Kv::head, Kv::token, Kv::row}) {
      formats.push_back({dtype, share});
      if (is_integer) formats.push_back({dtype, share, 0, true});
    }
    formats.push_back({dtype, Kv::row, 0, false, DType::f16});
    formats.push_back({dtype, Kv::row, 16, false, DType::bf16});
    formats.push_back({dtype, Kv::row, 32, is_integer, DType::f16});
    formats.push_back({dtype, Kv::head, 32});
  }
  std::vector<Batch> batches = {even(2, 33, 33), even(1, 1, 307), even(3, 7, 101), even(1, 113, 271),
                                even(1, 3, 0),   even(2, 12, 5),  even(0, 3, 3)};
  batches.push_back({{0, 5, 1, 37, 100}, {3, 0, 19, 37, 131}, Batch::packed});
  for (const auto form : {Batch::hnd, Batch::nhd}) {
    batches.push_back({{1, 1, 1, 1}, {1, 0, 300, 67}, form, 16, true});
    batches.push_back({{4, 0, 61, 9, 1}, {129, 7, 61, 2, 530}, form, 5});
  }
  for (const KvFormat& format : formats)
    for (const Batch& b : batches) {
      cases.attention(b, {6, 2, 64}, {DType::f32, format});
      if (!b.seqlens_q.empty() && format.scales == DType::f32)
        cases.primitives(b, {6, 2, 64}, {DType::f32, format});
    }
  // The unfused form alone takes head_dims that are no multiples of 8.
  for (const DType dtype : dtypes) {
    cases.attention(even(1, 19, 37), {2, 1, 20}, {DType::f32, {dtype, Kv::row}});
    for (const std::int64_t head_dim : {8, 40, 72, 128, 192, 256})
      for (const std::int64_t seqlen_q : {1, 19}) {
        cases.attention(even(1, seqlen_q, 150), {4, 2, head_dim}, {DType::f16, {dtype, Kv::row}});
        cases.attention(even(1, seqlen_q, 150), {4, 2, head_dim, 64}, {DType::bf16, {dtype, Kv::token}},
                        false);
      }
    for (const std::int64_t group : {1, 2, 3, 5, 8, 9, 12})
      cases.attention(even(2, 1, 290), {2 * group, 2, 64}, {DType::f32, {dtype, Kv::row}});
  }
  cases.attention(even(1, 1, 9001), {8, 2, 128}, {DType::f32, {DType::int4, Kv::row, 64, true, DType::f16}});

  std::mt19937_64 rng(21);
  const auto one_of = [&](const auto& choices) { return choices[rng() % std::size(choices)]; };
  for (int i = 0; i < 96; ++i) {
    Features f;
    f.causal = rng() % 2 == 0;
    if (rng() % 2) f.window_left = one_of(std::array{0, 2, 17, 64, 200});
    if (rng() % 4 == 0) f.window_right = one_of(std::array{0, 3, 40});
    if (rng() % 2) f.softcap = 30.0f;
    if (rng() % 3 == 0) f.alibi = Features::slopes;
    if (rng() % 3 == 0) f.mask = one_of(std::array{DType::boolean, DType::f32}), f.one_head = true;
    f.sinks = rng() % 4 == 0;
    const Batch& b = batches[rng() % 2 ? 1 + rng() % 3 : 7 + rng() % 5];
    const std::int64_t kv = one_of(std::array{1, 2, 3}), group = one_of(std::array{1, 2, 4, 8});
    cases.featured(b, {kv * group, kv, 64, rng() % 3 ? 0 : std::int64_t{128}},
                   {DType::f32, formats[rng() % formats.size()]}, f, false, fmt::format("-{}", i));
  }

  const Heads h{4, 2, 64};
  const Tolerance plain = attention_tolerance(DType::f32, h.dim, 150, 20 * unit_roundoff(DType::f32));
  for (const DType dtype : dtypes) {
    const std::string suffix = fmt::format("/kv-{}", dtype_name(dtype));
    const Types rows{DType::f32, {dtype, Kv::row}}, groups{DType::f32, {dtype, Kv::row, 32}};
    // Keys and values are the halves of one pool, and so are their scales.
    cases.special(
        "halves" + suffix, even(2, 3, 150), h, plain,
        [dtype](Maker& m, AttentionParams& p) {
          const auto halve = [](const TensorView& both, TensorView& k, TensorView& v) {
            k = both.slice(2, 0, 2), v = both.slice(2, 2, 4);
          };
          Quantization q;
          const TensorView both =
              quantized(m, {dtype, KvFormat::row}, m.normal(DType::f32, {2, 150, 4, 64}), 2, q);
          halve(both, p.k, p.v);
          halve(q.scales, p.k_quantization.scales, p.v_quantization.scales);
        },
        rows);
    for (const std::int64_t seqlen_q : {1, 40}) {
      const Batch b = even(1, seqlen_q, 150);
      const std::string name = fmt::format("/q{}{}", seqlen_q, suffix);
      for (const Types& types : {rows, groups}) {
        const std::string own = (types.kv.group_size ? "-of-group" : "") + name;
        const std::int64_t key = types.kv.group_size ? 7 * 4 : 7 * 2;  // the scale of key 7's first head
        cases.special(
            "nan-scale" + own, b, h, plain,
            [=](Maker&, AttentionParams& p) { set_element(p.k_quantization.scales, key, kNan); }, types);
        cases.special(
            "nan-value-scale" + own, b, h, plain,
            [=](Maker&, AttentionParams& p) { set_element(p.v_quantization.scales, key, kNan); }, types);
        cases.special(
            "zero-scales" + own, b, h, plain,
            [](Maker&, AttentionParams& p) {
              for (std::int64_t i = 0; i < p.k_quantization.scales.numel(); i += 3)
                set_element(p.k_quantization.scales, i, 0), set_element(p.v_quantization.scales, i, 0);
            },
            types);
        cases.special(
            "denormal-scales" + own, b, h, plain,
            [](Maker&, AttentionParams& p) {
              for (std::int64_t i = 0; i < p.k_quantization.scales.numel(); ++i)
                set_element(p.k_quantization.scales, i, 1e-39),
                    set_element(p.v_quantization.scales, i, 1e-39);
            },
            types);
      }
      // Every code there is, NaN and infinities of fp8 among them; values of key 3 alone, so that other rows show.
      cases.special(
          "all-codes" + name, b, h, plain,
          [](Maker&, AttentionParams& p) {
            auto* const codes = p.v.as<std::uint8_t>();
            const std::int64_t row = 2 * 64 / dtype_info(p.v.dtype).block_elems;
            for (std::int64_t i = 0; i < row; ++i)
              codes[3 * row + i] = static_cast<std::uint8_t>(2 * i + i % 2);
          },
          rows);
    }
  }
  // The farthest that codes and zeros may be apart: 255, 135.
  for (const DType dtype : {DType::int4, DType::i8})
    for (const std::int64_t seqlen_q : {1, 40})
      cases.special(fmt::format("extreme-zeros/q{}/kv-{}", seqlen_q, dtype_name(dtype)),
                    even(1, seqlen_q, 150), h, plain,
                    [](Maker&, AttentionParams& p) {
                      for (Quantization* q : {&p.k_quantization, &p.v_quantization})
                        for (std::int64_t i = 0; i < q->zeros.numel(); ++i) {
                          q->zeros.as<std::int8_t>()[i] = i % 2 ? 127 : -128;
                          set_element(q->scales, i, 1.0 / 256);
                        }
                    },
                    {DType::f32, {dtype, Kv::row, 0, true}});
}

// Block layouts and lists of key blocks, alone over forms and stages, and with everything else.
void add_block_sparse(Cases& cases) {
  std::vector<Batch> batches = {even(2, 61, 61),  even(1, 150, 150), even(2, 19, 301), even(3, 1, 290),
                                even(1, 1, 2500), even(2, 12, 5),    even(1, 3, 0),    even(0, 3, 3)};
  for (const auto form : {Batch::packed, Batch::hnd, Batch::nhd}) {
    batches.push_back({{1, 70, 13, 5, 0}, {300, 70, 141, 2, 9}, form, 5});
    batches.push_back({{1, 1, 1}, {7, 600, 0}, form, 16});
  }
  std::vector<Layout> layouts = {{16, 16},
                                 {64, 64, 0.5, Layout::query},
                                 {128, 128, 0.5, Layout::kv},
                                 {1, 1, 0.3, Layout::one, false, true},
                                 {7, 5, 0.5, Layout::query, true},
                                 {7, 5, 0.1, Layout::kv, true},
                                 {0, 16, 0.5, Layout::kv, true},
                                 {0, 16, 0.2, Layout::query, true},
                                 {2, 1000, 0.7, Layout::query},
                                 {20, 32, 1.0, Layout::query},
                                 {20, 32, 0.0}};
  for (const Batch& b : batches)
    for (const Layout& l : layouts)
      for (const bool causal : {true, false}) {
        const Features f{.causal = causal, .layout = l};
        cases.featured(b, {6, 2, 64}, {}, f);
        cases.mask(b, {6, 2, 64}, f);
      }

  std::mt19937_64 rng(22);
  const auto one_of = [&](const auto& choices) { return choices[rng() % std::size(choices)]; };
  for (int i = 0; i < 160; ++i) {
    Features f;
    f.causal = rng() % 2 == 0;
    if (rng() % 3 == 0) f.window_left = one_of(std::array{0, 2, 17, 64, 200});
    if (rng() % 4 == 0) f.window_right = one_of(std::array{0, 3, 40});
    if (rng() % 3 == 0) f.softcap = 30.0f;
    if (rng() % 3 == 0) f.alibi = Features::slopes_of_batch;
    if (rng() % 3 == 0) f.mask = one_of(std::array{DType::boolean, DType::f32}), f.one_head = true;
    f.sinks = rng() % 4 == 0;
    f.layout = Layout{one_of(std::array{0, 1, 8, 48, 64}),
                      one_of(std::array{1, 3, 16, 64, 128}),
                      0.4,
                      static_cast<Layout::Heads>(rng() % 3),
                      rng() % 2 == 0,
                      rng() % 3 == 0};
    const Batch& b = batches[rng() % batches.size()];
    const std::int64_t kv = one_of(std::array{1, 2, 3}), group = one_of(std::array{1, 2, 4, 9}),
                       dim = 8 << rng() % 5;
    const KvFormat formats[] = {DType::f32,
                                DType::f16,
                                DType::bf16,
                                {DType::i8, KvFormat::row},
                                {DType::int4, KvFormat::row, 0, true},
                                {DType::fp8_e4m3, KvFormat::token}};
    cases.featured(b, {kv * group, kv, dim, rng() % 3 ? 0 : std::int64_t{8} << rng() % 5},
                   {one_of(std::array{DType::f32, DType::bf16}), one_of(formats)}, f, false,
                   fmt::format("-{}", i));
  }
}

// Of every m neighbouring scores the n largest.
void add_kept(Cases& cases) {
  std::vector<Batch> batches = {even(2, 61, 61),  even(1, 150, 150), even(2, 19, 301), even(3, 1, 290),
                                even(1, 1, 2500), even(2, 12, 5),    even(1, 3, 0)};
  for (const auto form : {Batch::packed, Batch::hnd, Batch::nhd}) {
    batches.push_back({{1, 70, 13, 5, 0}, {300, 70, 141, 2, 9}, form, 5});
    batches.push_back({{1, 1, 1}, {7, 600, 0}, form, 16});
  }
  const std::pair<int, int> patterns[] = {{2, 4},  {1, 2}, {1, 4}, {4, 8},  {5, 16},
                                          {1, 32}, {4, 4}, {3, 5}, {7, 100}};
  for (const Batch& b : batches)
    for (const auto& [n, m] : patterns)
      for (const bool causal : {true, false}) {
        const Features f{.causal = causal, .keep_n = n, .keep_m = m};
        cases.featured(b, {6, 2, 64}, {}, f);
        cases.mask(b, {6, 2, 64}, f);
      }
  std::mt19937_64 rng(23);
  const auto one_of = [&](const auto& choices) { return choices[rng() % std::size(choices)]; };
  for (int i = 0; i < 96; ++i) {
    Features f;
    f.causal = rng() % 2 == 0;
    if (rng() % 3 == 0) f.window_left = one_of(std::array{0, 2, 17, 64, 200});
    if (rng() % 4 == 0) f.window_right = one_of(std::array{0, 3, 40});
    if (rng() % 3 == 0) f.alibi = Features::slopes;
    if (rng() % 3 == 0) f.mask = one_of(std::array{DType::boolean, DType::f32}), f.one_head = true;
    if (!f.alibi && !f.mask && rng() % 2) f.softcap = 30.0f;
    f.sinks = rng() % 4 == 0;
    std::tie(f.keep_n, f.keep_m) = one_of(patterns);
    // Only the reference takes sinks with groups that the fused kernel does not.
    if (rng() % 3 == 0)
      f.layout = Layout{one_of(std::array{0, 8, 64}), 32, 0.4, static_cast<Layout::Heads>(rng() % 3),
                        rng() % 2 == 0};
    if ((f.keep_m & (f.keep_m - 1)) != 0) f.sinks = false;
    const Batch& b = batches[rng() % batches.size()];
    const std::int64_t kv = one_of(std::array{1, 2, 3}), group = one_of(std::array{1, 2, 4, 9}),
                       dim = one_of(std::array{16, 64, 256});
    const KvFormat formats[] = {DType::f32, DType::f16, DType::bf16, {DType::i8, KvFormat::row}};
    cases.featured(b, {kv * group, kv, dim, rng() % 3 ? 0 : std::int64_t{8} << rng() % 5},
                   {one_of(std::array{DType::f32, DType::bf16}), one_of(formats)}, f, false,
                   fmt::format("-{}", i));
  }
  // Blocks that do not hold whole groups: the unfused form and the reference.
  cases.featured(even(1, 40, 90), {4, 2, 64}, {}, {.layout = Layout{8, 3, 0.5}, .keep_n = 2, .keep_m = 4});

  const Heads h{4, 2, 64};
  const Tolerance plain = attention_tolerance(DType::f32, h.dim, 150, 20 * unit_roundoff(DType::f32));
  for (const std::int64_t seqlen_q : {1, 40}) {
    const auto with = [&](const std::string& name, auto change) {
      cases.special(fmt::format("keep2of4-{}/q{}", name, seqlen_q), even(1, seqlen_q, 150), h, plain,
                    [=](Maker&, AttentionParams& p) {
                      round_to_eighths(p.q), round_to_eighths(p.k);
                      p.sparsity.keep_n = 2, p.sparsity.keep_m = 4;
                      change(p);
                    });
    };
    const auto fill = [](const TensorView& t, std::int64_t key, float value) {
      for (std::int64_t i = 0; i < 2 * t.dim(-1); ++i) set_element(t, key * 2 * t.dim(-1) + i, value);
    };
    with("ties", [=](AttentionParams& p) {  // all keys alike: the first two of every four
      for (std::int64_t j = 0; j < 150; ++j) fill(p.k, j, 0.25f);
    });
    with("nan-key", [=](AttentionParams& p) { fill(p.k, 6, kNan); });
    with("three-nan-keys", [=](AttentionParams& p) {
      for (const std::int64_t key : {4, 5, 7}) fill(p.k, key, kNan);
    });
    with("infinite-key", [=](AttentionParams& p) { set_element(p.k, 6 * 128, kInfinity); });
    with("negative-scale", [=](AttentionParams& p) { p.softmax_scale = -0.125f; });
  }
}

void add_merges(Cases& cases) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    cases.merge("dense", {2, 5, 3, 40}, dtype);
    cases.merge("packed", {37, 4, 64}, dtype);
    cases.merge("one", {1, 1, 1}, dtype);
    cases.merge("none", {0, 4, 16}, dtype);
    cases.merge("strided", {2, 9, 4, 72}, dtype, false, [](Maker& m, MergeAttentionParams& p) {
      p.out_a = m.strided(p.out_a, 5), p.out_b = m.strided(p.out_b, 1);
      p.lse_a = m.strided(p.lse_a, 3), p.lse_b = m.strided(p.lse_b, 2);
    });
    // Parts that attended nothing, with whatever in their outputs; both; and lse beyond the range of exp.
    cases.merge("absent-parts", {6, 2, 24}, dtype, false, [](Maker&, MergeAttentionParams& p) {
      const auto no_part = [](const TensorView& out, const TensorView& lse, std::int64_t token) {
        for (std::int64_t h = 0; h < 2; ++h) {
          set_element(lse, h * 6 + token, -kInfinity);
          for (std::int64_t i = 0; i < 24; ++i) set_element(out, (token * 2 + h) * 24 + i, kNan);
        }
      };
      no_part(p.out_a, p.lse_a, 0), no_part(p.out_b, p.lse_b, 1);
      no_part(p.out_a, p.lse_a, 2), no_part(p.out_b, p.lse_b, 2);
      set_element(p.lse_a, 3, 1000.0), set_element(p.lse_b, 3, 1001.0);
      set_element(p.lse_a, 4, -1000.0), set_element(p.lse_b, 4, 900.0);
      set_element(p.lse_a, 5, kNan);
    });
  }
  cases.merge("packed-512x32x128", {512, 32, 128}, DType::f32, true);
}

// The shapes whose figures the documentation gives, and the forms that serving uses.
void add_bench(Cases& cases) {
  for (const Heads& h : {Heads{9, 3, 64}, Heads{32, 8, 128}})
    for (const std::int64_t seqlen : {128, 512, 1024, 2048})
      cases.attention(even(1, seqlen, seqlen), h, {}, true, true);
  cases.attention(even(1, 512, 512), {32, 8, 128}, {DType::bf16, DType::bf16}, true, true);
  for (const Types& types : {Types{}, Types{DType::f32, DType::f16}, Types{DType::bf16, DType::bf16}})
    cases.attention(even(1, 1, 4096), {32, 8, 128}, types, true, true);
  cases.attention(even(1, 1, 512), {9, 3, 64}, {}, true, true);
  for (const KvFormat& kv : {KvFormat(DType::f32),
                             {DType::i8, KvFormat::row},
                             {DType::fp8_e4m3, KvFormat::row},
                             {DType::int4, KvFormat::row},
                             {DType::int4, KvFormat::row, 32, true, DType::f16}})
    cases.attention(even(1, 1, 32768), {32, 8, 128}, {DType::f32, kv}, true, true);
  cases.attention({{1, 1, 1, 1, 1, 1, 1, 1}, {100, 4000, 700, 30, 2500, 512, 1024, 64}, Batch::hnd},
                  {32, 8, 128}, {}, true, true);
  cases.attention({{256}, {2048}, Batch::hnd}, {9, 3, 64}, {}, true, true);
  // Windows, a part of the keys each; and what each of the other features costs.
  const Heads h{32, 8, 128};
  for (const std::int64_t left : {1023, 511, 255, 127})
    cases.featured(even(1, 2048, 2048), h, {}, {.window_left = left}, true);
  for (const std::int64_t left : {2047, 1023, 511})
    cases.featured(even(1, 1, 4096), h, {DType::f32, DType::f16}, {.window_left = left}, true);
  for (const Batch& b : {even(1, 1024, 1024), even(1, 1, 4096)}) {
    cases.featured(b, h, {}, {.softcap = 50}, true);
    cases.featured(b, h, {}, {.alibi = Features::slopes}, true);
    cases.featured(b, h, {}, {.mask = DType::boolean, .one_head = true}, true);
    cases.featured(b, h, {}, {.mask = DType::f32, .one_head = true}, true);
  }
  for (const double density : {1.0, 0.5, 0.25, 0.1}) {
    cases.featured(even(1, 2048, 2048), h, {}, {.layout = Layout{64, 64, density, Layout::query}}, true);
    cases.featured({{1}, {8192}, Batch::hnd}, h, {}, {.layout = Layout{0, 16, density, Layout::kv, true}},
                   true);
  }
  for (const auto& [n, m] : {std::pair{2, 4}, {4, 8}})
    for (const Batch& b : {even(1, 1024, 1024), even(1, 1, 4096)})
      cases.featured(b, h, {}, {.keep_n = n, .keep_m = m}, true);
}

}  // namespace

void add_attention_cases(CaseList& list) {
  Cases cases(list);
  add_forms(cases);
  add_head_shapes(cases);
  add_hostile(cases);
  add_features(cases);
  add_quantized(cases);
  add_block_sparse(cases);
  add_kept(cases);
  add_merges(cases);
  add_bench(cases);
}

// The shapes of an accelerator's prefill and decode.
void add_attention_device_cases(CaseList& list) {
  Cases cases(list);
  const Types bf16{DType::bf16, DType::bf16};
  for (const Heads& h : {Heads{32, 32, 64}, Heads{32, 8, 128}, Heads{8, 8, 256}})
    for (const Batch& b : {even(16, 512, 512), even(4, 2048, 2048), even(1, 8192, 8192)})
      cases.attention(b, h, bf16, true, true);
  cases.attention(even(4, 2048, 2048), {32, 8, 128}, bf16, false, true);
  const Heads h{32, 8, 128};
  for (const Batch& b : {even(1, 1, 4096), even(1, 1, 32768), even(8, 1, 8192), even(64, 1, 1024)})
    cases.attention(b, h, bf16, true, true);
  Batch ragged{
      std::vector<std::int64_t>(8, 1), {16000, 500, 8000, 3000, 12000, 100, 20000, 6000}, Batch::hnd, 16};
  cases.attention(ragged, h, bf16, true, true);
  ragged.form = Batch::nhd;
  cases.attention(ragged, h, bf16, true, true);
  cases.attention({{512}, {8192}, Batch::hnd, 16}, h, bf16, true, true);
  cases.attention({{4, 4}, {8192, 8192}, Batch::hnd, 16}, h, bf16, true, true);
}

}  // namespace kf::cases
