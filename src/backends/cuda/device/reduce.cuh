// Reductions over the threads of a row: blockDim.x of them, a power of two up to a warp, or whole warps. A block may hold
// several rows (blockDim.y) where a row takes at most a warp.
#pragma once

#include "backends/cuda/device/machine.cuh"

namespace kf::cuda {

struct Sum {
  static constexpr float kIdentity = 0.0f;
  __device__ static float of(float a, float b) { return a + b; }
};
struct Max {  // a NaN is lost
  static constexpr float kIdentity = -__builtin_huge_valf();
  __device__ static float of(float a, float b) { return fmaxf(a, b); }
};

template <class Op>
__device__ inline float lanes_reduce(float v, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) v = Op::of(v, shuffle_xor(v, distance));
  return v;
}

inline constexpr int kMaxWarps = 1024 / kWarp;  // of a block
// Of up to so many warps each thread adds what they have itself: fewer instructions than lanes that exchange it take.
inline constexpr int kAddedWarps = 8;

// The result in every thread of the row, by one order of additions. All threads of the block take part. Where a kernel reduces by
// several slots in turn, a barrier lies between two uses of one, and it need not be guarded.
template <class Op, int kSlot = 0, bool kGuarded = true>
__device__ inline float row_reduce(float v) {
  if (blockDim.x <= kWarp) return lanes_reduce<Op>(v, static_cast<int>(blockDim.x));
  __shared__ float of_warp[kMaxWarps];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  v = lanes_reduce<Op>(v, kWarp);
  if constexpr (kGuarded) __syncthreads();  // those of the reduction before have been read
  if (lane == 0) of_warp[warp] = v;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (warps > kAddedWarps) return lanes_reduce<Op>(lane < warps ? of_warp[lane] : Op::kIdentity, kWarp);
  v = of_warp[0];
#pragma unroll 4
  for (int w = 1; w < warps; ++w) v = Op::of(v, of_warp[w]);
  return v;
}

// Two sums of a row at once; once in a kernel.
struct TwoSums {
  float first, second;
};
__device__ inline TwoSums row_sums(TwoSums v) {
  const auto reduced = [](TwoSums s, int lanes) {
    return TwoSums{lanes_reduce<Sum>(s.first, lanes), lanes_reduce<Sum>(s.second, lanes)};
  };
  if (blockDim.x <= kWarp) return reduced(v, static_cast<int>(blockDim.x));
  __shared__ TwoSums of_warp[kMaxWarps];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  v = reduced(v, kWarp);
  if (lane == 0) of_warp[warp] = v;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (warps > kAddedWarps) return reduced(lane < warps ? of_warp[lane] : TwoSums{}, kWarp);
  v = of_warp[0];
#pragma unroll 4
  for (int w = 1; w < warps; ++w) {
    v.first += of_warp[w].first;
    v.second += of_warp[w].second;
  }
  return v;
}

}  // namespace kf::cuda
