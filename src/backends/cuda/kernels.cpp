// Every CUDA kernel, one row each: op by op, best first; those that other machines have, too, are in portable.cpp. A call takes
// the first row of its op that accepts it and is of a configured family.

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/cudnn.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/guarded.h"
#include "backends/cuda/linear/linear.h"
#include "backends/cuda/portable.h"
#include "kf/families.h"

namespace kf::cuda {

namespace {

constexpr const char* kProducts = "any number of tokens: products, and launches for what stands around them";
constexpr const char* kSmall = "up to 4 tokens, weights of x's dtype in rows of neighbouring elements";
constexpr const char* kStreamed =
    "2 to 16 tokens, f16 and bf16, weights of x's dtype in rows of 16 bytes; sm_90 and newer";
constexpr const char* kDecoded =
    "up to 16 tokens, weights of any dtype, low-bit or sparse, decoded in registers";

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

      // --- attention ---
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
  };
  for (Kernel& k : all) k = guarded(std::move(k), false);

  std::ranges::move(portable_kernels("cuda"), std::back_inserter(all));
  return all;
}

}  // namespace kf::cuda
