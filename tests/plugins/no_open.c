/* Lacks kf_plugin_open. */
#include <kf/kf_c.h>

uint32_t kf_plugin_abi_version(void) { return KF_ABI_VERSION; }
