// Tolerances. u is the unit roundoff of f32. A turned element is the difference of two products, each below
// |x|: it is off by 3 u of |x1| + |x2|, and |x| stays below 6. QK-norm adds its own error, below 20 u
// relative. Kernel and reference round once to the dtype of the output; unfused forms round the normed, and
// the turned, head in between.
//
// Codes. append_kv rounds the same values by the same steps: bit for bit. What rope_append rounds is off by some e of the
// largest value: e is u of the dtype for each of the roundings in between, and 50 u of f32. Of N codes between the ends
// (N = 255 for i8, as for fp8, 15 for int4) x / scale is then off by N e for x, N e for the scale and N e for the zero,
// and the code by one more; a zero is a code itself.
#include "case.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "core/quantizer.h"
#include "kf/ops/rope.h"

namespace kf::cases {
namespace {

constexpr double kU = 0x1p-24;
constexpr std::int64_t kMaxPosition = 600;

struct Heads {
  std::int64_t num_tokens, num_heads, num_kv_heads, head_dim;
  std::int64_t rotary_dim = 0;  // 0: head_dim
  bool interleaved = false;
  bool norm = false;
  bool strided = false;
  float norm_weight_offset = 0;
  std::string name() const {
    return fmt::format("{}x{}_{}x{}{}{}{}{}{}", num_tokens, num_heads, num_kv_heads, head_dim,
                       rotary_dim ? fmt::format("_rotary{}", rotary_dim) : "",
                       interleaved ? "_interleaved" : "", norm ? "_norm" : "",
                       norm_weight_offset != 0 ? "_offset" : "", strided ? "_strided" : "");
  }
};

Tolerance tolerance(DType dtype, const Heads& h) {
  const double u = unit_roundoff(dtype);
  Tolerance t{2 * u + 2 * kU, 12 * (3 + (h.norm ? 20 : 0)) * kU};
  if (h.norm) t.atol += 12 * u;
  if (dtype == DType::f16) t.atol += 0x1p-24;
  return t;
}

// What RopeParams and RopeAppendParams share.
template <class P>
void add_tables(Maker& m, P& p, const Heads& h) {
  const std::int64_t rotary_dim = h.rotary_dim ? h.rotary_dim : h.head_dim;
  const RopeTables tables = make_rope_tables(kMaxPosition, static_cast<int>(rotary_dim), 10000.0);
  m.storage().push_back(tables.cos);
  m.storage().push_back(tables.sin);
  p.cos = tables.cos;
  p.sin = tables.sin;
  std::vector<std::int64_t> positions;
  for (std::int64_t t = 0; t < h.num_tokens; ++t) positions.push_back((t * 7 + 3) % kMaxPosition);
  p.positions = m.integers(DType::i32, positions);
  p.interleaved = h.interleaved;
}

TensorView heads(Maker& m, DType dtype, std::int64_t tokens, std::int64_t n, const Heads& h) {
  const TensorView t = m.normal(dtype, {tokens, n, h.head_dim});
  return h.strided ? m.strided(t, 3) : t;
}

Case rope_case(DType dtype, const Heads& h, bool bench = false) {
  Case c;
  c.name = fmt::format("rope/{}/{}", dtype_name(dtype), h.name());
  c.op = Op::rope;
  c.make = [=](Maker& m) -> AnyParams {
    RopeParams p;
    p.x = heads(m, dtype, h.num_tokens, h.num_heads, h);
    add_tables(m, p, h);
    if (h.norm) p.norm_weight = m.normal(dtype, {h.head_dim}, 0.1f, 1.0f - h.norm_weight_offset);
    p.norm_weight_offset = h.norm_weight_offset;
    return p;
  };
  c.tolerance = tolerance(dtype, h);
  c.bench = bench;
  return c;
}

struct Cache {
  DType dtype;
  KvLayout layout;
  std::int64_t page_size;
  DType slot_dtype = DType::i64;
  // Of a quantized cache: what has a scale of its own, computed (a token, or a token and head) or given.
  enum Share { row, token, given_head, given_tensor } share = row;
  std::int64_t group_size = 0;
  bool zeros = false;
  DType scales = DType::f32;

