// What cases cannot say of attention: what a row may not attend has no part in it, not even as zero times NaN, and need
// not be there; and what several calls give together. (The unfused composition, which multiplies whole matrices, does
// not keep the first, and neither does an eager framework; of the second it reads nothing.)

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "case.h"
#include "kf/dispatch.h"
#include "kf/error.h"
#include "kf/ops/attention.h"

namespace kf {
namespace {

using cases::Maker;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  std::int64_t seqlen_q, seqlen_k, group;
  std::int64_t window_left = -1, window_right = -1;
  bool causal = true;

  bool sees(std::int64_t token, std::int64_t key) const {
    const std::int64_t own = seqlen_k - seqlen_q + token, right = causal ? 0 : window_right;
    return (window_left < 0 || key >= own - window_left) && (right < 0 || key <= own + right);
  }
};

// Key `key` of one sequence is hostile in every K/V head; rows that do not see it must be as if it were not.
void expect_unseen(const Shape& shape, std::int64_t key, const Selection& selection = {}) {
  Maker m("unseen");
  const std::int64_t kv_heads = 2, head_dim = 72, row = kv_heads * head_dim;
  const auto [seqlen_q, seqlen_k, group, left, right, causal] = shape;
  AttentionParams p{.q = m.normal(DType::f32, {1, seqlen_q, kv_heads * group, head_dim}),
                    .k = m.normal(DType::f32, {1, seqlen_k, kv_heads, head_dim}),
                    .v = m.normal(DType::f32, {1, seqlen_k, kv_heads, head_dim}),
                    .out = m.filled(DType::f32, {1, seqlen_q, kv_heads * group, head_dim}, 9),
                    .causal = causal,
                    .window_left = left,
                    .window_right = right};
  Dispatcher d(backend_by_name("cpu"));
  d.run(p, selection);
  AttentionParams spoilt = p;
  spoilt.k = m.strided(p.k, 0), spoilt.v = m.strided(p.v, 0);
  spoilt.out = m.filled(DType::f32, {1, seqlen_q, kv_heads * group, head_dim}, 9);
  for (std::int64_t i = 0; i < row; ++i) {
    cases::set_element(spoilt.k, key * row + i, kNan);
    cases::set_element(spoilt.v, key * row + i, kNan);
  }
  d.run(spoilt, selection);
  for (std::int64_t t = 0; t < seqlen_q; ++t) {
    for (std::int64_t i = 0; i < group * row; ++i) {
      const std::int64_t at = t * group * row + i;
      if (shape.sees(t, key))
        ASSERT_TRUE(std::isnan(cases::element(spoilt.out, at))) << "token " << t << ", key " << key;
      else
        ASSERT_EQ(cases::element(spoilt.out, at), cases::element(p.out, at))
            << "token " << t << ", key " << key;
    }
  }
}

TEST(Attention, WhatARowMayNotAttendHasNoPart) {
  for (const std::int64_t group : {1, 3}) {
    for (const std::int64_t key : {1, 5, 40, 129, 199}) expect_unseen({200, 200, group}, key);
    // Few rows, chunks of keys.
    for (const std::int64_t key : {597, 598, 599}) expect_unseen({2, 600, group}, key);
    for (const std::int64_t key : {3, 9}) expect_unseen({8, 10, group}, key);
    for (const std::int64_t key : {4, 9}) expect_unseen({5, 10, group}, key);
  }
}

TEST(Attention, WhatLiesOutsideAWindowHasNoPart) {
  for (const std::int64_t group : {1, 3, 8})
    for (const std::int64_t left : {0, 2, 33, 150}) {
      for (const std::int64_t key : {1, 5, 40, 100, 129, 199}) {
        expect_unseen({200, 200, group, left}, key);
        expect_unseen({200, 200, group, left, 7, false}, key);
        expect_unseen({200, 200, group, left}, key, {.families = kReference});
      }
      for (const std::int64_t key : {0, 400, 449, 566, 567, 597, 599}) {
        expect_unseen({1, 600, group, left}, key);
        expect_unseen({2, 600, group, left, 1, false}, key);
      }
      for (const std::int64_t key : {0, 3, 5, 9}) expect_unseen({8, 10, group, left}, key);
    }
}

std::vector<double> elements(const TensorView& t) {
  std::vector<double> out;
  for (std::int64_t i = 0; i < t.numel(); ++i) out.push_back(cases::element(t, i));
  return out;
}

void expect_near(const TensorView& got, const TensorView& expected, double tolerance = 2e-5) {
  const std::vector<double> a = elements(got), b = elements(expected);
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i] != b[i]) ASSERT_NEAR(a[i], b[i], tolerance) << i;
}

