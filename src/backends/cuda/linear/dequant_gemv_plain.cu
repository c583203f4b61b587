#include "backends/cuda/linear/dequant_gemv.cuh"

namespace kf::cuda::dequant {
namespace {

template <class F>
void with_plain(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f16:
      return f(std::type_identity<PlainDecoder<F16>>());
    case DType::bf16:
      return f(std::type_identity<PlainDecoder<Bf16>>());
    default:
      return f(std::type_identity<PlainDecoder<float>>());
  }
}

}  // namespace
}  // namespace kf::cuda::dequant

KF_DEFINE_DEQUANT(plain, with_plain)
