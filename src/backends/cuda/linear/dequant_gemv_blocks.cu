#include "backends/cuda/linear/dequant_gemv.cuh"

namespace kf::cuda::dequant {
namespace {

template <class F>
void with_blocks(DType dtype, F&& f) {
  switch (dtype) {
    case DType::q4_0:
      return f(std::type_identity<Q4_0Decoder>());
    case DType::q4_1:
      return f(std::type_identity<Q4_1Decoder>());
    case DType::q5_0:
      return f(std::type_identity<Q5_0Decoder>());
    default:
      return f(std::type_identity<Q8_0Decoder>());
  }
}

}  // namespace
}  // namespace kf::cuda::dequant

KF_DEFINE_DEQUANT(blocks, with_blocks)
