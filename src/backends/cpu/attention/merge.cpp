// merge_attention: one pass over the rows of two partial results.
#include <cmath>
#include <limits>

#include "core/half.h"

#include "backends/cpu/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/attention/merge.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "backends/cpu/attention/kernels.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/simd/load_store-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::F32Tag;
using kf::HWY_NAMESPACE::ForEachVector;
using kf::HWY_NAMESPACE::LoadF32;
using kf::HWY_NAMESPACE::StoreF32;

// out = weight_a a + weight_b b; what weighs zero has no part, whatever it is.
void MergeRow(DType dtype, const void* a, float weight_a, const void* b, float weight_b, void* out,
              std::int64_t n) {
  with_activation_type(dtype, [&]<class T>(std::type_identity<T>) {
    const F32Tag d;
    const auto factor_a = hn::Set(d, weight_a), factor_b = hn::Set(d, weight_b);
    const auto part = [&](const void* from, auto factor, float weight, std::int64_t i, auto extent) HWY_ATTR {
      if (weight == 0.0f) return hn::Zero(d);
      return hn::Mul(LoadF32(d, static_cast<const T*>(from) + i, extent), factor);
    };
    ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
      const auto sum =
          hn::Add(part(a, factor_a, weight_a, i, extent), part(b, factor_b, weight_b, i, extent));
      StoreF32(d, sum, static_cast<T*>(out) + i, extent);
    });
  });
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf::cpu {

HWY_EXPORT(MergeRow);

void merge_run(const MergeAttentionParams& p, const RunContext& ctx) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const bool dense = p.out.rank == 4;
  const std::int64_t tokens = p.out.dim(-3), num_heads = p.out.dim(-2), n = p.out.dim(-1);
  const std::int64_t rows = (dense ? p.out.dim(0) : 1) * tokens * num_heads;
  parallel_ranges(ctx.num_threads, rows, n, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t head = row % num_heads, token = row / num_heads % tokens,
                         b = row / num_heads / tokens;
      const auto in_batch = [&](const TensorView& t) { return dense ? b * t.stride(0) : 0; };
      const auto at = [&](const TensorView& t) {
        return t.at(in_batch(t) + token * t.stride(-3) + head * t.stride(-2));
      };
      const auto lse_at = [&](const TensorView& t) -> float& {
        return t.as<float>()[in_batch(t) + head * t.stride(-2) + token * t.stride(-1)];
      };
      const float lse_a = lse_at(p.lse_a), lse_b = lse_at(p.lse_b);
      // The larger; NaN where either is.
      const float largest = lse_a > lse_b || std::isnan(lse_a) ? lse_a : lse_b;
      const auto weight_of = [&](float lse) { return lse == -kInfinity ? 0.0f : std::exp(lse - largest); };
      const float weight_a = weight_of(lse_a), weight_b = weight_of(lse_b), sum = weight_a + weight_b;
      const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
      HWY_DYNAMIC_DISPATCH(MergeRow)
      (p.out.dtype, at(p.out_a), weight_a * factor, at(p.out_b), weight_b * factor, at(p.out), n);
      if (p.lse.present()) lse_at(p.lse) = largest + std::log(sum);
    }
  });
}

}  // namespace kf::cpu
#endif
