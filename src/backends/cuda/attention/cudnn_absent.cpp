// Instead of cudnn.cpp where its headers were not found when this was built.
#include "backends/cuda/attention/cudnn.h"
#include "kf/error.h"

namespace kf::cuda {

struct CudnnState {};

Support cudnn_supports(const AttentionParams&, const PlanContext&) {
  return Support::no("cuDNN: built without its headers (nvidia-cudnn-frontend, nvidia-cudnn-cu13)");
}
std::shared_ptr<CudnnState> cudnn_prepare(const AttentionParams&, const PlanContext&, std::size_t*) {
  throw Error(ErrorCode::unavailable, "cuDNN: built without its headers");
}
void cudnn_run(const AttentionParams&, const CudnnState&, const RunContext&) {}

}  // namespace kf::cuda
