#include "backends/cuda/linear/gemv.cuh"

void kf::cuda::gemv::launch_f16(const Args& a, const TensorView& on, const RunContext& ctx) {
  launch<F16>(a, on, ctx);
}
