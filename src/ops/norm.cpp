#include "kf/ops/norm.h"

#include <cmath>

#include <fmt/format.h>

#include "ops/check.h"
#include "ops/ops.h"

namespace kf::ops {
namespace {

// RmsNormParams and LayerNormParams differ by the bias and the statistics alone.
template <class P>
void infer_norm(P& p) {
  if (!p.x.present()) return;
  infer_output(p.out, p.quantization, p.x);
  if (!p.residual_out.present()) p.residual_out = contiguous_like(p.x, p.x.dtype);
}

template <class P>
void validate_norm(const char* op, const P& p) {
  check(op, "x", p.x).rank_between(1, kMaxRank).activation_dtype().last_dim_contiguous();
  const std::int64_t n = p.x.dim(-1);
  check(op, "weight", p.weight)
      .rank(1)
      .dim(0, n, "the last dimension of x")
      .activation_dtype()
      .last_dim_contiguous();
  const auto like_x = [&](const char* name, const TensorView& t) {
    return check(op, name, t).shape_like(p.x, "x").dtype_like(p.x, "x").last_dim_contiguous();
  };
  if (p.residual.present()) like_x("residual", p.residual);
  validate_output(op, p.out, p.quantization, p.x, "x");
  if (p.residual_out.present()) like_x("residual_out", p.residual_out).no_overlap_in_itself();
  if (!(p.eps >= 0.0f) || std::isinf(p.eps)) fail_attr(op, "eps", "a number >= 0", fmt::format("{}", p.eps));
}

template <class P>
Cost cost_norm(const P& p, double flops_per_element) {
  Cost c;
  c.flops = flops_per_element * static_cast<double>(p.x.numel());
  for (const TensorView* t : {&p.x, &p.weight, &p.residual, &p.out, &p.residual_out,
                              &p.quantization.static_scale, &p.quantization.scales})
    if (t->present()) c.bytes += static_cast<double>(t->nbytes());
  return c;
}

}  // namespace

void infer(RmsNormParams& p) { infer_norm(p); }
void validate(const RmsNormParams& p) {
  validate_norm("rms_norm", p);
  check_finite("rms_norm", "weight_offset", p.weight_offset);
}
void validate_data(const RmsNormParams& p) { validate_static_scale("rms_norm", p.quantization); }
Cost cost(const RmsNormParams& p) { return cost_norm(p, p.residual.present() ? 5 : 4); }

void infer(LayerNormParams& p) { infer_norm(p); }
void validate(const LayerNormParams& p) {
  validate_norm("layer_norm", p);
  if (p.bias.present())
    check("layer_norm", "bias", p.bias)
        .rank(1)
        .dim(0, p.x.dim(-1), "the last dimension of x")
        .activation_dtype()
        .last_dim_contiguous();
}
void validate_data(const LayerNormParams& p) { validate_static_scale("layer_norm", p.quantization); }
Cost cost(const LayerNormParams& p) {
  Cost c = cost_norm(p, p.residual.present() ? 8 : 7);
  if (p.bias.present()) c.bytes += static_cast<double>(p.bias.nbytes());
  return c;
}

}  // namespace kf::ops
