/* A backend of a name that is there already. */
#include <kf/kf_c.h>

static kf_status supports(const kf_row* row, const kf_call* call, const kf_plan_context* context,
                          kf_reason* reason) {
  (void)row, (void)call, (void)context, (void)reason;
  return KF_OK;
}

static kf_status run(const kf_row* row, const kf_call* call, const kf_plan* plan,
                     const kf_run_context* context, kf_reason* reason) {
  (void)row, (void)call, (void)plan, (void)context, (void)reason;
  return KF_OK;
}

static kf_status available(void* context, kf_reason* reason) {
  (void)context, (void)reason;
  return KF_OK;
}

static kf_status capabilities(void* context, int32_t device, kf_capabilities* c, kf_reason* reason) {
  (void)context, (void)device, (void)c, (void)reason;
  return KF_OK;
}

uint32_t kf_plugin_abi_version(void) { return KF_ABI_VERSION; }

const kf_plugin* kf_plugin_open(const kf_host* host, kf_reason* reason) {
  static const char* const fields[] = {"x", "out", NULL};
  static const kf_row row = {.struct_size = sizeof(kf_row),
                             .name = "cpu::nothing",
                             .op = "activation",
                             .families = KF_FAMILY_FUSED,
                             .condition = "always",
                             .fields = fields,
                             .supports = supports,
                             .run = run};
  static const kf_row* const rows[] = {&row};
  static const kf_plugin plugin = {.struct_size = sizeof(kf_plugin),
                                   .name = "cpu",
                                   .version = "1",
                                   .device_type = "cpu",
                                   .rows = rows,
                                   .num_rows = 1,
                                   .available = available,
                                   .capabilities = capabilities};
  (void)host, (void)reason;
  return &plugin;
}
