// Models over a quantized cache.

#include <gtest/gtest.h>

#include <cmath>

#include "kf/engine.h"
#include "tiny_model.h"

namespace kf::tests {
namespace {

EngineOptions options_of(bool fused, DType dtype, KvLayout layout) {
  EngineOptions o = fused ? EngineOptions{} : EngineOptions::unfused(64);
  if (fused) {
    o.fusion.mode = FusionPolicy::Mode::all;
    o.max_seq_len = 64;
    o.cache.page_size = 4;
  }
  o.cache.dtype = dtype;
  o.cache.layout = layout;
  return o;
}

// Logits of every position, fed in parts.
std::vector<float> logits(Engine& e, const std::vector<std::int32_t>& tokens) {
  const SequenceId sequence = e.cache().create();
  std::vector<float> all;
  for (std::size_t begin = 0, size = 20; begin < tokens.size(); begin += size, size = 1) {
    const StepInput in{sequence, std::span(tokens).subspan(begin, std::min(size, tokens.size() - begin)),
                       Rows::all};
    const TensorView out = e.step({&in, 1});
    all.insert(all.end(), out.as<float>(), out.as<float>() + out.numel());
  }
  return all;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, scale = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(a[i]) - b[i]));
    scale = std::max(scale, std::abs(static_cast<double>(b[i])));
  }
  return difference / scale;
}

// A key or value is off by at most `step` of its row's largest; what comes of it in a layer is as large relative to the
// layer's output, a few times that with the softmax, and passes on through norms that keep the scale.
TEST(QuantizedCache, LogitsAreAsGoodAsTheCodes) {
  const TinyModel model = make_tiny_model(Architecture::qwen3);
  const std::vector<std::int32_t> tokens = random_tokens(model.config, 37, "quantized cache");
  Engine exact(model.config, model.weights, options_of(true, DType::f32, KvLayout::hnd));
  const std::vector<float> expected = logits(exact, tokens);
  for (const auto& [dtype, step] : {std::pair{DType::i8, 1.0 / 254},
                                    {DType::fp8_e4m3, 1.0 / 16},
                                    {DType::fp8_e5m2, 1.0 / 8},
                                    {DType::int4, 1.0 / 14}})
    for (const bool fused : {true, false})
      for (const KvLayout layout : {KvLayout::hnd, KvLayout::nhd}) {
        SCOPED_TRACE(std::string(dtype_name(dtype)) + (fused ? " fused" : " unfused"));
        Engine e(model.config, model.weights, options_of(fused, dtype, layout));
        const double error = distance(logits(e, tokens), expected);
        EXPECT_GT(error, 0);
        EXPECT_LT(error, 4 * step * static_cast<double>(model.config.num_layers));
        const double bits = dtype == DType::int4 ? 4 : 8;
        const double head = static_cast<double>(model.config.head_dim);
        EXPECT_NEAR(static_cast<double>(e.cache().nbytes()) / static_cast<double>(e.cache().k(0).numel()),
                    2 * static_cast<double>(model.config.num_layers) * (bits / 8 + 4 / head), 1e-9);
      }
}

}  // namespace
}  // namespace kf::tests
