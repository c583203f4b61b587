#include "tiny_model.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace kf::tests {
namespace {

using Vector = std::vector<double>;

class Reference {
 public:
  explicit Reference(const TinyModel& model) : model_(model), c_(model.config) {}

  std::vector<Vector> logits(const std::vector<std::int32_t>& tokens) const {
    const Vector table = values("model.embed_tokens.weight");
    std::vector<Vector> hidden;
    for (const std::int32_t id : tokens) {
      hidden.emplace_back(table.begin() + id * c_.hidden_size, table.begin() + (id + 1) * c_.hidden_size);
    }
    for (std::int64_t n = 0; n < c_.num_layers; ++n) layer("model.layers." + std::to_string(n) + ".", hidden);
    std::vector<Vector> out;
    for (const Vector& h : hidden) {
      out.push_back(
          linear(norm(h, "model.norm.weight"), c_.tie_embeddings ? "model.embed_tokens" : "lm_head"));
    }
    return out;
  }

 private:
  void layer(const std::string& prefix, std::vector<Vector>& hidden) const {
    const std::string attn = prefix + "self_attn.";
    std::vector<Vector> q, k, v;
    for (std::size_t t = 0; t < hidden.size(); ++t) {
      const Vector x = norm(hidden[t], prefix + "input_layernorm.weight");
      q.push_back(rotated(linear(x, attn + "q_proj", c_.qkv_bias), attn + "q_norm.weight", t));
      k.push_back(rotated(linear(x, attn + "k_proj", c_.qkv_bias), attn + "k_norm.weight", t));
      v.push_back(linear(x, attn + "v_proj", c_.qkv_bias));
    }
    for (std::size_t t = 0; t < hidden.size(); ++t)
      add(hidden[t], linear(attend(q[t], k, v, t), attn + "o_proj"));
    for (Vector& h : hidden) {
      const Vector x = norm(h, prefix + "post_attention_layernorm.weight");
      Vector gate = linear(x, prefix + "mlp.gate_proj");
      const Vector up = linear(x, prefix + "mlp.up_proj");
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      add(h, linear(gate, prefix + "mlp.down_proj"));
    }
  }

  Vector attend(const Vector& q, const std::vector<Vector>& k, const std::vector<Vector>& v,
                std::size_t t) const {
    const std::int64_t d = c_.head_dim, group = c_.num_heads / c_.num_kv_heads;
    Vector out(q.size(), 0.0);
    for (std::int64_t h = 0; h < c_.num_heads; ++h) {
      const std::int64_t kv = h / group * d;
      Vector p(t + 1);
      for (std::size_t j = 0; j <= t; ++j) {
        for (std::int64_t i = 0; i < d; ++i) p[j] += q[h * d + i] * k[j][kv + i];
        p[j] /= std::sqrt(static_cast<double>(d));
      }
      const double top = *std::max_element(p.begin(), p.end());
      double sum = 0;
      for (double& x : p) sum += x = std::exp(x - top);
      for (std::size_t j = 0; j <= t; ++j) {
        for (std::int64_t i = 0; i < d; ++i) out[h * d + i] += p[j] / sum * v[j][kv + i];
      }
    }
    return out;
  }

  // Every head: normalised where the model has that, then turned by the position's angles.
  Vector rotated(Vector x, const std::string& norm_name, std::size_t position) const {
    const std::int64_t d = c_.head_dim;
    for (std::size_t begin = 0; begin < x.size(); begin += d) {
      Vector head(x.begin() + begin, x.begin() + begin + d);
      if (c_.qk_norm) head = norm(head, norm_name);
      for (std::int64_t i = 0; i < d / 2; ++i) {
        const double angle = position * frequency(i);
        const std::int64_t first = c_.rope_interleaved ? 2 * i : i;
        const std::int64_t second = c_.rope_interleaved ? 2 * i + 1 : i + d / 2;
        x[begin + first] = head[first] * std::cos(angle) - head[second] * std::sin(angle);
        x[begin + second] = head[second] * std::cos(angle) + head[first] * std::sin(angle);
      }
    }
    return x;
  }

