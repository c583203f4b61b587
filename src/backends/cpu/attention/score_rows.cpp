#include "backends/cpu/attention/score_rows.h"

#include "core/half.h"
#include "ops/keep_largest.h"

#include "backends/cpu/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/attention/score_rows.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "backends/cpu/attention/keep_largest-inl.h"
#include "backends/cpu/attention/score_rows-inl.h"

#if HWY_ONCE
namespace kf::cpu {

HWY_EXPORT(CapRow);
HWY_EXPORT(AddSlope);
HWY_EXPORT(ApplyMask);
HWY_EXPORT(KeepLargest);

void cap_row(float* row, std::int64_t n, float cap) { HWY_DYNAMIC_DISPATCH(CapRow)(row, n, cap); }

void add_slope(float* row, std::int64_t n, float slope, std::int64_t distance) {
  HWY_DYNAMIC_DISPATCH(AddSlope)(row, n, slope, distance);
}

void apply_mask(float* row, std::int64_t n, const TensorView& mask, std::int64_t offset) {
  HWY_DYNAMIC_DISPATCH(ApplyMask)(row, n, mask, offset, 1.0f);
}

void keep_largest(float* row, std::int64_t n, std::int64_t position, std::int64_t keep_n,
                  std::int64_t keep_m) {
  if (!keeps_in_vectors(keep_m)) return ops::keep_largest(row, n, position, keep_n, keep_m);
  // Whole groups at a time.
  for (std::int64_t i = 0; i < n;) {
    const std::int64_t count = std::min(n - i, kKeepAtATime - position);
    HWY_DYNAMIC_DISPATCH(KeepLargest)
    (row + i, static_cast<int>(count), static_cast<int>(position), static_cast<int>(keep_n),
     static_cast<int>(keep_m), 1.0f);
    i += count, position = 0;
  }
}

}  // namespace kf::cpu
#endif
