// Logits in an order that integers have: a logit above its index, so that of equals the lowest index is largest.
#pragma once

#include <cstdint>

#include "backends/cuda/device/machine.cuh"

namespace kf::cuda {

// As unsigned integers order: both zeros alike, every NaN above all.
__device__ inline std::uint32_t order_of(float v) {
  if (isnan(v)) return 0xffffffffu;
  const std::uint32_t bits = __float_as_uint(v + 0.0f);  // -0 + 0 is +0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
// The logit again, a zero without its sign.
__device__ inline float logit_of(std::uint32_t order) {
  return __uint_as_float(order & 0x80000000u ? order ^ 0x80000000u : ~order);
}

// A logit and its index; 0 is less than any.
__device__ inline std::uint64_t ranked(float logit, int index) {
  return std::uint64_t{order_of(logit)} << 32 | (0xffffffffu - static_cast<std::uint32_t>(index));
}
__device__ inline int index_of(std::uint64_t ranked) {
  return static_cast<int>(0xffffffffu - static_cast<std::uint32_t>(ranked));
}
__device__ inline float logit_of(std::uint64_t ranked) {
  return logit_of(static_cast<std::uint32_t>(ranked >> 32));
}

// The largest of the block's, in its first thread. Whole warps.
__device__ inline std::uint64_t block_max(std::uint64_t v) {
  const auto over_lanes = [](std::uint64_t v) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const std::uint64_t other = shuffle_xor(v, distance);
      v = other > v ? other : v;
    }
    return v;
  };
  __shared__ std::uint64_t of_warp[1024 / kWarp];
  v = over_lanes(v);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = v;
  __syncthreads();
  if (threadIdx.x >= kWarp) return 0;
  return over_lanes(threadIdx.x < blockDim.x / kWarp ? of_warp[threadIdx.x] : 0);
}

}  // namespace kf::cuda
