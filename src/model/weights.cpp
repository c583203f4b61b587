// Weights by name: what GGUF calls them, what a configuration needs, and whether the given ones fit.
#include <algorithm>
#include <charconv>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kf/error.h"
#include "kf/model.h"

namespace kf {
namespace {

using NamePair = std::pair<std::string_view, std::string_view>;

// GGUF's name and the canonical one.
constexpr NamePair kModelTensors[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
    {"rope_freqs", "rope_freqs"},
};

// The same, after "blk.N." and "model.layers.N.".
constexpr NamePair kLayerTensors[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};

// Where an architecture's differ: Gemma has norms after each part too, Phi-3 merges layers.
constexpr NamePair kGemmaTensors[] = {
    {"post_attention_norm", "post_attention_layernorm"},
    {"ffn_norm", "pre_feedforward_layernorm"},
    {"post_ffw_norm", "post_feedforward_layernorm"},
};
constexpr NamePair kPhi3Tensors[] = {
    {"attn_qkv", "self_attn.qkv_proj"},
    {"ffn_up", "mlp.gate_up_proj"},
};

template <std::size_t N>
std::optional<std::string_view> look_up(const NamePair (&names)[N], std::string_view gguf) {
  for (const auto& [from, to] : names) {
    if (from == gguf) return to;
  }
  return std::nullopt;
}

std::optional<std::string_view> layer_tensor(std::string_view gguf, Architecture architecture) {
  std::optional<std::string_view> own;
  if (architecture == Architecture::gemma2 || architecture == Architecture::gemma3_text)
    own = look_up(kGemmaTensors, gguf);
  if (architecture == Architecture::phi3) own = look_up(kPhi3Tensors, gguf);
  return own ? own : look_up(kLayerTensors, gguf);
}

// Weights that files carry and that this forward pass needs not: the tied copy of the embedding, and the
// rotary frequencies that older files store.
bool is_superfluous(const ModelConfig& config, std::string_view name) {
  return name == kRopeFreqsName || name.ends_with(".rotary_emb.inv_freq") ||
         (config.tie_embeddings && name == "lm_head.weight");
}

std::string dims_string(std::span<const std::int64_t> dims) {
  return fmt::format("[{}]", fmt::join(dims, ", "));
}

// What is wrong with a weight; empty: nothing.
std::string fault_of(const WeightSpec& spec, const TensorView& t) {
  const std::span<const std::int64_t> shape(t.shape.data(), std::max(t.rank, 0));
  if (!std::ranges::equal(shape, spec.shape)) {
    return fmt::format("{}: expected shape {}, got {}", spec.name, dims_string(spec.shape),
                       dims_string(shape));
  }
  const bool is_matrix = spec.shape.size() == 2;
  if (!is_activation_dtype(t.dtype) && !(is_matrix && dtype_info(t.dtype).is_block)) {
    return fmt::format("{}: expected dtype {}, got {}", spec.name,
                       is_matrix ? weight_dtype_names() : "f32, f16 or bf16", dtype_name(t.dtype));
  }
  if (t.data == nullptr) return fmt::format("{}: has no memory", spec.name);
  if (t.stride(-1) != 1) return fmt::format("{}: expected contiguous rows, got {}", spec.name, to_string(t));
  return {};
}

}  // namespace

std::optional<std::string> canonical_tensor_name(std::string_view gguf_name, Architecture architecture) {
  const std::size_t dot = gguf_name.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string_view kind = gguf_name.substr(dot);
  std::string_view stem = gguf_name.substr(0, dot);
  if (kind != ".weight" && kind != ".bias") return std::nullopt;

  if (!stem.starts_with("blk.")) {
    const auto name = look_up(kModelTensors, stem);
    return name ? std::optional(fmt::format("{}{}", *name, kind)) : std::nullopt;
  }
  stem.remove_prefix(4);
  int layer = 0;
  const auto [end, error] = std::from_chars(stem.data(), stem.data() + stem.size(), layer);
  if (error != std::errc() || layer < 0 || end == stem.data() + stem.size() || *end != '.')
    return std::nullopt;
  const auto name = layer_tensor(stem.substr(end + 1 - stem.data()), architecture);
  return name ? std::optional(fmt::format("model.layers.{}.{}{}", layer, *name, kind)) : std::nullopt;
}

std::vector<WeightSpec> expected_weights(const ModelConfig& c) {
  c.validate();
  const std::int64_t q_size = c.num_heads * c.head_dim;
  const std::int64_t kv_size = c.num_kv_heads * c.head_dim;
  std::vector<WeightSpec> specs = {{"model.embed_tokens.weight", {c.vocab_size, c.hidden_size}}};
  for (std::int64_t n = 0; n < c.num_layers; ++n) {
    const auto add = [&](const char* name, std::vector<std::int64_t> shape) {
      specs.push_back({fmt::format("model.layers.{}.{}", n, name), std::move(shape)});
    };
    add("input_layernorm.weight", {c.hidden_size});
    add("self_attn.q_proj.weight", {q_size, c.hidden_size});
    add("self_attn.k_proj.weight", {kv_size, c.hidden_size});
    add("self_attn.v_proj.weight", {kv_size, c.hidden_size});
    if (c.qkv_bias) {
      add("self_attn.q_proj.bias", {q_size});
      add("self_attn.k_proj.bias", {kv_size});
      add("self_attn.v_proj.bias", {kv_size});
    }
    if (c.qk_norm) {
      add("self_attn.q_norm.weight", {c.head_dim});
      add("self_attn.k_norm.weight", {c.head_dim});
    }
    add("self_attn.o_proj.weight", {c.hidden_size, q_size});
    add("post_attention_layernorm.weight", {c.hidden_size});
    if (c.norm_after) {
      add("pre_feedforward_layernorm.weight", {c.hidden_size});
      add("post_feedforward_layernorm.weight", {c.hidden_size});
    }
    add("mlp.gate_proj.weight", {c.intermediate_size, c.hidden_size});
    add("mlp.up_proj.weight", {c.intermediate_size, c.hidden_size});
    add("mlp.down_proj.weight", {c.hidden_size, c.intermediate_size});
  }
  specs.push_back({"model.norm.weight", {c.hidden_size}});
  if (!c.tie_embeddings) specs.push_back({"lm_head.weight", {c.vocab_size, c.hidden_size}});
  return specs;
}

void check_weights(const ModelConfig& config, const NamedTensors& weights) {
  // A count from a damaged file may be anything: layers are not listed before there can be as many.
  if (config.num_layers > static_cast<std::int64_t>(weights.size())) {
    throw_invalid(fmt::format("model weights: num_layers is {}, but there are {} tensors in all",
                              config.num_layers, weights.size()));
  }
  std::vector<std::string> faults;
  std::set<std::string_view> expected;
  std::size_t used = 0;
  const std::vector<WeightSpec> specs = expected_weights(config);
  for (const WeightSpec& spec : specs) {
    expected.insert(spec.name);
    const auto it = weights.find(spec.name);
    if (it == weights.end()) {
      faults.push_back(fmt::format("{}: missing, expected {}", spec.name, dims_string(spec.shape)));
      continue;
    }
    ++used;
    if (std::string fault = fault_of(spec, it->second); !fault.empty()) faults.push_back(std::move(fault));
  }
  if (used < weights.size()) {
    for (const auto& [name, tensor] : weights) {
      if (!expected.contains(name) && !is_superfluous(config, name)) {
        faults.push_back(fmt::format("{}: a {} model of this configuration has no use for it", name,
                                     architecture_name(config.architecture)));
      }
    }
  }
  if (faults.empty()) return;
  constexpr std::size_t kShown = 8;
  std::string message = fmt::format(
      "model weights: {}", fmt::join(faults.begin(), faults.begin() + std::min(faults.size(), kShown), "; "));
  if (faults.size() > kShown) message += fmt::format("; and {} more", faults.size() - kShown);
  throw_invalid(message);
}

ModelRope make_rope_tables(const ModelConfig& config, const NamedTensors& weights,
                           std::int64_t max_position) {
  const auto factors = weights.find(kRopeFreqsName);
  if (factors != weights.end() && factors->second.device != Device{}) {
    throw_invalid(fmt::format("model weights: {}: expected it on the host, got {}", kRopeFreqsName,
                              to_string(factors->second.device)));
  }
  const int head_dim = static_cast<int>(config.head_dim);
  ModelRope rope{make_rope_tables(max_position, head_dim, config.rope_theta, config.rope_scaling,
                                  factors == weights.end() ? TensorView{} : factors->second),
                 {}};
  if (config.sliding_window > 0 && config.local_rope_theta > 0)
    rope.local = make_rope_tables(max_position, head_dim, config.local_rope_theta);
  return rope;
}

}  // namespace kf
