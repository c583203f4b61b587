#include "kf/ops/elementwise.h"

#include <cmath>

#include <fmt/format.h>

#include "ops/check.h"
#include "ops/ops.h"

namespace kf::ops {
namespace {

void infer_like(TensorView& out, const TensorView& x) {
  if (x.present() && !out.present()) out = contiguous_like(x, x.dtype);
}

void validate_input(const char* op, const char* name, const TensorView& t) {
  check(op, name, t).rank_between(1, kMaxRank).activation_dtype().last_dim_contiguous();
}

void validate_like(const char* op, const char* name, const TensorView& t, const TensorView& x,
                   const char* x_name) {
  check(op, name, t).shape_like(x, x_name).dtype_like(x, x_name).last_dim_contiguous();
}

void validate_out(const char* op, const TensorView& out, const TensorView& x, const char* x_name) {
  validate_like(op, "out", out, x, x_name);
  check(op, "out", out).no_overlap_in_itself();
}

double bytes_of(std::initializer_list<const TensorView*> tensors) {
  double bytes = 0;
  for (const TensorView* t : tensors)
    if (t->present()) bytes += static_cast<double>(t->nbytes());
  return bytes;
}

// Of one element: exp, tanh and erf count as the multiplications and additions of their approximations.
double activation_flops(Activation kind) {
  switch (kind) {
    case Activation::none:
      return 0;
    case Activation::relu:
      return 1;
    case Activation::silu:
      return 20;
    case Activation::gelu_tanh:
      return 25;
    case Activation::gelu:
      return 30;
  }
  return 0;
}

}  // namespace

void infer(BinaryParams& p) { infer_like(p.out, p.a); }
void validate(const BinaryParams& p) {
  validate_input("binary", "a", p.a);
  validate_like("binary", "b", p.b, p.a, "a");
  validate_out("binary", p.out, p.a, "a");
}
void validate_data(const BinaryParams&) {}
Cost cost(const BinaryParams& p) {
  return {static_cast<double>(p.a.numel()), bytes_of({&p.a, &p.b, &p.out})};
}

void infer(ActivationParams& p) { infer_output(p.out, p.quantization, p.x); }
void validate(const ActivationParams& p) {
  validate_input("activation", "x", p.x);
  validate_output("activation", p.out, p.quantization, p.x, "x");
}
void validate_data(const ActivationParams& p) { validate_static_scale("activation", p.quantization); }
Cost cost(const ActivationParams& p) {
  return {activation_flops(p.kind) * static_cast<double>(p.x.numel()),
          bytes_of({&p.x, &p.out, &p.quantization.scales})};
}

void infer(GatedActivationParams& p) { infer_output(p.out, p.quantization, p.gate); }
void validate(const GatedActivationParams& p) {
  validate_input("gated_activation", "gate", p.gate);
  validate_like("gated_activation", "up", p.up, p.gate, "gate");
  validate_output("gated_activation", p.out, p.quantization, p.gate, "gate");
}
void validate_data(const GatedActivationParams& p) {
  validate_static_scale("gated_activation", p.quantization);
}
Cost cost(const GatedActivationParams& p) {
  return {(activation_flops(p.kind) + 1) * static_cast<double>(p.gate.numel()),
          bytes_of({&p.gate, &p.up, &p.out, &p.quantization.scales})};
}

void infer(SoftmaxParams& p) {
  infer_like(p.out, p.x);
  if (p.x.rank > 0 && !p.lse.present())
    p.lse = TensorView::contiguous(
        nullptr, DType::f32, std::span(p.x.shape.data(), static_cast<std::size_t>(p.x.rank - 1)), p.x.device);
}
void validate(const SoftmaxParams& p) {
  validate_input("softmax", "x", p.x);
  validate_out("softmax", p.out, p.x, "x");
  if (p.lse.present()) {
    const Check c =
        check("softmax", "lse", p.lse).dtype(DType::f32).rank(p.x.rank - 1).no_overlap_in_itself();
    for (int i = 0; i < p.lse.rank; ++i) c.dim(i, p.x.dim(i), "as in x");
  }
  if (p.mask.present()) {
    const Check c = check("softmax", "mask", p.mask).rank_between(1, p.x.rank);
    if (p.mask.dtype != DType::boolean && !is_activation_dtype(p.mask.dtype))
      c.fail("boolean, f32, f16 or bf16", dtype_name(p.mask.dtype));
    for (int i = 1; i <= p.mask.rank; ++i)
      if (p.mask.dim(-i) != 1 && p.mask.dim(-i) != p.x.dim(-i))
        c.fail("a shape that broadcasts to x's, " + shape_string(p.x), shape_string(p.mask));
    c.last_dim_contiguous();
  }
  if (!std::isfinite(p.scale)) fail_attr("softmax", "scale", "a finite number", fmt::format("{}", p.scale));
}
void validate_data(const SoftmaxParams&) {}
Cost cost(const SoftmaxParams& p) {
  return {20.0 * static_cast<double>(p.x.numel()), bytes_of({&p.x, &p.out, &p.lse, &p.mask})};
}

void infer(DequantizeParams& p) {
  if (p.x.present() && !p.out.present()) p.out = contiguous_like(p.x, DType::f32);
}
void validate(const DequantizeParams& p) {
  const DTypeInfo& info = dtype_info(p.x.dtype);
  const Check x = check("dequantize", "x", p.x).rank(2);
  if (!info.is_float && !info.is_block) x.fail("a float dtype or a block format", info.name);
  x.last_dim_contiguous();
  if (info.is_block) x.weight_dtype();
  check("dequantize", "out", p.out)
      .shape_like(p.x, "x")
      .activation_dtype()
      .last_dim_contiguous()
      .no_overlap_in_itself();
}
void validate_data(const DequantizeParams&) {}
Cost cost(const DequantizeParams& p) {
  return {static_cast<double>(p.x.numel()) * (dtype_info(p.x.dtype).is_block ? 2 : 0),
          bytes_of({&p.x, &p.out})};
}

void infer(QuantizeParams& p) { infer_output(p.out, p.quantization, p.x); }
void validate(const QuantizeParams& p) {
  validate_input("quantize", "x", p.x);
  if (!p.quantization.present()) fail_attr("quantize", "out_dtype", "i8, fp8_e4m3 or fp8_e5m2", "none");
  validate_output("quantize", p.out, p.quantization, p.x, "x");
}
void validate_data(const QuantizeParams& p) { validate_static_scale("quantize", p.quantization); }
Cost cost(const QuantizeParams& p) {
  return {3.0 * static_cast<double>(p.x.numel()), bytes_of({&p.x, &p.out, &p.quantization.scales})};
}

}  // namespace kf::ops
