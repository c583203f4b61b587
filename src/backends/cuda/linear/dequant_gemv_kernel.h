// What the kernels for weights that are decoded are given; decoded.cpp fills it in, decoded_*.cu run them, a file for some
// formats each.
#pragma once

#include <cstdint>

#include "backends/cuda/linear/gemv_kernel.h"

namespace kf::cuda::dequant {

// A weight, with what it is read with.
struct Weights {
  DType dtype;
  const unsigned char* data;
  std::int64_t row_bytes;  // from row to row
  const void* scales;      // or null
  DType scales_dtype;
  std::int64_t scales_stride;
  int scale_rows, group;     // rows and columns that share a scale
  const std::int8_t* zeros;  // or null
  std::int64_t zeros_stride;
  // Sparse ones.
  const std::uint8_t* mask;  // or null
  std::int64_t mask_stride;
  int mask_bytes;
  const std::int64_t* offsets;  // of unstructured ones
  std::int64_t offsets_stride;
  int n, m;
  std::int64_t row_values, num_values;  // from row to row, and all
};

// Parts of one format. Gated: the second is multiplied with the activated first.
struct Args : gemv::Args {
  Weights weights[3];
  bool gated;
  bool aligned;  // rows of all weights, to 16 bytes
};

// Tokens of one launch, at most; as many whose inputs fit into shared memory beside the weights.
inline constexpr int kTokens = 4;
inline constexpr std::int64_t kMaxFeatures = std::int64_t{1} << 26;
inline constexpr std::int64_t kStepOfInputs = 32 * kWarp;
// Bytes of shared memory that the tokens' inputs take: in steps.
inline std::int64_t staged_bytes(std::int64_t num_tokens, std::int64_t in) {
  return num_tokens * ((in + kStepOfInputs - 1) / kStepOfInputs * kStepOfInputs) *
         static_cast<std::int64_t>(sizeof(float));
}
inline constexpr std::int64_t kMaxStagedBytes =
    kCopiesAside ? 140 << 10 : kMostShared;  // beside the rings of weights, cut for kMostShared

// Few tokens, and any number of them, by what the weights are; the format is that of the first part's.
#define KF_DEQUANT(kind)                                                               \
  void launch_gemv_##kind(const Args& a, const TensorView& on, const RunContext& ctx); \
  void launch_gemm_##kind(const Args& a, const TensorView& on, const RunContext& ctx);
KF_DEQUANT(scaled)    // int4, i8, fp8
KF_DEQUANT(blocks)    // q4_0, q4_1, q5_0, q8_0
KF_DEQUANT(k_blocks)  // q4_k, q6_k
KF_DEQUANT(plain)     // f32, f16, bf16
KF_DEQUANT(sparse)
#undef KF_DEQUANT

}  // namespace kf::cuda::dequant
