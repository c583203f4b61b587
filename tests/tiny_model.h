// Random models small enough to check by plain loops, and those loops: a forward pass in double over whole
// sequences, without a cache, a graph or a kernel of the library.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "case.h"
#include "kf/model.h"

namespace kf::tests {

struct TinyModel {
  ModelConfig config;
  NamedTensors weights;
  std::shared_ptr<cases::Maker> memory;
};

struct TinyModelOptions {
  DType matrix_dtype = DType::f32;
  bool tie_embeddings = false;
  bool rope_interleaved = false;
  bool rope_scaling = false;
};

// Four query heads and two K/V heads of 32, two layers, hidden size 64, vocabulary 96.
TinyModel make_tiny_model(Architecture architecture, const TinyModelOptions& options = {});

// Logits of every position.
std::vector<std::vector<double>> reference_logits(const TinyModel& model,
                                                  const std::vector<std::int32_t>& tokens);

// How far logits computed with this unit roundoff may be from exact ones, relative to the largest logit: each
// of the roundings on the longest path from a token to its logit (one a term of a sum) contributes at most
// one roundoff, and norms keep the scale of what passes from layer to layer.
double logits_tolerance(const ModelConfig& config, std::size_t num_tokens, double roundoff);

std::vector<std::int32_t> random_tokens(const ModelConfig& config, std::size_t count, std::string_view seed);

}  // namespace kf::tests
