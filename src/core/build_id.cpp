#include "core/build_id.h"

#include "kf_build_id.inc"  // generated in the build folder

namespace kf {

const char* build_id() { return KF_BUILD_ID; }

}  // namespace kf
