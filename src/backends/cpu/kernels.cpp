// Every CPU kernel, one row each: op by op, best first, the reference last. A call takes the first row of its
// op that accepts it and is of a configured family.

#include <string>
#include <vector>

#include <fmt/format.h>

#include "backends/cpu/attention/attend.h"
#include "backends/cpu/attention/kernels.h"
#include "backends/cpu/attention/schedule.h"
#include "backends/cpu/attention/score_rows.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/elementwise/dequantize.h"
#include "backends/cpu/elementwise/pointwise.h"
#include "backends/cpu/elementwise/quantize.h"
#include "backends/cpu/elementwise/softmax.h"
#include "backends/cpu/linear/gemv/kernels.h"
#include "backends/cpu/linear/kernels.h"
#include "backends/cpu/linear/weights.h"
#include "backends/cpu/norm/norm.h"
#include "backends/cpu/reference/attention.h"
#include "backends/cpu/reference/elementwise.h"
#include "backends/cpu/reference/linear.h"
#include "backends/cpu/reference/norm.h"
#include "backends/cpu/reference/rope.h"
#include "backends/cpu/reference/sampling.h"
#include "backends/cpu/rope/append_kv.h"
#include "backends/cpu/rope/rope.h"
#include "backends/cpu/sampling/argmax.h"
#include "backends/cpu/sampling/embedding.h"
#include "backends/cpu/sampling/sample.h"