// A cache that lets go of pages behind the window: its table has -1 there.
TEST(Attention, PagesBehindTheWindowNeedNotBeThere) {
  for (const std::int64_t seqlen_q : {1, 3, 40}) {
    Maker m("released");
    const TensorView released = m.table({{-1, -1, -1, 2, 0, 4}}), all = m.table({{1, 3, 5, 2, 0, 4}});
    AttentionParams p{.q = m.normal(DType::f32, {seqlen_q, 4, 32}),
                      .k = m.normal(DType::f32, {6, 2, 16, 32}),
                      .v = m.normal(DType::f32, {6, 2, 16, 32}),
                      .out = m.filled(DType::f32, {seqlen_q, 4, 32}, 9),
                      .tables = {.cu_seqlens_q = m.integers(DType::i32, {0, seqlen_q}),
                                 .block_tables = all,
                                 .context_lens = m.integers(DType::i32, {90})},
                      .window_left = 90 - 48 - seqlen_q};  // the first row sees key 48 on: page 3
    Dispatcher d(backend_by_name("cpu"));
    d.run(p);
    for (const unsigned families : {unsigned{kFused}, unsigned{kVanilla}, unsigned{kReference}}) {
      AttentionParams without = p;
      without.tables.block_tables = released;
      without.out = m.filled(DType::f32, {seqlen_q, 4, 32}, 9);
      d.run(without, {.families = families});
      expect_near(without.out, p.out);
    }
    p.window_left += 1;
    p.tables.block_tables = released;
    EXPECT_THROW(d.run(p), Error);
  }
}

// Key blocks that a layout leaves out are not read: hostile keys and values there do not show, pages there need not be there.
struct Poisoned {
  std::int64_t seqlen_q, seqlen_k, block_q, block_k;
  DType layout = DType::boolean;
};

void expect_unread(const Poisoned& shape, const Selection& selection) {
  Maker m("unread");
  const auto [seqlen_q, seqlen_k, block_q, block_k, dtype] = shape;
  const std::int64_t heads = 6, kv_heads = 2, head_dim = 40;
  const std::int64_t rows = block_q ? (seqlen_q + block_q - 1) / block_q : 1,
                     columns = (seqlen_k + block_k - 1) / block_k;
  // Every K/V head has its own pages, of block_k keys, and leaves out other blocks of them in every query block.
  const auto sees = [&](std::int64_t head, std::int64_t row, std::int64_t column) {
    return (head * 5 + row * 3 + column) % 3 == 0;
  };
  const TensorView layout = m.filled(dtype, {1, kv_heads, rows, columns}, dtype == DType::i32 ? -1 : 0);
  for (std::int64_t i = 0; i < kv_heads * rows; ++i)
    for (std::int64_t c = 0, n = 0; c < columns; ++c)
      if (sees(i / rows, i % rows, c))
        cases::set_element(layout, i * columns + (dtype == DType::i32 ? n++ : c),
                           dtype == DType::i32 ? static_cast<double>(c) : 1);
  AttentionParams p{.q = m.normal(DType::f32, {1, seqlen_q, heads, head_dim}),
                    .k = m.normal(DType::f32, {1, seqlen_k, kv_heads, head_dim}),
                    .v = m.normal(DType::f32, {1, seqlen_k, kv_heads, head_dim}),
                    .out = m.filled(DType::f32, {1, seqlen_q, heads, head_dim}, 9),
                    .causal = false,
                    .sparsity = {.block_layout = layout, .block_size_q = block_q, .block_size_k = block_k}};
  Dispatcher d(backend_by_name("cpu"));
  d.run(p, selection);
  for (const TensorView* t : {&p.k, &p.v})
    for (std::int64_t i = 0; i < t->numel(); ++i) {
      const std::int64_t head = i / head_dim % kv_heads, block = i / (head_dim * kv_heads) / block_k;
      bool seen = false;
      for (std::int64_t row = 0; row < rows; ++row) seen = seen || sees(head, row, block);
      if (!seen) cases::set_element(*t, i, kNan);
    }
  const std::vector<double> expected = elements(p.out);
  for (std::int64_t i = 0; i < p.out.numel(); ++i) cases::set_element(p.out, i, 9);
  d.run(p, selection);
  EXPECT_EQ(elements(p.out), expected);
  for (const double x : expected) ASSERT_TRUE(std::isfinite(x));
}

