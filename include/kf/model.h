// The Llama family and its relatives as one op graph: what a model is (ModelConfig), what its weights are called, and its
// forward pass written in primitive ops, which fusion rules then rewrite.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kf/graph.h"
#include "kf/kv_cache.h"
#include "kf/ops/common.h"
#include "kf/ops/rope.h"

namespace kf {

// Decoder-only models with RMSNorm, rotary positions, grouped-query attention and a gated FFN. They differ in
// biases (Qwen2), in a norm of each query and key head (Qwen3, Gemma 3), and in what Gemma has: norms after each part
// too, 1 + weight, GELU, a scaled embedding, and (Gemma 2) soft caps. Phi-3 is Llama once its merged weights are sliced.
enum class Architecture : std::uint8_t { llama, mistral, qwen2, qwen3, phi3, gemma2, gemma3_text };
const char* architecture_name(Architecture architecture);
// From `model_type` of a config.json or `general.architecture` of a GGUF file. Throws not_implemented, naming
// what is served.
Architecture architecture_from_name(std::string_view name);

struct ModelConfig {
  Architecture architecture = Architecture::llama;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_positions = 0;         // longest sequence that the model was made for
  std::int64_t sliding_window = 0;        // keys that a token attends, its own included; 0: all before it
  std::vector<std::int64_t> full_layers;  // those that attend all, whatever the window
  float rms_norm_eps = 1e-5f;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  double local_rope_theta = 0;   // of layers with the window, unscaled; 0: as the others
  float attention_scale = 0.0f;  // 0: 1 / sqrt(head_dim)
  float attention_softcap = 0.0f;
  float logit_softcap = 0.0f;  // of the last layer: cap tanh(x / cap); 0: none
  bool rope_interleaved =
      false;                    // GGUF's llama files, whose q and k rows are permuted; others are half-split
  bool tie_embeddings = false;  // the last layer is the embedding table
  bool qkv_bias = false;
  bool qk_norm = false;
  bool norm_after = false;       // each part's result is normalised before it joins the stream
  bool scale_embedding = false;  // by sqrt(hidden_size)
  float norm_weight_offset = 0.0f;
  Activation activation = Activation::silu;

  bool windowed(std::int64_t layer) const {
    return sliding_window > 0 && std::ranges::find(full_layers, layer) == full_layers.end();
  }
  // The parts that the architecture settles (biases, norms); the sizes are left to fill in.
  static ModelConfig of(Architecture architecture);
  // Throws invalid_argument unless the sizes are positive, within what 32-bit ids can name, and fit together.
  void validate() const;
};

// Weights by canonical name, as Hugging Face calls them ("model.layers.3.self_attn.q_proj.weight"). The
// memory stays the caller's.
using NamedTensors = std::map<std::string, TensorView, std::less<>>;

// Scales of the rotary frequencies, f32 [head_dim / 2]: optional among the weights (GGUF files of Llama 3.1
// have it).
inline constexpr std::string_view kRopeFreqsName = "rope_freqs.weight";

// The canonical name of a GGUF tensor ("blk.3.attn_q.weight"); nullopt: not a tensor of this family. Phi-3's merged
// layers are named as its own files name them, and are to be sliced.
std::optional<std::string> canonical_tensor_name(std::string_view gguf_name,
                                                 Architecture architecture = Architecture::llama);

// What a model of this configuration needs, in file order. Throws invalid_argument where its sizes do not
// fit.
struct WeightSpec {
  std::string name;
  std::vector<std::int64_t> shape;
};
std::vector<WeightSpec> expected_weights(const ModelConfig& config);
// Throws invalid_argument that names the tensors that are missing, of another shape, of a dtype that is not
// served, or that the configuration has no use for (a bias that would be silently ignored).
void check_weights(const ModelConfig& config, const NamedTensors& weights);

// Tables for positions 0 .. max_position - 1; those of layers with the window are absent where they are the others'.
struct ModelRope {
  RopeTables tables;
  std::optional<RopeTables> local;
};
ModelRope make_rope_tables(const ModelConfig& config, const NamedTensors& weights, std::int64_t max_position);

// Such tables wherever they lie.
struct RopeViews {
  TensorView cos, sin;
  TensorView local_cos, local_sin;  // absent: the others
  RopeViews() = default;
  RopeViews(const ModelRope& t) : cos(t.tables.cos), sin(t.tables.sin) {
    if (t.local) local_cos = t.local->cos, local_sin = t.local->sin;
  }
};

// What a forward pass gives for each requested row.
enum class StepOutput : std::uint8_t {
  logits,  // "logits": activation dtype [num_rows, vocab_size]
  ids,     // "ids": i32 [num_rows], the greedy choice
};

// Names of the graph's symbolic dimensions.
namespace symbols {
inline constexpr char kNumTokens[] = "num_tokens";
inline constexpr char kBatchSize[] = "batch_size";
inline constexpr char kBatchSizePlus1[] = "batch_size_plus_1";
inline constexpr char kMaxPages[] = "max_pages";
inline constexpr char kNumRows[] = "num_rows";
inline constexpr char kSeqlenKMax[] =
    "seqlen_k_max";  // width of the score matrices, where attention is not fused
}  // namespace symbols

// One decoder pass over packed tokens of a batch, appending to the cache before it attends. Inputs:
//   ids i32 [num_tokens], positions i32 [num_tokens], slot_mapping i64 [num_tokens], cu_seqlens_q i32
//   [batch_size + 1], block_tables i32 [batch_size, max_pages], context_lens i32 [batch_size], rows i32
//   [num_rows] (which tokens' outputs are wanted), and k_cache.N, v_cache.N, the page pools of layer N;
// of a quantized cache k_cache_scales.N and v_cache_scales.N too.
// All of them on the device of `rope` and the weights, which must outlive the graph. Activations are f32, or the dtype of the embedding table.
Graph build_graph(const ModelConfig& config, const NamedTensors& weights, const RopeViews& rope,
                  const KvCacheOptions& cache, StepOutput output, DType activation_dtype = DType::f32);

}  // namespace kf
