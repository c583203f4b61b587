// What cases cannot say of attention: what a row may not attend has no part in it, not even as zero times NaN. (The
// unfused composition, which multiplies whole matrices, does not keep this, and neither does an eager framework.)

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "case.h"
#include "kf/dispatch.h"
#include "kf/ops/attention.h"

namespace kf {
namespace {

using cases::Maker;

// Key `key` of one sequence is hostile in every K/V head; rows that do not see it must be as if it were not.
void expect_unseen(std::int64_t seqlen_q, std::int64_t seqlen_k, std::int64_t group, std::int64_t key, float hostile) {
  Maker m("unseen");
  const std::int64_t kv_heads = 2, head_dim = 72;
  AttentionParams p{.q = m.normal(DType::f32, {1, seqlen_q, kv_heads * group, head_dim}),
                    .k = m.normal(DType::f32, {1, seqlen_k, kv_heads, head_dim}),
                    .v = m.normal(DType::f32, {1, seqlen_k, kv_heads, head_dim}),
                    .out = m.filled(DType::f32, {1, seqlen_q, kv_heads * group, head_dim}, 9)};
  Dispatcher d(backend_by_name("cpu"));
  d.run(p);
  AttentionParams spoilt = p;
  spoilt.k = m.strided(p.k, 0), spoilt.v = m.strided(p.v, 0);
  spoilt.out = m.filled(DType::f32, {1, seqlen_q, kv_heads * group, head_dim}, 9);
  const std::int64_t row = kv_heads * head_dim;
  for (std::int64_t i = 0; i < row; ++i) {
    cases::set_element(spoilt.k, key * row + i, hostile);
    cases::set_element(spoilt.v, key * row + i, hostile);
  }
  d.run(spoilt);
  for (std::int64_t t = 0; t < seqlen_q; ++t) {
    const bool sees = key <= seqlen_k - seqlen_q + t;
    for (std::int64_t i = 0; i < group * row; ++i) {
      const std::int64_t at = t * group * row + i;
      if (sees)
        ASSERT_TRUE(std::isnan(cases::element(spoilt.out, at))) << "token " << t << ", key " << key;
      else
        ASSERT_EQ(cases::element(spoilt.out, at), cases::element(p.out, at)) << "token " << t << ", key " << key;
    }
  }
}

TEST(Attention, WhatARowMayNotAttendHasNoPart) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t group : {1, 3}) {
    for (const std::int64_t key : {1, 5, 40, 129, 199}) expect_unseen(200, 200, group, key, nan);
    // Few rows, chunks of keys.
    for (const std::int64_t key : {597, 598, 599}) expect_unseen(2, 600, group, key, nan);
    for (const std::int64_t key : {3, 9}) expect_unseen(8, 10, group, key, nan);
    for (const std::int64_t key : {4, 9}) expect_unseen(5, 10, group, key, nan);
  }
}

}  // namespace
}  // namespace kf
