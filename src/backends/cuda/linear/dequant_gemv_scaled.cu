#include "backends/cuda/linear/dequant_gemv.cuh"

namespace kf::cuda::dequant {
namespace {

template <class F>
void with_scaled(DType dtype, F&& f) {
  switch (dtype) {
    case DType::int4:
      return f(std::type_identity<Int4Decoder>());
    case DType::i8:
      return f(std::type_identity<Int8Decoder>());
    case DType::fp8_e4m3:
      return f(std::type_identity<Fp8Decoder<__NV_E4M3>>());
    default:
      return f(std::type_identity<Fp8Decoder<__NV_E5M2>>());
  }
}

}  // namespace
}  // namespace kf::cuda::dequant

KF_DEFINE_DEQUANT(scaled, with_scaled)
