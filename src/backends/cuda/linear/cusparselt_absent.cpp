// Instead of cusparselt.cpp where its header was not found when this was built.
#include "backends/cuda/linear/cusparselt.h"
#include "kf/error.h"

namespace kf::cuda {

struct CusparseLtState {};

Support cusparselt::supports(const LinearParams&, const PlanContext&) {
  return Support::no("cuSPARSELt: built without its header (nvidia-cusparselt-cu13)");
}
std::shared_ptr<CusparseLtState> cusparselt::prepare(const LinearParams&, const PlanContext&, std::size_t*) {
  throw Error(ErrorCode::unavailable, "cuSPARSELt: built without its header");
}
void cusparselt::run(const LinearParams&, const CusparseLtState&, const RunContext&) {}

}  // namespace kf::cuda