TEST(Attention, BlocksThatNoRowSeesAreNotRead) {
  for (const Selection& selection :
       {Selection{}, Selection{.batch_invariant = true}, Selection{.families = kReference}})
    for (const DType dtype : {DType::boolean, DType::i32})
      for (const Poisoned& shape : {Poisoned{200, 200, 0, 64},
                                    {150, 300, 0, 16},
                                    {1, 3000, 0, 16},
                                    {3, 700, 0, 5},
                                    {120, 120, 60, 20},
                                    {5, 90, 0, 90}})
        expect_unread({shape.seqlen_q, shape.seqlen_k, shape.block_q, shape.block_k, dtype}, selection);
}

// Rows of one query block do not see what those of another do: a key block is hostile to the rows that see it alone.
TEST(Attention, WhatALayoutForbidsHasNoPart) {
  for (const std::int64_t group : {1, 3}) {
    Maker m("forbidden");
    AttentionParams p{.q = m.normal(DType::f32, {1, 100, 2 * group, 64}),
                      .k = m.normal(DType::f32, {1, 100, 2, 64}),
                      .v = m.normal(DType::f32, {1, 100, 2, 64}),
                      .out = m.filled(DType::f32, {1, 100, 2 * group, 64}, 9),
                      .causal = false,
                      .sparsity = {.block_layout = m.filled(DType::boolean, {1, 1, 10, 5}, 1),
                                   .block_size_q = 10,
                                   .block_size_k = 20}};
    for (std::int64_t row = 0; row < 10; ++row)
      cases::set_element(p.sparsity.block_layout, row * 5 + 2, row % 3 == 1);
    for (std::int64_t i = 40 * 128; i < 60 * 128; ++i)
      cases::set_element(p.k, i, kNan), cases::set_element(p.v, i, kNan);
    Dispatcher d(backend_by_name("cpu"));
    for (const unsigned families : {unsigned{kFused}, unsigned{kReference}}) {
      d.run(p, {.families = families});
      for (std::int64_t i = 0; i < p.out.numel(); ++i)
        ASSERT_EQ(std::isnan(cases::element(p.out, i)), i / (128 * group) / 10 % 3 == 1) << "element " << i;
    }
  }
}

// Lists of pages a head: a cache may have let go of pages that no head lists.
TEST(Attention, PagesThatNoHeadListsNeedNotBeThere) {
  for (const std::int64_t seqlen_q : {1, 3, 40}) {
    Maker m("unlisted");
    AttentionParams p{
        .q = m.normal(DType::f32, {seqlen_q, 4, 32}),
        .k = m.normal(DType::f32, {6, 2, 16, 32}),
        .v = m.normal(DType::f32, {6, 2, 16, 32}),
        .out = m.filled(DType::f32, {seqlen_q, 4, 32}, 9),
        .tables = {.cu_seqlens_q = m.integers(DType::i32, {0, seqlen_q}),
                   .block_tables = m.table({{1, 3, 5, 2, 0, 4}}),
                   .context_lens = m.integers(DType::i32, {90})},
        .sparsity = {.block_layout = m.filled(DType::i32, {1, 2, 1, 3}, -1), .block_size_k = 16}};
    const std::int32_t lists[] = {0, 3, 5, 0, 5, -1};
    for (std::int64_t i = 0; i < 6; ++i) cases::set_element(p.sparsity.block_layout, i, lists[i]);
    Dispatcher d(backend_by_name("cpu"));
    d.run(p);
    for (const unsigned families : {unsigned{kFused}, unsigned{kVanilla}, unsigned{kReference}}) {
      AttentionParams without = p;
      without.tables.block_tables = m.table({{1, -1, -1, 2, -1, 4}});
      without.out = m.filled(DType::f32, {seqlen_q, 4, 32}, 9);
      d.run(without, {.families = families});
      expect_near(without.out, p.out);
      without.tables.block_tables = m.table({{1, -1, -1, -1, -1, 4}});
      EXPECT_THROW(d.run(without, {.families = families}), Error);
    }
  }
}

