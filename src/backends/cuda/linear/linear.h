// The linear family: our kernels for few tokens, which stream the weights, and cuBLASLt's matrix products.
#pragma once

#include <memory>

#include "kf/kernel.h"
#include "kf/ops/linear.h"

namespace kf::cuda {

// Up to kGemvTokens tokens; prologue, bias, activation and residual in the same launch (the gated FFN: two).
inline constexpr int kGemvTokens = 4;
struct GemvState {
  bool constant_weights;
};
namespace gemv {
Support supports(const LinearParams& p, const PlanContext& ctx);
Support supports(const QkvLinearParams& p, const PlanContext& ctx);
Support supports(const GatedFfnParams& p, const PlanContext& ctx);
Support supports(const LmHeadArgmaxParams& p, const PlanContext& ctx);
template <class P>
std::shared_ptr<GemvState> prepare(const P&, const PlanContext& ctx, std::size_t*) {
  return std::make_shared<GemvState>(GemvState{ctx.packs != nullptr});
}
std::shared_ptr<GemvState> prepare_ffn(const GatedFfnParams& p, const PlanContext& ctx,
                                       std::size_t* workspace_bytes);
std::shared_ptr<GemvState> prepare_largest(const LmHeadArgmaxParams& p, const PlanContext& ctx,
                                           std::size_t* workspace_bytes);
void run(const LinearParams& p, const GemvState& s, const RunContext& ctx);
void run(const QkvLinearParams& p, const GemvState& s, const RunContext& ctx);
void run(const GatedFfnParams& p, const GemvState& s, const RunContext& ctx);
void run(const LmHeadArgmaxParams& p, const GemvState& s, const RunContext& ctx);
}  // namespace gemv

// From kStreamedFrom to 16 tokens, likewise, on matrix units.
inline constexpr int kStreamedFrom = 2;
struct StreamedState;
namespace streamed {
Support supports(const LinearParams& p, const PlanContext& ctx);
Support supports(const QkvLinearParams& p, const PlanContext& ctx);
Support supports(const GatedFfnParams& p, const PlanContext& ctx);
Support supports(const LmHeadArgmaxParams& p, const PlanContext& ctx);
std::shared_ptr<StreamedState> prepare(const LinearParams& p, const PlanContext& ctx, std::size_t*);
std::shared_ptr<StreamedState> prepare(const QkvLinearParams& p, const PlanContext& ctx, std::size_t*);
std::shared_ptr<StreamedState> prepare(const GatedFfnParams& p, const PlanContext& ctx,
                                       std::size_t* workspace_bytes);
std::shared_ptr<StreamedState> prepare(const LmHeadArgmaxParams& p, const PlanContext& ctx,
                                       std::size_t* workspace_bytes);
void run(const LinearParams& p, const StreamedState& s, const RunContext& ctx);
void run(const QkvLinearParams& p, const StreamedState& s, const RunContext& ctx);
void run(const GatedFfnParams& p, const StreamedState& s, const RunContext& ctx);
void run(const LmHeadArgmaxParams& p, const StreamedState& s, const RunContext& ctx);
}  // namespace streamed

// Weights of any dtype and sparse ones, decoded in registers. `supports`: up to kDequantTokens tokens, with all that stands around
// the products; `supports_gemm`: any number of tokens, slower, without a prologue; `supports_unfused`: the layer alone, by either.
inline constexpr int kDequantTokens = 16;
struct DequantState;
namespace dequant {
Support supports(const LinearParams& p, const PlanContext& ctx);
Support supports(const QkvLinearParams& p, const PlanContext& ctx);
Support supports(const GatedFfnParams& p, const PlanContext& ctx);
Support supports(const LmHeadArgmaxParams& p, const PlanContext& ctx);
std::shared_ptr<DequantState> prepare(const LinearParams& p, const PlanContext& ctx, std::size_t*);
std::shared_ptr<DequantState> prepare(const QkvLinearParams& p, const PlanContext& ctx, std::size_t*);
std::shared_ptr<DequantState> prepare(const GatedFfnParams& p, const PlanContext& ctx,
                                      std::size_t* workspace_bytes);
std::shared_ptr<DequantState> prepare(const LmHeadArgmaxParams& p, const PlanContext& ctx,
                                      std::size_t* workspace_bytes);
void run(const LinearParams& p, const DequantState& s, const RunContext& ctx);
void run(const QkvLinearParams& p, const DequantState& s, const RunContext& ctx);
void run(const GatedFfnParams& p, const DequantState& s, const RunContext& ctx);
void run(const LmHeadArgmaxParams& p, const DequantState& s, const RunContext& ctx);

Support supports_gemm(const LinearParams& p, const PlanContext& ctx);
void run_gemm(const LinearParams& p, const GemvState& s, const RunContext& ctx);
Support supports_unfused(const LinearParams& p, const PlanContext& ctx);
// By the kernels of few tokens or that of tiles.
std::shared_ptr<DequantState> prepare_unfused(const LinearParams& p, const PlanContext& ctx,
                                              std::size_t* workspace_bytes);
void run_unfused(const LinearParams& p, const DequantState& s, const RunContext& ctx);
}  // namespace dequant

// A product with bias; `supports`: the unfused linear layer, as an eager framework runs it, `supports_residual`: with what is
// added to it in its epilogue.
struct CublasLtState;
namespace cublaslt {
Support supports_residual(const LinearParams& p, const PlanContext& ctx);
Support supports(const LinearParams& p, const PlanContext& ctx);
std::shared_ptr<CublasLtState> prepare(const LinearParams& p, const PlanContext& ctx,
                                       std::size_t* workspace_bytes);
void run(const LinearParams& p, const CublasLtState& s, const RunContext& ctx);
}  // namespace cublaslt

// Any number of tokens, around such products.
struct ProductsState;
namespace products {
template <class P>
Support supports(const P& p, const PlanContext& ctx);
template <class P>
std::shared_ptr<ProductsState> prepare(const P& p, const PlanContext& ctx, std::size_t* workspace_bytes);
template <class P>
void run(const P& p, const ProductsState& s, const RunContext& ctx);
}  // namespace products

}  // namespace kf::cuda
