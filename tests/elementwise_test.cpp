// What cases cannot say of norms, softmax and activations: results in place of an operand, every 16-bit number through
// the conversions, and outputs large enough to be written past the caches.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "backends/cpu/simd/convert_row.h"
#include "backends/cpu/simd/stream.h"
#include "case.h"
#include "core/half.h"
#include "kf/dispatch.h"
#include "kf/ops/elementwise.h"
#include "kf/ops/norm.h"

namespace kf {
namespace {

using cases::Maker;

std::vector<unsigned char> bytes_of(const TensorView& t) {
  const auto* const p = t.as<unsigned char>();
  return {p, p + t.nbytes()};
}

// One tensor of each activation dtype, rows that end in all kinds of remainder.
class InPlace : public testing::TestWithParam<std::tuple<DType, std::int64_t>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  std::int64_t n() const { return std::get<1>(GetParam()); }

  // Runs p with `out` apart, then with `out` and `input` being one tensor, and expects the same bytes.
  template <class P>
  void expect_same(P p, TensorView P::*input, TensorView P::*out) {
    p.*out = m_.filled(dtype(), {3, n()}, 0.0f);
    d_.run(p);
    const std::vector<unsigned char> apart = bytes_of(p.*out);
    p.*out = p.*input;
    d_.run(p);
    EXPECT_EQ(bytes_of(p.*out), apart);
  }
  TensorView normal() { return m_.normal(dtype(), {3, n()}); }
  TensorView weight() { return m_.normal(dtype(), {n()}); }

  Maker m_{"in_place"};
  Dispatcher d_{backend_by_name("cpu")};
};

TEST_P(InPlace, RmsNorm) {
  expect_same(RmsNormParams{.x = normal(), .weight = weight()}, &RmsNormParams::x, &RmsNormParams::out);
}
TEST_P(InPlace, LayerNorm) {
  expect_same(LayerNormParams{.x = normal(), .weight = weight(), .bias = weight()}, &LayerNormParams::x,
              &LayerNormParams::out);
}
TEST_P(InPlace, Softmax) {
  expect_same(SoftmaxParams{.x = normal()}, &SoftmaxParams::x, &SoftmaxParams::out);
}
TEST_P(InPlace, Activations) {
  for (const Activation kind :
       {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
    ActivationParams p;
    p.x = normal();
    p.kind = kind;
    expect_same(p, &ActivationParams::x, &ActivationParams::out);
  }
}
TEST_P(InPlace, GatedActivation) {
  GatedActivationParams p;
  p.gate = normal();
  p.up = normal();
  expect_same(p, &GatedActivationParams::up, &GatedActivationParams::out);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, InPlace,
                         testing::Combine(testing::Values(DType::f32, DType::f16, DType::bf16),
                                          testing::Values(1, 7, 8, 24, 77, 2049, 4096)));

// --- conversions

// All 2^16 numbers at once are whole vectors; one at a time they are remainders.
class RoundTrip : public testing::TestWithParam<DType> {};

TEST_P(RoundTrip, EveryNumber) {
  const DType dtype = GetParam();
  const auto widen = [&](std::uint16_t bits) {
    return dtype == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
  };
  const auto narrow = [&](float v) { return dtype == DType::f16 ? f32_to_f16(v) : f32_to_bf16(v); };
  constexpr std::int64_t kCount = 1 << 16;
  std::vector<std::uint16_t> bits(kCount), back(kCount);
  std::vector<float> wide(kCount);
  for (std::int64_t i = 0; i < kCount; ++i) bits[i] = static_cast<std::uint16_t>(i);
  for (const std::int64_t step : {kCount, std::int64_t{1}}) {
    for (std::int64_t i = 0; i < kCount; i += step) {
      cpu::convert_row(dtype, &bits[i], DType::f32, &wide[i], step);
      cpu::convert_row(DType::f32, &wide[i], dtype, &back[i], step);
    }
    for (std::int64_t i = 0; i < kCount; ++i) {
      const float expected = widen(bits[i]);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(wide[i])) << i;
        ASSERT_TRUE(std::isnan(widen(back[i]))) << i;
        ASSERT_TRUE(std::isnan(widen(narrow(expected)))) << i;
      } else {
        ASSERT_EQ(std::memcmp(&wide[i], &expected, sizeof expected), 0) << i;
        ASSERT_EQ(back[i], bits[i]);
        ASSERT_EQ(narrow(expected), bits[i]);
      }
    }
  }
}