// What is kept of every m, and that the rest weighs nothing: values tell which keys they are of.
TEST(Attention, KeepsTheLargestOfEachGroup) {
  Maker m("kept");
  // Scores of the eleven keys, and the two of every four that stay; of equal ones the earlier.
  const float scores[] = {1, 5, 3, 5, 7, 7, 7, 7, -1, -2, -3};
  const bool stays[] = {false, true, false, true, true, true, false, false, true, true, false};
  AttentionParams p{.q = m.filled(DType::f32, {1, 1, 1, 16}, 0),
                    .k = m.filled(DType::f32, {1, 11, 1, 16}, 0),
                    .v = m.filled(DType::f32, {1, 11, 1, 16}, 0),
                    .out = m.filled(DType::f32, {1, 1, 1, 16}, 9),
                    .sparsity = {.keep_n = 2, .keep_m = 4}};
  p.softmax_scale = 1;
  cases::set_element(p.q, 0, 1);
  double sum = 0;
  for (std::int64_t j = 0; j < 11; ++j) {
    cases::set_element(p.k, j * 16, scores[j]), cases::set_element(p.v, j * 16 + j, 1);
    sum += stays[j] ? std::exp(scores[j]) : 0;
  }
  Dispatcher d(backend_by_name("cpu"));
  for (const unsigned families : {unsigned{kFused}, unsigned{kVanilla}, unsigned{kReference}}) {
    d.run(p, {.families = families});
    for (std::int64_t j = 0; j < 11; ++j)
      EXPECT_NEAR(cases::element(p.out, j), stays[j] ? std::exp(scores[j]) / sum : 0, 1e-6) << j;
  }
}