  // Llama 3's scaling: long wavelengths are stretched, short ones stay, those between are interpolated.
  double frequency(std::int64_t i) const {
    const double f = std::pow(c_.rope_theta, -2.0 * i / c_.head_dim);
    const RopeScaling& s = c_.rope_scaling;
    if (s.factor == 1.0f) return f;
    const double wavelength = 2 * std::acos(-1.0) / f;
    const double turns = static_cast<double>(s.original_max_position) / wavelength;
    if (turns < s.low_freq_factor) return f / s.factor;
    if (turns > s.high_freq_factor) return f;
    const double smooth = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    return (1 - smooth) * f / s.factor + smooth * f;
  }

  Vector norm(const Vector& x, const std::string& weight_name) const {
    const Vector w = values(weight_name);
    double sum = 0;
    for (const double e : x) sum += e * e;
    Vector out(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
      out[i] = x[i] / std::sqrt(sum / x.size() + c_.rms_norm_eps) * w[i];
    return out;
  }

  Vector linear(const Vector& x, const std::string& module, bool with_bias = false) const {
    const Vector w = values(module + ".weight");
    Vector out = with_bias ? values(module + ".bias") : Vector(w.size() / x.size(), 0.0);
    for (std::size_t i = 0; i < out.size(); ++i) {
      for (std::size_t j = 0; j < x.size(); ++j) out[i] += w[i * x.size() + j] * x[j];
    }
    return out;
  }

  static void add(Vector& to, const Vector& x) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += x[i];
  }

  const Vector& values(const std::string& name) const {
    Vector& v = decoded_[name];
    const TensorView& t = model_.weights.at(name);
    if (v.empty()) {
      for (std::int64_t i = 0; i < t.numel(); ++i) v.push_back(cases::element(t, i));
    }
    return v;
  }

  const TinyModel& model_;
  const ModelConfig& c_;
  mutable std::map<std::string, Vector> decoded_;
};

}  // namespace

TinyModel make_tiny_model(Architecture architecture, const TinyModelOptions& o) {
  TinyModel m{ModelConfig::of(architecture), {}, nullptr};
  ModelConfig& c = m.config;
  c.hidden_size = 64;
  c.intermediate_size = 96;
  c.num_layers = 2;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 32;
  c.vocab_size = 96;
  c.max_positions = 512;
  c.tie_embeddings = o.tie_embeddings;
  c.rope_interleaved = o.rope_interleaved;
  if (o.rope_scaling)
    c.rope_scaling = {.factor = 8, .low_freq_factor = 1, .high_freq_factor = 4, .original_max_position = 64};

  m.memory = std::make_shared<cases::Maker>(std::string("tiny ") + architecture_name(architecture));
  for (const WeightSpec& spec : expected_weights(c)) {
    TensorView& t = m.weights[spec.name];
    const DType vector_dtype = o.matrix_dtype == DType::bf16 ? DType::bf16 : DType::f32;
    if (spec.shape.size() == 2) {
      const bool embeds = spec.name == "model.embed_tokens.weight";
      const float scale = embeds ? 1.0f : 1.0f / std::sqrt(static_cast<float>(spec.shape[1]));
      t = m.memory->normal(o.matrix_dtype, {spec.shape[0], spec.shape[1]}, scale);
    } else {
      const bool is_bias = spec.name.ends_with(".bias");
      t = m.memory->normal(vector_dtype, {spec.shape[0]}, is_bias ? 0.5f : 0.1f, is_bias ? 0.0f : 1.0f);
    }
  }
  return m;
}

std::vector<std::vector<double>> reference_logits(const TinyModel& model,
                                                  const std::vector<std::int32_t>& tokens) {
  return Reference(model).logits(tokens);
}

double logits_tolerance(const ModelConfig& c, std::size_t num_tokens, double roundoff) {
  // The lengths of the sums that follow each other in a layer: two norms, the projections, scores and values;
  // the FFN's two; the residual additions.
  const double layer = 2.0 * c.hidden_size + c.hidden_size + c.head_dim + static_cast<double>(num_tokens) +
                       c.num_heads * c.head_dim + c.hidden_size + c.intermediate_size + 2;
  return (c.num_layers * layer + 2.0 * c.hidden_size) * roundoff;
}

std::vector<std::int32_t> random_tokens(const ModelConfig& config, std::size_t count, std::string_view seed) {
  cases::Maker maker(seed);
  std::uniform_int_distribution<std::int32_t> id(0, static_cast<std::int32_t>(config.vocab_size) - 1);
  std::vector<std::int32_t> tokens(count);
  for (std::int32_t& t : tokens) t = id(maker.rng());
  return tokens;
}

}  // namespace kf::tests
