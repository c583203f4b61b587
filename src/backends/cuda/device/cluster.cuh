// Thread-block clusters, as sm_90 has them (PTX ISA, "barrier.cluster", "mapa"). A launch without clusters is one of clusters of one block.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

namespace kf::cuda {

__device__ inline int cluster_blocks() {
  std::uint32_t n = 1;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(n));
#endif
  return static_cast<int>(n);
}
// This block's number in its cluster.
__device__ inline int cluster_rank() {
  std::uint32_t n = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctaid.x;" : "=r"(n));
#endif
  return static_cast<int>(n);
}

// All threads of the cluster; what they have written to shared memory can be seen by all.
__device__ inline void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

// The same in two parts, of which the first waits for none, nor makes anything seen.
__device__ inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ inline void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

// Writes to what lies at `own` in this block's shared memory, in that of another block of the cluster, which has to be running.
__device__ inline void store_to_block(float* own, int rank, float4 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "st.shared::cluster.v4.f32 [there], {%2, %3, %4, %5};\n}" ::"r"(
          static_cast<std::uint32_t>(__cvta_generic_to_shared(own))),
      "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
      : "memory");
#else
  *reinterpret_cast<float4*>(own) = v;
#endif
}

// What lies at `own` in this block's shared memory, in that of another block of the cluster.
__device__ inline float load_of_block(const float* own, int rank) {
  float v;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %1, %2;\nld.shared::cluster.f32 %0, [there];\n}"
      : "=f"(v)
      : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(own))), "r"(rank)
      : "memory");
#else
  v = *own;
#endif
  return v;
}

}  // namespace kf::cuda
