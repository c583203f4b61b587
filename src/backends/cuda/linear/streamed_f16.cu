#include "backends/cuda/linear/streamed.cuh"

namespace kf::cuda::streamed {
void launch_plain_f16(const Args& a, const Shape& s, const TensorView& on, const RunContext& ctx) {
  launch<F16, PlainRows<F16>>(a, s, on, ctx);
}
int clusters_plain_f16(bool gated, const Shape& s) { return clusters<F16, PlainRows<F16>>(gated, s); }
}  // namespace kf::cuda::streamed
