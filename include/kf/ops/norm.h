// Norms over the last dimension, with the residual stream in and out.
#pragma once

#include "kf/ops/common.h"
#include "kf/ops/quantized_output.h"

namespace kf {

// RMSNorm (Zhang and Sennrich, 2019):
//   h = x + residual;  out = h / sqrt(mean(h^2) + eps) * (weight_offset + weight).
// weight_offset is 1 for Gemma (Gemma Team, 2024), whose weights are stored less one, and 0 for others.
// Statistics in f32; `out` and `residual_out` are rounded once, from f32.
struct RmsNormParams {
  static constexpr Op kOp = Op::rms_norm;
  TensorView x;             // [..., n]: activation dtype, last dimension contiguous, row strides free
  TensorView weight;        // [n], any activation dtype
  TensorView residual;      // like x, optional
  TensorView out;           // like x, may be x itself; quantized, of the dtype of the codes
  TensorView residual_out;  // h, like x, optional; may be x or residual itself
  float eps = 1e-6f;
  float weight_offset = 0.0f;
  OutputQuantization quantization;

  void visit(FieldVisitor& v) {
    v.in("x", x);
    v.weight("weight", weight);
    v.opt_in("residual", residual);
    v.out("out", out);
    v.opt_out("residual_out", residual_out);
    v.may_alias("out", "x");
    v.may_alias("residual_out", "x");
    v.may_alias("residual_out", "residual");
    v.attr("eps", eps);
    v.attr("weight_offset", weight_offset);
    quantization.visit(v);
  }
};

// LayerNorm (Ba et al., 2016):  h = x + residual;  out = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias,
// var the biased variance.
struct LayerNormParams {
  static constexpr Op kOp = Op::layer_norm;
  TensorView x;             // [..., n]
  TensorView weight;        // [n]
  TensorView bias;          // [n], optional
  TensorView residual;      // like x, optional
  TensorView out;           // like x, may be x itself; quantized, of the dtype of the codes
  TensorView residual_out;  // h, like x, optional; may be x or residual itself
  float eps = 1e-5f;
  OutputQuantization quantization;

  void visit(FieldVisitor& v) {
    v.in("x", x);
    v.weight("weight", weight);
    v.opt_in("bias", bias);
    v.opt_in("residual", residual);
    v.out("out", out);
    v.opt_out("residual_out", residual_out);
    v.may_alias("out", "x");
    v.may_alias("residual_out", "x");
    v.may_alias("residual_out", "residual");
    v.attr("eps", eps);
    quantization.visit(v);
  }
};

void rms_norm(const RmsNormParams& p);
void layer_norm(const LayerNormParams& p);

}  // namespace kf
