#include "backends/cpu/attention/score_rows.h"

#include "core/half.h"

#include "backends/cpu/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/attention/score_rows.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "backends/cpu/attention/score_rows-inl.h"

#if HWY_ONCE
namespace kf::cpu {

HWY_EXPORT(CapRow);
HWY_EXPORT(AddSlope);
HWY_EXPORT(ApplyMask);

void cap_row(float* row, std::int64_t n, float cap) { HWY_DYNAMIC_DISPATCH(CapRow)(row, n, cap); }

void add_slope(float* row, std::int64_t n, float slope, std::int64_t distance) {
  HWY_DYNAMIC_DISPATCH(AddSlope)(row, n, slope, distance);
}

void apply_mask(float* row, std::int64_t n, const TensorView& mask, std::int64_t offset) {
  HWY_DYNAMIC_DISPATCH(ApplyMask)(row, n, mask, offset, 1.0f);
}

}  // namespace kf::cpu
#endif
