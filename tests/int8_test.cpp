// x in 8 bits (InputQuantization), what cases cannot say of it: the bound on what it changes, that it is never chosen, what
// is refused, and that rows do not depend on the batch.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "case.h"
#include "core/quantized.h"
#include "kf/kf.h"
#include "kf/quantize.h"

namespace kf::testing {
namespace {

struct Call {
  cases::Maker m{"int8"};
  LinearParams p;

  explicit Call(DType weight = DType::i8, std::int64_t tokens = 5, std::int64_t in = 320) {
    p.x = m.normal(DType::f32, {tokens, in});
    p.out = m.filled(DType::f32, {tokens, 24}, 9.0f);
    p.input_quantization = InputQuantization::int8;
    if (!needs_scales(weight)) {
      p.weight = m.normal(weight, {24, in});
      return;
    }
    p.weight_quantization.group_size = weight == DType::int4 ? 32 : 0;
    p.weight_quantization.scales = m.filled(DType::f32, {24, weight == DType::int4 ? in / 32 : 1}, 0.0f);
    m.storage().push_back(Tensor::zeros(weight, {24, in}));
    p.weight = m.storage().back();
    quantize(m.normal(DType::f32, {24, in}), p.weight, p.weight_quantization);
  }
  std::string refusal(ErrorCode code) {
    try {
      default_dispatcher().run(p);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), code) << e.what();
      for (std::int64_t i = 0; i < p.out.numel(); ++i) EXPECT_EQ(p.out.as<float>()[i], 9.0f);
      return e.what();
    }
    ADD_FAILURE() << "accepted";
    return "";
  }
};

// |change| <= scale / 2 * sum |w|, and a typical one about scale / sqrt(12) * |w|: both are what the header says.
TEST(Int8Inputs, TheChangeIsWithinItsBound) {
  for (const DType weight : {DType::i8, DType::int4, DType::q8_0, DType::q4_0, DType::q4_1}) {
    SCOPED_TRACE(dtype_name(weight));
    Call c(weight, 64);
    const std::int64_t in = c.p.x.dim(1), out = c.p.out.dim(1);
    Tensor exact(DType::f32, {64, out});
    LinearParams plain = c.p;
    plain.input_quantization = InputQuantization::none;
    plain.out = exact;
    default_dispatcher().run(plain);
    default_dispatcher().run(c.p);
    double squares = 0, expected = 0;
    for (std::int64_t n = 0; n < out; ++n) {
      double sum = 0, square = 0;
      for (std::int64_t k = 0; k < in; ++k) {
        const double w =
            needs_scales(weight)
                ? static_cast<double>(dequantize_element(c.p.weight, c.p.weight_quantization, n, k))
                : cases::element(c.p.weight, n * in + k);
        sum += std::abs(w);
        square += w * w;
      }
      for (std::int64_t t = 0; t < 64; ++t) {
        float largest = 0;
        for (std::int64_t k = 0; k < in; ++k)
          largest = std::max(largest, std::abs(c.p.x.as<float>()[t * in + k]));
        const double scale = static_cast<double>(largest) / 127;
        const double change = static_cast<double>(c.p.out.as<float>()[t * out + n]) -
                              static_cast<double>(exact.view().as<float>()[t * out + n]);
        ASSERT_LE(std::abs(change), scale / 2 * sum + 1e-4);
        squares += change * change;
        expected += scale * scale / 12 * square;
      }
    }
    EXPECT_NEAR(std::sqrt(squares / expected), 1.0, 0.15);
  }
}

TEST(Int8Inputs, AreNeverChosen) {
  Call c;
  EXPECT_EQ(default_dispatcher().plan(c.p)->kernel().name, "cpu::linear_int8");
  c.p.input_quantization = InputQuantization::none;
  for (const Explained& e : default_dispatcher().explain(c.p))
    if (e.kernel.find("int8") != std::string::npos) {
      EXPECT_FALSE(e.supported) << e.kernel;
      EXPECT_NE(e.reason.find("input_quantization none"), std::string::npos) << e.reason;
    }
}

TEST(Int8Inputs, WhatIsNotServedIsRefused) {
  for (const DType weight : {DType::f32, DType::bf16, DType::q5_0}) {
    Call c(weight);
    const std::string what = c.refusal(ErrorCode::not_implemented);
    EXPECT_NE(what.find(std::string("weight ") + dtype_name(weight) +
                        ": this kernel takes i8, int4, q8_0, q4_0 and q4_1"),
              std::string::npos)
        << what;
    EXPECT_NE(what.find("input_quantization int8: this kernel multiplies x unrounded"), std::string::npos)
        << what;
  }
  Call adapter;
  adapter.p.lora.a = adapter.m.normal(DType::f32, {4, 320});
  adapter.p.lora.b = adapter.m.normal(DType::f32, {24, 4});
  EXPECT_NE(
      adapter.refusal(ErrorCode::invalid_argument).find("input_quantization: expected none, since there is"),
      std::string::npos);
  Call unknown;
  unknown.p.input_quantization = static_cast<InputQuantization>(7);
  EXPECT_NE(unknown.refusal(ErrorCode::invalid_argument).find("input_quantization: expected 0 to 1"),
            std::string::npos);
}

// More tokens than a pass has, any of them alone, one thread and three: the same bits.
TEST(Int8Inputs, ARowDoesNotDependOnTheBatch) {
  Dispatcher three(backend_by_name("cpu"), {.num_threads = 3}),
      one(backend_by_name("cpu"), {.num_threads = 1});
  for (const DType weight : {DType::i8, DType::int4, DType::q4_1}) {
    SCOPED_TRACE(dtype_name(weight));
    Call c(weight, 300, 640);
    three.run(c.p, {.batch_invariant = true});
    Tensor row(DType::f32, {1, 24});
    for (const std::int64_t t : {0, 1, 15, 255, 256, 299}) {
      LinearParams alone = c.p;
      alone.x = c.p.x.slice(0, t, t + 1);
      alone.out = row;
      one.run(alone, {.batch_invariant = true});
      EXPECT_EQ(std::memcmp(row.view().data, c.p.out.at(t * 24), 24 * sizeof(float)), 0) << t;
    }
  }
}

}  // namespace
}  // namespace kf::testing
