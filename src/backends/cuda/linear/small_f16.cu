#include "backends/cuda/linear/small.cuh"

void kf::cuda::small::launch_f16(const Args& a, const TensorView& on, const RunContext& ctx) {
  launch<F16>(a, on, ctx);
}
