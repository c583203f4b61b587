#include <fmt/format.h>

#include "backends/cuda/linear/gemv_kernel.h"
#include "backends/cuda/linear/linear.h"
#include "backends/cuda/linear/prologue_epilogue.h"
#include "backends/cuda/linear/streamed_kernel.h"
#include "backends/cuda/runtime.h"
#include "backends/cuda/supports.h"
#include "core/quantized.h"

namespace kf::cuda {

struct StreamedState {
  bool constant_weights;
  streamed::Shape shape, down;  // down: of a gated FFN's second layer
};

namespace streamed {
namespace {

constexpr std::size_t kMostSharedBytes = 224 << 10;
constexpr int kMostBlocks = 8;  // that a cluster may have everywhere
constexpr int kAlwaysTokens = 8;

int slice_of(const Cut& cut, std::int64_t in, int blocks) {
  const std::int64_t step = std::int64_t{blocks} * cut.step;
  return static_cast<int>((in + step - 1) / step) * cut.step;
}
bool fits(const Cut& cut, int tokens, std::int64_t in, int blocks) {
  return shared_bytes(cut, tokens, slice_of(cut, in, blocks)) <= kMostSharedBytes;
}

bool has_clusters_for(const Cut& cut, std::int64_t tokens, std::int64_t in, int most_blocks) {
  return in <= gemv::kMostFeatures && fits(cut, padded_tokens(tokens), in, most_blocks);
}

Support supports_input(const TensorView& x, InputQuantization quantization, const PlanContext& ctx) {
  if (!has_clusters(ctx.caps)) return Support::no(ctx.caps.isa + ": this kernel needs sm_90's clusters");
  if (quantization != InputQuantization::none)
    return Support::no("input_quantization int8: this kernel multiplies x unrounded");
  if (x.dtype == DType::f32) return Support::no("x f32: this kernel takes f16 and bf16");
  if (x.dim(0) < kStreamedFrom || x.dim(0) > kMostTokens)
    return Support::no(
        fmt::format("{} tokens: this kernel takes {} to {}", x.dim(0), kStreamedFrom, kMostTokens));
  if (x.dim(1) == 0 || x.dim(1) % 8 != 0)
    return Support::no(fmt::format("{} input features: this kernel takes multiples of 8", x.dim(1)));
  // Beyond, products are faster, even with launches around them.
  const int most_blocks = x.dim(0) <= kAlwaysTokens ? kMostBlocks : 1;
  if (!has_clusters_for(kPlainCut, x.dim(0), x.dim(1), most_blocks))
    return Support::no(fmt::format("{} tokens of {} features: more than {} KiB of shared memory", x.dim(0),
                                   x.dim(1), most_blocks * (kMostSharedBytes >> 10)));
  return shared_fits(kMostSharedBytes, ctx.caps);
}

Support supports_weight(const TensorView& x, const TensorView& weight, const Sparsity& sparsity) {
  if (const Support s = gemv::supports_weight(x, weight, sparsity); !s) return s;
  if (weight.stride(0) % 8 != 0 && weight.dim(0) > 1)
    return Support::no(
        fmt::format("weight: stride {}: this kernel takes rows in chunks of 16 bytes", weight.stride(0)));
  return Support::yes();
}

// Cut so that the busiest warp has least to read. A round costs about as much as a step more.
// at_once(shape): clusters that run at once.
template <class F>
Shape shape_for(const Cut& cut, std::int64_t num_tokens, std::int64_t in, int groups, int device,
                const F& at_once_of) {
  const CurrentDevice current(device);
  Shape best{};
  std::int64_t least = 0;
  for (int blocks = 1; blocks <= kMostBlocks; blocks *= 2) {
    Shape s{padded_tokens(num_tokens), blocks, slice_of(cut, in, blocks), 1, 1};
    if (!fits(cut, s.tokens, in, blocks)) continue;
    const int at_once = std::max(1, at_once_of(s));
    for (s.splits = 1; s.splits <= cut.warps; s.splits *= 2) {
      const int of_cluster = cut.warps / s.splits;
      const int wanted = std::max(1, (groups + of_cluster - 1) / of_cluster);
      const int rounds = (wanted + at_once - 1) / at_once;
      s.clusters = (wanted + rounds - 1) / rounds;
      const std::int64_t cost = std::int64_t{rounds} * ((s.slice / cut.step + s.splits - 1) / s.splits + 1);
      if (best.tokens == 0 || cost < least) best = s, least = cost;
    }
    // More blocks a cluster than needed only cost.
    if (best.tokens != 0) break;
  }
  return best;
}
Shape shape_for(const TensorView& x, std::initializer_list<const TensorView*> weights, bool gated) {
  int groups = 0;
  for (const TensorView* w : weights) groups += groups_of(static_cast<int>(w->dim(0)), gated);
  return shape_for(kPlainCut, x.dim(0), x.dim(1), groups, x.device.index, [&](const Shape& s) {
    return x.dtype == DType::f16 ? clusters_plain_f16(gated, s) : clusters_plain_bf16(gated, s);
  });
}

void launch(Args a, const TensorView& x, bool constant_weights, const Shape& s, const RunContext& ctx) {
  if (a.num_tokens == 0) return;
  a.constant_weights = constant_weights;
  bool wide = gemv::input_is_wide(a) && (!a.up || gemv::is_wide(a.up, x.dtype, a.up_stride, a.in));
  for (int i = 0; i < a.num_parts; ++i)
    wide = wide && gemv::is_wide(a.parts[i].weight, x.dtype, a.parts[i].weight_stride, a.in);
  // A plan serves other addresses, too.
  if (!wide) return gemv::launch_by_tokens(a, x, constant_weights, ctx);
  return x.dtype == DType::f16 ? launch_plain_f16(a, s, x, ctx) : launch_plain_bf16(a, s, x, ctx);
}

std::shared_ptr<StreamedState> state_of(const PlanContext& ctx, const Shape& shape, const Shape& down = {}) {
  return std::make_shared<StreamedState>(StreamedState{ctx.packs != nullptr, shape, down});
}

}  // namespace

bool takes_coded(const TensorView& x, const TensorView& weight, int group, const PlanContext& ctx) {
  const Cut cut = coded_cut(weight.dtype);
  if (cut.step == 0 || x.dtype == DType::f32 || !has_clusters(ctx.caps)) return false;
  const std::int64_t in = x.dim(1);
  // One token is multiplied no slower without matrix units, but where codes are halves of bytes with scales beside.
  const int from = weight.dtype == DType::int4 ? 1 : kStreamedFrom;
  if (x.dim(0) < from || x.dim(0) > kMostTokens || in == 0 || in % 32 != 0) return false;
  if (needs_scales(weight.dtype) && group < in && (group < 32 || (group & (group - 1)) != 0)) return false;
  return has_clusters_for(cut, x.dim(0), in, kMostBlocks) && shared_fits(kMostSharedBytes, ctx.caps);
}
Shape shape_for_coded(const TensorView& x, std::int64_t groups, bool gated, DType weight) {
  const bool blocks = !needs_scales(weight);
  return shape_for(
      coded_cut(weight), x.dim(0), x.dim(1), static_cast<int>(groups), x.device.index, [&](const Shape& s) {
        if (x.dtype == DType::f16)
          return blocks ? clusters_blocks_f16(weight, gated, s) : clusters_scaled_f16(weight, gated, s);
        return blocks ? clusters_blocks_bf16(weight, gated, s) : clusters_scaled_bf16(weight, gated, s);
      });
}
void launch_coded(const dequant::Args& a, const Shape& s, const TensorView& on, const RunContext& ctx) {
  const bool blocks = !needs_scales(a.weights[0].dtype);
  if (a.dtype == DType::f16)
    return blocks ? launch_blocks_f16(a, s, on, ctx) : launch_scaled_f16(a, s, on, ctx);
  return blocks ? launch_blocks_bf16(a, s, on, ctx) : launch_scaled_bf16(a, s, on, ctx);
}

Support supports(const LinearParams& p, const PlanContext& ctx) {
  if (const Support s = supports_input(p.x, p.input_quantization, ctx); !s) return s;
  if (p.x.dim(0) > kAlwaysTokens && p.prologue.empty() && p.activation == Activation::none)
    return Support::no(
        fmt::format("{} tokens, and nothing before or after the product: a product is faster", p.x.dim(0)));
  return supports_weight(p.x, p.weight, p.weight_sparsity);
}
std::shared_ptr<StreamedState> prepare(const LinearParams& p, const PlanContext& ctx, std::size_t*) {
  return state_of(ctx, shape_for(p.x, {&p.weight}, false));
}
void run(const LinearParams& p, const StreamedState& s, const RunContext& ctx) {
  launch(gemv::args_of(p), p.x, s.constant_weights, s.shape, ctx);
}

Support supports(const QkvLinearParams& p, const PlanContext& ctx) {
  if (const Support s = supports_input(p.x, p.input_quantization, ctx); !s) return s;
  if (const Support s = supports_weight(p.x, p.q_weight, p.q_weight_sparsity); !s) return s;
  if (const Support s = supports_weight(p.x, p.k_weight, p.k_weight_sparsity); !s) return s;
  return supports_weight(p.x, p.v_weight, p.v_weight_sparsity);
}
std::shared_ptr<StreamedState> prepare(const QkvLinearParams& p, const PlanContext& ctx, std::size_t*) {
  return state_of(ctx, shape_for(p.x, {&p.q_weight, &p.k_weight, &p.v_weight}, false));
}
void run(const QkvLinearParams& p, const StreamedState& s, const RunContext& ctx) {
  launch(gemv::args_of(p), p.x, s.constant_weights, s.shape, ctx);
}

Support supports(const GatedFfnParams& p, const PlanContext& ctx) {
  if (const Support s = supports_input(p.x, p.input_quantization, ctx); !s) return s;
  if (const Support s = supports_weight(p.x, p.gate_weight, p.gate_weight_sparsity); !s) return s;
  if (const Support s = supports_weight(p.x, p.up_weight, p.up_weight_sparsity); !s) return s;
  if (const Support s = supports_weight(p.x, p.down_weight, p.down_weight_sparsity); !s) return s;
  return supports_input(gemv::intermediate(p, p.gate_weight.dim(0), nullptr), p.input_quantization, ctx);
}
std::shared_ptr<StreamedState> prepare(const GatedFfnParams& p, const PlanContext& ctx,
                                       std::size_t* workspace_bytes) {
  const TensorView h = gemv::intermediate(p, p.gate_weight.dim(0), nullptr);
  *workspace_bytes = h.nbytes();
  return state_of(ctx, shape_for(p.x, {&p.gate_weight}, true), shape_for(h, {&p.down_weight}, false));
}
void run(const GatedFfnParams& p, const StreamedState& s, const RunContext& ctx) {
  const TensorView h = gemv::intermediate(p, p.gate_weight.dim(0), ctx.workspace);
  launch(gemv::args_of(p, h), p.x, s.constant_weights, s.shape, ctx);
  launch(gemv::down_args_of(p, h), h, s.constant_weights, s.down, ctx);
}

Support supports(const LmHeadArgmaxParams& p, const PlanContext& ctx) {
  if (const Support s = supports_input(p.x, p.input_quantization, ctx); !s) return s;
  return supports_weight(p.x, p.weight, p.weight_sparsity);
}
std::shared_ptr<StreamedState> prepare(const LmHeadArgmaxParams& p, const PlanContext& ctx,
                                       std::size_t* workspace_bytes) {
  const Shape s = shape_for(p.x, {&p.weight}, false);
  // A number a block and token, or as the kernels for few tokens want it.
  *workspace_bytes =
      std::max(static_cast<std::size_t>(s.clusters * s.blocks) * kMostTokens * sizeof(std::uint64_t),
               gemv::largest_bytes(multiprocessors(p.x.device.index)));
  return state_of(ctx, s);
}
void run(const LmHeadArgmaxParams& p, const StreamedState& s, const RunContext& ctx) {
  launch(gemv::args_of(p, ctx.workspace), p.x, s.constant_weights, s.shape, ctx);
}

}  // namespace streamed
}  // namespace kf::cuda
