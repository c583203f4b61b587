/* Of an ABI version to come. Opening it would be a mistake: it ends the process. */
#include <stdlib.h>

#include <kf/kf_c.h>

uint32_t kf_plugin_abi_version(void) { return KF_ABI_VERSION + 1; }

const kf_plugin* kf_plugin_open(const kf_host* host, kf_reason* reason) {
  (void)host, (void)reason;
  abort();
}
