#include "backends/cuda/linear/decoded.cuh"

namespace kf::cuda::decoded {
namespace {

template <class F>
void with_k_blocks(DType dtype, F&& f) {
  switch (dtype) {
    case DType::q4_k:
      return f(std::type_identity<Q4_KDecoder>());
    default:
      return f(std::type_identity<Q6_KDecoder>());
  }
}

}  // namespace
}  // namespace kf::cuda::decoded

KF_DEFINE_DECODED(k_blocks, with_k_blocks)
