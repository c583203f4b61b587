#include "backends/cuda/attention/cudnn.h"
#include "backends/cuda/device/launch.cuh"

namespace kf::cuda::attention {
namespace {

constexpr int kThreads = 256;

__global__ void tables_kernel(PackedTables t) {
  wait_for_predecessor();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i > t.batch) return;
  const int q = t.cu_seqlens_q[i], k = t.cu_seqlens_k[i];
  t.q_at[i] = q * t.q_stride;
  t.k_at[i] = k * t.k_stride;
  t.v_at[i] = k * t.v_stride;
  t.out_at[i] = q * t.out_stride;
  t.lse_at[i] = q;
  if (i == t.batch) return;
  t.seqlens_q[i] = t.cu_seqlens_q[i + 1] - q;
  t.seqlens_k[i] = t.cu_seqlens_k[i + 1] - k;
}

}  // namespace

void fill_packed_tables(const PackedTables& t, const TensorView& on, const RunContext& ctx) {
  const Launch launch(on, ctx);
  launch(tables_kernel, dim3(static_cast<unsigned>(t.batch / kThreads + 1)), dim3(kThreads), 0, t);
}

}  // namespace kf::cuda::attention