// Around every number: what lies halfway to the next, and just beside that.
TEST_P(RoundTrip, Rounding) {
  const DType dtype = GetParam();
  const auto narrow = [&](float v) { return dtype == DType::f16 ? f32_to_f16(v) : f32_to_bf16(v); };
  const std::uint32_t half = dtype == DType::f16 ? 0x1000u : 0x8000u;
  std::vector<float> values;
  for (std::uint64_t base = 0; base < (std::uint64_t{1} << 32); base += half)
    for (const int offset : {-1, 0, 1}) {
      const float v =
          std::bit_cast<float>(static_cast<std::uint32_t>(base) + static_cast<std::uint32_t>(offset));
      values.push_back(v);
    }
  std::vector<std::uint16_t> rounded(values.size());
  cpu::convert_row(DType::f32, values.data(), dtype, rounded.data(),
                   static_cast<std::int64_t>(values.size()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values[i])) {
      const std::uint16_t infinity = dtype == DType::f16 ? 0x7c00u : 0x7f80u;
      ASSERT_GT(rounded[i] & 0x7fff, infinity) << i;
    } else {
      ASSERT_EQ(rounded[i], narrow(values[i])) << values[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, RoundTrip, testing::Values(DType::f16, DType::bf16));

// --- hostile values

// Every NaN stays one, in whole vectors and in remainders.
TEST(Hostile, NanStaysNan) {
  Dispatcher d(backend_by_name("cpu"));
  Maker m("nan");
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const TensorView x = m.filled(dtype, {1, 37}, std::numeric_limits<float>::quiet_NaN());
    const TensorView out = m.filled(dtype, {1, 37}, 0.0f);
    const auto expect_nan = [&](const char* what) {
      std::vector<float> wide(37);
      cpu::convert_row(dtype, out.data, DType::f32, wide.data(), 37);
      for (const float v : wide) EXPECT_TRUE(std::isnan(v)) << what;
    };
    for (const Activation kind :
         {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
      ActivationParams p;
      p.x = x;
      p.out = out;
      p.kind = kind;
      d.run(p);
      expect_nan("activation");
    }
    d.run(SoftmaxParams{.x = x, .out = out});
    expect_nan("softmax");
  }
}

// A tensor of no elements may have no memory either.
TEST(Softmax, OfNothing) {
  const TensorView nothing = TensorView::contiguous(nullptr, DType::f32, {3, 0});
  Tensor lse(DType::f32, {3});
  softmax({.x = nothing, .out = nothing, .lse = lse});
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(lse.view().as<float>()[i], -std::numeric_limits<float>::infinity()) << i;
}

// --- past the caches

// A large tensor, written past the caches, has the rows that a small one has.
TEST(Streamed, SameAsCached) {
  Dispatcher d(backend_by_name("cpu"));
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::int64_t n = 4099;
    const auto rows = static_cast<std::int64_t>(cpu::kStreamBytes / dtype_info(dtype).block_bytes / n + 1);
    Maker m("streamed");
    const TensorView row = m.normal(dtype, {1, n}), weight = m.normal(dtype, {n});
    const TensorView x = m.filled(dtype, {rows, n}, 0.0f), out = m.filled(dtype, {rows, n}, 0.0f);
    const TensorView small = m.filled(dtype, {1, n}, 0.0f);
    ASSERT_TRUE(cpu::streams(out, {&x}));
    for (std::int64_t r = 0; r < rows; ++r) std::memcpy(x.at(r * n), row.data, row.nbytes());
    const auto expect_rows = [&](const char* what) {
      for (std::int64_t r = 0; r < rows; ++r)
        ASSERT_EQ(std::memcmp(out.at(r * n), small.data, small.nbytes()), 0) << what << ", row " << r;
    };
    d.run(RmsNormParams{.x = row, .weight = weight, .out = small});
    d.run(RmsNormParams{.x = x, .weight = weight, .out = out});
    expect_rows("rms_norm");
    d.run(SoftmaxParams{.x = row, .out = small});
    d.run(SoftmaxParams{.x = x, .out = out});
    expect_rows("softmax");
    ActivationParams p;
    p.x = row;
    p.out = small;
    d.run(p);
    p.x = x;
    p.out = out;
    d.run(p);
    expect_rows("activation");
  }
}

}  // namespace
}  // namespace kf
