// Selection::batch_invariant: a row has the same bits whatever else comes with it, and whatever the threads.

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "case.h"
#include "kf/kf.h"

namespace kf {
namespace {

using cases::Maker;

const Selection kInvariant{.batch_invariant = true};

// The bytes of some leading rows of a contiguous tensor.
std::vector<unsigned char> rows(const Tensor& t, std::int64_t begin, std::int64_t end) {
  const TensorView v = t.view();
  const std::size_t row = v.nbytes() / static_cast<std::size_t>(v.dim(0));
  const auto* at = v.as<unsigned char>() + static_cast<std::size_t>(begin) * row;
  return {at, at + static_cast<std::size_t>(end - begin) * row};
}

// make(x) runs an op on rows of x and returns its output: each row alone, and all in batches of several sizes and on
// one and three threads, give the same bits.
template <class Run>
void expect_invariant(const TensorView& x, const Run& run) {
  Dispatcher three(backend_by_name("cpu"), {.num_threads = 3}),
      one(backend_by_name("cpu"), {.num_threads = 1});
  const std::int64_t n = x.dim(0);
  const Tensor whole = run(three, x);
  for (const std::int64_t size : {std::int64_t{1}, std::int64_t{2}, std::int64_t{7}, n})
    for (std::int64_t begin = 0; begin < n; begin += size) {
      const std::int64_t end = std::min(n, begin + size);
      for (Dispatcher* d : {&three, &one}) {
        const Tensor part = run(*d, x.slice(0, begin, end));
        ASSERT_EQ(rows(part, 0, end - begin), rows(whole, begin, end)) << "rows " << begin << " to " << end;
      }
    }
}

TEST(BatchInvariance, LinearLayers) {
  for (const DType weight : {DType::f32, DType::bf16, DType::q4_1, DType::q8_0, DType::q4_k}) {
    SCOPED_TRACE(dtype_name(weight));
    Maker m("linear");
    const TensorView x = m.normal(DType::f32, {70, 1280}), w = m.normal(weight, {96, 1280}, 0.05f);
    const TensorView norm = m.normal(DType::f32, {1280}, 0.3f, 1.0f);
    expect_invariant(x, [&](Dispatcher& d, const TensorView& rows) {
      Tensor out(DType::f32, {rows.dim(0), 96});
      LinearParams p;
      p.x = rows;
      p.weight = w;
      p.prologue.norm = NormKind::rms;
      p.prologue.norm_weight = norm;
      p.out = out;
      d.run(p, kInvariant);
      return out;
    });
  }
}

TEST(BatchInvariance, GatedFfn) {
  Maker m("ffn");
  const TensorView x = m.normal(DType::f32, {40, 320}), gate = m.normal(DType::q8_0, {608, 320}, 0.05f),
                   up = m.normal(DType::q8_0, {608, 320}, 0.05f),
                   down = m.normal(DType::q8_0, {320, 608}, 0.05f);
  expect_invariant(x, [&](Dispatcher& d, const TensorView& rows) {
    Tensor out(DType::f32, {rows.dim(0), 320});
    GatedFfnParams p;
    p.x = rows;
    p.gate_weight = gate;
    p.up_weight = up;
    p.down_weight = down;
    p.out = out;
    d.run(p, kInvariant);
    return out;
  });
}

TEST(BatchInvariance, NormsSoftmaxAndActivations) {
  Maker m("rows");
  const TensorView x = m.normal(DType::bf16, {50, 777}), w = m.normal(DType::f32, {777}, 0.3f, 1.0f);
  expect_invariant(x, [&](Dispatcher& d, const TensorView& rows) {
    Tensor out(DType::bf16, {rows.dim(0), 777});
    RmsNormParams p;
    p.x = rows;
    p.weight = w;
    p.out = out;
    d.run(p, kInvariant);
    return out;
  });
  expect_invariant(x, [&](Dispatcher& d, const TensorView& rows) {
    Tensor out(DType::i8, {rows.dim(0), 777}), scales(DType::f32, {rows.dim(0)});
    LayerNormParams p;
    p.x = rows;
    p.weight = w;
    p.out = out;
    p.quantization.dtype = CodeDType::i8;
    p.quantization.scales = scales;
    d.run(p, kInvariant);
    return out;
  });
  expect_invariant(x, [&](Dispatcher& d, const TensorView& rows) {
    Tensor out(DType::bf16, {rows.dim(0), 777});
    SoftmaxParams p;
    p.x = rows;
    p.out = out;
    d.run(p, kInvariant);
    return out;
  });
  expect_invariant(x, [&](Dispatcher& d, const TensorView& rows) {
    Tensor out(DType::bf16, {rows.dim(0), 777});
    ActivationParams p;
    p.x = rows;
    p.out = out;
    d.run(p, kInvariant);
    return out;
  });
}

// Decode of sequences of one length each, with other sequences beside them: the batch must not say where keys are cut.
TEST(BatchInvariance, Attention) {
  for (const std::int64_t kv_len : {1, 1023, 1024, 1025, 3001}) {
    SCOPED_TRACE(kv_len);
    for (const std::int64_t seqlen_q : {std::int64_t{1}, std::int64_t{40}}) {
      if (seqlen_q > kv_len) continue;
      Maker m("attention");
      const std::int64_t batch = 9;
      const TensorView q = m.normal(DType::f32, {batch, seqlen_q, 4, 64}),
                       k = m.normal(DType::f32, {batch, kv_len, 2, 64}),
                       v = m.normal(DType::f32, {batch, kv_len, 2, 64});
      std::int64_t first = 0;
      expect_invariant(q, [&](Dispatcher& d, const TensorView& rows) {
        first = rows.as<float>() - q.as<float>();
        first /= q.stride(0);
        Tensor out(DType::f32, {rows.dim(0), seqlen_q, 4, 64});
        AttentionParams p;
        p.q = rows;
        p.k = k.slice(0, first, first + rows.dim(0));
        p.v = v.slice(0, first, first + rows.dim(0));
        p.out = out;
        p.causal = true;
        d.run(p, kInvariant);
        return out;
      });
    }
  }
}

// A longer sequence beside it does not change a sequence's result either.
TEST(BatchInvariance, AttentionOfUnequalLengths) {
  Maker m("unequal");
  const std::vector<std::int64_t> lengths = {700, 5000, 64};
  const std::int64_t total = 5764;
  const TensorView q = m.normal(DType::f32, {3, 6, 64}), k = m.normal(DType::f32, {total, 3, 64}),
                   v = m.normal(DType::f32, {total, 3, 64});
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int64_t> cu_q = {0}, cu_k = {0};
    std::int64_t before = 0;
    for (std::int64_t b = 0; b < begin; ++b) before += lengths[static_cast<std::size_t>(b)];
    for (std::int64_t b = begin; b < end; ++b) {
      cu_q.push_back(cu_q.back() + 1);
      cu_k.push_back(cu_k.back() + lengths[static_cast<std::size_t>(b)]);
    }
    Tensor out(DType::f32, {end - begin, 6, 64});
    AttentionParams p;
    p.q = q.slice(0, begin, end);
    p.k = k.slice(0, before, before + cu_k.back());
    p.v = v.slice(0, before, before + cu_k.back());
    p.out = out;
    p.causal = true;
    p.tables.cu_seqlens_q = m.integers(DType::i32, cu_q);
    p.tables.cu_seqlens_k = m.integers(DType::i32, cu_k);
    default_dispatcher().run(p, kInvariant);
    return out;
  };
  const Tensor whole = run(0, 3);
  for (std::int64_t b = 0; b < 3; ++b)
    EXPECT_EQ(rows(run(b, b + 1), 0, 1), rows(whole, b, b + 1)) << "sequence " << b;
}

TEST(BatchInvariance, WhatDoesNotPromiseItIsRefused) {
  Maker m("refused");
  const TensorView x = m.normal(DType::f32, {2, 64}), w = m.normal(DType::f32, {32, 64});
  Tensor out(DType::f32, {2, 32});
  LinearParams p;
  p.x = x;
  p.weight = w;
  p.out = out;
  EXPECT_EQ(default_dispatcher().plan(p, kInvariant)->kernel().name, "cpu::linear_fused");
  try {
    default_dispatcher().run(p, {.families = kVanilla,
                                 .allow_fallback = false,
                                 .kernel = "cpu::linear_onednn",
                                 .batch_invariant = true});
    FAIL() << "served";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::not_implemented);
    EXPECT_NE(std::string(e.what()).find("not batch-invariant"), std::string::npos) << e.what();
  }
}

TEST(BatchInvariance, TheConfigurationAsksForIt) {
  KernelFusionManager manager({.deterministic = true});
  LinearParams p;
  EXPECT_TRUE(manager.selection(Op::linear, &p).batch_invariant);
  EXPECT_FALSE(KernelFusionManager().selection(Op::linear, &p).batch_invariant);
}

}  // namespace
}  // namespace kf
