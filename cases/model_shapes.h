// Models that benchmarks build with random weights, by name.
#pragma once

#include <span>
#include <string_view>

#include "kf/model.h"

namespace kf::cases {

struct ModelShape {
  const char* name;  // "llama-3.2-1b"
  ModelConfig config;
};
std::span<const ModelShape> model_shapes();
// Throws invalid_argument, with the names that there are.
const ModelConfig& model_shape(std::string_view name);

}  // namespace kf::cases
