// Dynamic n:m sparsity: of every m neighbouring scores the n largest (ops/keep_largest.h says which exactly).
#if defined(KF_CPU_ATTENTION_KEEP_LARGEST_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_ATTENTION_KEEP_LARGEST_INL_H_
#undef KF_CPU_ATTENTION_KEEP_LARGEST_INL_H_
#else
#define KF_CPU_ATTENTION_KEEP_LARGEST_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "backends/cpu/attention/score_rows.h"
#include "backends/cpu/simd/load_store-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// row = factor * row where the score is kept, else -inf. `count` up to kKeepAtATime scores, the first of which has this position
// within its group of m: a power of two up to kMostKept. A score's rank is how many of its group are
// larger, or equal and earlier: each is compared with those at every distance, of which those in its group count.
HWY_INLINE void KeepLargest(float* row, int count, int position, int n, int m, float factor) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const int lanes = static_cast<int>(hn::Lanes(d));
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr int kMaxLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<float>()));
  constexpr int kBefore = std::max(kMostKept, kMaxLanes);
  // The scores between values that are larger than none.
  HWY_ALIGN float buffer[kBefore + kMostKept + kKeepAtATime + kMaxLanes + kMostKept];
  HWY_ALIGN float kept[kMostKept + kKeepAtATime + kMaxLanes];
  float* const scores = buffer + kBefore;
  const int end = position + count;
  std::fill(buffer, scores + position, -kInfinity);
  std::fill(scores + end, buffer + sizeof buffer / sizeof *buffer, -kInfinity);
  kf::HWY_NAMESPACE::ForEachVector(count, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto x = kf::HWY_NAMESPACE::LoadF32(d, row + i, extent);
    kf::HWY_NAMESPACE::StoreF32(d, hn::IfThenElse(hn::IsNaN(x), hn::Set(d, kInfinity), x),
                                scores + position + i, extent);
  });
  const auto wanted = hn::Set(di, n);
  for (int i = 0; i < end; i += lanes) {
    const auto own = hn::Load(d, scores + i);
    const auto place = hn::And(hn::Iota(di, i), hn::Set(di, m - 1));
    auto rank = hn::Zero(di);
    for (int distance = 1; distance < m; ++distance) {
      const auto later =
          hn::And(hn::VecFromMask(di, hn::RebindMask(di, hn::Gt(hn::LoadU(d, scores + i + distance), own))),
                  hn::VecFromMask(di, hn::Lt(place, hn::Set(di, m - distance))));
      const auto earlier =
          hn::And(hn::VecFromMask(di, hn::RebindMask(di, hn::Ge(hn::LoadU(d, scores + i - distance), own))),
                  hn::VecFromMask(di, hn::Gt(place, hn::Set(di, distance - 1))));
      rank = hn::Sub(rank, hn::Add(later, earlier));  // each is 0 or -1
    }
    const auto is_kept = hn::RebindMask(d, hn::Lt(rank, wanted));
    hn::Store(hn::IfThenElseZero(is_kept, hn::Set(d, 1.0f)), d, kept + i);
  }
  const auto scale = hn::Set(d, factor);
  kf::HWY_NAMESPACE::ForEachVector(count, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto is_kept = hn::Gt(kf::HWY_NAMESPACE::LoadF32(d, kept + position + i, extent), hn::Zero(d));
    const auto x = hn::Mul(kf::HWY_NAMESPACE::LoadF32(d, row + i, extent), scale);
    kf::HWY_NAMESPACE::StoreF32(d, hn::IfThenElse(is_kept, x, hn::Set(d, -kInfinity)), row + i, extent);
  });
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
