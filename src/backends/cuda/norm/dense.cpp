#include "backends/cuda/norm/dense.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "backends/cuda/norm/args.h"
#include "backends/cuda/norm/norm.h"
#include "backends/cuda/supports.h"
#include "core/rows.h"

namespace kf::cuda {
namespace {

constexpr std::int64_t kVectorBytes = 16;

template <class P>
Support supports(const P& p, bool residual) {
  if (residual && !p.residual.present()) return Support::no("no residual: this kernel adds one");
  if (!residual && p.residual.present()) return Support::no("residual given: this kernel takes none");
  const TensorView bias = bias_of(p);
  for (const auto& [name, t] : {std::pair{"weight", &p.weight}, {"bias", &bias}})
    if (t->present() && t->dtype != p.x.dtype)
      return Support::no(fmt::format("{} {} with x {}: this kernel takes one dtype", name,
                                     dtype_name(t->dtype), dtype_name(p.x.dtype)));
  const std::int64_t n = p.x.dim(-1), width = kVectorBytes / dtype_info(p.x.dtype).block_bytes,
                     most = dense_norm_most_elements(p.x.dtype);
  if (n % width != 0)
    return Support::no(
        fmt::format("rows of {} elements: this kernel takes multiples of 16 bytes, {} elements", n, width));
  if (n > most) return Support::no(fmt::format("rows of {} elements: this kernel takes up to {}", n, most));
  for (const auto& [name, t] : {std::pair{"x", &p.x},
                                {"residual", &p.residual},
                                {"out", &p.out},
                                {"residual_out", &p.residual_out}}) {
    if (!t->present()) continue;
    const auto stride = RowOffsets(*t).even_stride();
    if (!stride)
      return Support::no(fmt::format("{}: rows of unequal distance: this kernel takes even ones", name));
    if (*stride % width != 0)
      return Support::no(
          fmt::format("{}: rows {} elements apart: this kernel takes multiples of 16 bytes", name, *stride));
  }
  return rows_fit(p.x);
}

// A plan serves other addresses than it was made with.
template <class P>
bool aligned(const P& p) {
  const TensorView bias = bias_of(p);
  return std::ranges::all_of(
      std::initializer_list<const TensorView*>{&p.x, &p.residual, &p.weight, &bias, &p.out, &p.residual_out},
      [](const TensorView* t) {
        return !t->present() || reinterpret_cast<std::uintptr_t>(t->data) % kVectorBytes == 0;
      });
}

}  // namespace

Support rms_norm_dense_supports(const RmsNormParams& p, const PlanContext&) { return supports(p, false); }
Support rms_norm_residual_dense_supports(const RmsNormParams& p, const PlanContext&) {
  return supports(p, true);
}
void rms_norm_dense_run(const RmsNormParams& p, const RunContext& ctx) {
  if (aligned(p)) return dense_norm_run(p, ctx);
  rms_norm_run(p, ctx);
}
Support layer_norm_dense_supports(const LayerNormParams& p, const PlanContext&) { return supports(p, false); }
Support layer_norm_residual_dense_supports(const LayerNormParams& p, const PlanContext&) {
  return supports(p, true);
}
void layer_norm_dense_run(const LayerNormParams& p, const RunContext& ctx) {
  if (aligned(p)) return dense_norm_run(p, ctx);
  layer_norm_run(p, ctx);
}

}  // namespace kf::cuda
