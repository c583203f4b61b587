// Cases of attention and of the primitives it is made of.
//
// Tolerances. q, k and v are normal of deviation 1. A score sums D products, sum |q k| is 2/pi D, and is
// multiplied by D^-1/2: its f32 error is lambda u sqrt(D) 2/pi D D^-1/2 = lambda u 2/pi D (roundings as good
// as independent; Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019; lambda =
// 6). An error of a score is a relative error of its probability, and again of the sum that divides it; exp
// adds 3e-7 = 5 u, and sums over n keys lambda u sqrt(n). Weights sum to 1 and values are within 5
// deviations, which bounds what the output takes from all this. Outputs are rounded to their dtype once by
// either kernel: 2 u of it.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "case.h"
#include "kf/ops/attention.h"

namespace kf::cases {
namespace {

constexpr double kLambda = 6.0;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double score_error(std::int64_t head_dim) {
  return kLambda * unit_roundoff(DType::f32) * 2 / 3.14159 * static_cast<double>(head_dim);
}

Tolerance attention_tolerance(DType out, std::int64_t head_dim, std::int64_t keys) {
  const double u32 = unit_roundoff(DType::f32), sums = kLambda * u32 * std::sqrt(static_cast<double>(keys));
  return {2 * unit_roundoff(out), 5.0 * (2 * score_error(head_dim) + 2 * (5 * u32 + sums))};
}

struct Heads {
  std::int64_t query, kv, dim;
};

struct Types {
  DType q = DType::f32, kv = DType::f32;
  std::string name() const {
    return q == kv ? dtype_name(q) : fmt::format("{}-kv-{}", dtype_name(q), dtype_name(kv));
  }
};

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

// A page pool whose slots hold NaN where no sequence has a key.
TensorView page_pool(Maker& m, const Batch& b, const Heads& h, DType dtype, const SequenceTables& t,
                     std::int32_t num_pages) {
  const bool is_hnd = b.form == Batch::hnd;
  const TensorView pool = is_hnd ? m.normal(dtype, {num_pages, h.kv, b.page_size, h.dim})
                                 : m.normal(dtype, {num_pages, b.page_size, h.kv, h.dim});
  std::vector<bool> used(static_cast<std::size_t>(num_pages * b.page_size));
  for (std::size_t s = 0; s < b.seqlens_k.size(); ++s)
    for (std::int64_t j = 0; j < b.seqlens_k[s]; ++j) {
      const std::int64_t entry = static_cast<std::int64_t>(s) * t.block_tables.stride(0) + j / b.page_size;
      used[static_cast<std::size_t>(t.block_tables.as<std::int32_t>()[entry] * b.page_size +
                                    j % b.page_size)] = true;
    }
  for (std::int64_t i = 0; i < pool.numel(); ++i) {
    const std::int64_t row = i / h.dim;
    const std::int64_t slot =
        is_hnd ? row / (h.kv * b.page_size) * b.page_size + row % b.page_size : row / h.kv;
    if (!used[static_cast<std::size_t>(slot)]) set_element(pool, i, kNan);
  }
  return pool;
}

struct Operands {
  TensorView q, k, v;
  SequenceTables tables;
};

Operands operands(Maker& m, const Batch& b, const Heads& h, const Types& types) {
  Operands o;
  const auto batch = static_cast<std::int64_t>(b.seqlens_q.size());
  if (b.form == Batch::dense) {
    const std::int64_t seqlen_q = batch ? b.seqlens_q[0] : 3, seqlen_k = batch ? b.seqlens_k[0] : 3;
    o.q = m.normal(types.q, {batch, seqlen_q, h.query, h.dim});
    o.k = m.normal(types.kv, {batch, seqlen_k, h.kv, h.dim});
    o.v = m.normal(types.kv, {batch, seqlen_k, h.kv, h.dim});
    return o;
  }
  const std::int64_t total_q = b.total(b.seqlens_q), total_k = b.total(b.seqlens_k);
  o.q = m.normal(types.q, {total_q, h.query, h.dim});
  if (b.form == Batch::packed) {
    o.k = m.normal(types.kv, {total_k, h.kv, h.dim});
    o.v = m.normal(types.kv, {total_k, h.kv, h.dim});
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
  o.k = page_pool(m, b, h, types.kv, o.tables, num_pages);
  o.v = page_pool(m, b, h, types.kv, o.tables, num_pages);
  return o;
}

Batch even(std::int64_t batch, std::int64_t seqlen_q, std::int64_t seqlen_k) {
  const auto n = static_cast<std::size_t>(batch);
  return {std::vector(n, seqlen_q), std::vector(n, seqlen_k)};
}

class Cases {
 public:
  explicit Cases(CaseList& list) : list_(list) {}

  void attention(const Batch& b, const Heads& h, const Types& types = {}, bool causal = true,
                 bool bench = false) {
    add(fmt::format("attention/{}/{}/h{}-{}-d{}{}", types.name(), b.name(), h.query, h.kv, h.dim,
                    causal ? "-causal" : ""),
        attention_tolerance(types.q, h.dim, b.longest()), bench, [=](Maker& m) {
          const Operands o = operands(m, b, h, types);
          AttentionParams p;
          p.q = o.q, p.k = o.k, p.v = o.v, p.tables = o.tables, p.causal = causal;
          return p;
        });
  }
  // A case of its own: `change` edits the params of a plain one.
  template <class F>
  void special(const std::string& name, const Batch& b, const Heads& h, Tolerance tolerance, F change) {
    add("attention/" + name, tolerance, false, [=](Maker& m) {
      const Operands o = operands(m, b, h, {});
      AttentionParams p;
      p.q = o.q, p.k = o.k, p.v = o.v, p.tables = o.tables;
      change(m, p);
      return p;
    });
  }
  void primitives(const Batch& b, const Heads& h, const Types& types = {}) {
    const std::string suffix = fmt::format("/{}/{}/h{}-{}-d{}", types.name(), b.name(), h.query, h.kv, h.dim);
    const double u32 = unit_roundoff(DType::f32);
    add("attention_scores" + suffix, {2 * u32, score_error(h.dim)}, false, [=](Maker& m) {
      const Operands o = operands(m, b, h, types);
      AttentionScoresParams p;
      p.q = o.q, p.k = o.k, p.tables = o.tables;
      return p;
    });
    add("attention_mask" + suffix, {0, 0}, false, [=](Maker& m) {
      const Operands o = operands(m, b, h, types);
      AttentionMaskParams p;
      p.scores = score_matrix(m, b, h, -1.0f, 1.0f);
      p.tables = o.tables;
      p.seqlen_k = b.form == Batch::dense ? o.k.dim(1) : 0;
      return p;
    });
    // Probabilities are uniform up to 2 / keys: they sum to about 1.
    const auto keys = static_cast<double>(std::max<std::int64_t>(b.longest(), 1));
    const double sums = 5.0 * kLambda * u32 * std::sqrt(keys);
    add("attention_values" + suffix, {2 * unit_roundoff(types.q), sums}, false, [=](Maker& m) {
      const Operands o = operands(m, b, h, types);
      AttentionValuesParams p;
      p.probs = score_matrix(m, b, h, 0.0f, static_cast<float>(2 / keys));
      p.v = o.v;
      p.tables = o.tables;
      p.out_dtype = static_cast<int>(types.q);
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
                                                  : Op::attention;
    c.tolerance = tolerance;
    c.bench = bench;
    if (c.op == Op::attention && !bench) c.want = {"lse"};
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

// The shapes whose figures the documentation gives, and the forms that serving uses.
void add_bench(Cases& cases) {
  for (const Heads& h : {Heads{9, 3, 64}, Heads{32, 8, 128}})
    for (const std::int64_t seqlen : {128, 512, 1024, 2048})
      cases.attention(even(1, seqlen, seqlen), h, {}, true, true);
  cases.attention(even(1, 512, 512), {32, 8, 128}, {DType::bf16, DType::bf16}, true, true);
  for (const Types& types : {Types{}, Types{DType::f32, DType::f16}, Types{DType::bf16, DType::bf16}})
    cases.attention(even(1, 1, 4096), {32, 8, 128}, types, true, true);
  cases.attention(even(1, 1, 512), {9, 3, 64}, {}, true, true);
  cases.attention({{1, 1, 1, 1, 1, 1, 1, 1}, {100, 4000, 700, 30, 2500, 512, 1024, 64}, Batch::hnd},
                  {32, 8, 128}, {}, true, true);
  cases.attention({{256}, {2048}, Batch::hnd}, {9, 3, 64}, {}, true, true);
}

}  // namespace

void add_attention_cases(CaseList& list) {
  Cases cases(list);
  add_forms(cases);
  add_head_shapes(cases);
  add_hostile(cases);
  add_bench(cases);
}

}  // namespace kf::cases
