// Reductions over the threads of a row: blockDim.x of them, a power of two up to a warp, or whole warps. A block may hold
// several rows (blockDim.y) where a row takes at most a warp.
#pragma once

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
  for (int distance = lanes / 2; distance > 0; distance /= 2)
    v = Op::of(v, __shfl_xor_sync(0xffffffffu, v, distance));
  return v;
}

// The result in every thread of the row, by one order of additions. All threads of the block take part. Where a kernel reduces by
// several slots in turn, a barrier lies between two uses of one, and it need not be guarded.
template <class Op, int kSlot = 0, bool kGuarded = true>
__device__ inline float row_reduce(float v) {
  if (blockDim.x <= 32) return lanes_reduce<Op>(v, static_cast<int>(blockDim.x));
  __shared__ float of_warp[32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  v = lanes_reduce<Op>(v, 32);
  if constexpr (kGuarded) __syncthreads();  // those of the reduction before have been read
  if (lane == 0) of_warp[warp] = v;
  __syncthreads();
  return lanes_reduce<Op>(lane < static_cast<int>(blockDim.x) / 32 ? of_warp[lane] : Op::kIdentity, 32);
}

}  // namespace kf::cuda
