/* A backend of kf in a shared library: four ops in plain C over the host's memory. docs/bring-up-a-backend.md goes through
 * it; for a device, `memory` below gets its functions and the rows launch kernels. */
#include "toy.h"

#include <stdio.h>

const kf_host* toy_host;

static kf_status available(void* context, kf_reason* reason) {
  /* A real one asks the driver here: KF_UNAVAILABLE, and "no driver: install ...". */
  (void)context, (void)reason;
  return KF_OK;
}

static kf_status capabilities(void* context, int32_t device, kf_capabilities* c, kf_reason* reason) {
  (void)context;
  if (device != 0) {
    snprintf(reason->text, sizeof reason->text, "expected device 0, got %d", (int)device);
    return KF_UNAVAILABLE;
  }
  snprintf(c->name, sizeof c->name, "plain C on the host");
  snprintf(c->isa, sizeof c->isa, "c99");
  c->num_threads = 1;
  return KF_OK;
}

kf_status toy_takes_f32(const kf_row* row, const kf_call* call, const kf_plan_context* context,
                        kf_reason* reason) {
  (void)context;
  for (const char* const* name = (const char* const*)row->context; *name; ++name) {
    const char* dtype = toy_host->dtype(call, *name);
    if (dtype && strcmp(dtype, "f32") != 0) {
      snprintf(reason->text, sizeof reason->text, "%s of %s: this row takes f32", *name, dtype);
      return KF_NOT_IMPLEMENTED;
    }
  }
  return KF_OK;
}

/* Best first: a call is served by the first row that takes it. */
static const kf_row* const rows[] = {&toy_rms_norm, &toy_residual_rms_norm, &toy_activation, &toy_binary,
                                     &toy_linear,   &toy_linear_fused};

static const kf_plugin plugin = {
    .struct_size = sizeof(kf_plugin),
    .name = "toy",
    .version = "1.0",
    .device_type = "cpu", /* tensors of the host; `memory` stays null */
    .rows = rows,
    .num_rows = sizeof rows / sizeof *rows,
    .available = available,
    .capabilities = capabilities,
};

uint32_t kf_plugin_abi_version(void) { return KF_ABI_VERSION; }

const kf_plugin* kf_plugin_open(const kf_host* host, kf_reason* reason) {
  (void)reason;
  toy_host = host;
  return &plugin;
}
