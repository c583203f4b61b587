#include "backends/cpu/rope/rotate_heads.h"

#include <cmath>

#include "core/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/rope/rotate_heads.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/simd/load_store-inl.h"
#include "backends/cpu/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {

HWY_INLINE void NormaliseHead(float* head, std::int64_t head_dim, const float* weight, float eps) {
  const F32Tag d;
  const double squares = BlockedSum(head_dim, [&](F32Vec acc, std::int64_t i, auto extent) HWY_ATTR {
    const auto v = LoadF32(d, head + i, extent);
    return hn::MulAdd(v, v, acc);
  });
  const double mean = squares / static_cast<double>(head_dim);
  const auto inv = hn::Set(d, static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(eps))));
  ForEachVector(head_dim, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto v = hn::Mul(LoadF32(d, head + i, extent), inv);
    StoreF32(d, hn::Mul(v, LoadF32(d, weight + i, extent)), head + i, extent);
  });
}

// Pairs (i, i + half).
HWY_INLINE void RotateHalves(float* head, const cpu::Rotation& r) {
  const F32Tag d;
  ForEachVector(r.half, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto c = LoadF32(d, r.cos + i, extent), s = LoadF32(d, r.sin + i, extent);
    const auto x1 = LoadF32(d, head + i, extent), x2 = LoadF32(d, head + r.half + i, extent);
    StoreF32(d, hn::NegMulAdd(x2, s, hn::Mul(x1, c)), head + i, extent);
    StoreF32(d, hn::MulAdd(x1, s, hn::Mul(x2, c)), head + r.half + i, extent);
  });
}

// Pairs (2i, 2i + 1).
HWY_INLINE void RotateNeighbours(float* head, const cpu::Rotation& r) {
  const F32Tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t i = 0;
  for (; i + lanes <= r.half; i += lanes) {
    const auto c = hn::LoadU(d, r.cos + i), s = hn::LoadU(d, r.sin + i);
    F32Vec x1, x2;
    hn::LoadInterleaved2(d, head + 2 * i, x1, x2);
    hn::StoreInterleaved2(hn::NegMulAdd(x2, s, hn::Mul(x1, c)), hn::MulAdd(x1, s, hn::Mul(x2, c)), d,
                          head + 2 * i);
  }
  for (; i < r.half; ++i) {
    const float c = r.cos[i], s = r.sin[i], x1 = head[2 * i], x2 = head[2 * i + 1];
    head[2 * i] = x1 * c - x2 * s;
    head[2 * i + 1] = x2 * c + x1 * s;
  }
}

template <class From, class To>
void RotateTyped(const cpu::Rotation& r, const From* x, std::int64_t x_stride, To* out,
                 std::int64_t out_stride, std::int64_t num_heads, std::int64_t head_dim) {
  const F32Tag d;
  HWY_ALIGN float head[cpu::kMaxRopeHeadDim];
  for (std::int64_t h = 0; h < num_heads; ++h) {
    const From* from = x + h * x_stride;
    To* to = out + h * out_stride;
    ForEachVector(head_dim, [&](std::int64_t i, auto extent)
                                HWY_ATTR { StoreF32(d, LoadF32(d, from + i, extent), head + i, extent); });
    if (r.norm_weight) NormaliseHead(head, head_dim, r.norm_weight, r.norm_eps);
    r.interleaved ? RotateNeighbours(head, r) : RotateHalves(head, r);
    ForEachVector(head_dim, [&](std::int64_t i, auto extent)
                                HWY_ATTR { StoreF32(d, LoadF32(d, head + i, extent), to + i, extent); });
  }
}

void RotateHeads(const cpu::Rotation& r, const cpu::Heads& x, const cpu::Heads& out, std::int64_t num_heads,
                 std::int64_t head_dim) {
  with_activation_type(x.dtype, [&]<class From>(std::type_identity<From>) {
    with_activation_type(out.dtype, [&]<class To>(std::type_identity<To>) {
      RotateTyped(r, static_cast<const From*>(x.data), x.stride, static_cast<To*>(out.data), out.stride,
                  num_heads, head_dim);
    });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf {
HWY_EXPORT(RotateHeads);

void cpu::rotate_heads(const Rotation& rotation, const Heads& x, const Heads& out, std::int64_t num_heads,
                       std::int64_t head_dim) {
  HWY_DYNAMIC_DISPATCH(RotateHeads)(rotation, x, out, num_heads, head_dim);
}

}  // namespace kf
#endif
