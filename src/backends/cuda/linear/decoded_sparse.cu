#include "backends/cuda/linear/decoded.cuh"

namespace kf::cuda::decoded {
namespace {

template <class F>
void with_sparse(DType, F&& f) {
  f(std::type_identity<SparseDecoder>());
}

}  // namespace
}  // namespace kf::cuda::decoded

KF_DEFINE_DECODED(sparse, with_sparse)
