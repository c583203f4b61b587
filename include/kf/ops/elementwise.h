// Elementwise ops and softmax.
#pragma once

#include "kf/ops/common.h"

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
  TensorView out;  // like x, may be x
  Activation kind = Activation::silu;

  void visit(FieldVisitor& v) {
    v.in("x", x);
    v.out("out", out);
    v.may_alias("out", "x");
    v.choice("kind", kind, kActivationNames);
  }
};

// out = act(gate) * up (SwiGLU for silu, GeGLU for gelu, ReGLU for relu).
struct GatedActivationParams {
  static constexpr Op kOp = Op::gated_activation;
  TensorView gate, up;  // [..., n], may be the halves of one tensor
  TensorView out;       // like gate; may be gate or up
  Activation kind = Activation::silu;

  void visit(FieldVisitor& v) {
    v.in("gate", gate);
    v.in("up", up);
    v.out("out", out);
    v.may_alias("out", "gate");
    v.may_alias("out", "up");
    v.choice("kind", kind, kActivationNames);
  }
};

// out = exp(scale x - lse), lse = log sum exp(scale x), over the last dimension. A row that is -inf throughout gives
// zeros and lse -inf (attention's convention; PyTorch gives NaN). NaN and +inf pass as in PyTorch.
struct SoftmaxParams {
  static constexpr Op kOp = Op::softmax;
  TensorView x;    // [..., n], activation dtype, last dimension contiguous
  TensorView out;  // like x, may be x
  TensorView lse;  // f32 [...], natural log, optional
  float scale = 1.0f;

  void visit(FieldVisitor& v) {
    v.in("x", x);
    v.out("out", out);
    v.opt_out("lse", lse);
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

void binary(const BinaryParams& p);
void activation(const ActivationParams& p);
void gated_activation(const GatedActivationParams& p);
void softmax(const SoftmaxParams& p);
void dequantize(const DequantizeParams& p);

}  // namespace kf
