// Scales and zeros beside the rows of a weight, some groups at a time.
#if defined(KF_CPU_LINEAR_GEMV_SCALES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_GEMV_SCALES_INL_H_
#undef KF_CPU_LINEAR_GEMV_SCALES_INL_H_
#else
#define KF_CPU_LINEAR_GEMV_SCALES_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backends/cpu/linear/operand-inl.h"
#include "core/quantized.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr std::int64_t kMaxGroups = 64;  // whose scales are held at a time
// Scales and zeros of a row beside the weight, from group `first` on, in f32. What lies behind the last of `count` groups
// is 0, for as many as a step may read.
inline constexpr std::size_t kMaxGroupsPerStep = 4;
inline constexpr std::size_t kScalesHeld = kMaxGroups + hn::MaxLanes(F32Tag()) + kMaxGroupsPerStep;
HWY_INLINE void LoadScales(const Quantization& q, const ScaleGrid& grid, std::int64_t row, std::int64_t first,
                           std::int64_t count, float* scales, float* zeros) {
  const F32Tag d;
  const std::int64_t at = row / grid.rows * q.scales.stride(0) + first;
  ForEachVector(count, [&](std::int64_t i, auto extent)
                           HWY_ATTR { hn::StoreU(LoadOperand(q.scales, at + i, extent), d, scales + i); });
  std::fill_n(scales + count, kMaxGroupsPerStep, 0.0f);
  std::fill_n(zeros, count + static_cast<std::int64_t>(kMaxGroupsPerStep), 0.0f);
  if (!q.zeros.present()) return;
  const auto* const from = q.zeros.as<const std::int8_t>() + row / grid.rows * q.zeros.stride(0) + first;
  for (std::int64_t i = 0; i < count; ++i) zeros[i] = from[i];
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
