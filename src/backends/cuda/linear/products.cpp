// Linear layers for many tokens, as matrix products with few launches around them: the norm or activation before, then the
// products, which add bias and residual themselves, the activation after. What lies between them is in the workspace, in x's dtype.

#include <array>
#include <cstddef>
#include <vector>

#include <fmt/format.h>

#include "backends/cuda/linear/linear.h"
#include "core/sparse.h"
#include "kf/dispatch.h"
#include "kf/error.h"
#include "kf/ops/elementwise.h"
#include "kf/ops/norm.h"
#include "kf/ops/sampling.h"

namespace kf::cuda {

struct ProductsState {
  std::vector<std::shared_ptr<const Plan>> plans;  // step by step
  std::size_t scratch_bytes = 0;                   // before the steps' own workspace
};

namespace {

constexpr std::size_t kAlignment = 256;

// Tensors between the steps.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<std::byte*>(base)) {}
  TensorView like(const TensorView& x, std::int64_t columns) {
    TensorView t =
        TensorView::contiguous(base_ ? base_ + used_ : nullptr, x.dtype, {x.dim(0), columns}, x.device);
    used_ += (t.nbytes() + kAlignment - 1) / kAlignment * kAlignment;
    return t;
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

// The layers' input, once it is normed or activated.
template <class F>
TensorView prologue_steps(const TensorView& x, const Prologue& pro, Scratch& scratch, F&& step) {
  TensorView y = x;
  if (pro.activation != Activation::none) {
    y = scratch.like(x, x.dim(1));
    ActivationParams act;
    act.x = x, act.out = y, act.kind = pro.activation;
    step(act);
  }
  if (pro.norm == NormKind::none) return y;
  const TensorView from = y;
  y = scratch.like(x, x.dim(1));
  if (pro.norm == NormKind::rms) {
    RmsNormParams n;
    n.x = from, n.weight = pro.norm_weight, n.out = y, n.eps = pro.eps,
    n.weight_offset = pro.norm_weight_offset;
    step(n);
  } else {
    LayerNormParams n;
    n.x = from, n.weight = pro.norm_weight, n.bias = pro.norm_bias, n.out = y, n.eps = pro.eps;
    step(n);
  }
  return y;
}

// A weight with what it is read with.
struct Weighed {
  const TensorView& weight;
  const Quantization& quantization;
  const Sparsity& sparsity;
};

LinearParams product(const TensorView& x, const Weighed& w, const TensorView& bias, const TensorView& out) {
  LinearParams p;
  p.x = x, p.weight = w.weight, p.bias = bias, p.out = out;
  p.weight_quantization = w.quantization, p.weight_sparsity = w.sparsity;
  return p;
}

// The calls that each op is made of, in order. The description serves planning, with no memory, and running.
template <class F>
void for_each_step(const LinearParams& p, Scratch& scratch, F&& step) {
  const TensorView y = prologue_steps(p.x, p.prologue, scratch, step);
  if (p.activation == Activation::none) {
    LinearParams l = product(y, {p.weight, p.weight_quantization, p.weight_sparsity}, p.bias, p.out);
    l.residual = p.residual;
    return step(l);
  }
  // The residual is added after the activation, and may be the output's own memory.
  const TensorView z = p.residual.present() ? scratch.like(p.x, p.out.dim(1)) : p.out;
  step(product(y, {p.weight, p.weight_quantization, p.weight_sparsity}, p.bias, z));
  ActivationParams act;
  act.x = act.out = z, act.kind = p.activation;
  step(act);
  if (p.residual.present())
    step(BinaryParams{.a = z, .b = p.residual, .out = p.out, .kind = BinaryKind::add});
}
template <class F>
void for_each_step(const QkvLinearParams& p, Scratch& scratch, F&& step) {
  const TensorView y = prologue_steps(p.x, p.prologue, scratch, step);
  step(product(y, {p.q_weight, p.q_weight_quantization, p.q_weight_sparsity}, p.q_bias, p.q));
  step(product(y, {p.k_weight, p.k_weight_quantization, p.k_weight_sparsity}, p.k_bias, p.k));
  step(product(y, {p.v_weight, p.v_weight_quantization, p.v_weight_sparsity}, p.v_bias, p.v));
}
template <class F>
void for_each_step(const GatedFfnParams& p, Scratch& scratch, F&& step) {
  const TensorView y = prologue_steps(p.x, p.prologue, scratch, step);
  const std::int64_t intermediate = weight_rows(p.gate_weight, p.gate_weight_sparsity);
  const TensorView gate = scratch.like(p.x, intermediate), up = scratch.like(p.x, intermediate);
  step(product(y, {p.gate_weight, p.gate_weight_quantization, p.gate_weight_sparsity}, {}, gate));
  step(product(y, {p.up_weight, p.up_weight_quantization, p.up_weight_sparsity}, {}, up));
  GatedActivationParams act;
  act.gate = act.out = gate, act.up = up, act.kind = p.activation;
  step(act);
  LinearParams down =
      product(gate, {p.down_weight, p.down_weight_quantization, p.down_weight_sparsity}, {}, p.out);
  down.residual = p.residual;
  step(down);
}

template <class F>
void for_each_step(const LmHeadArgmaxParams& p, Scratch& scratch, F&& step) {
  const TensorView y = prologue_steps(p.x, p.prologue, scratch, step);
  const TensorView logits = scratch.like(p.x, weight_rows(p.weight, p.weight_sparsity));
  step(product(y, {p.weight, p.weight_quantization, p.weight_sparsity}, {}, logits));
  step(ArgmaxParams{.logits = logits, .ids = p.ids, .max = p.max});
}

bool is_bare(const LinearParams& p) { return p.prologue.empty() && p.activation == Activation::none; }

template <class P>
std::shared_ptr<ProductsState> plan(const P& p, const PlanContext& ctx) {
  auto s = std::make_shared<ProductsState>();
  Scratch scratch(nullptr);
  for_each_step(p, scratch, [&](const auto& params) {
    s->plans.push_back(ctx.dispatcher.plan(
        params, Selection{.families = kFused | kVanilla | kLibrary, .tf32 = ctx.tf32}, ctx.packs));
  });
  s->scratch_bytes = scratch.used();
  return s;
}

}  // namespace

template <class P>
Support products::supports(const P& p, const PlanContext& ctx) {
  if (p.input_quantization != InputQuantization::none)
    return Support::no("input_quantization int8: this row multiplies x unrounded");
  if constexpr (std::is_same_v<P, LinearParams>)
    if (is_bare(p)) return Support::no("nothing before the product, and no activation: a product is enough");
  try {
    plan(p, ctx);
  } catch (const Error& e) {
    return Support::no(e.what());
  }
  return Support::yes();
}

template <class P>
std::shared_ptr<ProductsState> products::prepare(const P& p, const PlanContext& ctx,
                                                 std::size_t* workspace_bytes) {
  auto s = plan(p, ctx);
  std::size_t steps = 0;
  for (const auto& step : s->plans) steps = std::max(steps, step->workspace_bytes());
  *workspace_bytes = s->scratch_bytes + steps;
  return s;
}

template <class P>
void products::run(const P& p, const ProductsState& s, const RunContext& ctx) {
  Scratch scratch(ctx.workspace);
  RunContext step_ctx = ctx;
  step_ctx.workspace = static_cast<std::byte*>(ctx.workspace) + s.scratch_bytes;
  std::size_t i = 0;
  for_each_step(p, scratch, [&](const auto& params) { s.plans[i++]->run(&params, step_ctx); });
}

#define KF_PRODUCTS(P)                                                                                   \
  template Support products::supports(const P&, const PlanContext&);                                     \
  template std::shared_ptr<ProductsState> products::prepare(const P&, const PlanContext&, std::size_t*); \
  template void products::run(const P&, const ProductsState&, const RunContext&);
KF_PRODUCTS(LinearParams)
KF_PRODUCTS(QkvLinearParams)
KF_PRODUCTS(GatedFfnParams)
KF_PRODUCTS(LmHeadArgmaxParams)
#undef KF_PRODUCTS

}  // namespace kf::cuda
