// Tolerances. u is the unit roundoff of f32. A turned element is the difference of two products, each below
// |x|: it is off by 3 u of |x1| + |x2|, and |x| stays below 6. QK-norm adds its own error, below 20 u
// relative. Kernel and reference round once to the dtype of the output; unfused forms round the normed, and
// the turned, head in between.
#include "case.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include <fmt/format.h>

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
  std::string name() const {
    return fmt::format("{}_{}_page{}_{}", dtype_name(dtype), kKvLayoutNames[static_cast<int>(layout)],
                       page_size, dtype_name(slot_dtype));
  }
};

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
  p.k_cache = pool();
  p.v_cache = pool();
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
  c.tolerance = {out.rtol + cached.rtol, out.atol + cached.atol};
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
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const Heads& h : forms) {
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
  }
}

}  // namespace kf::cases
