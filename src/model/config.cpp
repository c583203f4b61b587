#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kf/error.h"
#include "kf/model.h"

namespace kf {
namespace {

constexpr std::array<const char*, 7> kArchitectureNames = {"llama", "mistral", "qwen2",      "qwen3",
                                                           "phi3",  "gemma2",  "gemma3_text"};

// Token ids, positions and table entries are 32-bit, and no product of two such sizes overflows. Layers are
// built one by one, so their number is bounded by far less.
constexpr std::int64_t kMaxSize = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMaxLayers = 1 << 16;

void require_size(const char* name, std::int64_t value, std::int64_t largest = kMaxSize) {
  if (value < 1 || value > largest)
    throw_invalid(fmt::format("model config: {} must be 1 to {}, got {}", name, largest, value));
}

}  // namespace

const char* architecture_name(Architecture architecture) {
  return kArchitectureNames[static_cast<std::size_t>(architecture)];
}

Architecture architecture_from_name(std::string_view name) {
  for (std::size_t i = 0; i < kArchitectureNames.size(); ++i) {
    if (name == kArchitectureNames[i]) return static_cast<Architecture>(i);
  }
  throw Error(ErrorCode::not_implemented, fmt::format("model architecture '{}' is not served; served are: {}",
                                                      name, fmt::join(kArchitectureNames, ", ")));
}

ModelConfig ModelConfig::of(Architecture architecture) {
  ModelConfig config;
  config.architecture = architecture;
  config.qkv_bias = architecture == Architecture::qwen2;
  config.qk_norm = architecture == Architecture::qwen3 || architecture == Architecture::gemma3_text;
  if (architecture == Architecture::gemma2 || architecture == Architecture::gemma3_text) {
    config.norm_after = config.scale_embedding = true;
    config.norm_weight_offset = 1.0f;
    config.activation = Activation::gelu_tanh;
  }
  return config;
}

void ModelConfig::validate() const {
  for (const auto& [name, value] : {std::pair{"hidden_size", hidden_size},
                                    {"intermediate_size", intermediate_size},
                                    {"num_heads", num_heads},
                                    {"num_kv_heads", num_kv_heads},
                                    {"head_dim", head_dim},
                                    {"vocab_size", vocab_size},
                                    {"max_positions", max_positions}}) {
    require_size(name, value);
  }
  require_size("num_layers", num_layers, kMaxLayers);
  require_size("num_heads * head_dim", num_heads * head_dim);
  if (num_heads % num_kv_heads != 0) {
    throw_invalid(fmt::format("model config: num_heads must be a multiple of num_kv_heads, got {} and {}",
                              num_heads, num_kv_heads));
  }
  if (head_dim % 2 != 0) throw_invalid(fmt::format("model config: head_dim must be even, got {}", head_dim));
  if (!(rms_norm_eps >= 0) || std::isinf(rms_norm_eps))
    throw_invalid(fmt::format("model config: rms_norm_eps must be finite and >= 0, got {}", rms_norm_eps));
  if (!(rope_theta > 0) || std::isinf(rope_theta))
    throw_invalid(fmt::format("model config: rope_theta must be finite and positive, got {}", rope_theta));
  if (sliding_window < 0)
    throw_invalid(fmt::format("model config: sliding_window must be 0 or more, got {}", sliding_window));
  for (const std::int64_t layer : full_layers)
    if (layer < 0 || layer >= num_layers)
      throw_invalid(
          fmt::format("model config: full_layers must be below num_layers ({}), got {}", num_layers, layer));
  for (const auto& [name, value] : {std::pair{"local_rope_theta", local_rope_theta},
                                    {"attention_scale", double{attention_scale}},
                                    {"attention_softcap", double{attention_softcap}},
                                    {"logit_softcap", double{logit_softcap}}})
    if (!(value >= 0) || std::isinf(value))
      throw_invalid(fmt::format("model config: {} must be finite and 0 or more, got {}", name, value));
}

}  // namespace kf
