#include "backends/cuda/linear/small.cuh"

void kf::cuda::small::launch_bf16(const Args& a, const TensorView& on, const RunContext& ctx) {
  launch<Bf16>(a, on, ctx);
}
