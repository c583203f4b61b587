// Op by op, best first.

#include "backends/cuda/portable.h"

#include <utility>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/unfused.h"
#include "backends/cuda/elementwise/pointwise.h"
#include "backends/cuda/elementwise/quantized.h"
#include "backends/cuda/elementwise/softmax.h"
#include "backends/cuda/guarded.h"
#include "backends/cuda/linear/linear.h"
#include "backends/cuda/norm/norm.h"
#include "backends/cuda/norm/quantized.h"
#include "backends/cuda/rope/append_quantized.h"
#include "backends/cuda/rope/rope.h"
#include "backends/cuda/sampling/sampling.h"
#include "kf/families.h"

namespace kf::cuda {

std::vector<Kernel> portable_kernels(const std::string& backend) {
  constexpr const char* kAnyLayout = "any layout with a contiguous last dimension";
  const auto name = [&](const char* kernel) { return backend + "::" + kernel; };
  constexpr const char* kGemv = "up to 4 tokens, weights of x's dtype in rows of neighbouring elements";
  constexpr const char* kDequant =
      "up to 16 tokens, weights of any dtype, low-bit or sparse, decoded in registers";
  constexpr const char* kProducts =
      "any number of tokens: products, and launches for what stands around them";
  std::vector<Kernel> all = {
      // --- linear, qkv_linear, gated_ffn, lm_head_argmax ---
      make_kernel<LinearParams, GemvState>(name("linear_gemv"), kFused, kGemv, gemv::supports, gemv::prepare,
                                           gemv::run),
      make_kernel<LinearParams, DequantState>(name("linear_dequant_gemv"), kFused, kDequant,
                                              dequant::supports, dequant::prepare, dequant::run),
      make_kernel<LinearParams, ProductsState>(name("linear_products"), kFused, kProducts, products::supports,
                                               products::prepare, products::run),
      make_kernel<LinearParams, GemvState>(name("linear_dequant_gemm"), kFused,
                                           "any number of tokens, weights of any dtype; no prologue",
                                           dequant::supports_gemm, gemv::prepare, dequant::run_gemm),
      make_kernel<LinearParams, DequantState>(name("linear_dequant_unfused"), kVanilla,
                                              "weights of any dtype; no prologue, activation or residual",
                                              dequant::supports_unfused, dequant::prepare_unfused,
                                              dequant::run_unfused),
      make_kernel<QkvLinearParams, GemvState>(name("qkv_linear_gemv"), kFused, kGemv, gemv::supports,
                                              gemv::prepare, gemv::run),
      make_kernel<QkvLinearParams, DequantState>(name("qkv_linear_dequant_gemv"), kFused, kDequant,
                                                 dequant::supports, dequant::prepare, dequant::run),
      make_kernel<QkvLinearParams, ProductsState>(name("qkv_linear_products"), kFused, kProducts,
                                                  products::supports, products::prepare, products::run),
      make_kernel<GatedFfnParams, GemvState>(name("gated_ffn_gemv"), kFused, kGemv, gemv::supports,
                                             gemv::prepare_ffn, gemv::run),
      make_kernel<GatedFfnParams, DequantState>(name("gated_ffn_dequant_gemv"), kFused, kDequant,
                                                dequant::supports, dequant::prepare, dequant::run),
      make_kernel<GatedFfnParams, ProductsState>(name("gated_ffn_products"), kFused, kProducts,
                                                 products::supports, products::prepare, products::run),
      make_kernel<LmHeadArgmaxParams, GemvState>(name("lm_head_argmax_gemv"), kFused, kGemv, gemv::supports,
                                                 gemv::prepare_largest, gemv::run),
      make_kernel<LmHeadArgmaxParams, DequantState>(name("lm_head_argmax_dequant_gemv"), kFused, kDequant,
                                                    dequant::supports, dequant::prepare, dequant::run),
      make_kernel<LmHeadArgmaxParams, ProductsState>(
          name("lm_head_argmax_products"), kFused, "any number of tokens: the product, and the largest of it",
          products::supports, products::prepare, products::run),

      // --- rms_norm, layer_norm ---
      make_kernel(name("rms_norm_plain"), kFused | kVanilla, "no residual", rms_norm_plain_supports,
                  rms_norm_run),
      make_kernel(name("rms_norm_residual"), kFused, "with or without residual", rms_norm_supports,
                  rms_norm_run),
      make_kernel(name("layer_norm_plain"), kFused | kVanilla, "no residual", layer_norm_plain_supports,
                  layer_norm_run),
      make_kernel(name("layer_norm_residual"), kFused, "with or without residual", layer_norm_supports,
                  layer_norm_run),

      // --- binary, activation, gated_activation, softmax ---
      make_kernel(name("binary_plain"), kFused | kVanilla, kAnyLayout, binary_supports, binary_run),
      make_kernel(name("activation_plain"), kFused | kVanilla, kAnyLayout, activation_supports,
                  activation_run),
      make_kernel(name("gated_activation_fused"), kFused, kAnyLayout, gated_activation_supports,
                  gated_activation_run),
      make_kernel(name("softmax_plain"), kFused | kVanilla, kAnyLayout, softmax_supports, softmax_run),

      // --- rope, append_kv, rope_append ---
      make_kernel(name("rope_plain"), kFused | kVanilla, "no QK-norm", rope_plain_supports, rope_run),
      make_kernel(name("rope_qk_norm"), kFused, "with or without QK-norm", rope_supports, rope_run),
      make_kernel(name("append_kv_plain"), kFused | kVanilla, kAnyLayout, append_kv_supports, append_kv_run),
      make_kernel(name("rope_append_fused"), kFused, kAnyLayout, rope_append_supports, rope_append_run),

      // --- attention, its primitives and its parts' merging ---
      make_kernel<AttentionParams, attention::State>(
          name("attention_f32"), kFused, "any dtypes, quantized keys and values; head_dim up to 256",
          attention_f32_supports, attention_f32_prepare, attention_f32_run),
      make_kernel(name("attention_scores_plain"), kFused | kVanilla, "any dtypes, in f32",
                  attention_scores_supports, attention_scores_run),
      make_kernel(name("attention_mask_plain"), kFused | kVanilla, "any call", attention_mask_supports,
                  attention_mask_run),
      make_kernel(name("attention_values_plain"), kFused | kVanilla, "any dtypes, in f32",
                  attention_values_supports, attention_values_run),
      make_kernel(name("merge_attention_plain"), kFused | kVanilla, kAnyLayout, merge_attention_supports,
                  merge_attention_run),

      // --- embedding, argmax, sample ---
      make_kernel(name("embedding_plain"), kFused | kVanilla, "table f32, f16 or bf16", embedding_supports,
                  embedding_run),
      make_kernel(name("argmax_plain"), kFused | kVanilla, kAnyLayout, argmax_supports, argmax_run,
                  argmax_workspace),
      make_kernel(name("sample_plain"), kFused | kVanilla, kAnyLayout, sample_supports, sample_run),
  };
  for (Kernel& k : all) k = guarded(std::move(k), false);

  // --- what is written in 8 or 4 bits ---
  constexpr const char* kCodes = "8-bit outputs, with a scale a row or one in all";
  constexpr const char* kCaches = "caches of int4, i8 and fp8";
  std::vector<Kernel> coded = {
      make_kernel(name("quantize_plain"), kFused | kVanilla, kAnyLayout, quantize_supports, quantize_run),
      make_kernel(name("rms_norm_quantized"), kFused, kCodes, rms_norm_quantized_supports,
                  rms_norm_quantized_run),
      make_kernel(name("layer_norm_quantized"), kFused, kCodes, layer_norm_quantized_supports,
                  layer_norm_quantized_run),
      make_kernel(name("activation_quantized"), kFused, kCodes, activation_quantized_supports,
                  activation_quantized_run),
      make_kernel(name("gated_activation_quantized"), kFused, kCodes, gated_activation_quantized_supports,
                  gated_activation_quantized_run),
      make_kernel(name("append_kv_quantized"), kFused | kVanilla, kCaches, append_kv_quantized_supports,
                  append_kv_quantized_run),
      make_kernel(name("rope_append_quantized"), kFused, kCaches, rope_append_quantized_supports,
                  rope_append_quantized_run)};
  for (Kernel& k : coded) all.push_back(guarded(std::move(k), true));
  return all;
}

}  // namespace kf::cuda
