// Matrix units and what feeds them, as sm_80 has them: asynchronous copies to shared memory (copies.cuh), fragments from there,
// products of 16-bit elements (PTX ISA, "Warp-level matrix instructions").
//
// Tiles lie in shared memory in rows of kRowBytes (128, 256 or 512); the 16-byte chunks of a row are permuted by the row's number,
// so that eight rows' chunks of one column lie in different banks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "backends/cuda/device/copies.cuh"
#include "core/half.h"

namespace kf::cuda {

__device__ inline void store_shared(std::uint32_t to, std::uint32_t bits) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(bits) : "memory");
}

__device__ inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
__device__ inline void load_transposed(std::uint32_t (&r)[4], std::uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

// c [16, 8] += a [16, 16] b [16, 8]. Of c a lane has columns 2 (lane % 4) and the next, of row lane / 4 and of row lane / 4 + 8.
template <class T>
__device__ inline void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
  if constexpr (std::is_same_v<T, Bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <class T>
__device__ inline std::uint32_t pack_pair(float low, float high) {
  std::uint32_t bits;
  if constexpr (std::is_same_v<T, Bf16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// Whether any of two neighbours is NaN or infinite.
template <class T>
__device__ inline bool is_hostile(std::uint32_t pair) {
  constexpr std::uint32_t kExponent = std::is_same_v<T, Bf16> ? 0x7f80 : 0x7c00;
  return (pair & kExponent) == kExponent || (pair >> 16 & kExponent) == kExponent;
}
template <class T>
__device__ inline bool is_hostile(const uint4& v) {
  return is_hostile<T>(v.x) || is_hostile<T>(v.y) || is_hostile<T>(v.z) || is_hostile<T>(v.w);
}

// The address of a chunk of 16 bytes in a tile.
template <int kRowBytes>
__device__ inline std::uint32_t chunk_address(std::uint32_t tile, int row, int chunk) {
  return tile + static_cast<std::uint32_t>(row * kRowBytes + ((chunk ^ (row & 7)) << 4));
}

}  // namespace kf::cuda
