#include "backends/cuda/linear/small.cuh"

void kf::cuda::small::launch_f32(const Args& a, const TensorView& on, const RunContext& ctx) {
  launch<float>(a, on, ctx);
}
