// Low-rank adapters, what cases cannot say of them: what is refused, and which switch governs them.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "case.h"
#include "kf/kf.h"
#include "linear_calls.h"

namespace kf::testing {
namespace {

struct Call {
  cases::Maker m{"lora"};
  LinearParams p;

  explicit Call(std::int64_t adapters) {
    p.x = m.normal(DType::f32, {4, 24});
    p.weight = m.normal(DType::f32, {10, 24});
    p.out = m.filled(DType::f32, {4, 10}, kUntouched);
    p.lora.a = adapters == 0 ? m.normal(DType::f32, {3, 24}) : m.normal(DType::f32, {adapters, 3, 24});
    p.lora.b = adapters == 0 ? m.normal(DType::f32, {10, 3}) : m.normal(DType::f32, {adapters, 10, 3});
    if (adapters > 0) {
      m.storage().emplace_back(DType::i32, std::initializer_list<std::int64_t>{4});
      p.lora.index = m.storage().back();
      for (int t = 0; t < 4; ++t) p.lora.index.as<std::int32_t>()[t] = t % 2;
    }
  }
};

TEST(Lora, WhatDoesNotFitIsRefusedByName) {
  const auto refused = [](std::int64_t adapters, const std::string& operand, const std::string& expected,
                          auto change) {
    Call c(adapters);
    change(c);
    expect_refused(c.p, operand, expected);
  };
  refused(0, "lora_b", "lora_b beside lora_a", [](Call& c) { c.p.lora.b = {}; });
  refused(0, "lora_b", "none, since there is no lora_a", [](Call& c) { c.p.lora.a = {}; });
  refused(2, "lora_index", "none, since there is no lora_a", [](Call& c) { c.p.lora.a = c.p.lora.b = {}; });
  refused(0, "lora_a", "24 (x's columns)", [](Call& c) { c.p.lora.a = c.p.lora.a.slice(1, 0, 23); });
  refused(0, "lora_b", "10 (the weight's rows)", [](Call& c) { c.p.lora.b = c.p.lora.b.slice(0, 0, 9); });
  refused(0, "lora_b", "3 (lora_a's rank)", [](Call& c) { c.p.lora.b = c.m.normal(DType::f32, {10, 4}); });
  refused(0, "lora_a", "a rank of 1 to 512", [](Call& c) { c.p.lora.a = c.p.lora.a.slice(0, 0, 0); });
  refused(0, "lora_a", "a rank of 1 to 512", [](Call& c) { c.p.lora.a = c.m.normal(DType::f32, {513, 24}); });
  refused(0, "lora_a", "f32, f16 or bf16", [](Call& c) { c.p.lora.a.dtype = DType::i32; });
  refused(2, "lora_a", "2 dimensions", [](Call& c) { c.p.lora.index = {}; });
  refused(0, "lora_a", "3 dimensions", [](Call& c) {
    c.p.lora.index = c.m.integers(DType::i32, {0, 0, 0, 0});
  });
  refused(2, "lora_b", "2 (lora_a's adapters)", [](Call& c) { c.p.lora.b = c.p.lora.b.slice(0, 0, 1); });
  refused(2, "lora_index", "4 (x's rows)", [](Call& c) { c.p.lora.index = c.p.lora.index.slice(0, 0, 3); });
  refused(2, "lora_index", "i32", [](Call& c) { c.p.lora.index = c.m.integers(DType::i64, {0, 0, 0, 0}); });
  for (const float scale : {std::numeric_limits<float>::infinity(), std::nanf("")})
    refused(0, "lora_scale", "a finite number", [&](Call& c) { c.p.lora.scale = scale; });
  for (const int index : {-2, 2, 1 << 30})
    refused(2, "lora_index", "", [&](Call& c) { c.p.lora.index.as<std::int32_t>()[2] = index; });
}

TEST(Lora, TheSwitchChoosesTheUnfusedForm) {
  Call c(0);
  KernelFusionManager fused, unfused({.fuse_lora = false});
  const auto taken = [&](KernelFusionManager& m) {
    for (const Explained& e : m.explain(c.p))
      if (e.selected) return e.kernel;
    return std::string("none");
  };
  EXPECT_EQ(taken(fused), "cpu::linear_gemv");
  EXPECT_EQ(taken(unfused), "cpu::linear_unfused");
  fused.linear(c.p);
  const Tensor other(DType::f32, {4, 10});
  LinearParams p = c.p;
  p.out = other;
  unfused.linear(p);
  for (int i = 0; i < 40; ++i) EXPECT_NEAR(other.as<float>()[i], c.p.out.as<float>()[i], 1e-4);
  // A scale, and adapters by token, are no composition of primitives.
  p.lora.scale = 2.0f;
  EXPECT_THROW(unfused.linear(p), Error);
  fused.linear(p);
}

// A token's adapter is its own: rows are those of a call with that adapter alone.
TEST(Lora, EveryTokenHasItsOwn) {
  for (const std::int64_t num_tokens : {4, 40}) {
    Call c(2);
    c.p.x = c.m.normal(DType::f32, {num_tokens, 24});
    const Tensor index(DType::i32, {num_tokens}), out(DType::f32, {num_tokens, 10}),
        alone(DType::f32, {num_tokens, 10});
    for (std::int64_t t = 0; t < num_tokens; ++t)
      index.as<std::int32_t>()[t] = static_cast<std::int32_t>(t % 3) - 1;
    c.p.lora.index = index;
    c.p.out = out;
    default_dispatcher().run(c.p);
    for (int adapter = -1; adapter < 2; ++adapter) {
      LinearParams one = c.p;
      one.out = alone;
      one.lora = {};
      if (adapter >= 0) {
        one.lora.a = TensorView::contiguous(c.p.lora.a.as<float>() + adapter * 3 * 24, DType::f32, {3, 24});
        one.lora.b = TensorView::contiguous(c.p.lora.b.as<float>() + adapter * 10 * 3, DType::f32, {10, 3});
      }
      default_dispatcher().run(one);
      for (std::int64_t t = adapter + 1; t < num_tokens; t += 3)
        for (int i = 0; i < 10; ++i)
          EXPECT_NEAR(out.as<float>()[t * 10 + i], alone.as<float>()[t * 10 + i], 1e-5)
              << adapter << " " << t;
    }
  }
}

}  // namespace
}  // namespace kf::testing