// Sequences that begin alike: attention to the common prefix once, for the tokens of all, and to their own suffixes;
// merged, it is attention to the whole.
TEST(Attention, CascadeEqualsAttentionToTheConcatenation) {
  constexpr std::int64_t kPrefix = 75, kHeads = 6, kKvHeads = 2, kDim = 64, kTokens = 9;
  const std::int64_t suffix[] = {40, 7, 5}, tokens[] = {3, 1, 5};
  Maker m("cascade");
  const TensorView k = m.normal(DType::f32, {kPrefix + 52, kKvHeads, kDim}),
                   v = m.normal(DType::f32, {kPrefix + 52, kKvHeads, kDim});
  const TensorView q = m.normal(DType::f32, {kTokens, kHeads, kDim});
  const auto result = [&] { return m.filled(DType::f32, {kTokens, kHeads, kDim}, 9); };
  const auto lse = [&] { return m.filled(DType::f32, {kHeads, kTokens}, 9); };
  const TensorView sinks = m.normal(DType::f32, {kHeads});
  Dispatcher d(backend_by_name("cpu"));

  const AttentionParams to_prefix{.q = q,
                                  .k = k.slice(0, 0, kPrefix),
                                  .v = v.slice(0, 0, kPrefix),
                                  .out = result(),
                                  .lse = lse(),
                                  .tables = {.cu_seqlens_q = m.integers(DType::i32, {0, kTokens}),
                                             .cu_seqlens_k = m.integers(DType::i32, {0, kPrefix})},
                                  .causal = false,
                                  .sinks = sinks};
  const AttentionParams to_suffix{.q = q,
                                  .k = k.slice(0, kPrefix, kPrefix + 52),
                                  .v = v.slice(0, kPrefix, kPrefix + 52),
                                  .out = result(),
                                  .lse = lse(),
                                  .tables = {.cu_seqlens_q = m.integers(DType::i32, {0, 3, 4, 9}),
                                             .cu_seqlens_k = m.integers(DType::i32, {0, 40, 47, 52})}};
  const MergeAttentionParams merge{.out_a = to_prefix.out,
                                   .lse_a = to_prefix.lse,
                                   .out_b = to_suffix.out,
                                   .lse_b = to_suffix.lse,
                                   .out = result(),
                                   .lse = lse()};
  d.run(to_prefix), d.run(to_suffix), d.run(merge);

  for (std::int64_t b = 0, first_token = 0, first_key = kPrefix; b < 3; ++b) {
    // The whole of one sequence, its keys side by side.
    const TensorView keys = m.filled(DType::f32, {1, kPrefix + suffix[b], kKvHeads, kDim}, 0),
                     values = m.filled(DType::f32, {1, kPrefix + suffix[b], kKvHeads, kDim}, 0);
    constexpr std::int64_t kRow = kKvHeads * kDim;
    for (std::int64_t i = 0; i < (kPrefix + suffix[b]) * kRow; ++i) {
      const std::int64_t at = i < kPrefix * kRow ? i : i + (first_key - kPrefix) * kRow;
      cases::set_element(keys, i, cases::element(k, at));
      cases::set_element(values, i, cases::element(v, at));
    }
    AttentionParams whole{.q = q.slice(0, first_token, first_token + tokens[b]),
                          .k = keys,
                          .v = values,
                          .out = m.filled(DType::f32, {1, tokens[b], kHeads, kDim}, 9),
                          .lse = m.filled(DType::f32, {1, kHeads, tokens[b]}, 9),
                          .sinks = sinks};
    whole.q.rank = 4;
    whole.q.shape = {1, tokens[b], kHeads, kDim};
    whole.q.strides = {0, kHeads * kDim, kDim, 1};
    d.run(whole);
    expect_near(merge.out.slice(0, first_token, first_token + tokens[b]), whole.out);
    expect_near(merge.lse.slice(1, first_token, first_token + tokens[b]), whole.lse);
    first_token += tokens[b], first_key += suffix[b];
  }
}

// Encoder and decoder: lengths of their own, in every form, and more queries than keys.
TEST(Attention, CrossAttentionIsTheSameInEveryForm) {
  constexpr std::int64_t kPage = 4;
  Maker m("cross");
  const std::int64_t seqlens_q[] = {7, 60, 1}, seqlens_k[] = {23, 5, 9};
  const TensorView q = m.normal(DType::f32, {68, 4, 64}), k = m.normal(DType::f32, {37, 2, 64}),
                   v = m.normal(DType::f32, {37, 2, 32});
  const TensorView cu_q = m.integers(DType::i32, {0, 7, 67, 68});
  Dispatcher d(backend_by_name("cpu"));
  const AttentionParams packed{
      .q = q,
      .k = k,
      .v = v,
      .out = m.filled(DType::f32, {68, 4, 32}, 9),
      .tables = {.cu_seqlens_q = cu_q, .cu_seqlens_k = m.integers(DType::i32, {0, 23, 28, 37})},
      .causal = false};
  d.run(packed);

  AttentionParams paged = packed;
  paged.out = m.filled(DType::f32, {68, 4, 32}, 9);
  paged.k = m.filled(DType::f32, {11, 2, kPage, 64}, kNan),
  paged.v = m.filled(DType::f32, {11, 2, kPage, 32}, kNan);
  paged.tables = {
      .cu_seqlens_q = cu_q,
      .block_tables = m.table({{0, 1, 2, 3, 4, 5}, {6, 7, -1, -1, -1, -1}, {8, 9, 10, -1, -1, -1}}),
      .context_lens = m.integers(DType::i32, {23, 5, 9})};
  for (std::int64_t b = 0, first = 0; b < 3; first += seqlens_k[b++])
    for (std::int64_t j = 0; j < seqlens_k[b]; ++j) {
      const std::int64_t page = paged.tables.block_tables.as<std::int32_t>()[b * 6 + j / kPage];
      for (const auto& [from, to] : {std::pair{&packed.k, &paged.k}, {&packed.v, &paged.v}})
        for (std::int64_t i = 0; i < 2 * to->dim(-1); ++i) {
          const std::int64_t head = i / to->dim(-1);
          cases::set_element(*to, ((page * 2 + head) * kPage + j % kPage) * to->dim(-1) + i % to->dim(-1),
                             cases::element(*from, (first + j) * 2 * to->dim(-1) + i));
        }
    }
  d.run(paged);
  expect_near(paged.out, packed.out);

  for (std::int64_t b = 0, first_q = 0, first_k = 0; b < 3;
       first_q += seqlens_q[b], first_k += seqlens_k[b++]) {
    const auto one = [](TensorView t, std::int64_t begin, std::int64_t count) {
      t = t.slice(0, begin, begin + count);
      t.rank = 4;
      t.shape = {1, t.shape[0], t.shape[1], t.shape[2]};
      t.strides = {0, t.strides[0], t.strides[1], t.strides[2]};
      return t;
    };
    const AttentionParams dense{.q = one(q, first_q, seqlens_q[b]),
                                .k = one(k, first_k, seqlens_k[b]),
                                .v = one(v, first_k, seqlens_k[b]),
                                .out = m.filled(DType::f32, {1, seqlens_q[b], 4, 32}, 9),
                                .causal = false};
    d.run(dense, {.families = kReference});
    expect_near(packed.out.slice(0, first_q, first_q + seqlens_q[b]), dense.out);
  }
}