  bool given() const { return share == given_head || share == given_tensor; }
  std::string name() const {
    static constexpr const char* kShares[] = {"row", "token", "given-head", "given-tensor"};
    std::string s = fmt::format("{}_{}_page{}_{}", dtype_name(dtype),
                                kKvLayoutNames[static_cast<int>(layout)], page_size, dtype_name(slot_dtype));
    if (needs_scales(dtype))
      s += fmt::format("_{}{}-{}{}", kShares[share], group_size ? fmt::format("-g{}", group_size) : "",
                       dtype_name(scales), zeros ? "-zeros" : "");
    return s;
  }
};

// A pool of codes and, in `q`, what lies beside it; given scales are such that some values lie beyond the ends.
TensorView quantized_pool(Maker& m, const Cache& c, std::int64_t pages, std::int64_t heads,
                          std::int64_t head_dim, Quantization& q) {
  const auto tensor = [&](DType dtype, std::int64_t a, std::int64_t b, std::int64_t d, std::int64_t e) {
    m.storage().push_back(c.layout == KvLayout::hnd ? Tensor::zeros(dtype, {a, d, b, e})
                                                    : Tensor::zeros(dtype, {a, b, d, e}));
    return m.storage().back().view();
  };
  const std::int64_t scale_pages = c.given() ? 1 : pages, scale_rows = c.given() ? 1 : c.page_size;
  const std::int64_t scale_heads = c.share == Cache::row || c.share == Cache::given_head ? heads : 1;
  q.group_size = c.group_size;
  const std::int64_t groups = c.group_size ? head_dim / c.group_size : 1;
  q.scales = tensor(c.scales, scale_pages, scale_rows, scale_heads, groups);
  std::uniform_real_distribution<float> factor(0.6f, 1.2f);
  for (std::int64_t i = 0; i < q.scales.numel(); ++i)
    set_element(q.scales, i, factor(m.rng()) * 3 / code_ends(c.dtype).highest);
  if (c.zeros) {
    q.zeros = tensor(DType::i8, scale_pages, scale_rows, scale_heads, groups);
    for (std::int64_t i = 0; i < q.zeros.numel(); ++i)
      q.zeros.as<std::int8_t>()[i] = static_cast<std::int8_t>(i % 5 - 2);
  }
  const TensorView pool = tensor(c.dtype, pages, c.page_size, heads, head_dim);
  std::fill_n(pool.as<std::uint8_t>(), pool.nbytes(), std::uint8_t{0x35});
  return pool;
}

int code_tolerance(DType dtype, const Heads& h, const Cache& c) {
  if (!needs_scales(c.dtype)) return 0;
  const double n = c.dtype == DType::int4 ? 15 : 255;
  const double error = (h.norm ? 2 : 1) * unit_roundoff(dtype) + 50 * kU;
  return (c.zeros ? 2 : 1) * (1 + static_cast<int>(3 * n * error));
}

// Pages for all tokens and one more; the slots are scattered, every fifth token is skipped.
template <class P>
void add_cache(Maker& m, P& p, const Heads& h, const Cache& cache) {
  const std::int64_t pages = h.num_tokens / cache.page_size + 2;
  const auto pool = [&] {
    return cache.layout == KvLayout::hnd
               ? m.filled(cache.dtype, {pages, h.num_kv_heads, cache.page_size, h.head_dim}, 0.5f)
               : m.filled(cache.dtype, {pages, cache.page_size, h.num_kv_heads, h.head_dim}, 0.5f);
  };
  p.k = heads(m, p.k.dtype, h.num_tokens, h.num_kv_heads, h);
  p.v = heads(m, p.k.dtype, h.num_tokens, h.num_kv_heads, h);
  if (needs_scales(cache.dtype)) {
    p.k_cache = quantized_pool(m, cache, pages, h.num_kv_heads, h.head_dim, p.k_cache_quantization);
    p.v_cache = quantized_pool(m, cache, pages, h.num_kv_heads, h.head_dim, p.v_cache_quantization);
  } else {
    p.k_cache = pool();
    p.v_cache = pool();
  }
  p.kv_layout = cache.layout;
  std::vector<std::int64_t> slots(static_cast<std::size_t>(pages * cache.page_size));
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), m.rng());
  slots.resize(static_cast<std::size_t>(h.num_tokens));
  for (std::size_t t = 4; t < slots.size(); t += 5) slots[t] = -1;
  p.slot_mapping = m.integers(cache.slot_dtype, slots);
}

Case append_case(DType dtype, const Heads& h, const Cache& cache, bool bench = false) {
  Case c;
  c.name = fmt::format("append_kv/{}/{}/{}", dtype_name(dtype), h.name(), cache.name());
  c.op = Op::append_kv;
  c.make = [=](Maker& m) -> AnyParams {
    AppendKvParams p;
    p.k.dtype = dtype;
    add_cache(m, p, h, cache);
    return p;
  };
  c.tolerance = {2 * unit_roundoff(cache.dtype), cache.dtype == DType::f16 ? 0x1p-24 : 0.0};
  c.bench = bench;
  return c;
}

