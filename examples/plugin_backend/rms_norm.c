/* out = h / sqrt(mean(h^2) + eps) * (weight_offset + weight), h = x + residual. */
#include <math.h>

#include "toy.h"

/* Both rows. What `row` does not list may not be asked for. */
static kf_status norm(const kf_call* call, const DLTensor* residual, const DLTensor* residual_out) {
  const DLTensor *x = toy_tensor(call, "x"), *weight = toy_tensor(call, "weight"),
                 *out = toy_tensor(call, "out");
  const double eps = toy_host->number(call, "eps"), weight_offset = toy_host->number(call, "weight_offset");
  const int64_t rows = toy_num_rows(x), n = toy_row_length(x);
  const float* w = toy_row(weight, 0);
  for (int64_t r = 0; r < rows; ++r) {
    const float *from = toy_row(x, r), *add = residual ? toy_row(residual, r) : NULL;
    float *to = toy_row(out, r), *keep = residual_out ? toy_row(residual_out, r) : NULL;
    double squares = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double h = (double)from[i] + (add ? (double)add[i] : 0);
      squares += h * h;
    }
    const double scale = 1 / sqrt(squares / (double)n + eps);
    /* Outputs may be the inputs' memory: each element is read before it is written. */
    for (int64_t i = 0; i < n; ++i) {
      const double h = (double)from[i] + (add ? (double)add[i] : 0);
      const double y = h * scale * (weight_offset + (double)w[i]);
      if (keep) keep[i] = (float)h;
      to[i] = (float)y;
    }
  }
  return KF_OK;
}

static kf_status run(const kf_row* row, const kf_call* call, const kf_plan* plan,
                     const kf_run_context* context, kf_reason* reason) {
  (void)row, (void)plan, (void)context, (void)reason;
  return norm(call, NULL, NULL);
}

static kf_status run_with_residual(const kf_row* row, const kf_call* call, const kf_plan* plan,
                                   const kf_run_context* context, kf_reason* reason) {
  (void)row, (void)plan, (void)context, (void)reason;
  return norm(call, toy_tensor(call, "residual"), toy_tensor(call, "residual_out"));
}

static const char* const fields[] = {"eps", "weight_offset", "x", "weight", "out", NULL};
static const char* const all_fields[] = {"eps",      "weight_offset", "x", "weight", "out",
                                         "residual", "residual_out",  NULL};

/* The primitive: also what the unfused form of residual + norm is made of. */
const kf_row toy_rms_norm = {
    TOY_ROW(fields, 2),
    .name = "toy::rms_norm",
    .op = "rms_norm",
    .families = KF_FAMILY_FUSED | KF_FAMILY_VANILLA,
    .condition = "f32, no residual",
    .run = run,
};

const kf_row toy_residual_rms_norm = {
    TOY_ROW(all_fields, 2), .name = "toy::residual_rms_norm", .op = "rms_norm", .families = KF_FAMILY_FUSED,
    .condition = "f32",     .run = run_with_residual,
};