// A tree of draft tokens after a paged context: each token sees the context and its own ancestors, as if it had been
// decoded after them.
TEST(Attention, ATreeOfDraftTokensIsAMask) {
  constexpr std::int64_t kContext = 21, kDraft = 5, kKeys = kContext + kDraft, kDim = 32;
  const std::int64_t parent[kDraft] = {-1, 0, 0, 2, -1};
  Maker m("tree");
  const TensorView q = m.normal(DType::f32, {kDraft, 4, kDim}), k = m.normal(DType::f32, {7, 4, 2, kDim}),
                   v = m.normal(DType::f32, {7, 4, 2, kDim});
  const TensorView mask = m.filled(DType::boolean, {1, kDraft, kKeys}, 0);
  std::vector<std::vector<std::int64_t>> seen(kDraft);
  for (std::int64_t t = 0; t < kDraft; ++t) {
    if (parent[t] >= 0) seen[t] = seen[parent[t]];
    seen[t].push_back(t);
    for (std::int64_t j = 0; j < kContext; ++j) cases::set_element(mask, t * kKeys + j, 1);
    for (const std::int64_t s : seen[t]) cases::set_element(mask, t * kKeys + kContext + s, 1);
  }
  const AttentionParams tree{.q = q,
                             .k = k,
                             .v = v,
                             .out = m.filled(DType::f32, {kDraft, 4, kDim}, 9),
                             .tables = {.cu_seqlens_q = m.integers(DType::i32, {0, kDraft}),
                                        .block_tables = m.table({{6, 2, 0, 5, 1, 4, 3}}),
                                        .context_lens = m.integers(DType::i32, {kKeys}),
                                        .kv_layout = KvLayout::nhd},
                             .causal = false,
                             .attn_mask = mask};
  Dispatcher d(backend_by_name("cpu"));
  d.run(tree);
  for (std::int64_t t = 0; t < kDraft; ++t) {
    const auto path = static_cast<std::int64_t>(seen[t].size());
    const TensorView keys = m.filled(DType::f32, {1, kContext + path, 2, kDim}, 0),
                     values = m.filled(DType::f32, {1, kContext + path, 2, kDim}, 0);
    for (std::int64_t j = 0; j < kContext + path; ++j) {
      const std::int64_t key = j < kContext ? j : kContext + seen[t][static_cast<std::size_t>(j - kContext)];
      const std::int64_t slot = tree.tables.block_tables.as<std::int32_t>()[key / 4] * 4 + key % 4;
      for (std::int64_t i = 0; i < 2 * kDim; ++i) {
        cases::set_element(keys, j * 2 * kDim + i, cases::element(k, slot * 2 * kDim + i));
        cases::set_element(values, j * 2 * kDim + i, cases::element(v, slot * 2 * kDim + i));
      }
    }
    AttentionParams path_alone{
        .q = q.slice(0, t, t + 1), .k = keys, .v = values, .out = m.filled(DType::f32, {1, 1, 4, kDim}, 9)};
    path_alone.q.rank = 4;
    path_alone.q.shape = {1, 1, 4, kDim};
    path_alone.q.strides = {0, 0, kDim, 1};
    d.run(path_alone);
    expect_near(tree.out.slice(0, t, t + 1), path_alone.out);
  }
}

