#include "backends/hip/kernels.h"

#include "backends/cuda/portable.h"

namespace kf::hip {

std::vector<Kernel> kernels() { return cuda::portable_kernels("rocm"); }

}  // namespace kf::hip
