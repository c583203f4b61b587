#include "backends/cuda/attention/instances.cuh"

namespace kf::cuda::attention {
template void launch_flash2<Bf16, 128>(const Args&, const Grid&, const TensorView&, const RunContext&);
template void launch_decode<Bf16, 128>(const Args&, const Grid&, const TensorView&, const RunContext&);
}  // namespace kf::cuda::attention
