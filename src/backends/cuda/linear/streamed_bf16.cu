#include "backends/cuda/linear/streamed.cuh"

namespace kf::cuda::streamed {
void launch_plain_bf16(const Args& a, const Shape& s, const TensorView& on, const RunContext& ctx) {
  launch<Bf16, PlainRows<Bf16>>(a, s, on, ctx);
}
int clusters_plain_bf16(bool gated, const Shape& s) { return clusters<Bf16, PlainRows<Bf16>>(gated, s); }
}  // namespace kf::cuda::streamed
