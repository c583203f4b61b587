#include "backends/cuda/linear/gemv.cuh"

void kf::cuda::gemv::launch_bf16(const Args& a, const TensorView& on, const RunContext& ctx) {
  launch<Bf16>(a, on, ctx);
}
