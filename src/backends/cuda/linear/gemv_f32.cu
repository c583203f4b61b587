#include "backends/cuda/linear/gemv.cuh"

void kf::cuda::gemv::launch_f32(const Args& a, const TensorView& on, const RunContext& ctx) {
  launch<float>(a, on, ctx);
}
