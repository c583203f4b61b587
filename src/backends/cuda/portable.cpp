// Op by op, best first.

#include "backends/cuda/portable.h"

#include <utility>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/unfused.h"
#include "backends/cuda/elementwise/pointwise.h"
#include "backends/cuda/elementwise/quantized.h"
#include "backends/cuda/elementwise/softmax.h"
#include "backends/cuda/guarded.h"
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
  std::vector<Kernel> all = {
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

      // --- attention_scores, attention_mask, attention_values, merge_attention ---
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
