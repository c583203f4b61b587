// Every CUDA kernel, one row each: op by op, best first; those that other machines have, too, are in portable.cpp. A call takes
// the first row of its op that accepts it and is of a configured family.

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/cudnn.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/guarded.h"
#include "backends/cuda/linear/cusparselt.h"
#include "backends/cuda/linear/linear.h"
#include "backends/cuda/norm/dense.h"
#include "backends/cuda/portable.h"
#include "kf/families.h"

namespace kf::cuda {

std::vector<Kernel> kernels() {
  constexpr const char* kStreamed =
      "2 to 16 tokens, f16 and bf16, weights of x's dtype in rows of 16 bytes; sm_90 and newer";
  std::vector<Kernel> all = portable_kernels("cuda");
  // In front of a portable row, or after all.
  const auto add = [&](const std::string& before, Kernel k) {
    all.insert(std::ranges::find(all, "cuda::" + before, &Kernel::name), guarded(std::move(k), false));
  };

  // --- linear, qkv_linear, gated_ffn, lm_head_argmax ---
  add("linear_gemv",
      make_kernel<LinearParams, StreamedState>("cuda::linear_streamed", kFused, kStreamed, streamed::supports,
                                               streamed::prepare, streamed::run));
  add("linear_products", make_kernel<LinearParams, CusparseLtState>(
                             "cuda::linear_cusparselt", kFused | kLibrary,
                             "more than 16 tokens, constant 2:4 weights in f16 and bf16; residual",
                             cusparselt::supports, cusparselt::prepare, cusparselt::run));
  add("linear_products",
      make_kernel<LinearParams, CublasLtState>("cuda::linear_cublaslt", kFused | kVanilla,
                                               "one dtype; no prologue, activation or residual",
                                               cublaslt::supports, cublaslt::prepare, cublaslt::run));
  add("linear_products",
      make_kernel<LinearParams, CublasLtState>(
          "cuda::linear_cublaslt_residual", kFused | kLibrary, "one dtype; no prologue or activation",
          cublaslt::supports_residual, cublaslt::prepare, cublaslt::run));
  add("qkv_linear_gemv",
      make_kernel<QkvLinearParams, StreamedState>("cuda::qkv_linear_streamed", kFused, kStreamed,
                                                  streamed::supports, streamed::prepare, streamed::run));
  add("gated_ffn_gemv",
      make_kernel<GatedFfnParams, StreamedState>("cuda::gated_ffn_streamed", kFused, kStreamed,
                                                 streamed::supports, streamed::prepare, streamed::run));
  add("lm_head_argmax_gemv",
      make_kernel<LmHeadArgmaxParams, StreamedState>("cuda::lm_head_argmax_streamed", kFused, kStreamed,
                                                     streamed::supports, streamed::prepare, streamed::run));

  // --- rms_norm, layer_norm ---
  constexpr const char* kDense =
      "with a residual; one dtype; evenly spaced rows in vectors of 16 bytes, up to 32 KiB";
  constexpr const char* kDensePlain =
      "no residual; one dtype; evenly spaced rows in vectors of 16 bytes, up to 32 KiB";
  add("rms_norm_plain", make_kernel("cuda::rms_norm_dense", kFused | kVanilla, kDensePlain,
                                    rms_norm_dense_supports, rms_norm_dense_run));
  add("layer_norm_plain", make_kernel("cuda::layer_norm_dense", kFused | kVanilla, kDensePlain,
                                      layer_norm_dense_supports, layer_norm_dense_run));
  add("rms_norm_residual", make_kernel("cuda::rms_norm_residual_dense", kFused, kDense,
                                       rms_norm_residual_dense_supports, rms_norm_dense_run));
  add("layer_norm_residual", make_kernel("cuda::layer_norm_residual_dense", kFused, kDense,
                                         layer_norm_residual_dense_supports, layer_norm_dense_run));

  // --- attention ---
  add("attention_f32",
      make_kernel<AttentionParams, attention::State>(
          "cuda::attention_flash2", kFused, "f16 and bf16; rows in chunks of 16 bytes; head_dim up to 256",
          flash2_supports, flash2_prepare, flash2_run));
  add("", make_kernel<AttentionParams, CudnnState>(
              "cuda::attention_cudnn", kFlash3,
              "f16 and bf16, dense batches, all keys or causal; head_dim up to 256", cudnn_supports,
              cudnn_prepare, cudnn_run));
  return all;
}

}  // namespace kf::cuda
