// Every CUDA kernel, one row each: op by op, best first. A call takes the first row of its op that accepts it and is of a
// configured family.

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/cudnn.h"
#include "backends/cuda/attention/unfused.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/elementwise/pointwise.h"
#include "backends/cuda/elementwise/quantized_rows.h"
#include "backends/cuda/elementwise/softmax.h"
#include "backends/cuda/linear/linear.h"
#include "backends/cuda/norm/norm.h"
#include "backends/cuda/rope/append_quantized.h"
#include "backends/cuda/rope/rope.h"
#include "backends/cuda/sampling/sampling.h"
#include "backends/cuda/supports.h"
#include "core/fields.h"
#include "kf/families.h"

namespace kf::cuda {

namespace {

constexpr const char* kAnyLayout = "any layout with a contiguous last dimension";
constexpr const char* kProducts = "any number of tokens: products, and launches for what stands around them";
constexpr const char* kSmall = "up to 4 tokens, weights of x's dtype in rows of neighbouring elements";
constexpr const char* kStreamed =
    "2 to 16 tokens, f16 and bf16, weights of x's dtype in rows of 16 bytes; sm_90 and newer";
constexpr const char* kDecoded =
    "up to 16 tokens, weights of any dtype, low-bit or sparse, decoded in registers";

// What a weight is read with, by the operand's name.
void add_weight(std::set<std::string>& names, const std::string& weight) {
  for (const char* beside : {"", "_scales", "_zeros", "_mask", "_offsets"}) names.insert(weight + beside);
}

// Ops whose kernels say for themselves which dtypes they take.
const std::set<Op>& ops_of_many_dtypes() {
  static const std::set<Op> ops = {Op::linear,         Op::qkv_linear,      Op::gated_ffn,
                                   Op::lm_head_argmax, Op::attention,       Op::attention_scores,
                                   Op::attention_mask, Op::attention_values};
  return ops;
}

// The operands that these kernels know: whatever else an op may take (adapters) is refused.
const std::map<Op, std::set<std::string>>& known_operands() {
  static const std::map<Op, std::set<std::string>> known = [] {
    std::map<Op, std::set<std::string>> ops = {
        {Op::linear, {"x", "bias", "residual", "out", "norm_weight", "norm_bias"}},
        {Op::qkv_linear, {"x", "q_bias", "k_bias", "v_bias", "q", "k", "v", "norm_weight", "norm_bias"}},
        {Op::gated_ffn, {"x", "residual", "out", "norm_weight", "norm_bias"}},
        {Op::lm_head_argmax, {"x", "ids", "max", "norm_weight", "norm_bias"}},
        {Op::rms_norm, {"x", "weight", "residual", "out", "residual_out"}},
        {Op::layer_norm, {"x", "weight", "bias", "residual", "out", "residual_out"}},
        {Op::binary, {"a", "b", "out"}},
        {Op::activation, {"x", "out"}},
        {Op::gated_activation, {"gate", "up", "out"}},
        {Op::softmax, {"x", "out", "lse", "mask"}},
        {Op::quantize, {"x", "out"}},
        {Op::rope, {"x", "positions", "cos", "sin", "norm_weight", "out"}},
        {Op::append_kv, {"k", "v", "slot_mapping", "k_cache", "v_cache"}},
        {Op::rope_append,
         {"q", "k", "v", "positions", "cos", "sin", "q_norm_weight", "k_norm_weight", "slot_mapping",
          "k_cache", "v_cache", "q_out"}},
        {Op::attention,
         {"q", "k", "v", "out", "lse", "cu_seqlens_q", "cu_seqlens_k", "block_tables", "context_lens",
          "alibi_slopes", "attn_mask", "sinks", "k_scales", "k_zeros", "v_scales", "v_zeros"}},
        {Op::attention_scores,
         {"q", "k", "scores", "cu_seqlens_q", "cu_seqlens_k", "block_tables", "context_lens", "k_scales",
          "k_zeros"}},
        {Op::attention_mask,
         {"scores", "out", "cu_seqlens_q", "cu_seqlens_k", "block_tables", "context_lens", "alibi_slopes",
          "attn_mask", "block_layout"}},
        {Op::attention_values,
         {"probs", "v", "out", "cu_seqlens_q", "cu_seqlens_k", "block_tables", "context_lens", "v_scales",
          "v_zeros"}},
        {Op::merge_attention, {"out_a", "lse_a", "out_b", "lse_b", "out", "lse"}},
        {Op::embedding, {"ids", "table", "out"}},
        {Op::argmax, {"logits", "ids", "max"}},
        {Op::sample, {"logits", "ids"}},
    };
    add_weight(ops[Op::linear], "weight");
    for (const char* w : {"q_weight", "k_weight", "v_weight"}) add_weight(ops[Op::qkv_linear], w);
    for (const char* w : {"gate_weight", "up_weight", "down_weight"}) add_weight(ops[Op::gated_ffn], w);
    add_weight(ops[Op::lm_head_argmax], "weight");
    return ops;
  }();
  return known;
}

// What lies beside operands in 8 or 4 bits that a kernel writes.
const std::set<std::string>& beside_written_codes() {
  static const std::set<std::string> names = {"static_scale",  "out_scales",     "k_cache_scales",
                                              "k_cache_zeros", "v_cache_scales", "v_cache_zeros"};
  return names;
}

// Only those, and of data only f32, f16 and bf16; of kernels that write codes these, too.
Support known_only(Op op, const void* params, bool writes_codes) {
  const auto found = known_operands().find(op);
  if (found == known_operands().end())
    return Support::no(std::string(op_name(op)) + ": its operands are not listed in known_operands()");
  const std::set<std::string>& known = found->second;
  for (const Field& f : Fields(op, params)) {
    if (!f.is_given()) continue;
    if (writes_codes && beside_written_codes().contains(f.name)) continue;
    if (!known.contains(f.name)) return Support::no(std::string(f.name) + " given: this kernel takes none");
    const DType dtype = f.view->dtype;
    if (writes_codes || dtype == DType::i32 || dtype == DType::i64 || dtype == DType::boolean ||
        ops_of_many_dtypes().contains(op))
      continue;
    if (const Support plain = plain_dtype(f.name, *f.view); !plain) return plain;
  }
  return Support::yes();
}

Kernel guarded(Kernel k, bool writes_codes) {
  k.supports = [op = k.op, writes_codes, supports = k.supports](const void* params, const PlanContext& ctx) {
    if (const Support s = known_only(op, params, writes_codes); !s) return s;
    return supports(params, ctx);
  };
  return k;
}

}  // namespace

std::vector<Kernel> kernels() {
  std::vector<Kernel> all = {
      // --- linear, qkv_linear, gated_ffn, lm_head_argmax ---
      make_kernel<LinearParams, StreamedState>("cuda::linear_streamed", kFused, kStreamed, streamed::supports,
                                               streamed::prepare, streamed::run),
      make_kernel<LinearParams, SmallState>("cuda::linear_small", kFused, kSmall, small::supports,
                                            small::prepare, small::run),
      make_kernel<LinearParams, SmallState>("cuda::linear_decoded", kFused, kDecoded, decoded::supports,
                                            small::prepare, decoded::run),
      make_kernel<LinearParams, CublasLtState>("cuda::linear_cublaslt", kFused | kVanilla,
                                               "one dtype; no prologue, activation or residual",
                                               cublaslt::supports, cublaslt::prepare, cublaslt::run),
      make_kernel<LinearParams, CublasLtState>("cuda::linear_cublaslt_residual", kFused | kLibrary,
                                               "one dtype; no prologue or activation",
                                               cublaslt::supports_residual, cublaslt::prepare, cublaslt::run),
      make_kernel<LinearParams, ProductsState>("cuda::linear_products", kFused, kProducts, products::supports,
                                               products::prepare, products::run),
      make_kernel<LinearParams, SmallState>("cuda::linear_decoded_tiles", kFused,
                                            "any number of tokens, weights of any dtype; no prologue",
                                            decoded::supports_tiles, small::prepare, decoded::run_tiles),
      make_kernel<LinearParams, decoded::UnfusedState>(
          "cuda::linear_decoded_unfused", kVanilla,
          "weights of any dtype; no prologue, activation or residual", decoded::supports_unfused,
          decoded::prepare_unfused, decoded::run_unfused),
      make_kernel<QkvLinearParams, StreamedState>("cuda::qkv_linear_streamed", kFused, kStreamed,
                                                  streamed::supports, streamed::prepare, streamed::run),
      make_kernel<QkvLinearParams, SmallState>("cuda::qkv_linear_small", kFused, kSmall, small::supports,
                                               small::prepare, small::run),
      make_kernel<QkvLinearParams, SmallState>("cuda::qkv_linear_decoded", kFused, kDecoded,
                                               decoded::supports, small::prepare, decoded::run),
      make_kernel<QkvLinearParams, ProductsState>("cuda::qkv_linear_products", kFused, kProducts,
                                                  products::supports, products::prepare, products::run),
      make_kernel<GatedFfnParams, StreamedState>("cuda::gated_ffn_streamed", kFused, kStreamed,
                                                 streamed::supports, streamed::prepare, streamed::run),
      make_kernel<GatedFfnParams, SmallState>("cuda::gated_ffn_small", kFused, kSmall, small::supports,
                                              small::prepare_ffn, small::run),
      make_kernel<GatedFfnParams, SmallState>("cuda::gated_ffn_decoded", kFused, kDecoded, decoded::supports,
                                              decoded::prepare_ffn, decoded::run),
      make_kernel<GatedFfnParams, ProductsState>("cuda::gated_ffn_products", kFused, kProducts,
                                                 products::supports, products::prepare, products::run),
      make_kernel<LmHeadArgmaxParams, StreamedState>("cuda::lm_head_argmax_streamed", kFused, kStreamed,
                                                     streamed::supports, streamed::prepare, streamed::run),
      make_kernel<LmHeadArgmaxParams, SmallState>("cuda::lm_head_argmax_small", kFused, kSmall,
                                                  small::supports, small::prepare_largest, small::run),
      make_kernel<LmHeadArgmaxParams, SmallState>("cuda::lm_head_argmax_decoded", kFused, kDecoded,
                                                  decoded::supports, small::prepare_largest, decoded::run),
      make_kernel<LmHeadArgmaxParams, ProductsState>(
          "cuda::lm_head_argmax_products", kFused, "any number of tokens: the product, and the largest of it",
          products::supports, products::prepare, products::run),

      // --- rms_norm, layer_norm ---
      make_kernel("cuda::rms_norm_plain", kFused | kVanilla, "no residual", rms_norm_plain_supports,
                  rms_norm_run),
      make_kernel("cuda::rms_norm_residual", kFused, "with or without residual", rms_norm_supports,
                  rms_norm_run),
      make_kernel("cuda::layer_norm_plain", kFused | kVanilla, "no residual", layer_norm_plain_supports,
                  layer_norm_run),
      make_kernel("cuda::layer_norm_residual", kFused, "with or without residual", layer_norm_supports,
                  layer_norm_run),

      // --- binary, activation, gated_activation, softmax ---
      make_kernel("cuda::binary_plain", kFused | kVanilla, kAnyLayout, binary_supports, binary_run),
      make_kernel("cuda::activation_plain", kFused | kVanilla, kAnyLayout, activation_supports,
                  activation_run),
      make_kernel("cuda::gated_activation_fused", kFused, kAnyLayout, gated_activation_supports,
                  gated_activation_run),
      make_kernel("cuda::softmax_plain", kFused | kVanilla, kAnyLayout, softmax_supports, softmax_run),

      // --- rope, append_kv, rope_append ---
      make_kernel("cuda::rope_plain", kFused | kVanilla, "no QK-norm", rope_plain_supports, rope_run),
      make_kernel("cuda::rope_qk_norm", kFused, "with or without QK-norm", rope_supports, rope_run),
      make_kernel("cuda::append_kv_plain", kFused | kVanilla, kAnyLayout, append_kv_supports, append_kv_run),
      make_kernel("cuda::rope_append_fused", kFused, kAnyLayout, rope_append_supports, rope_append_run),

      // --- attention, attention_scores, attention_mask, attention_values, merge_attention ---
      make_kernel<AttentionParams, attention::State>(
          "cuda::attention_flash2", kFused, "f16 and bf16; rows in chunks of 16 bytes; head_dim up to 256",
          flash2_supports, flash2_prepare, flash2_run),
      make_kernel<AttentionParams, attention::State>(
          "cuda::attention_f32", kFused, "any dtypes, quantized keys and values; head_dim up to 256",
          attention_f32_supports, attention_f32_prepare, attention_f32_run),
      make_kernel<AttentionParams, CudnnState>(
          "cuda::attention_cudnn", kFlash3,
          "f16 and bf16, dense batches, all keys or causal; head_dim up to 256", cudnn_supports,
          cudnn_prepare, cudnn_run),
      make_kernel("cuda::attention_scores_plain", kFused | kVanilla, "any dtypes, in f32",
                  attention_scores_supports, attention_scores_run),
      make_kernel("cuda::attention_mask_plain", kFused | kVanilla, "any call", attention_mask_supports,
                  attention_mask_run),
      make_kernel("cuda::attention_values_plain", kFused | kVanilla, "any dtypes, in f32",
                  attention_values_supports, attention_values_run),
      make_kernel("cuda::merge_attention_plain", kFused | kVanilla, kAnyLayout, merge_attention_supports,
                  merge_attention_run),

      // --- embedding, argmax, sample ---
      make_kernel("cuda::embedding_plain", kFused | kVanilla, "table f32, f16 or bf16", embedding_supports,
                  embedding_run),
      make_kernel("cuda::argmax_plain", kFused | kVanilla, kAnyLayout, argmax_supports, argmax_run,
                  argmax_workspace),
      make_kernel("cuda::sample_plain", kFused | kVanilla, kAnyLayout, sample_supports, sample_run),
  };
  for (Kernel& k : all) k = guarded(std::move(k), false);

  // --- what is written in 8 or 4 bits ---
  constexpr const char* kCodes = "8-bit outputs, with a scale a row or one in all";
  constexpr const char* kCaches = "caches of int4, i8 and fp8";
  for (Kernel& k :
       std::vector<Kernel>{make_kernel("cuda::quantize_plain", kFused | kVanilla, kAnyLayout,
                                       quantize_supports, quantize_run),
                           make_kernel("cuda::rms_norm_quantized", kFused, kCodes,
                                       rms_norm_quantized_supports, rms_norm_quantized_run),
                           make_kernel("cuda::layer_norm_quantized", kFused, kCodes,
                                       layer_norm_quantized_supports, layer_norm_quantized_run),
                           make_kernel("cuda::activation_quantized", kFused, kCodes,
                                       activation_quantized_supports, activation_quantized_run),
                           make_kernel("cuda::gated_activation_quantized", kFused, kCodes,
                                       gated_activation_quantized_supports, gated_activation_quantized_run),
                           make_kernel("cuda::append_kv_quantized", kFused | kVanilla, kCaches,
                                       append_kv_quantized_supports, append_kv_quantized_run),
                           make_kernel("cuda::rope_append_quantized", kFused, kCaches,
                                       rope_append_quantized_supports, rope_append_quantized_run)})
    all.push_back(guarded(std::move(k), true));
  return all;
}

}  // namespace kf::cuda
