#include <fmt/format.h>

#include "backends/cuda/linear/dequant_gemv_kernel.h"
#include "backends/cuda/linear/linear.h"
#include "backends/cuda/linear/prologue_epilogue.h"
#include "backends/cuda/linear/streamed_kernel.h"
#include "backends/cuda/runtime.h"
#include "backends/cuda/supports.h"
#include "core/op_weights.h"
#include "core/quantized.h"

namespace kf::cuda {

struct DequantState : GemvState {
  bool few = true;  // unfused: by the kernels of few tokens
  // Of each launch in turn, on matrix units; no tokens: not there.
  streamed::Shape shapes[3]{};
};

namespace dequant {
namespace {

// ---- What is taken

Support supports_input(std::int64_t in, InputQuantization quantization) {
  if (quantization != InputQuantization::none)
    return Support::no("input_quantization int8: this kernel multiplies x unrounded");
  if (in == 0) return Support::no("no input features: this kernel takes at least one");
  if (in > kMaxFeatures)
    return Support::no(fmt::format("{} input features: this kernel takes up to {}", in, kMaxFeatures));
  return Support::yes();
}

Support supports_few(std::int64_t num_tokens, std::int64_t in, InputQuantization quantization,
                     const DeviceCaps& caps) {
  if (const Support s = supports_input(in, quantization); !s) return s;
  if (num_tokens > kDequantTokens)
    return Support::no(fmt::format("{} tokens: this kernel takes up to {}", num_tokens, kDequantTokens));
  if (staged_bytes(1, in) > kMaxStagedBytes)
    return Support::no(fmt::format("{} input features: more than {} KiB of shared memory a token", in,
                                   kMaxStagedBytes >> 10));
  return shared_fits(kMostShared, caps);
}

Support supports_weight(const Weight& w) {
  if (w.layout.stride(1) != 1 && w.layout.dim(1) > 1)
    return Support::no("weight: this kernel takes rows of neighbouring elements");
  if (w.layout.dim(0) >= std::int64_t{1} << 30)
    return Support::no(fmt::format("weight: {} rows: this kernel takes fewer than 2^30", w.layout.dim(0)));
  if (w.layout.dim(0) > 1 && w.layout.stride(0) < 0)
    return Support::no(fmt::format("weight: stride {}: this kernel takes rows in order", w.layout.stride(0)));
  return Support::yes();
}

Support supports_weights(const TensorView& x, std::initializer_list<const Weight*> weights) {
  bool plain = true;
  for (const Weight* w : weights) {
    if (const Support s = supports_weight(*w); !s) return s;
    plain = plain && !w->sparsity.present() && w->layout.dtype == x.dtype;
  }
  // Other machines than NVIDIA's have none for more tokens than the kernel for few, or for more features than it can hold.
  if (plain && kCopiesAside) return Support::no("weights of x's dtype: rows for these are faster");
  return Support::yes();
}

// Whether weights are read alike, so that one launch reads both.
bool alike(const Weight& a, const Weight& b) {
  return a.layout.dtype == b.layout.dtype && a.sparsity.present() == b.sparsity.present() &&
         scale_grid(a.layout, a.quantization).columns == scale_grid(b.layout, b.quantization).columns;
}

// ---- What kernels are given

Weights weights_of(const Weight& w) {
  const TensorView& t = w.layout;
  const DTypeInfo& info = dtype_info(t.dtype);
  Weights d{};
  d.dtype = t.dtype;
  d.data = t.as<const unsigned char>();
  const auto bytes = [&](std::int64_t elements) {
    return t.dtype == DType::int4 ? elements / 2 : elements / info.block_elems * info.block_bytes;
  };
  d.row_bytes = bytes(t.stride(0));
  d.scale_rows = d.group = 1;
  if (needs_scales(t.dtype)) {
    const Quantization& q = w.quantization;
    const ScaleGrid grid = scale_grid(t, q);
    d.scales = q.scales.data;
    d.scales_dtype = q.scales.dtype;
    d.scales_stride = q.scales.stride(0);
    d.scale_rows = static_cast<int>(grid.rows);
    d.group = static_cast<int>(grid.columns);
    if (q.zeros.present()) {
      d.zeros = q.zeros.as<const std::int8_t>();
      d.zeros_stride = q.zeros.stride(0);
    }
  }
  if (w.sparsity.present()) {
    const Sparsity& s = w.sparsity;
    d.mask = s.mask.as<const std::uint8_t>();
    d.mask_stride = s.mask.stride(0);
    d.mask_bytes = static_cast<int>(s.mask.dim(1));
    d.n = static_cast<int>(s.n);
    d.m = static_cast<int>(s.m);
    if (s.m == 0) {
      d.offsets = s.offsets.as<const std::int64_t>();
      d.offsets_stride = s.offsets.stride(0);
    }
    d.row_values = t.stride(0);
  }
  return d;
}

void add_part(Args& a, const Weight& w, const TensorView& values, const TensorView& bias,
              const TensorView& out) {
  Weights d = weights_of(w);
  // Of an unstructured weight the offsets, which the host may not read, end at the number of values.
  if (d.mask)
    d.num_values = w.sparsity.m == 0    ? values.dim(0)
                   : values.dim(0) == 0 ? 0
                                        : (values.dim(0) - 1) * values.stride(0) + values.dim(1);
  a.weights[a.num_parts] = d;
  gemv::add_part(a, w.layout, bias, out);
}

void launch_kind(const Args& a, const TensorView& on, const RunContext& ctx, bool tiles) {
  const Weights& w = a.weights[0];
  const auto go = [&](auto few, auto many) { return tiles ? many(a, on, ctx) : few(a, on, ctx); };
  if (w.mask) return go(launch_gemv_sparse, launch_gemm_sparse);
  if (needs_scales(w.dtype)) return go(launch_gemv_scaled, launch_gemm_scaled);
  if (w.dtype == DType::q4_k || w.dtype == DType::q6_k) return go(launch_gemv_k_blocks, launch_gemm_k_blocks);
  if (dtype_info(w.dtype).is_block) return go(launch_gemv_blocks, launch_gemm_blocks);
  return go(launch_gemv_plain, launch_gemm_plain);
}

// How matrix units share out weights that are read alike, where they take them.
streamed::Shape shape_of(const TensorView& x, std::initializer_list<const Weight*> weights, bool gated,
                         const PlanContext& ctx) {
  if constexpr (kCopiesAside) {
    std::int64_t groups = 0;
    for (const Weight* w : weights) {
      const auto columns = static_cast<int>(scale_grid(w->layout, w->quantization).columns);
      if (w->sparsity.present() || !streamed::takes_coded(x, w->layout, columns, ctx)) return {};
      if (!gated || groups == 0) groups += streamed::groups_of(static_cast<int>(w->layout.dim(0)), gated);
    }
    return streamed::shape_for_coded(x, groups, gated, (*weights.begin())->layout.dtype);
  }
  return {};
}

std::shared_ptr<DequantState> state_of(const PlanContext& ctx) {
  auto s = std::make_shared<DequantState>();
  s->constant_weights = ctx.packs != nullptr;
  return s;
}

// On matrix units, or as many tokens a launch as fit.
void launch_few(Args a, const DequantState& s, int number, const TensorView& x, const RunContext& ctx) {
  if (a.num_tokens == 0) return;
  a.constant_weights = s.constant_weights;
  a.wide = gemv::input_is_wide(a);
  a.aligned = true;
  for (int i = 0; i < a.num_parts; ++i)
    a.aligned = a.aligned && reinterpret_cast<std::uintptr_t>(a.weights[i].data) % 16 == 0 &&
                (a.weights[i].row_bytes % 16 == 0 || a.parts[i].rows == 1);
  if constexpr (kCopiesAside)
    if (s.shapes[number].tokens != 0 && a.wide && a.aligned)
      return streamed::launch_coded(a, s.shapes[number], x, ctx);
  int most = kTokens;
  while (most > 1 && staged_bytes(most, a.in) > kMaxStagedBytes) most /= 2;
  gemv::by_tokens(a, most, [&](const Args& some) { launch_kind(some, x, ctx, false); });
}

Args args_of(const TensorView& x, const Prologue& prologue) {
  Args a{};
  static_cast<gemv::Args&>(a) = gemv::args_of(x, prologue);
  return a;
}

}  // namespace

Support supports(const LinearParams& p, const PlanContext& ctx) {
  if (const Support s = supports_few(p.x.dim(0), p.x.dim(1), p.input_quantization, ctx.caps); !s) return s;
  const Weight w = weight_of(p);
  return supports_weights(p.x, {&w});
}
std::shared_ptr<DequantState> prepare(const LinearParams& p, const PlanContext& ctx, std::size_t*) {
  const Weight w = weight_of(p);
  auto s = state_of(ctx);
  s->shapes[0] = shape_of(p.x, {&w}, false, ctx);
  return s;
}
void run(const LinearParams& p, const DequantState& s, const RunContext& ctx) {
  Args a = args_of(p.x, p.prologue);
  add_part(a, weight_of(p), p.weight, p.bias, p.out);
  a.activation = p.activation;
  gemv::set_residual(a, p.residual);
  launch_few(a, s, 0, p.x, ctx);
}

Support supports(const QkvLinearParams& p, const PlanContext& ctx) {
  if (const Support s = supports_few(p.x.dim(0), p.x.dim(1), p.input_quantization, ctx.caps); !s) return s;
  const QkvWeights w(p);
  return supports_weights(p.x, {&w.q, &w.k, &w.v});
}
// A launch for neighbours that are read alike.
std::shared_ptr<DequantState> prepare(const QkvLinearParams& p, const PlanContext& ctx, std::size_t*) {
  const QkvWeights w(p);
  auto s = state_of(ctx);
  streamed::Shape* shape = s->shapes;
  const bool two = alike(w.q, w.k), three = alike(two ? w.q : w.k, w.v);
  if (two && three) {
    *shape = shape_of(p.x, {&w.q, &w.k, &w.v}, false, ctx);
  } else {
    *shape++ = two ? shape_of(p.x, {&w.q, &w.k}, false, ctx) : shape_of(p.x, {&w.q}, false, ctx);
    if (!two) *shape++ = three ? shape_of(p.x, {&w.k, &w.v}, false, ctx) : shape_of(p.x, {&w.k}, false, ctx);
    if (!three) *shape = shape_of(p.x, {&w.v}, false, ctx);
  }
  return s;
}
void run(const QkvLinearParams& p, const DequantState& s, const RunContext& ctx) {
  const QkvWeights w(p);
  const Weight* const weights[] = {&w.q, &w.k, &w.v};
  const TensorView *const values[] = {&p.q_weight, &p.k_weight, &p.v_weight},
                          *const biases[] = {&p.q_bias, &p.k_bias, &p.v_bias},
                          *const outs[] = {&p.q, &p.k, &p.v};
  for (int i = 0, number = 0; i < 3; ++number) {
    Args a = args_of(p.x, p.prologue);
    const int first = i;
    for (; i < 3 && alike(*weights[first], *weights[i]); ++i)
      add_part(a, *weights[i], *values[i], *biases[i], *outs[i]);
    launch_few(a, s, number, p.x, ctx);
  }
}

Support supports(const GatedFfnParams& p, const PlanContext& ctx) {
  if (const Support s = supports_few(p.x.dim(0), p.x.dim(1), p.input_quantization, ctx.caps); !s) return s;
  const FfnWeights w(p);
  if (const Support s = supports_few(p.x.dim(0), w.intermediate(), p.input_quantization, ctx.caps); !s)
    return s;
  if (const Support s = supports_weights(p.x, {&w.gate, &w.up, &w.down}); !s) return s;
  if (!alike(w.gate, w.up))
    return Support::no(fmt::format("gate_weight {} and up_weight {}: this kernel takes two of one format",
                                   dtype_name(w.gate.layout.dtype), dtype_name(w.up.layout.dtype)));
  return Support::yes();
}
std::shared_ptr<DequantState> prepare(const GatedFfnParams& p, const PlanContext& ctx,
                                      std::size_t* workspace_bytes) {
  const FfnWeights w(p);
  const TensorView h = gemv::intermediate(p, w.intermediate(), nullptr);
  *workspace_bytes = h.nbytes();
  auto s = state_of(ctx);
  s->shapes[0] = shape_of(p.x, {&w.gate, &w.up}, true, ctx);
  s->shapes[1] = shape_of(h, {&w.down}, false, ctx);
  return s;
}
void run(const GatedFfnParams& p, const DequantState& s, const RunContext& ctx) {
  const FfnWeights w(p);
  const TensorView h = gemv::intermediate(p, w.intermediate(), ctx.workspace);
  Args a = args_of(p.x, p.prologue);
  add_part(a, w.gate, p.gate_weight, {}, h);
  add_part(a, w.up, p.up_weight, {}, {});
  a.gated = true;
  a.activation = p.activation;
  launch_few(a, s, 0, p.x, ctx);
  Args b = args_of(h, {});
  add_part(b, w.down, p.down_weight, {}, p.out);
  gemv::set_residual(b, p.residual);
  launch_few(b, s, 1, h, ctx);
}

Support supports(const LmHeadArgmaxParams& p, const PlanContext& ctx) {
  if (const Support s = supports_few(p.x.dim(0), p.x.dim(1), p.input_quantization, ctx.caps); !s) return s;
  const Weight w = weight_of(p);
  return supports_weights(p.x, {&w});
}
std::shared_ptr<DequantState> prepare(const LmHeadArgmaxParams& p, const PlanContext& ctx,
                                      std::size_t* workspace_bytes) {
  gemv::prepare_largest(p, ctx, workspace_bytes);
  const Weight w = weight_of(p);
  auto s = state_of(ctx);
  s->shapes[0] = shape_of(p.x, {&w}, false, ctx);
  return s;
}
void run(const LmHeadArgmaxParams& p, const DequantState& s, const RunContext& ctx) {
  Args a = args_of(p.x, p.prologue);
  add_part(a, weight_of(p), p.weight, {}, {});
  gemv::set_largest(a, p, ctx.workspace);
  launch_few(a, s, 0, p.x, ctx);
}

Support supports_gemm(const LinearParams& p, const PlanContext&) {
  if (const Support s = supports_input(p.x.dim(1), p.input_quantization); !s) return s;
  if (!p.prologue.empty()) return Support::no("a prologue: this kernel multiplies x as it is");
  constexpr std::int64_t kMostTokens = 64 * 65535;
  if (p.x.dim(0) > kMostTokens)
    return Support::no(fmt::format("{} tokens: this kernel takes up to {}", p.x.dim(0), kMostTokens));
  return supports_weight(weight_of(p));
}
void run_gemm(const LinearParams& p, const GemvState&, const RunContext& ctx) {
  Args a = args_of(p.x, {});
  add_part(a, weight_of(p), p.weight, p.bias, p.out);
  a.activation = p.activation;
  gemv::set_residual(a, p.residual);
  if (a.num_tokens > 0) launch_kind(a, p.x, ctx, true);
}

Support supports_unfused(const LinearParams& p, const PlanContext& ctx) {
  if (p.residual.present()) return Support::no("a residual: this row is the unfused linear layer");
  if (p.activation != Activation::none)
    return Support::no("an activation: this row is the unfused linear layer");
  return supports_gemm(p, ctx);
}
std::shared_ptr<DequantState> prepare_unfused(const LinearParams& p, const PlanContext& ctx,
                                              std::size_t* workspace_bytes) {
  auto s = prepare(p, ctx, workspace_bytes);
  s->few = supports_few(p.x.dim(0), p.x.dim(1), p.input_quantization, ctx.caps).operator bool();
  return s;
}
void run_unfused(const LinearParams& p, const DequantState& s, const RunContext& ctx) {
  return s.few ? run(p, s, ctx) : run_gemm(p, s, ctx);
}

}  // namespace dequant
}  // namespace kf::cuda