// A sink is one more logit: as a key whose score it is and whose value is zero. Once, though the keys are split.
TEST(Attention, ASinkIsAKeyWithoutAValue) {
  for (const std::int64_t seqlen_q : {1, 2, 50})
    for (const std::int64_t seqlen_k : {3, 5000}) {
      Maker m("sink");
      const std::int64_t heads = 2, dim = 32;
      AttentionParams with{.q = m.normal(DType::f32, {1, seqlen_q, heads, dim}),
                           .k = m.normal(DType::f32, {1, seqlen_k, heads, dim}),
                           .v = m.normal(DType::f32, {1, seqlen_k, heads, dim}),
                           .out = m.filled(DType::f32, {1, seqlen_q, heads, dim}, 9),
                           .lse = m.filled(DType::f32, {1, heads, seqlen_q}, 9),
                           .causal = false,
                           .sinks = m.uniform(DType::f32, {heads}, 5, 8)};
      AttentionParams without = with;
      without.sinks = {};
      without.out = m.filled(DType::f32, {1, seqlen_q, heads, dim}, 9);
      without.lse = m.filled(DType::f32, {1, heads, seqlen_q}, 9);
      Dispatcher d(backend_by_name("cpu"));
      d.run(with), d.run(without);
      for (std::int64_t t = 0; t < seqlen_q; ++t)
        for (std::int64_t h = 0; h < heads; ++h) {
          const double plain = cases::element(without.lse, h * seqlen_q + t),
                       sink = with.sinks.as<float>()[h];
          const double lse = std::log(std::exp(plain) + std::exp(sink)), weight = std::exp(plain - lse);
          EXPECT_NEAR(cases::element(with.lse, h * seqlen_q + t), lse, 1e-5);
          for (std::int64_t i = (t * heads + h) * dim, end = i + dim; i < end; ++i)
            EXPECT_NEAR(cases::element(with.out, i), weight * cases::element(without.out, i), 1e-5);
        }
    }
}

// A row without keys: zeros, and the sink is all there is of it.
TEST(Attention, ARowWithoutKeysHasItsSink) {
  Maker m("empty");
  AttentionParams p{.q = m.normal(DType::f32, {1, 3, 2, 8}),
                    .k = m.normal(DType::f32, {1, 1, 2, 8}),
                    .v = m.normal(DType::f32, {1, 1, 2, 8}),
                    .out = m.filled(DType::f32, {1, 3, 2, 8}, 9),
                    .lse = m.filled(DType::f32, {1, 2, 3}, 9),
                    .sinks = m.uniform(DType::f32, {2}, 1, 2)};
  p.attn_mask = m.filled(DType::boolean, {1, 1, 3, 1}, 0);
  for (std::int64_t i = 0; i < 16; ++i) cases::set_element(p.v, i, kNan);
  Dispatcher d(backend_by_name("cpu"));
  for (const unsigned families : {unsigned{kFused}, unsigned{kReference}}) {
    d.run(p, {.families = families});
    for (std::int64_t i = 0; i < 48; ++i) EXPECT_EQ(cases::element(p.out, i), 0);
    for (std::int64_t i = 0; i < 6; ++i)
      EXPECT_NEAR(cases::element(p.lse, i), p.sinks.as<float>()[i / 3], 1e-6);
  }
}

}  // namespace
}  // namespace kf
