// The forward pass of the Llama family and its relatives, in primitive ops: what is computed, and nothing of how.
#include <cmath>

#include <fmt/format.h>

#include "kf/error.h"
#include "kf/model.h"
#include "kf/ops/attention.h"
#include "kf/ops/elementwise.h"
#include "kf/ops/linear.h"
#include "kf/ops/norm.h"
#include "kf/ops/rope.h"
#include "kf/ops/sampling.h"

namespace kf {
namespace {

class LlamaBuilder {
 public:
  LlamaBuilder(const ModelConfig& config, const NamedTensors& weights, const RopeViews& rope,
               const KvCacheOptions& cache, DType activation_dtype)
      : c_(config),
        weights_(weights),
        cache_(cache),
        activation_dtype_(activation_dtype),
        device_(rope.cos.device) {
    num_tokens_ = g_.symbol(symbols::kNumTokens);
    const Dim batch_size = g_.symbol(symbols::kBatchSize);
    ids_ = input("ids", DType::i32, {num_tokens_});
    positions_ = input("positions", DType::i32, {num_tokens_});
    slot_mapping_ = input("slot_mapping", DType::i64, {num_tokens_});
    cu_seqlens_q_ = input("cu_seqlens_q", DType::i32, {g_.symbol(symbols::kBatchSizePlus1)});
    block_tables_ = input("block_tables", DType::i32, {batch_size, g_.symbol(symbols::kMaxPages)});
    context_lens_ = input("context_lens", DType::i32, {batch_size});
    rows_ = input("rows", DType::i32, {g_.symbol(symbols::kNumRows)});
    rope_ = local_rope_ = {g_.constant("rope_cos", rope.cos), g_.constant("rope_sin", rope.sin)};
    if (rope.local_cos.present())
      local_rope_ = {g_.constant("rope_local_cos", rope.local_cos),
                     g_.constant("rope_local_sin", rope.local_sin)};
  }

  Graph build(StepOutput output) && {
    ValueId hidden = embed();
    for (std::int64_t n = 0; n < c_.num_layers; ++n) {
      layer_ = fmt::format("layers.{}", n);
      hidden = add(hidden, attention_block(hidden, n), "attn_residual");
      hidden = add(hidden, ffn_block(hidden), "ffn_residual");
    }
    layer_ = "head";
    // Only the wanted rows go on: of a prompt that is mostly one in hundreds.
    const ValueId rows =
        g_.call(EmbeddingParams{}, {{"ids", rows_}, {"table", hidden}}, {}, label("rows")).out();
    const ValueId normed = rms_norm(rows, "model.norm.weight", "norm");
    const ValueId logits = linear(normed, c_.tie_embeddings ? "model.embed_tokens" : "lm_head", "lm_head");
    if (output == StepOutput::logits) {
      g_.output("logits", logits);
    } else {
      g_.output("ids", g_.call(ArgmaxParams{}, {{"logits", logits}}, {}, label("argmax")).out());
    }
    return std::move(g_);
  }

 private:
  struct Rope {
    ValueId cos, sin;
  };
  // A layer's caches after they were appended to; scales where they are quantized.
  struct Caches {
    ValueId k, v, k_scales, v_scales;
  };

  ValueId input(const std::string& name, DType dtype, std::vector<Dim> shape) {
    return g_.input(name, dtype, std::move(shape), device_);
  }

  ValueId embed() {
    layer_ = "embed";
    const ValueId table = weight("model.embed_tokens.weight");
    EmbeddingParams p;
    if (c_.scale_embedding) p.scale = std::sqrt(static_cast<float>(c_.hidden_size));
    const ValueId out = g_.call(p, {{"ids", ids_}, {"table", table}}, {}, label("tokens")).out();
    const DType dtype = g_.value(out).tensor.dtype;
    if (dtype == activation_dtype_) return out;
    if (activation_dtype_ != DType::f32) {
      throw_invalid(fmt::format("activation dtype: expected f32, or {} as the embedding table gives, got {}",
                                dtype_name(dtype), dtype_name(activation_dtype_)));
    }
    return g_.call(DequantizeParams{}, {{"x", out}}, {}, label("to_f32")).out();
  }

