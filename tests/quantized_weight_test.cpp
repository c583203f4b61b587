// Low-bit weights, what cases cannot say of them: the formats themselves, what is refused, and that scales go where their
// weights go.

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "block_graph.h"
#include "core/block_formats.h"
#include "core/half.h"
#include "core/quantized.h"
#include "graph/reflect.h"
#include "graph/sample_data.h"
#include "linear_calls.h"

namespace kf::testing {
namespace {

using cases::Maker;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// ---- GGUF's blocks

struct Rounding {
  DType format;
  double steps;  // between the ends of a part of a block
};

TEST(BlockFormats, ValuesComeBackToHalfAStep) {
  for (const auto& [format, steps] :
       {Rounding{DType::q5_0, 31}, Rounding{DType::q4_k, 15}, Rounding{DType::q6_k, 63}}) {
    const auto n = static_cast<std::int64_t>(dtype_info(format).block_elems);
    Maker m(dtype_name(format));
    const TensorView values = m.normal(DType::f32, {5, n}, 0.02f);
    const Tensor blocks(format, {5, n}), back(DType::f32, {5, n});
    quantize_blocks(format, values.as<float>(), blocks.view().data, 5 * n);
    dequantize_blocks(format, blocks.view().data, back.as<float>(), 5 * n);
    // The largest of 256 normal values is below 5 deviations. A scale of six bits may be one of 63 parts off.
    const double allowed = 2 * 5 * 0.02 / steps * (0.5 + 0.3);
    for (std::int64_t i = 0; i < 5 * n; ++i)
      EXPECT_NEAR(back.as<float>()[i], values.as<float>()[i], allowed) << dtype_name(format) << " " << i;
  }
}

TEST(BlockFormats, KNanAndInfinityAreDefined) {
  for (const DType format : {DType::q5_0, DType::q4_k, DType::q6_k})
    for (const float hostile : {kNan, INFINITY, -INFINITY, 1e-44f, -1e-44f}) {
      const std::int64_t n = dtype_info(format).block_elems;
      std::vector<float> values(static_cast<std::size_t>(n), 0.5f), back(values.size());
      values[3] = hostile;
      values[20] = -hostile;
      const Tensor blocks(format, {1, n});
      quantize_blocks(format, values.data(), blocks.view().data, n);
      dequantize_blocks(format, blocks.view().data, back.data(), n);
      if (!std::isinf(hostile)) EXPECT_NEAR(back[0], 0.5f, 0.04f) << dtype_name(format) << " " << hostile;
    }
}

// ---- 8-bit floats

TEST(Fp8, EveryValueComesBackAndBetweenNeighboursTheNearestIsTaken) {
  const auto check = [](auto decode, auto encode, int largest) {
    for (int i = 0; i <= largest; ++i) {
      const auto byte = static_cast<std::uint8_t>(i);
      const float value = decode(byte);
      EXPECT_EQ(encode(value), byte);
      EXPECT_EQ(encode(-value), byte | 0x80);
      if (i == largest) break;
      const float next = decode(static_cast<std::uint8_t>(i + 1)), middle = (value + next) / 2;
      EXPECT_EQ(encode(middle), i % 2 == 0 ? i : i + 1) << "to even, at " << middle;
      EXPECT_EQ(encode(std::nextafter(middle, 0.0f)), i);
      EXPECT_EQ(encode(std::nextafter(middle, next)), i + 1);
    }
    EXPECT_EQ(encode(INFINITY), largest);
    EXPECT_EQ(encode(-1e30f), largest | 0x80);
    EXPECT_TRUE(std::isnan(decode(encode(kNan))));
  };
  check(fp8_e4m3_to_f32, f32_to_fp8_e4m3, 0x7e);
  check(fp8_e5m2_to_f32, f32_to_fp8_e5m2, 0x7b);
}

// ---- Rounding to codes and scales

struct Quantized {
  TensorView data;
  Quantization q;
};

Quantized quantized(Maker& m, const TensorView& values, DType dtype, std::int64_t group_size,
                    bool zeros = false, std::int64_t scale_rows = -1, DType scales = DType::f32) {
  const std::int64_t out = values.dim(0), in = values.dim(1);
  const std::int64_t groups = group_size == 0 ? 1 : (in + group_size - 1) / group_size;
  Quantized w;
  m.storage().push_back(Tensor::zeros(dtype, {out, in}));
  w.data = m.storage().back();
  w.q.group_size = group_size;
  m.storage().push_back(Tensor::zeros(scales, {scale_rows < 0 ? out : scale_rows, groups}));
  w.q.scales = m.storage().back();
  m.storage().push_back(Tensor::zeros(DType::i8, {scale_rows < 0 ? out : scale_rows, groups}));
  if (zeros) w.q.zeros = m.storage().back();
  quantize(values, w.data, w.q);
  return w;
}

TEST(Quantize, IntegersComeBackToHalfAStep) {
  for (const DType dtype : {DType::int4, DType::i8})
    for (const bool zeros : {false, true})
      for (const std::int64_t group_size : {0, 32, 128}) {
        Maker m("half a step");
        const TensorView values = m.normal(DType::f32, {6, 200}, 1.0f, 0.5f);
        const Quantized w = quantized(m, values, dtype, group_size, zeros);
        const Tensor back(DType::f32, {6, 200});
        dequantize(w.data, w.q, back);
        const ScaleGrid grid = scale_grid(w.data, w.q);
        for (std::int64_t i = 0; i < 1200; ++i) {
          const float scale = scale_at(w.q, grid, i / 200, i % 200 / grid.columns);
          // With zeros an end may lie half a step outside, and is then rounded by a whole one.
          EXPECT_NEAR(back.as<float>()[i], values.as<float>()[i], scale * (zeros ? 1.001 : 0.501));
        }
      }
}

TEST(Quantize, Fp8IsNearToOneInSixteenOrEight) {
  for (const auto& [dtype, part] : {std::pair(DType::fp8_e4m3, 16.0), std::pair(DType::fp8_e5m2, 8.0)})
    for (const auto& [group_size, rows] :
         {std::pair(0, 200), std::pair(0, 1), std::pair(128, 2), std::pair(128, 200)}) {
      Maker m("fp8");
      const TensorView values = m.normal(DType::f32, {200, 150}, 0.02f);
      const Quantized w = quantized(m, values, dtype, group_size, false, rows);
      const Tensor back(DType::f32, {200, 150});
      dequantize(w.data, w.q, back);
      for (std::int64_t i = 0; i < 200 * 150; ++i) {
        const double x = values.as<float>()[i];
        EXPECT_NEAR(back.as<float>()[i], x, std::abs(x) / part + 1e-6);
      }
    }
}

TEST(Quantize, WhatIsNotFiniteSpoilsNoOtherValue) {
  for (const DType dtype : {DType::int4, DType::i8, DType::fp8_e4m3})
    for (const bool zeros : {false, true}) {
      if (zeros && dtype == DType::fp8_e4m3) continue;
      Maker m("hostile");
      const TensorView values = m.filled(DType::f32, {1, 64}, 0.5f);
      values.as<float>()[3] = kNan;
      values.as<float>()[5] = INFINITY;
      values.as<float>()[7] = std::numeric_limits<float>::max();
      values.as<float>()[40] = -0.25f;
      const Quantized w = quantized(m, values, dtype, 32, zeros);
      const Tensor back(DType::f32, {1, 64});
      dequantize(w.data, w.q, back);
      EXPECT_NEAR(back.as<float>()[33], 0.5f, 0.05f);
      EXPECT_TRUE(std::isnan(back.as<float>()[3]) || back.as<float>()[3] == 0);
      EXPECT_GT(back.as<float>()[5], 1e38f);
    }
}

TEST(Quantize, HalvesOfAByteAreTwosComplementTheLowOneFirst) {
  Maker m("nibbles");
  const TensorView values = m.filled(DType::f32, {1, 4}, 0.0f);
  const float codes[] = {-7, 1, 7, -2};
  std::memcpy(values.data, codes, sizeof codes);
  const Quantized w = quantized(m, values, DType::int4, 0);
  EXPECT_EQ(w.q.scales.as<float>()[0], 1.0f);
  EXPECT_EQ(w.data.as<std::uint8_t>()[0], 0x19);
  EXPECT_EQ(w.data.as<std::uint8_t>()[1], 0xE7);
}

// ---- What is refused

// A call that is right, to be spoiled.
struct Call {
  Maker m{"refused"};
  LinearParams p;

