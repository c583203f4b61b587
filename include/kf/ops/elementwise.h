// Elementwise ops and softmax.
#pragma once

#include "kf/ops/common.h"
#include "kf/ops/quantized_output.h"

namespace kf {

enum class BinaryKind : std::uint8_t { add, mul };
inline constexpr const char* kBinaryKindNames[] = {"add", "mul"};

// out = a + b or a * b, computed in f32 and rounded once.
struct BinaryParams {
  static constexpr Op kOp = Op::binary;
  TensorView a, b;  // same shape and activation dtype; last dimension contiguous
  TensorView out;   // like a; may be a or b
  BinaryKind kind = BinaryKind::add;

  void visit(FieldVisitor& v) {
    v.in("a", a);
    v.in("b", b);
    v.out("out", out);
    v.may_alias("out", "a");
    v.may_alias("out", "b");
    v.choice("kind", kind, kBinaryKindNames);
  }
};

// out = act(x). Formulas: common.h.
struct ActivationParams {
  static constexpr Op kOp = Op::activation;
  TensorView x;    // activation dtype, last dimension contiguous
  TensorView out;  // like x, may be x; quantized, of the dtype of the codes
  Activation kind = Activation::silu;
  OutputQuantization quantization;

  void visit(FieldVisitor& v) {
    v.in("x", x);
    v.out("out", out);
    v.may_alias("out", "x");
    v.choice("kind", kind, kActivationNames);
    quantization.visit(v);
  }
};

// out = act(gate) * up (SwiGLU for silu, GeGLU for gelu, ReGLU for relu).
struct GatedActivationParams {
  static constexpr Op kOp = Op::gated_activation;
  TensorView gate, up;  // [..., n], may be the halves of one tensor
  TensorView out;       // like gate; may be gate or up; quantized, of the dtype of the codes
  Activation kind = Activation::silu;
  OutputQuantization quantization;

  void visit(FieldVisitor& v) {
    v.in("gate", gate);
    v.in("up", up);
    v.out("out", out);
    v.may_alias("out", "gate");
    v.may_alias("out", "up");
    v.choice("kind", kind, kActivationNames);
    quantization.visit(v);
  }
};

// out = exp(z - lse), lse = log sum exp(z), over the last dimension; z = scale x + mask, or -inf where a boolean mask is
// False. A row that is -inf throughout, or masked whole, gives zeros and lse -inf (attention's convention; PyTorch gives
// NaN). NaN and +inf pass as in PyTorch; what a boolean mask hides does not.
struct SoftmaxParams {
  static constexpr Op kOp = Op::softmax;
  TensorView x;    // [..., n], activation dtype, last dimension contiguous
  TensorView out;  // like x, may be x
  TensorView lse;  // f32 [...], natural log, optional
  // Boolean, f32, f16 or bf16; optional. Broadcast to x as NumPy does: of its rank or less, each size x's or 1.
  TensorView mask;
  float scale = 1.0f;

  void visit(FieldVisitor& v) {
    v.in("x", x);
    v.out("out", out);
    v.opt_out("lse", lse);
    v.opt_in("mask", mask);
    v.may_alias("out", "x");
    v.attr("scale", scale);
  }
};

// out = x in f32, f16 or bf16, from any float dtype or block format.
struct DequantizeParams {
  static constexpr Op kOp = Op::dequantize;
  TensorView x;    // [rows, n]
  TensorView out;  // [rows, n]; f32 when inferred

  void visit(FieldVisitor& v) {
    v.in("x", x);
    v.out("out", out);
  }
};

// out = x in 8 bits, with a scale a row or one in all: the formula is OutputQuantization's, of which `dtype` must be given.
struct QuantizeParams {
  static constexpr Op kOp = Op::quantize;
  TensorView x;    // [..., n], activation dtype, last dimension contiguous
  TensorView out;  // like x, of the dtype of the codes
  OutputQuantization quantization{.dtype = CodeDType::i8};

  void visit(FieldVisitor& v) {
    v.in("x", x);
    v.out("out", out);
    quantization.visit(v);
  }
};

void binary(const BinaryParams& p);
void activation(const ActivationParams& p);
void gated_activation(const GatedActivationParams& p);
void softmax(const SoftmaxParams& p);
void dequantize(const DequantizeParams& p);
void quantize(const QuantizeParams& p);

}  // namespace kf