  ValueId attention_block(ValueId hidden, std::int64_t n) {
    const std::string prefix = fmt::format("model.{}.", layer_);
    const std::string attn = prefix + "self_attn.";
    const ValueId x = rms_norm(hidden, prefix + "input_layernorm.weight", "attn_norm");
    ValueId q = heads(linear(x, attn + "q_proj", "q", c_.qkv_bias), c_.num_heads);
    ValueId k = heads(linear(x, attn + "k_proj", "k", c_.qkv_bias), c_.num_kv_heads);
    const ValueId v = heads(linear(x, attn + "v_proj", "v", c_.qkv_bias), c_.num_kv_heads);
    if (c_.qk_norm) {
      q = rms_norm(q, attn + "q_norm.weight", "q_norm");
      k = rms_norm(k, attn + "k_norm.weight", "k_norm");
    }
    const Rope& tables = c_.windowed(n) ? local_rope_ : rope_;
    q = rope(q, tables, "rope_q");
    k = rope(k, tables, "rope_k");
    const ValueId out = g_.reshape(attend(q, append(k, v, n), n), {num_tokens_, c_.num_heads * c_.head_dim});
    const ValueId o = linear(out, attn + "o_proj", "o");
    return c_.norm_after ? rms_norm(o, prefix + "post_attention_layernorm.weight", "attn_norm_after") : o;
  }

  ValueId ffn_block(ValueId hidden) {
    const std::string prefix = fmt::format("model.{}.", layer_);
    const char* const norm = c_.norm_after ? "pre_feedforward_layernorm" : "post_attention_layernorm";
    const ValueId x = rms_norm(hidden, fmt::format("{}{}.weight", prefix, norm), "ffn_norm");
    const ValueId gate = linear(x, prefix + "mlp.gate_proj", "gate");
    const ValueId up = linear(x, prefix + "mlp.up_proj", "up");
    ActivationParams act;
    act.kind = c_.activation;
    const ValueId activated =
        g_.call(act, {{"x", gate}}, {}, label(kActivationNames[static_cast<std::size_t>(act.kind)])).out();
    const ValueId gated = binary(BinaryKind::mul, activated, up, "gated");
    const ValueId down = linear(gated, prefix + "mlp.down_proj", "down");
    return c_.norm_after ? rms_norm(down, prefix + "post_feedforward_layernorm.weight", "ffn_norm_after")
                         : down;
  }

  // Scores, mask, softmax, values: attention as its definition, every intermediate a value of its own.
  ValueId attend(ValueId q, const Caches& caches, std::int64_t n) {
    const Bindings tables = {
        {"cu_seqlens_q", cu_seqlens_q_}, {"block_tables", block_tables_}, {"context_lens", context_lens_}};
    const auto with_tables = [&](Bindings inputs, std::string_view scales_name, ValueId scales) {
      inputs.insert(inputs.end(), tables.begin(), tables.end());
      if (scales.valid()) inputs.emplace_back(scales_name, scales);
      return inputs;
    };
    AttentionScoresParams scores;
    scores.softmax_scale = c_.attention_scale;
    scores.softcap = c_.attention_softcap;
    scores.tables.kv_layout = cache_.layout;
    scores.seqlen_k_max = g_.symbol(symbols::kSeqlenKMax);
    AttentionMaskParams mask;
    mask.tables.kv_layout = cache_.layout;
    if (c_.windowed(n)) mask.window_left = c_.sliding_window - 1;
    AttentionValuesParams values;
    values.tables.kv_layout = cache_.layout;
    values.out_dtype = static_cast<int>(activation_dtype_);

    ValueId s = g_.call(scores, with_tables({{"q", q}, {"k", caches.k}}, "k_scales", caches.k_scales), {},
                        label("scores"))
                    .out();
    s = g_.call(mask, with_tables({{"scores", s}}, {}, {}), {}, label("mask")).out();
    s = g_.call(SoftmaxParams{}, {{"x", s}}, {}, label("softmax")).out();
    return g_
        .call(values, with_tables({{"probs", s}, {"v", caches.v}}, "v_scales", caches.v_scales), {},
              label("values"))
        .out();
  }

