// Lets an exception out, which it must not.
#include <cstdint>
#include <stdexcept>

#include <kf/kf_c.h>

std::uint32_t kf_plugin_abi_version() { return KF_ABI_VERSION; }

const kf_plugin* kf_plugin_open(const kf_host*, kf_reason*) { throw std::runtime_error("out"); }
