#include "backends/cuda/linear/prologue_epilogue.h"

#include "backends/cuda/supports.h"

namespace kf::cuda::gemv {

Args args_of(const TensorView& x, const Prologue& prologue) {
  Args a{};
  a.dtype = x.dtype;
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
                            data_or_null(out),
                            out.present() ? out.stride(0) : 0,
                            static_cast<int>(weight.dim(0))};
}

void set_residual(Args& a, const TensorView& residual) {
  a.residual = data_or_null(residual);
  if (residual.present()) a.residual_stride = residual.stride(0);
}

void set_largest(Args& a, const LmHeadArgmaxParams& p, void* workspace) {
  a.largest = {static_cast<std::uint64_t*>(workspace), LargestOut::of(p.ids, p.max)};
}

Args args_of(const LinearParams& p) {
  Args a = args_of(p.x, p.prologue);
  add_part(a, p.weight, p.bias, p.out);
  a.activation = p.activation;
  set_residual(a, p.residual);
  return a;
}
Args args_of(const QkvLinearParams& p) {
  Args a = args_of(p.x, p.prologue);
  add_part(a, p.q_weight, p.q_bias, p.q);
  add_part(a, p.k_weight, p.k_bias, p.k);
  add_part(a, p.v_weight, p.v_bias, p.v);
  return a;
}
Args args_of(const GatedFfnParams& p, const TensorView& h) {
  Args a = args_of(p.x, p.prologue);
  add_part(a, p.gate_weight, {}, h);
  a.up = p.up_weight.data;
  a.up_stride = p.up_weight.stride(0);
  a.activation = p.activation;
  return a;
}
Args down_args_of(const GatedFfnParams& p, const TensorView& h) {
  Args a = args_of(h, Prologue{});
  add_part(a, p.down_weight, {}, p.out);
  set_residual(a, p.residual);
  return a;
}
Args args_of(const LmHeadArgmaxParams& p, void* workspace) {
  Args a = args_of(p.x, p.prologue);
  add_part(a, p.weight, {}, {});
  set_largest(a, p, workspace);
  return a;
}

bool is_wide(const void* data, DType dtype, std::int64_t stride, std::int64_t in) {
  const std::int64_t bytes = dtype_info(dtype).block_bytes;
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride * bytes % 16 == 0 && in * bytes % 16 == 0;
}

bool input_is_wide(const Args& a) {
  return is_wide(a.x, a.dtype, a.x_stride, a.in) && is_wide(a.norm_weight, DType::f32, 0, 4) &&
         is_wide(a.norm_bias, DType::f32, 0, 4);
}

TensorView intermediate(const GatedFfnParams& p, std::int64_t features, void* workspace) {
  return TensorView::contiguous(workspace, p.x.dtype, {p.x.dim(0), features}, p.x.device);
}

}  // namespace kf::cuda::gemv
