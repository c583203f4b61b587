#include "backends/cuda/linear/dequant_gemv.cuh"

namespace kf::cuda::dequant {
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
}  // namespace kf::cuda::dequant

KF_DEFINE_DEQUANT(k_blocks, with_k_blocks)
