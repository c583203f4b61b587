/* A backend of kf in a shared library: four ops in plain C over the host's memory. docs/bring-up-a-backend.md goes through
 * it; for a device, `memory` below gets its functions and the rows launch kernels. */
#include "toy.h"

const kf_host* toy_host;

static kf_status available(kf_reason* reason) {
  (void)reason; /* a real one asks the driver here: KF_UNAVAILABLE, and "no driver: install ..." */
  return KF_OK;
}

static kf_status capabilities(int32_t device, kf_capabilities* c, kf_reason* reason) {
  if (device != 0) {
    snprintf(reason->text, sizeof reason->text, "expected device 0, got %d", (int)device);
    return KF_UNAVAILABLE;
  }
  snprintf(c->name, sizeof c->name, "plain C on the host");
  snprintf(c->isa, sizeof c->isa, "c99");
  c->num_threads = 1;
  return KF_OK;
}

uint32_t kf_plugin_abi_version(void) { return KF_ABI_VERSION; }

const kf_plugin* kf_plugin_open(const kf_host* host, kf_reason* reason) {
  static kf_row rows[6];
  static kf_plugin plugin;
  (void)reason;
  toy_host = host;
  /* Best first: a call is served by the first row that takes it. */
  rows[0] = toy_rms_norm;
  rows[1] = toy_residual_rms_norm;
  rows[2] = toy_activation;
  rows[3] = toy_binary;
  rows[4] = toy_linear;
  rows[5] = toy_linear_fused;
  plugin.abi_version = KF_ABI_VERSION;
  plugin.name = "toy";
  plugin.version = "1.0";
  plugin.device_type = "cpu"; /* tensors of the host; `memory` stays empty */
  plugin.rows = rows;
  plugin.num_rows = sizeof rows / sizeof *rows;
  plugin.available = available;
  plugin.capabilities = capabilities;
  return &plugin;
}