  Call(DType dtype, std::int64_t group_size, bool zeros = false, std::int64_t scale_rows = -1) {
    const Quantized w =
        quantized(m, m.normal(DType::f32, {200, 256}, 0.1f), dtype, group_size, zeros, scale_rows);
    p.x = m.normal(DType::f32, {2, 256});
    p.weight = w.data;
    p.weight_quantization = w.q;
    p.out = m.filled(DType::f32, {2, 200}, kUntouched);
  }
};

TEST(QuantizedWeight, WhatDoesNotFitIsRefusedByName) {
  {
    Call c(DType::int4, 64);
    c.p.weight_quantization.scales = {};
    expect_refused(c.p, "weight_scales", "scales, since weight is int4");
  }
  {
    Call c(DType::int4, 64);
    c.p.weight_quantization.group_size = 128;
    expect_refused(c.p, "weight_scales", "shape [200, 2] for int4[200, 256] in groups of 128");
  }
  for (const std::int64_t size : {-32, 1, 16, 48, 96, 200}) {
    Call c(DType::int4, 64);
    c.p.weight_quantization.group_size = size;
    expect_refused(c.p, "weight_group_size", "0 (a row), 32, 64 or a multiple of 128");
  }
  {
    Call c(DType::i8, 0);
    c.p.weight_quantization.scales = c.p.weight_quantization.scales.slice(0, 0, 199);
    expect_refused(c.p, "weight_scales", "shape [200, 1] for i8[200, 256] in groups of a row");
  }
  {
    Call c(DType::i8, 0);  // only fp8 has scales for a whole weight
    c.p.weight_quantization.scales = c.p.weight_quantization.scales.slice(0, 0, 1);
    expect_refused(c.p, "weight_scales", "shape [200, 1]");
  }
  {
    Call c(DType::fp8_e4m3, 128, false, 2);
    c.p.weight_quantization.scales = c.p.weight_quantization.scales.slice(0, 0, 1);
    expect_refused(c.p, "weight_scales", "shape [200, 2] or [2, 2]");
  }
  {
    Call c(DType::fp8_e5m2, 0);
    c.p.weight_quantization.zeros = c.m.filled(DType::i32, {200, 1}, 0);
    expect_refused(c.p, "weight_zeros", "none, since weight is fp8_e5m2");
  }
  {
    Call c(DType::int4, 32, true);
    c.p.weight_quantization.zeros = c.p.weight_quantization.zeros.slice(1, 0, 7);
    expect_refused(c.p, "weight_zeros", "shape [200, 8]");
  }
  {
    Call c(DType::int4, 32, true);
    c.p.weight_quantization.zeros.dtype = DType::u8;
    expect_refused(c.p, "weight_zeros", "i8");
  }
  {
    Call c(DType::int4, 32);
    c.p.weight_quantization.scales.dtype = DType::i32;
    expect_refused(c.p, "weight_scales", "f32, f16 or bf16");
  }
  {
    Call c(DType::int4, 0);
    c.p.weight_quantization.scales = c.m.filled(DType::f32, {200, 2}, 1.0f).slice(1, 0, 1);
    c.p.weight_quantization.scales.shape[1] = 2;
    c.p.weight_quantization.scales.strides[1] = 0;
    expect_refused(c.p, "weight_scales", "shape [200, 1]");
  }
  {
    Call c(DType::int4, 0);
    c.p.weight.shape[1] = c.p.x.shape[1] = 255;
    expect_refused(c.p, "weight", "rows of whole bytes, two elements each, for int4");
  }
  {
    Call c(DType::i8, 0);
    c.p.weight = c.p.weight.slice(1, 0, 128);
    c.p.weight.strides[1] = 2;
    c.p.x = c.p.x.slice(1, 0, 128);
    expect_refused(c.p, "weight", "contiguous rows for i8");
  }
  {
    Call c(DType::i8, 0);
    c.p.weight = c.m.normal(DType::f32, {200, 256});
    expect_refused(c.p, "weight_scales", "none, since weight is f32");
    c.p.weight_quantization.scales = {};
    c.p.weight_quantization.group_size = 32;
    expect_refused(c.p, "weight_group_size", "0, since weight is f32");
  }
  {
    Call c(DType::i8, 0);
    c.p.weight.dtype = DType::u8;
    expect_refused(
        c.p, "weight",
        "f32, f16, bf16, q4_0, q4_1, q5_0, q8_0, q4_k or q6_k; int4, i8, fp8_e4m3 or fp8_e5m2 with scales");
  }
}

TEST(QuantizedWeight, QuantizeRefusesWhatDoesNotFit) {
  Maker m("quantize");
  const TensorView values = m.normal(DType::f32, {4, 64});
  Quantized w = quantized(m, values, DType::i8, 0);
  EXPECT_THROW(quantize(values.slice(0, 0, 3), w.data, w.q), Error);
  EXPECT_THROW(quantize(w.data, w.data, w.q), Error);
  EXPECT_THROW(quantize(values, values, w.q), Error);
  w.q.group_size = 32;
  EXPECT_THROW(quantize(values, w.data, w.q), Error);
  w.q.scales.data = nullptr;
  w.q.group_size = 0;
  EXPECT_THROW(quantize(values, w.data, w.q), Error);
}

// ---- Scales go where their weights go

TEST(QuantizedWeight, ScalesAreWeightsToo) {
  for (const SlotInfo& s : op_slots(Op::gated_ffn)) {
    const bool expected = s.name.find("weight") != std::string_view::npos;
    EXPECT_EQ(s.is_weight, expected) << s.name;
  }
  EXPECT_TRUE(op_slots(Op::embedding)[static_cast<std::size_t>(find_slot(Op::embedding, "table"))].is_weight);
  EXPECT_FALSE(op_slots(Op::linear)[static_cast<std::size_t>(find_slot(Op::linear, "bias"))].is_weight);
}

TEST(QuantizedWeight, PacksAreKeyedOnAllThatTheyAreMadeOf) {
  PackCache packs;
  Maker m("packs");
  const TensorView weight = m.filled(DType::f32, {2, 2}, 1), scales = m.filled(DType::f32, {2, 1}, 1),
                   others = m.filled(DType::f32, {2, 1}, 1), absent;
  int made = 0;
  const auto get = [&](std::initializer_list<const TensorView*> operands) {
    packs.get<int>(operands, "test", [&](std::size_t* bytes) {
      *bytes = 1;
      return std::make_shared<int>(++made);
    });
    return made;
  };
  EXPECT_EQ(get({&weight}), 1);
  EXPECT_EQ(get({&weight, &scales}), 2);
  EXPECT_EQ(get({&weight, &others}), 3);
  EXPECT_EQ(get({&weight, &scales, &absent}), 4);
  EXPECT_EQ(get({&weight, &absent, &scales}), 5);
  EXPECT_EQ(get({&weight, &scales}), 5);
}

TEST(QuantizedWeight, CostCountsScalesAndZeros) {
  const Call c(DType::int4, 32, true);
  const Cost cost = op_info(Op::linear).cost(&c.p);
  EXPECT_EQ(cost.bytes, 2 * 256 * 4 + 200 * 128 + 200 * 8 * 4 + 200 * 8 + 2 * 200 * 4);
  EXPECT_EQ(cost.flops, 2.0 * 2 * 200 * 256);
}

TEST(QuantizedWeight, SameBitsWhateverTheThreads) {
  for (const std::int64_t num_tokens : {1, 3, 50}) {
    Call c(DType::int4, 64, true);
    c.p.x = c.m.normal(DType::f32, {num_tokens, 256});
    c.p.out = c.m.filled(DType::f32, {num_tokens, 200}, 0.0f);
    expect_same_bits_whatever_the_threads(c.p);
  }
}

LayerWeight quantized_layer(Maker& make, const std::string& name, std::int64_t out, std::int64_t in) {
  struct Format {
    DType dtype;
    std::int64_t group_size;
    bool zeros = false;
  };
  static const std::map<std::string, Format> kFormats = {
      {"q", {DType::int4, 32, true}}, {"k", {DType::i8, 0}},     {"v", {DType::fp8_e4m3, 0}},
      {"gate", {DType::int4, 64}},    {"up", {DType::int4, 32}}, {"down", {DType::i8, 32, true}},
      {"head", {DType::fp8_e5m2, 0}}};
  const Format& f = kFormats.at(name);
  const Quantized w =
      quantized(make, make.normal(DType::f32, {out, in}, 0.3f), f.dtype, f.group_size, f.zeros);
  LayerWeight layer{{}, {{"weight", w.data}, {"weight_scales", w.q.scales}}};
  layer.params.weight_quantization.group_size = f.group_size;
  if (f.zeros) layer.operands.emplace_back("weight_zeros", w.q.zeros);
  return layer;
}

TEST(QuantizedWeight, RulesPassScalesZerosAndGroupSizesOn) {
  const Graph after = BlockGraph(quantized_layer).fused();
  for (const Node& n : after.nodes())
    if (n.op() == Op::qkv_linear) {
      const auto& p = n.params.as<QkvLinearParams>();
      EXPECT_EQ(p.q_weight_quantization.group_size, 32);
      EXPECT_TRUE(p.q_weight_quantization.zeros.present());
      EXPECT_EQ(p.k_weight_quantization.group_size, 0);
      EXPECT_FALSE(p.k_weight_quantization.zeros.present());
      EXPECT_EQ(p.v_weight_quantization.scales.dim(0), 32);
    }
}

TEST(QuantizedWeight, GeneratedDataMeasuresSomething) {
  const BlockGraph b(quantized_layer, true);
  const auto data = sample_inputs(b.graph);
  std::map<std::string, TensorView> views;
  for (const auto& [name, d] : data) views[name] = d.view;
  const auto any = [&](const std::string& name) {
    const TensorView& t = views.at(name);
    const auto* bytes = t.as<std::uint8_t>();
    return std::any_of(bytes, bytes + t.nbytes(), [](std::uint8_t byte) { return byte != 0; });
  };
  for (const char* name : {"q", "k", "v", "gate", "q_scales", "v_scales"}) EXPECT_TRUE(any(name)) << name;
  for (std::int64_t i = 0; i < views.at("q_scales").numel(); ++i)
    EXPECT_GT(views.at("q_scales").as<float>()[i], 0);
  for (std::int64_t i = 0; i < views.at("v").numel(); ++i)
    EXPECT_TRUE(std::isfinite(fp8_e4m3_to_f32(views.at("v").as<std::uint8_t>()[i])));
}

}  // namespace
}  // namespace kf::testing
