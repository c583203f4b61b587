/* Cannot give a table, and says why. */
#include <string.h>

#include <kf/kf_c.h>

uint32_t kf_plugin_abi_version(void) { return KF_ABI_VERSION; }

const kf_plugin* kf_plugin_open(const kf_host* host, kf_reason* reason) {
  (void)host;
  strcpy(reason->text, "libvendor.so.7 is too old: install 7.2");
  return NULL;
}