namespace kf::cpu {

namespace {

// For kernels that take every valid call.
template <class P>
Support always(const P&, const PlanContext&) {
  return Support::yes();
}

// What full_precision() takes.
constexpr const char* kUnrounded = "any call without input_quantization";

// What gemm::supports_matrix() takes.
constexpr const char* kOnMatrixUnits =
    "AMX with bf16; from 8 tokens with 16-bit floats as weights, else from 16, of f32 from 64; dense or "
    "low-bit weights; no adapter, no input_quantization";

// A row of whose outputs no sum, and no choice of its order, goes by the other rows of a call.
Kernel invariant(Kernel k) {
  k.batch_invariant = true;
  return k;
}

// A kernel that takes every valid call and is the unfused form as well as the fused one.
template <class P>
Kernel plain(const char* name, void (*run)(const P&, const RunContext&),
             std::size_t (*workspace)(const P&, const PlanContext&) = nullptr) {
  return invariant(make_kernel<P>(name, kFused | kVanilla, "any layout with a contiguous last dimension",
                                  always<P>, run, workspace));
}

template <class P>
Kernel reference_row(const char* name, void (*run)(const P&, const RunContext&),
                     std::size_t (*workspace)(const P&, const PlanContext&) = nullptr) {
  return invariant(make_kernel<P>(name, kReference, "any layout", always<P>, run, workspace));
}

// A row of the linear family for few tokens.
template <class P, Units kUnits = Units::vector>
Kernel gemv_row(const char* name, unsigned families, std::string condition,
                Support (*supports)(const P&, const PlanContext&)) {
  Kernel k = make_kernel<P>(name, families, std::move(condition), supports, gemv::run<kUnits>,
                            gemv::workspace<kUnits>);
  k.reads_first = [](const void* p, int thread, int threads) {
    return gemv::first_reads(*static_cast<const P*>(p), thread, threads);
  };
  return k;
}

// Whether a row takes its threads by team.h alone. The others open regions of their own, or call a library that does.
bool goes_by_teams(const Kernel& k) {
  const bool unfused_attention =
      k.op == Op::attention_scores || k.op == Op::attention_mask || k.op == Op::attention_values;
  return k.families != kReference && !unfused_attention && k.name != "cpu::linear_onednn";
}

}  // namespace

std::vector<Kernel> kernels() {
  std::vector<Kernel> rows = {
      // --- linear ---
      gemv_row<LinearParams, Units::matrix>("cpu::linear_gemv_amx", kFused, gemv::matrix_condition(),
                                            gemv::supports_matrix),
      gemv_row<LinearParams>("cpu::linear_gemv", kFused, gemv::condition(), gemv::supports),
      gemv_row<LinearParams, Units::matrix>(
          "cpu::linear_gemv_amx_unfused", kVanilla,
          gemv::matrix_condition() + "; no prologue, activation or residual",
          gemv::supports_matrix_primitive),
      gemv_row<LinearParams>(
          "cpu::linear_gemv_unfused", kVanilla,
          gemv::condition() + ", 16-bit, low-bit or sparse weight; no prologue, activation or residual",
          gemv::supports_primitive),
      make_kernel<LinearParams, GemmState>("cpu::linear_amx", kFused, kOnMatrixUnits, gemm::supports_matrix,
                                           gemm::prepare_matrix<LinearParams>, gemm::run),
      invariant(make_kernel<LinearParams, GemmState>("cpu::linear_fused", kFused, kUnrounded,
                                                     full_precision<LinearParams>,
                                                     gemm::prepare_vector<LinearParams>, gemm::run)),
      make_kernel<LinearParams, MatmulState>(
          "cpu::linear_onednn", kVanilla,
          "f32 (bf16 where the processor has it), dense; no prologue, activation or residual",
          onednn::supports, onednn::prepare, onednn::run),
      make_kernel<LinearParams, GemmState>(
          "cpu::linear_amx_unfused", kVanilla,
          "16-bit or low-bit operands; no prologue, activation or residual; AMX with bf16",
          gemm::supports_matrix_primitive, gemm::prepare_matrix<LinearParams>, gemm::run),
      invariant(make_kernel<LinearParams, GemmState>(
          "cpu::linear_lowbit_unfused", kVanilla,
          "16-bit, low-bit or sparse operands; no prologue, activation or residual", gemm::supports_primitive,
          gemm::prepare_vector<LinearParams>, gemm::run)),
      invariant(
          gemv_row<LinearParams>("cpu::linear_int8", kFused, gemv::int8_condition(), gemv::supports_int8)),
      invariant(gemv_row<LinearParams>("cpu::linear_int8_unfused", kVanilla,
                                       gemv::int8_condition() + "; no prologue, activation or residual",
                                       gemv::supports_int8_primitive)),
      reference_row<LinearParams>("cpu::linear_reference", reference::linear, reference::workspace),

      // --- qkv_linear, gated_ffn, lm_head_argmax ---
      gemv_row<QkvLinearParams, Units::matrix>("cpu::qkv_linear_gemv_amx", kFused, gemv::matrix_condition(),
                                               gemv::supports_matrix),
      gemv_row<QkvLinearParams>("cpu::qkv_linear_gemv", kFused, gemv::condition(), gemv::supports),
      make_kernel<QkvLinearParams, GemmState>("cpu::qkv_linear_amx", kFused, kOnMatrixUnits,
                                              gemm::supports_matrix, gemm::prepare_matrix<QkvLinearParams>,
                                              gemm::run),
      invariant(make_kernel<QkvLinearParams, GemmState>("cpu::qkv_linear_fused", kFused, kUnrounded,
                                                        full_precision<QkvLinearParams>,
                                                        gemm::prepare_vector<QkvLinearParams>, gemm::run)),
      invariant(gemv_row<QkvLinearParams>("cpu::qkv_linear_int8", kFused, gemv::int8_condition(),
                                          gemv::supports_int8)),
      reference_row<QkvLinearParams>("cpu::qkv_linear_reference", reference::qkv_linear,
                                     reference::workspace),
      gemv_row<GatedFfnParams, Units::matrix>("cpu::gated_ffn_gemv_amx", kFused, gemv::matrix_condition(),
                                              gemv::supports_matrix),
      gemv_row<GatedFfnParams>("cpu::gated_ffn_gemv", kFused, gemv::condition(), gemv::supports),
      make_kernel<GatedFfnParams, GemmState>("cpu::gated_ffn_amx", kFused, kOnMatrixUnits,
                                             gemm::supports_matrix, gemm::prepare_matrix<GatedFfnParams>,
                                             gemm::run),
      invariant(make_kernel<GatedFfnParams, GemmState>("cpu::gated_ffn_fused", kFused, kUnrounded,
                                                       full_precision<GatedFfnParams>,
                                                       gemm::prepare_vector<GatedFfnParams>, gemm::run)),
      invariant(gemv_row<GatedFfnParams>("cpu::gated_ffn_int8", kFused, gemv::int8_condition(),
                                         gemv::supports_int8)),
      reference_row<GatedFfnParams>("cpu::gated_ffn_reference", reference::gated_ffn, reference::workspace),
      gemv_row<LmHeadArgmaxParams, Units::matrix>("cpu::lm_head_argmax_gemv_amx", kFused,
                                                  gemv::matrix_condition(), gemv::supports_matrix),
      gemv_row<LmHeadArgmaxParams>("cpu::lm_head_argmax_gemv", kFused, gemv::condition(), gemv::supports),
      make_kernel<LmHeadArgmaxParams, GemmState>("cpu::lm_head_argmax_amx", kFused, kOnMatrixUnits,
                                                 gemm::supports_matrix,
                                                 gemm::prepare_matrix<LmHeadArgmaxParams>, gemm::run),
      invariant(make_kernel<LmHeadArgmaxParams, GemmState>(
          "cpu::lm_head_argmax_fused", kFused, kUnrounded,
          full_precision<LmHeadArgmaxParams>, gemm::prepare_vector<LmHeadArgmaxParams>, gemm::run)),
      invariant(gemv_row<LmHeadArgmaxParams>("cpu::lm_head_argmax_int8", kFused, gemv::int8_condition(),
                                             gemv::supports_int8)),
      reference_row<LmHeadArgmaxParams>("cpu::lm_head_argmax_reference", reference::lm_head_argmax,
                                        reference::workspace),

      // --- rms_norm, layer_norm ---
      invariant(make_kernel("cpu::rms_norm_plain", kFused | kVanilla, "no residual, no quantized output",
                            rms_norm_plain_supports, rms_norm_run, rms_norm_workspace)),
      invariant(make_kernel("cpu::rms_norm_residual", kFused, "with or without residual; no quantized output",
                            rms_norm_residual_supports, rms_norm_run, rms_norm_workspace)),
      invariant(make_kernel("cpu::rms_norm_quantized", kFused, "quantized output, with or without residual",
                            rms_norm_quantized_supports, rms_norm_quantized_run,
                            rms_norm_quantized_workspace)),
      reference_row("cpu::rms_norm_reference", reference::rms_norm),
      invariant(make_kernel("cpu::layer_norm_plain", kFused | kVanilla, "no residual, no quantized output",
                            layer_norm_plain_supports, layer_norm_run, layer_norm_workspace)),
      invariant(make_kernel("cpu::layer_norm_residual", kFused,
                            "with or without residual; no quantized output", layer_norm_residual_supports,
                            layer_norm_run, layer_norm_workspace)),
      invariant(make_kernel("cpu::layer_norm_quantized", kFused, "quantized output, with or without residual",
                            layer_norm_quantized_supports, layer_norm_quantized_run,
                            layer_norm_quantized_workspace)),
      reference_row("cpu::layer_norm_reference", reference::layer_norm),

      // --- binary, activation, gated_activation, softmax, dequantize, quantize ---
      plain("cpu::binary_plain", binary_run),
      reference_row("cpu::binary_reference", reference::binary),
      invariant(make_kernel("cpu::activation_plain", kFused | kVanilla, "no quantized output",
                            activation_supports, activation_run)),
      invariant(make_kernel("cpu::activation_quantized", kFused, "quantized output",
                            activation_quantized_supports, activation_quantized_run,
                            activation_quantized_workspace)),
      reference_row("cpu::activation_reference", reference::activation),
      invariant(make_kernel("cpu::gated_activation_fused", kFused, "no quantized output",
                            gated_activation_supports, gated_activation_run)),
      invariant(make_kernel("cpu::gated_activation_quantized", kFused, "quantized output",
                            gated_activation_quantized_supports, gated_activation_quantized_run,
                            gated_activation_quantized_workspace)),
      reference_row("cpu::gated_activation_reference", reference::gated_activation),
      plain("cpu::softmax_plain", softmax_run, softmax_workspace),
      reference_row("cpu::softmax_reference", reference::softmax),
      plain("cpu::dequantize_plain", dequantize_run),
      reference_row("cpu::dequantize_reference", reference::dequantize),
      plain("cpu::quantize_plain", quantize_run),
      reference_row("cpu::quantize_reference", reference::quantize),

      // --- rope, append_kv, rope_append ---
      invariant(make_kernel("cpu::rope_plain", kFused | kVanilla, "no QK-norm; head_dim up to 1024",
                            rope_plain_supports, rope_run, rope_workspace)),
      invariant(make_kernel("cpu::rope_qk_norm", kFused, "with or without QK-norm; head_dim up to 1024",
                            rope_supports, rope_run, rope_workspace)),
      reference_row("cpu::rope_reference", reference::rope),
      plain("cpu::append_kv_plain", append_kv_run, append_kv_workspace),
      reference_row("cpu::append_kv_reference", reference::append_kv),
      invariant(make_kernel("cpu::rope_append_fused", kFused, "head_dim up to 1024", rope_append_supports,
                            rope_append_run, rope_append_workspace)),
      reference_row("cpu::rope_append_reference", reference::rope_append),

      // --- attention, attention_scores, attention_mask, attention_values, merge_attention ---
      make_kernel(
          "cpu::attention_flash", kFused,
          fmt::format("head_dim of q and of v multiples of 8 up to {}; keep_m a power of two up to {}",
                      kMaxHeadDim, kMostKept),
          flash::supports, flash::run, flash::workspace),
      invariant(make_kernel(
          "cpu::attention_flash_fixed", kFused,
          fmt::format("the same, cut along the keys at multiples of {}: batch-invariant", kFixedChunkKeys),
          flash::supports, flash::run_fixed, flash::workspace_fixed)),
      reference_row<AttentionParams>("cpu::attention_reference", reference::attention, reference::workspace),
      make_kernel<AttentionScoresParams>("cpu::attention_scores_onednn", kFused | kVanilla, "any call",
                                         always<AttentionScoresParams>, unfused::run, unfused::workspace),
      reference_row<AttentionScoresParams>("cpu::attention_scores_reference", reference::attention_scores,
                                           reference::workspace),
      invariant(make_kernel<AttentionMaskParams>("cpu::attention_mask_pass", kFused | kVanilla, "any call",
                                                 always<AttentionMaskParams>, unfused::run)),
      reference_row("cpu::attention_mask_reference", reference::attention_mask),
      make_kernel<AttentionValuesParams>("cpu::attention_values_onednn", kFused | kVanilla, "any call",
                                         always<AttentionValuesParams>, unfused::run, unfused::workspace),
      reference_row<AttentionValuesParams>("cpu::attention_values_reference", reference::attention_values,
                                           reference::workspace),
      plain("cpu::merge_attention_plain", merge_run),
      reference_row("cpu::merge_attention_reference", reference::merge_attention),

      // --- embedding, argmax, sample ---
      plain("cpu::embedding_plain", embedding_run),
      reference_row("cpu::embedding_reference", reference::embedding),
      plain("cpu::argmax_plain", argmax_run),
      reference_row("cpu::argmax_reference", reference::argmax),
      plain("cpu::sample_plain", sample_run, sample_workspace),
      reference_row("cpu::sample_reference", reference::sample),
  };
  for (Kernel& k : rows) k.on_held_threads = goes_by_teams(k);
  return rows;
}

}  // namespace kf::cpu
