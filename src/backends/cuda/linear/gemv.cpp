#include <fmt/format.h>

#include "backends/cuda/linear/gemv_kernel.h"
#include "backends/cuda/linear/linear.h"
#include "backends/cuda/linear/prologue_epilogue.h"
#include "backends/cuda/runtime.h"
#include "backends/cuda/supports.h"

namespace kf::cuda::gemv {
namespace {

Support supports_input(const TensorView& x, InputQuantization quantization, const PlanContext& ctx) {
  if (quantization != InputQuantization::none)
    return Support::no("input_quantization int8: this kernel multiplies x unrounded");
  if (x.dim(0) > kGemvTokens)
    return Support::no(fmt::format("{} tokens: this kernel takes up to {}", x.dim(0), kGemvTokens));
  if (x.dim(1) == 0) return Support::no("no input features: this kernel takes at least one");
  if (shared_bytes(x.dim(0), x.dim(1)) > kMaxSharedBytes)
    return Support::no(fmt::format("{} tokens of {} features: more than {} KiB of shared memory", x.dim(0),
                                   x.dim(1), kMaxSharedBytes >> 10));
  return shared_fits(shared_bytes(x.dim(0), x.dim(1)) + kMostRingBytes, ctx.caps);
}

void launch(Args a, const TensorView& x, bool constant_weights, const RunContext& ctx) {
  if (a.num_tokens == 0) return;
  a.constant_weights = constant_weights;
  a.wide = input_is_wide(a) && (!a.up || is_wide(a.up, x.dtype, a.up_stride, a.in));
  for (int i = 0; i < a.num_parts; ++i)
    a.wide = a.wide && is_wide(a.parts[i].weight, x.dtype, a.parts[i].weight_stride, a.in);
  if (x.dtype == DType::f32) return launch_f32(a, x, ctx);
  return x.dtype == DType::f16 ? launch_f16(a, x, ctx) : launch_bf16(a, x, ctx);
}

}  // namespace

Support supports_weight(const TensorView& x, const TensorView& weight, const Sparsity& sparsity) {
  if (sparsity.present()) return Support::no("a sparse weight: this kernel takes dense ones");
  if (weight.dtype != x.dtype)
    return Support::no(fmt::format("weight {} by x {}: this kernel takes weights of x's dtype",
                                   dtype_name(weight.dtype), dtype_name(x.dtype)));
  if (weight.stride(1) != 1) return Support::no("weight: this kernel takes rows of neighbouring elements");
  if (weight.dim(0) >= std::int64_t{1} << 30)
    return Support::no(fmt::format("weight: {} rows: this kernel takes fewer than 2^30", weight.dim(0)));
  return Support::yes();
}

void launch_by_tokens(const Args& a, const TensorView& x, bool constant_weights, const RunContext& ctx) {
  int most = kGemvTokens;
  while (most > 1 && shared_bytes(most, a.in) > kMaxSharedBytes) most /= 2;
  by_tokens(a, most, [&](const Args& some) { launch(some, x, constant_weights, ctx); });
}

Support supports(const LinearParams& p, const PlanContext& ctx) {
  if (const Support s = supports_input(p.x, p.input_quantization, ctx); !s) return s;
  return supports_weight(p.x, p.weight, p.weight_sparsity);
}
void run(const LinearParams& p, const GemvState& s, const RunContext& ctx) {
  launch(args_of(p), p.x, s.constant_weights, ctx);
}

Support supports(const QkvLinearParams& p, const PlanContext& ctx) {
  if (const Support s = supports_input(p.x, p.input_quantization, ctx); !s) return s;
  if (const Support s = supports_weight(p.x, p.q_weight, p.q_weight_sparsity); !s) return s;
  if (const Support s = supports_weight(p.x, p.k_weight, p.k_weight_sparsity); !s) return s;
  return supports_weight(p.x, p.v_weight, p.v_weight_sparsity);
}
void run(const QkvLinearParams& p, const GemvState& s, const RunContext& ctx) {
  launch(args_of(p), p.x, s.constant_weights, ctx);
}

Support supports(const GatedFfnParams& p, const PlanContext& ctx) {
  if (const Support s = supports_input(p.x, p.input_quantization, ctx); !s) return s;
  if (const Support s = supports_weight(p.x, p.gate_weight, p.gate_weight_sparsity); !s) return s;
  if (const Support s = supports_weight(p.x, p.up_weight, p.up_weight_sparsity); !s) return s;
  if (const Support s = supports_weight(p.x, p.down_weight, p.down_weight_sparsity); !s) return s;
  return supports_input(intermediate(p, p.gate_weight.dim(0), nullptr), p.input_quantization, ctx);
}
std::shared_ptr<GemvState> prepare_ffn(const GatedFfnParams& p, const PlanContext& ctx,
                                       std::size_t* workspace_bytes) {
  *workspace_bytes = intermediate(p, p.gate_weight.dim(0), nullptr).nbytes();
  return prepare(p, ctx, workspace_bytes);
}
void run(const GatedFfnParams& p, const GemvState& s, const RunContext& ctx) {
  const TensorView h = intermediate(p, p.gate_weight.dim(0), ctx.workspace);
  launch(args_of(p, h), p.x, s.constant_weights, ctx);
  launch(down_args_of(p, h), h, s.constant_weights, ctx);
}

Support supports(const LmHeadArgmaxParams& p, const PlanContext& ctx) {
  if (const Support s = supports_input(p.x, p.input_quantization, ctx); !s) return s;
  return supports_weight(p.x, p.weight, p.weight_sparsity);
}
std::shared_ptr<GemvState> prepare_largest(const LmHeadArgmaxParams& p, const PlanContext& ctx,
                                           std::size_t* workspace_bytes) {
  *workspace_bytes = largest_bytes(multiprocessors(ctx.caps.device.index));
  return prepare(p, ctx, workspace_bytes);
}
void run(const LmHeadArgmaxParams& p, const GemvState& s, const RunContext& ctx) {
  launch(args_of(p, ctx.workspace), p.x, s.constant_weights, ctx);
}

}  // namespace kf::cuda::gemv