  Caches append(ValueId k, ValueId v, std::int64_t n) {
    AppendKvParams p;
    p.kv_layout = cache_.layout;
    Bindings inputs = {{"k", k}, {"v", v}, {"slot_mapping", slot_mapping_}};
    const auto add = [&](const char* name, DType dtype, std::int64_t width) {
      const std::vector<Dim> pool =
          cache_.layout == KvLayout::hnd
              ? std::vector<Dim>{cache_.num_pages, c_.num_kv_heads, cache_.page_size, width}
              : std::vector<Dim>{cache_.num_pages, cache_.page_size, c_.num_kv_heads, width};
      inputs.emplace_back(name, input(fmt::format("{}.{}", name, n), dtype, pool));
    };
    const bool quantized = needs_scales(cache_.dtype);
    for (const char* name : {"k_cache", "v_cache"}) add(name, cache_.dtype, c_.head_dim);
    if (quantized)
      for (const char* name : {"k_cache_scales", "v_cache_scales"}) add(name, DType::f32, 1);
    const CallResult r = g_.call(p, inputs, {}, label("append"));
    if (!quantized) return {r["k_cache"], r["v_cache"], {}, {}};
    return {r["k_cache"], r["v_cache"], r["k_cache_scales"], r["v_cache_scales"]};
  }

  ValueId rope(ValueId x, const Rope& tables, const char* name) {
    RopeParams p;
    p.interleaved = c_.rope_interleaved;
    return g_
        .call(p, {{"x", x}, {"positions", positions_}, {"cos", tables.cos}, {"sin", tables.sin}}, {},
              label(name))
        .out();
  }

  ValueId rms_norm(ValueId x, const std::string& weight_name, const char* name) {
    RmsNormParams p;
    p.eps = c_.rms_norm_eps;
    p.weight_offset = c_.norm_weight_offset;
    return g_.call(p, {{"x", x}, {"weight", weight(weight_name)}}, {}, label(name)).out();
  }

  ValueId linear(ValueId x, const std::string& module, const char* name, bool bias = false) {
    const ValueId w = weight(module + ".weight");
    Bindings inputs = {{"x", x}, {"weight", w}};
    if (bias) inputs.emplace_back("bias", weight(module + ".bias"));
    return g_.call(LinearParams{}, inputs, {}, label(name)).out();
  }

  ValueId binary(BinaryKind kind, ValueId a, ValueId b, const char* name) {
    BinaryParams p;
    p.kind = kind;
    return g_.call(p, {{"a", a}, {"b", b}}, {}, label(name)).out();
  }
  ValueId add(ValueId a, ValueId b, const char* name) { return binary(BinaryKind::add, a, b, name); }

  ValueId heads(ValueId x, std::int64_t num_heads) {
    return g_.reshape(x, {num_tokens_, num_heads, c_.head_dim});
  }

  // A tied embedding is one value, whichever layer uses it.
  ValueId weight(const std::string& name) {
    const auto [it, inserted] = constants_.try_emplace(name);
    if (inserted) it->second = g_.constant(name, weights_.find(name)->second);
    return it->second;
  }

  std::string label(const char* name) const { return fmt::format("{}.{}", layer_, name); }

  const ModelConfig& c_;
  const NamedTensors& weights_;
  const KvCacheOptions& cache_;
  const DType activation_dtype_;
  const Device device_;
  Graph g_;
  Dim num_tokens_;
  ValueId ids_, positions_, slot_mapping_, cu_seqlens_q_, block_tables_, context_lens_, rows_;
  Rope rope_, local_rope_;
  std::map<std::string, ValueId> constants_;
  std::string layer_;
};

}  // namespace

Graph build_graph(const ModelConfig& config, const NamedTensors& weights, const RopeViews& rope,
                  const KvCacheOptions& cache, StepOutput output, DType activation_dtype) {
  config.validate();
  check_weights(config, weights);
  if (!is_activation_dtype(activation_dtype)) {
    throw_invalid(
        fmt::format("activation dtype: expected f32, f16 or bf16, got {}", dtype_name(activation_dtype)));
  }
  return LlamaBuilder(config, weights, rope, cache, activation_dtype).build(output);
}

}  // namespace kf
