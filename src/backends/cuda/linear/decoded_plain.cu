#include "backends/cuda/linear/decoded.cuh"

namespace kf::cuda::decoded {
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
}  // namespace kf::cuda::decoded

KF_DEFINE_DECODED(plain, with_plain)
