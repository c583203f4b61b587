#include <fmt/format.h>

#include "backends/cuda/linear/linear.h"
#include "backends/cuda/linear/small_kernel.h"
#include "backends/cuda/supports.h"

namespace kf::cuda::small {
namespace {

constexpr std::size_t kMaxSharedBytes = 192 << 10;  // beside the rings of weights

// Whether rows can be read in accesses of 16 bytes.
bool is_wide(const void* data, DType dtype, std::int64_t stride, std::int64_t in) {
  const std::int64_t bytes = dtype_info(dtype).block_bytes;
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride * bytes % 16 == 0 && in * bytes % 16 == 0;
}

Support supports_input(const TensorView& x, InputQuantization quantization) {
  if (quantization != InputQuantization::none)
    return Support::no("input_quantization int8: this kernel multiplies x unrounded");
  if (x.dim(0) > kSmallTokens)
    return Support::no(fmt::format("{} tokens: this kernel takes up to {}", x.dim(0), kSmallTokens));
  if (x.dim(1) == 0) return Support::no("no input features: this kernel takes at least one");
  if (shared_bytes(x.dim(0), x.dim(1)) > kMaxSharedBytes)
    return Support::no(fmt::format("{} tokens of {} features: more than {} KiB of shared memory", x.dim(0),
                                   x.dim(1), kMaxSharedBytes >> 10));
  return Support::yes();
}

Support supports_weight(const TensorView& x, const TensorView& weight) {
  if (weight.dtype != x.dtype)
    return Support::no(fmt::format("weight {} by x {}: this kernel takes weights of x's dtype",
                                   dtype_name(weight.dtype), dtype_name(x.dtype)));
  if (weight.stride(1) != 1) return Support::no("weight: this kernel takes rows of neighbouring elements");
  if (weight.dim(0) >= std::int64_t{1} << 30) return Support::no("weight: too many rows");
  return Support::yes();
}

Args args_of(const TensorView& x, const Prologue& prologue) {
  Args a{};
  a.x = x.data;
  a.x_stride = x.stride(0);
  a.num_tokens = static_cast<int>(x.dim(0));
  a.in = static_cast<int>(x.dim(1));
  a.norm = prologue.norm;
  a.norm_weight = data_or_null(prologue.norm_weight);
  a.norm_weight_dtype = prologue.norm_weight.dtype;
  a.norm_bias = data_or_null(prologue.norm_bias);
  a.norm_bias_dtype = prologue.norm_bias.dtype;
  a.eps = prologue.eps;
  a.norm_weight_offset = prologue.norm == NormKind::rms ? prologue.norm_weight_offset : 0.0f;
  a.pre_activation = prologue.activation;
  return a;
}

void add_part(Args& a, const TensorView& weight, const TensorView& bias, const TensorView& out) {
  a.parts[a.num_parts++] = {weight.data,
                            weight.stride(0),
                            data_or_null(bias),
                            bias.dtype,
                            out.data,
                            out.stride(0),
                            static_cast<int>(weight.dim(0))};
}

void set_residual(Args& a, const TensorView& residual) {
  a.residual = data_or_null(residual);
  if (residual.present()) a.residual_stride = residual.stride(0);
}

void launch(Args a, const TensorView& x, const SmallState& s, const RunContext& ctx) {
  if (a.num_tokens == 0) return;
  a.constant_weights = s.constant_weights;
  a.wide = is_wide(a.x, x.dtype, a.x_stride, a.in) && is_wide(a.norm_weight, DType::f32, 0, 4) &&
           is_wide(a.norm_bias, DType::f32, 0, 4) && (!a.up || is_wide(a.up, x.dtype, a.up_stride, a.in));
  for (int i = 0; i < a.num_parts; ++i)
    a.wide = a.wide && is_wide(a.parts[i].weight, x.dtype, a.parts[i].weight_stride, a.in);
  if (x.dtype == DType::f32) return launch_f32(a, x, ctx);
  return x.dtype == DType::f16 ? launch_f16(a, x, ctx) : launch_bf16(a, x, ctx);
}

}  // namespace

Support supports(const LinearParams& p, const PlanContext&) {
  if (const Support s = supports_input(p.x, p.input_quantization); !s) return s;
  return supports_weight(p.x, p.weight);
}
void run(const LinearParams& p, const SmallState& s, const RunContext& ctx) {
  Args a = args_of(p.x, p.prologue);
  add_part(a, p.weight, p.bias, p.out);
  a.activation = p.activation;
  set_residual(a, p.residual);
  launch(a, p.x, s, ctx);
}

Support supports(const QkvLinearParams& p, const PlanContext&) {
  if (const Support s = supports_input(p.x, p.input_quantization); !s) return s;
  for (const TensorView* w : {&p.q_weight, &p.k_weight, &p.v_weight})
    if (const Support s = supports_weight(p.x, *w); !s) return s;
  return Support::yes();
}
void run(const QkvLinearParams& p, const SmallState& s, const RunContext& ctx) {
  Args a = args_of(p.x, p.prologue);
  add_part(a, p.q_weight, p.q_bias, p.q);
  add_part(a, p.k_weight, p.k_bias, p.k);
  add_part(a, p.v_weight, p.v_bias, p.v);
  launch(a, p.x, s, ctx);
}

namespace {

// The activated products, between the two launches.
TensorView intermediate(const GatedFfnParams& p, void* workspace) {
  return TensorView::contiguous(workspace, p.x.dtype, {p.x.dim(0), p.gate_weight.dim(0)}, p.x.device);
}

}  // namespace

Support supports(const GatedFfnParams& p, const PlanContext&) {
  if (const Support s = supports_input(p.x, p.input_quantization); !s) return s;
  if (const Support s = supports_input(intermediate(p, nullptr), p.input_quantization); !s) return s;
  for (const TensorView* w : {&p.gate_weight, &p.up_weight, &p.down_weight})
    if (const Support s = supports_weight(p.x, *w); !s) return s;
  return Support::yes();
}
std::shared_ptr<SmallState> prepare_ffn(const GatedFfnParams& p, const PlanContext& ctx,
                                        std::size_t* workspace_bytes) {
  *workspace_bytes = intermediate(p, nullptr).nbytes();
  return prepare(p, ctx, workspace_bytes);
}
void run(const GatedFfnParams& p, const SmallState& s, const RunContext& ctx) {
  const TensorView h = intermediate(p, ctx.workspace);
  Args a = args_of(p.x, p.prologue);
  add_part(a, p.gate_weight, {}, h);
  a.up = p.up_weight.data;
  a.up_stride = p.up_weight.stride(0);
  a.activation = p.activation;
  launch(a, p.x, s, ctx);
  Args b = args_of(h, {});
  add_part(b, p.down_weight, {}, p.out);
  set_residual(b, p.residual);
  launch(b, h, s, ctx);
}

}  // namespace kf::cuda::small
