// The linear family: what fits together, what comes out, what it costs.
#include <cmath>
#include <limits>
#include <string>

#include <fmt/format.h>

#include "core/quantized.h"
#include "core/sparse.h"
#include "ops/check.h"
#include "ops/ops.h"

namespace kf::ops {
namespace {

// An absent output becomes a contiguous [rows, cols] of this dtype. Dimensions may be symbolic.
void infer_matrix(TensorView& out, DType dtype, const TensorView& x, const TensorView& weight,
                  const Sparsity& sparsity) {
  if (out.present() || x.rank != 2 || (sparsity.present() ? sparsity.mask : weight).rank != 2) return;
  out = TensorView::contiguous(nullptr, dtype, {x.dim(0), weight_rows(weight, sparsity)}, x.device);
}

void infer_vector(TensorView& out, DType dtype, const TensorView& x) {
  if (out.present() || x.rank != 2) return;
  out = TensorView::contiguous(nullptr, dtype, {x.dim(0)}, x.device);
}

void validate_input(const char* op, const TensorView& x) {
  check(op, "x", x).rank(2).activation_dtype().last_dim_contiguous();
}

void validate_weight(const char* op, const char* name, const TensorView& weight,
                     const Quantization& quantization, const Sparsity& sparsity, std::int64_t in,
                     const char* in_is) {
  check_sparsity(op, name, weight, sparsity, in);
  if (sparsity.present())
    return check_quantization(op, name, dense_layout(weight, sparsity, in), quantization);
  const Check c = check(op, name, weight).rank(2).dim(1, in, in_is);
  const bool is_plain = is_activation_dtype(weight.dtype) || dtype_info(weight.dtype).is_block;
  if (!is_plain && !needs_scales(weight.dtype))
    c.fail(weight_dtype_names() + "; int4, i8, fp8_e4m3 or fp8_e5m2 with scales", dtype_name(weight.dtype));
  if (is_plain) c.weight_dtype();
  check_quantization(op, name, weight, quantization);
}

void validate_bias(const char* op, const char* name, const TensorView& bias, std::int64_t out_features) {
  if (!bias.present()) return;
  check(op, name, bias)
      .rank(1)
      .dim(0, out_features, "the weight's rows")
      .activation_dtype()
      .last_dim_contiguous();
}

// An operand or result of one row a token.
const Check& validate_rows(const Check& c, const TensorView& x, std::int64_t features) {
  return c.rank(2)
      .dim(0, x.dim(0), "x's rows")
      .dim(1, features, "the weight's rows")
      .dtype_like(x, "x")
      .last_dim_contiguous();
}

void validate_output(const char* op, const char* name, const TensorView& out, const TensorView& x,
                     std::int64_t features) {
  validate_rows(check(op, name, out), x, features).no_overlap_in_itself();
}

void validate_activation(const char* op, const char* name, Activation a) {
  if (static_cast<unsigned>(a) >= std::size(kActivationNames))
    fail_attr(op, name, "none, silu, gelu, gelu_tanh or relu", std::to_string(static_cast<int>(a)));
}

void validate_prologue(const char* op, const Prologue& pro, const TensorView& x) {
  if (static_cast<unsigned>(pro.norm) >= std::size(kNormKindNames))
    fail_attr(op, "norm", "none, rms or layer", std::to_string(static_cast<int>(pro.norm)));
  validate_activation(op, "pre_activation", pro.activation);
  if (pro.norm != NormKind::none && pro.activation != Activation::none)
    fail_attr(op, "pre_activation", "none, since a norm stands before the layer",
              kActivationNames[static_cast<int>(pro.activation)]);
  if (!(pro.eps >= 0.0f) || std::isinf(pro.eps))
    fail_attr(op, "eps", "a number >= 0", fmt::format("{}", pro.eps));
  check_finite(op, "norm_weight_offset", pro.norm_weight_offset);
  if (pro.norm != NormKind::rms && pro.norm_weight_offset != 0.0f)
    fail_attr(op, "norm_weight_offset",
              fmt::format("0, since norm is {}", kNormKindNames[static_cast<int>(pro.norm)]),
              fmt::format("{}", pro.norm_weight_offset));
  const Check weight = check(op, "norm_weight", pro.norm_weight);
  if (pro.norm == NormKind::none) {
    if (pro.norm_weight.present()) weight.fail("none, since norm is none", shape_string(pro.norm_weight));
  } else {
    weight.rank(1).dim(0, x.dim(1), "x's columns").activation_dtype().last_dim_contiguous();
  }
  if (pro.norm_bias.present()) {
    const Check bias = check(op, "norm_bias", pro.norm_bias);
    if (pro.norm != NormKind::layer)
      bias.fail(fmt::format("none, since norm is {}", kNormKindNames[static_cast<int>(pro.norm)]),
                shape_string(pro.norm_bias));
    bias.rank(1).dim(0, x.dim(1), "x's columns").activation_dtype().last_dim_contiguous();
  }
}

double bytes_of(const TensorView& t) { return t.present() ? static_cast<double>(t.nbytes()) : 0.0; }

double bytes_of(const Quantization& q) { return bytes_of(q.scales) + bytes_of(q.zeros); }

double bytes_of(const Sparsity& s) { return bytes_of(s.mask) + bytes_of(s.offsets); }

void validate_lora(const char* op, const Lora& l, const TensorView& x, std::int64_t out) {
  constexpr std::int64_t kMaxRank = 512;
  if (!std::isfinite(l.scale)) fail_attr(op, "lora_scale", "a finite number", fmt::format("{}", l.scale));
  const Check a = check(op, "lora_a", l.a), b = check(op, "lora_b", l.b),
              index = check(op, "lora_index", l.index);
  if (!l.a.present()) {
    if (l.b.present()) b.fail("none, since there is no lora_a", shape_string(l.b));
    if (l.index.present()) index.fail("none, since there is no lora_a", shape_string(l.index));
    return;
  }
  if (!l.b.present()) b.fail("lora_b beside lora_a", "none");
  const int rank = l.index.present() ? 3 : 2;
  a.rank(rank).dim(rank - 1, x.dim(1), "x's columns").activation_dtype().last_dim_contiguous();
  const std::int64_t low_rank = l.a.dim(-2);
  if (low_rank < 1 || low_rank > kMaxRank)
    a.fail(fmt::format("a rank of 1 to {}", kMaxRank), std::to_string(low_rank));
  b.rank(rank)
      .dim(rank - 2, out, "the weight's rows")
      .dim(rank - 1, low_rank, "lora_a's rank")
      .activation_dtype()
      .last_dim_contiguous();
  if (!l.index.present()) return;
  b.dim(0, l.a.dim(0), "lora_a's adapters");
  index.rank(1).dim(0, x.dim(0), "x's rows").dtype(DType::i32).contiguous();
}

double bytes_of(const Lora& l) { return bytes_of(l.a) + bytes_of(l.b) + bytes_of(l.index); }

double bytes_of(const Prologue& pro) { return bytes_of(pro.norm_weight) + bytes_of(pro.norm_bias); }

// Of a sparse weight those of its values.
double matmul_flops(const TensorView& x, const TensorView& weight) {
  return 2.0 * static_cast<double>(x.dim(0)) * static_cast<double>(weight.numel());
}

}  // namespace

// linear

void infer(LinearParams& p) { infer_matrix(p.out, p.x.dtype, p.x, p.weight, p.weight_sparsity); }

void validate(const LinearParams& p) {
  const char* op = "linear";
  validate_input(op, p.x);
  validate_weight(op, "weight", p.weight, p.weight_quantization, p.weight_sparsity, p.x.dim(1),
                  "x's columns");
  const std::int64_t rows = weight_rows(p.weight, p.weight_sparsity);
  validate_bias(op, "bias", p.bias, rows);
  if (p.residual.present()) validate_rows(check(op, "residual", p.residual), p.x, rows);
  validate_output(op, "out", p.out, p.x, rows);
  validate_prologue(op, p.prologue, p.x);
  validate_activation(op, "activation", p.activation);
  validate_lora(op, p.lora, p.x, rows);
  if (p.lora.present() && p.input_quantization != InputQuantization::none)
    fail_attr(op, "input_quantization", "none, since there is an adapter", "int8");
}

void validate_data(const LinearParams& p) {
  if (p.lora.index.present())
    check_values("linear", "lora_index", p.lora.index, -1, p.lora.a.dim(0), "adapters");
  check_offsets("linear", "weight", p.weight, p.weight_sparsity);
}

Cost cost(const LinearParams& p) {
  Cost c{matmul_flops(p.x, p.weight), bytes_of(p.x) + bytes_of(p.weight) + bytes_of(p.weight_quantization) +
                                          bytes_of(p.weight_sparsity) + bytes_of(p.bias) +
                                          bytes_of(p.residual) + bytes_of(p.out) + bytes_of(p.prologue) +
                                          bytes_of(p.lora)};
  if (p.lora.present())  // a token has one adapter
    c.flops += 2.0 * static_cast<double>(p.x.dim(0)) * static_cast<double>(p.lora.a.dim(-2)) *
               static_cast<double>(p.x.dim(1) + p.out.dim(1));
  return c;
}

// qkv_linear

void infer(QkvLinearParams& p) {
  infer_matrix(p.q, p.x.dtype, p.x, p.q_weight, p.q_weight_sparsity);
  infer_matrix(p.k, p.x.dtype, p.x, p.k_weight, p.k_weight_sparsity);
  infer_matrix(p.v, p.x.dtype, p.x, p.v_weight, p.v_weight_sparsity);
}

void validate(const QkvLinearParams& p) {
  const char* op = "qkv_linear";
  validate_input(op, p.x);
  validate_weight(op, "q_weight", p.q_weight, p.q_weight_quantization, p.q_weight_sparsity, p.x.dim(1),
                  "x's columns");
  validate_weight(op, "k_weight", p.k_weight, p.k_weight_quantization, p.k_weight_sparsity, p.x.dim(1),
                  "x's columns");
  validate_weight(op, "v_weight", p.v_weight, p.v_weight_quantization, p.v_weight_sparsity, p.x.dim(1),
                  "x's columns");
  const std::int64_t rows_q = weight_rows(p.q_weight, p.q_weight_sparsity),
                     rows_k = weight_rows(p.k_weight, p.k_weight_sparsity),
                     rows_v = weight_rows(p.v_weight, p.v_weight_sparsity);
  validate_bias(op, "q_bias", p.q_bias, rows_q);
  validate_bias(op, "k_bias", p.k_bias, rows_k);
  validate_bias(op, "v_bias", p.v_bias, rows_v);
  validate_output(op, "q", p.q, p.x, rows_q);
  validate_output(op, "k", p.k, p.x, rows_k);
  validate_output(op, "v", p.v, p.x, rows_v);
  validate_prologue(op, p.prologue, p.x);
}

void validate_data(const QkvLinearParams& p) {
  check_offsets("qkv_linear", "q_weight", p.q_weight, p.q_weight_sparsity);
  check_offsets("qkv_linear", "k_weight", p.k_weight, p.k_weight_sparsity);
  check_offsets("qkv_linear", "v_weight", p.v_weight, p.v_weight_sparsity);
}

Cost cost(const QkvLinearParams& p) {
  Cost c;
  c.flops = matmul_flops(p.x, p.q_weight) + matmul_flops(p.x, p.k_weight) + matmul_flops(p.x, p.v_weight);
  c.bytes = bytes_of(p.x) + bytes_of(p.prologue);
  for (const TensorView* t :
       {&p.q_weight, &p.k_weight, &p.v_weight, &p.q_bias, &p.k_bias, &p.v_bias, &p.q, &p.k, &p.v})
    c.bytes += bytes_of(*t);
  for (const Quantization* q : {&p.q_weight_quantization, &p.k_weight_quantization, &p.v_weight_quantization})
    c.bytes += bytes_of(*q);
  for (const Sparsity* s : {&p.q_weight_sparsity, &p.k_weight_sparsity, &p.v_weight_sparsity})
    c.bytes += bytes_of(*s);
  return c;
}

// gated_ffn

void infer(GatedFfnParams& p) { infer_matrix(p.out, p.x.dtype, p.x, p.down_weight, p.down_weight_sparsity); }

void validate(const GatedFfnParams& p) {
  const char* op = "gated_ffn";
  validate_input(op, p.x);
  validate_weight(op, "gate_weight", p.gate_weight, p.gate_weight_quantization, p.gate_weight_sparsity,
                  p.x.dim(1), "x's columns");
  validate_weight(op, "up_weight", p.up_weight, p.up_weight_quantization, p.up_weight_sparsity, p.x.dim(1),
                  "x's columns");
  const std::int64_t intermediate = weight_rows(p.gate_weight, p.gate_weight_sparsity),
                     rows = weight_rows(p.down_weight, p.down_weight_sparsity);
  const bool up_is_sparse = p.up_weight_sparsity.present();
  check(op, up_is_sparse ? "up_weight_mask" : "up_weight",
        up_is_sparse ? p.up_weight_sparsity.mask : p.up_weight)
      .dim(0, intermediate, "the gate's rows");
  validate_weight(op, "down_weight", p.down_weight, p.down_weight_quantization, p.down_weight_sparsity,
                  intermediate, "the gate's rows");
  if (p.residual.present()) validate_rows(check(op, "residual", p.residual), p.x, rows);
  validate_output(op, "out", p.out, p.x, rows);
  validate_prologue(op, p.prologue, p.x);
  validate_activation(op, "activation", p.activation);
}

void validate_data(const GatedFfnParams& p) {
  check_offsets("gated_ffn", "gate_weight", p.gate_weight, p.gate_weight_sparsity);
  check_offsets("gated_ffn", "up_weight", p.up_weight, p.up_weight_sparsity);
  check_offsets("gated_ffn", "down_weight", p.down_weight, p.down_weight_sparsity);
}

Cost cost(const GatedFfnParams& p) {
  Cost c;
  c.flops =
      matmul_flops(p.x, p.gate_weight) + matmul_flops(p.x, p.up_weight) + matmul_flops(p.x, p.down_weight);
  c.bytes = bytes_of(p.x) + bytes_of(p.gate_weight) + bytes_of(p.up_weight) + bytes_of(p.down_weight) +
            bytes_of(p.residual) + bytes_of(p.out) + bytes_of(p.prologue);
  for (const Quantization* q :
       {&p.gate_weight_quantization, &p.up_weight_quantization, &p.down_weight_quantization})
    c.bytes += bytes_of(*q);
  for (const Sparsity* s : {&p.gate_weight_sparsity, &p.up_weight_sparsity, &p.down_weight_sparsity})
    c.bytes += bytes_of(*s);
  return c;
}

// lm_head_argmax

void infer(LmHeadArgmaxParams& p) {
  infer_vector(p.ids, DType::i32, p.x);
  infer_vector(p.max, DType::f32, p.x);
}

void validate(const LmHeadArgmaxParams& p) {
  const char* op = "lm_head_argmax";
  validate_input(op, p.x);
  validate_weight(op, "weight", p.weight, p.weight_quantization, p.weight_sparsity, p.x.dim(1),
                  "x's columns");
  constexpr std::int64_t kMaxIds = std::numeric_limits<std::int32_t>::max();
  const std::int64_t rows = weight_rows(p.weight, p.weight_sparsity);
  if (rows < 1 || rows > kMaxIds)
    check(op, "weight", p.weight)
        .fail(fmt::format("1 to {} rows to choose from", kMaxIds), std::to_string(rows));
  check(op, "ids", p.ids).rank(1).dim(0, p.x.dim(0), "x's rows").dtype(DType::i32).no_overlap_in_itself();
  if (p.max.present())
    check(op, "max", p.max).rank(1).dim(0, p.x.dim(0), "x's rows").dtype(DType::f32).no_overlap_in_itself();
  validate_prologue(op, p.prologue, p.x);
}

void validate_data(const LmHeadArgmaxParams& p) {
  check_offsets("lm_head_argmax", "weight", p.weight, p.weight_sparsity);
}

Cost cost(const LmHeadArgmaxParams& p) {
  return {matmul_flops(p.x, p.weight), bytes_of(p.x) + bytes_of(p.weight) + bytes_of(p.weight_quantization) +
                                           bytes_of(p.weight_sparsity) + bytes_of(p.ids) + bytes_of(p.max) +
                                           bytes_of(p.prologue)};
}

}  // namespace kf::ops