Case rope_append_case(DType dtype, const Heads& h, const Cache& cache, bool bench = false) {
  Case c;
  c.name = fmt::format("rope_append/{}/{}/{}", dtype_name(dtype), h.name(), cache.name());
  c.op = Op::rope_append;
  c.make = [=](Maker& m) -> AnyParams {
    RopeAppendParams p;
    p.q = heads(m, dtype, h.num_tokens, h.num_heads, h);
    p.k.dtype = dtype;
    add_cache(m, p, h, cache);
    add_tables(m, p, h);
    if (h.norm) {
      p.q_norm_weight = m.normal(dtype, {h.head_dim}, 0.1f, 1.0f - h.norm_weight_offset);
      p.k_norm_weight = m.normal(dtype, {h.head_dim}, 0.1f, 1.0f - h.norm_weight_offset);
    }
    p.norm_weight_offset = h.norm_weight_offset;
    return p;
  };
  const Tolerance out = tolerance(dtype, h), cached = tolerance(cache.dtype, h);
  c.tolerance = {out.rtol + cached.rtol, out.atol + cached.atol, code_tolerance(dtype, h, cache)};
  // Scales are within 4 / 7 of a largest value within 6, and off by as much of it as that; and rounded.
  if (needs_scales(cache.dtype)) c.tolerance.rtol += 2 * unit_roundoff(cache.scales);
  c.bench = bench;
  return c;
}

}  // namespace

void add_rope_cases(CaseList& list) {
  const Heads forms[] = {{1, 9, 3, 64},
                         {5, 4, 4, 32},
                         {3, 2, 1, 40},
                         {7, 3, 1, 128, 64},
                         {2, 2, 2, 72, 0, true},
                         {6, 5, 1, 96, 48, true, false, true},
                         {6, 4, 2, 128, 0, false, true},
                         {3, 4, 2, 80, 0, true, true, true},
                         {4, 4, 2, 64, 0, false, true, false, 1.0f},
                         {0, 4, 2, 64},
                         {300, 9, 3, 64}};
  const Cache caches[] = {{DType::f32, KvLayout::hnd, 16},
                          {DType::f16, KvLayout::nhd, 16, DType::i32},
                          {DType::bf16, KvLayout::hnd, 7},
                          {DType::bf16, KvLayout::nhd, 1}};
  using C = Cache;
  const KvLayout hnd = KvLayout::hnd, nhd = KvLayout::nhd;
  const DType i64 = DType::i64, f32 = DType::f32, f16 = DType::f16;
  std::vector<Cache> codes;
  for (const DType dtype : {DType::int4, DType::i8, DType::fp8_e4m3, DType::fp8_e5m2}) {
    const bool is_integer = dtype == DType::int4 || dtype == DType::i8;
    codes.push_back({dtype, hnd, 16, i64, C::row, 0, false, f32});
    codes.push_back({dtype, nhd, 7, DType::i32, C::token, 0, is_integer, f16});
    codes.push_back({dtype, hnd, 7, i64, C::given_head, 0, is_integer, f32});
    codes.push_back({dtype, nhd, 16, i64, C::given_tensor, 0, false, DType::bf16});
  }
  const Cache groups[] = {{DType::int4, hnd, 16, i64, C::row, 16, true, f16},
                          {DType::i8, nhd, 1, i64, C::token, 32, false, f32},
                          {DType::fp8_e4m3, hnd, 16, i64, C::given_head, 32, false, f32}};
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const Heads& h : forms) {
      for (const Cache& cache : codes) {
        list.push_back(append_case(dtype, h, cache));
        list.push_back(rope_append_case(dtype, h, cache));
      }
      for (const Cache& cache : groups) {
        if (h.head_dim % 32 != 0) continue;
        list.push_back(append_case(dtype, h, cache));
        list.push_back(rope_append_case(dtype, h, cache));
      }

      list.push_back(rope_case(dtype, h));
      for (const Cache& cache : caches) {
        list.push_back(append_case(dtype, h, cache));
        list.push_back(rope_append_case(dtype, h, cache));
      }
    }
    const Heads prefill{512, 32, 8, 128}, smollm{512, 9, 3, 64, 0, true};
    const Cache paged{dtype, KvLayout::hnd, 16};
    list.push_back(rope_case(dtype, prefill, /*bench=*/true));
    list.push_back(rope_append_case(dtype, prefill, paged, /*bench=*/true));
    list.push_back(rope_append_case(dtype, smollm, paged, /*bench=*/true));
    list.push_back(append_case(dtype, prefill, paged, /*bench=*/true));
    for (const DType code : {DType::i8, DType::int4})
      list.push_back(rope_append_case(dtype, prefill, {code, KvLayout::hnd, 16}, /*bench=*/true));
  }
}

void add_rope_device_cases(CaseList& list) {
  const DType dtype = DType::bf16;
  const Cache paged{dtype, KvLayout::hnd, 16};
  for (const Heads& h :
       {Heads{8192, 32, 8, 128}, Heads{8192, 32, 8, 128, 0, false, true}, Heads{64, 32, 8, 128}}) {
    list.push_back(rope_case(dtype, h, /*bench=*/true));
    list.push_back(rope_append_case(dtype, h, paged, /*bench=*/true));
  }
  list.push_back(append_case(dtype, {8192, 32, 8, 128}, paged, /*bench=*/true));
}

}  // namespace kf::cases
