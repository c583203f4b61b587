#include "backends/cuda/linear/dequant_gemv.cuh"

namespace kf::cuda::dequant {
namespace {

template <class F>
void with_sparse(DType, F&& f) {
  f(std::type_identity<SparseDecoder>());
}

}  // namespace
}  // namespace kf::cuda::dequant

KF_DEFINE_DEQUANT(sparse, with_sparse)
