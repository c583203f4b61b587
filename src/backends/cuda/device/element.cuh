// Elements of any activation dtype as f32, one or a vector of neighbours at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "core/half.h"

namespace kf::cuda {

__device__ inline float widen(float v) { return v; }
__device__ inline float widen(F16 v) { return __half2float(__ushort_as_half(v.bits)); }
__device__ inline float widen(Bf16 v) { return __uint_as_float(std::uint32_t{v.bits} << 16); }

// Rounds to nearest even.
template <class T>
__device__ inline T narrow(float v);
template <>
__device__ inline float narrow<float>(float v) {
  return v;
}
template <>
__device__ inline F16 narrow<F16>(float v) {
  return {__half_as_ushort(__float2half_rn(v))};
}
template <>
__device__ inline Bf16 narrow<Bf16>(float v) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
}

template <class T>
inline constexpr DType kDTypeOf = std::is_same_v<T, F16>    ? DType::f16
                                  : std::is_same_v<T, Bf16> ? DType::bf16
                                                            : DType::f32;

// W neighbours as they lie, moved in accesses of up to 16 bytes.
template <class T, int W>
struct alignas(sizeof(T) * W < 16 ? sizeof(T) * W : 16) Pack {
  T e[W];
};

// Elements that one access of 16 bytes holds.
template <class T>
inline constexpr int kVectorWidth = 16 / sizeof(T);

template <int W, class T>
__device__ inline Pack<T, W> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, W>*>(from);
}

template <int W, class T>
__device__ inline void widen(const Pack<T, W>& p, float (&to)[W]) {
#pragma unroll
  for (int i = 0; i < W; ++i) to[i] = widen(p.e[i]);
}

template <int W, class T>
__device__ inline void load(const T* from, float (&to)[W]) {
  widen(load_pack<W>(from), to);
}

// Two neighbours by one instruction.
__device__ inline void narrow_pair(float low, float high, F16* to) {
  const __half2 h = __floats2half2_rn(low, high);
  to[0] = {__half_as_ushort(__low2half(h))};
  to[1] = {__half_as_ushort(__high2half(h))};
}
__device__ inline void narrow_pair(float low, float high, Bf16* to) {
  const __nv_bfloat162 h = __floats2bfloat162_rn(low, high);
  to[0] = {__bfloat16_as_ushort(__low2bfloat16(h))};
  to[1] = {__bfloat16_as_ushort(__high2bfloat16(h))};
}

template <int W, class T>
__device__ inline void store(T* to, const float (&from)[W]) {
  Pack<T, W> p;
  if constexpr (W % 2 == 0 && sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < W; i += 2) narrow_pair(from[i], from[i + 1], p.e + i);
  } else {
#pragma unroll
    for (int i = 0; i < W; ++i) p.e[i] = narrow<T>(from[i]);
  }
  *reinterpret_cast<Pack<T, W>*>(to) = p;
}

// From memory of a dtype that is known only when running: weights of norms.
template <int W>
__device__ inline void load_any(DType dtype, const void* from, std::int64_t i, float (&to)[W]) {
  switch (dtype) {
    case DType::f16:
      return load(static_cast<const F16*>(from) + i, to);
    case DType::bf16:
      return load(static_cast<const Bf16*>(from) + i, to);
    default:
      return load(static_cast<const float*>(from) + i, to);
  }
}

__device__ inline void store_any(DType dtype, void* to, std::int64_t i, float v) {
  switch (dtype) {
    case DType::f16:
      static_cast<F16*>(to)[i] = narrow<F16>(v);
      return;
    case DType::bf16:
      static_cast<Bf16*>(to)[i] = narrow<Bf16>(v);
      return;
    default:
      static_cast<float*>(to)[i] = v;
  }
}

}  // namespace kf::cuda
