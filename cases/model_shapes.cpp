#include "model_shapes.h"

#include <iterator>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kf/error.h"

namespace kf::cases {
namespace {

ModelConfig of(Architecture architecture, std::int64_t hidden_size, std::int64_t intermediate_size,
               std::int64_t num_layers, std::int64_t num_heads, std::int64_t num_kv_heads,
               std::int64_t head_dim, std::int64_t vocab_size, bool tie_embeddings, double rope_theta) {
  ModelConfig c = ModelConfig::of(architecture);
  c.hidden_size = hidden_size;
  c.intermediate_size = intermediate_size;
  c.num_layers = num_layers;
  c.num_heads = num_heads;
  c.num_kv_heads = num_kv_heads;
  c.head_dim = head_dim;
  c.vocab_size = vocab_size;
  c.max_positions = 8192;
  c.tie_embeddings = tie_embeddings;
  c.rope_theta = rope_theta;
  return c;
}

}  // namespace

// From the models' own config.json.
std::span<const ModelShape> model_shapes() {
  static const ModelShape kShapes[] = {
      {"smollm2-135m", of(Architecture::llama, 576, 1536, 30, 9, 3, 64, 49152, true, 1e5)},
      {"llama-3.2-1b", of(Architecture::llama, 2048, 8192, 16, 32, 8, 64, 128256, true, 5e5)},
      {"llama-3.1-8b", of(Architecture::llama, 4096, 14336, 32, 32, 8, 128, 128256, false, 5e5)},
      {"qwen3-8b", of(Architecture::qwen3, 4096, 12288, 36, 32, 8, 128, 151936, false, 1e6)},
  };
  return kShapes;
}

const ModelConfig& model_shape(std::string_view name) {
  std::vector<std::string_view> names;
  for (const ModelShape& s : model_shapes()) {
    if (s.name == name) return s.config;
    names.emplace_back(s.name);
  }
  throw Error(ErrorCode::invalid_argument,
              fmt::format("--shape: expected one of {}, got {}", fmt::join(names, ", "), name));
}

}  // namespace kf::cases
