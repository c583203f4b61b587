// Attention by cuDNN, which is opened at run time.
#pragma once

#include <cstdint>
#include <memory>

#include "kf/kernel.h"
#include "kf/ops/attention.h"

namespace kf::cuda {

struct CudnnState;

// f16 and bf16, dense and packed, causal or all keys; log-sum-exp.
Support cudnn_supports(const AttentionParams& p, const PlanContext& ctx);
std::shared_ptr<CudnnState> cudnn_prepare(const AttentionParams& p, const PlanContext& ctx,
                                          std::size_t* workspace_bytes);
void cudnn_run(const AttentionParams& p, const CudnnState& s, const RunContext& ctx);

namespace attention {

// What cuDNN wants to know of a packed batch: lengths of its sequences, and where in q, k, v, out and lse they begin, in elements.
struct PackedTables {
  const std::int32_t *cu_seqlens_q, *cu_seqlens_k;
  int batch;
  std::int32_t *seqlens_q, *seqlens_k;                 // [batch]
  std::int32_t *q_at, *k_at, *v_at, *out_at, *lse_at;  // [batch + 1]
  int q_stride, k_stride, v_stride, out_stride;        // of a token
};
void fill_packed_tables(const PackedTables& tables, const TensorView& on, const RunContext& ctx);

}  // namespace attention
}  // namespace kf::cuda
