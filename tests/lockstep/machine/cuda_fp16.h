// CUDA's conversions to and from f16.
#pragma once

#include <cuda_runtime.h>

#include "core/half.h"

struct __half_raw {
  std::uint16_t x;
};
struct __half2_raw {
  std::uint16_t x, y;
};
struct __half {
  std::uint16_t bits;
  __half() = default;
  explicit __half(__half_raw v) : bits(v.x) {}
};
struct __half2 {
  __half low, high;
};

inline __half __ushort_as_half(std::uint16_t v) { return __half(__half_raw{v}); }
inline std::uint16_t __half_as_ushort(__half v) { return v.bits; }
inline float __half2float(__half v) { return kf::f16_to_f32(v.bits); }
inline __half __float2half_rn(float v) { return __ushort_as_half(kf::f32_to_f16(v)); }
inline __half2 __floats2half2_rn(float low, float high) {
  return {__float2half_rn(low), __float2half_rn(high)};
}
inline __half __low2half(__half2 v) { return v.low; }
inline __half __high2half(__half2 v) { return v.high; }
