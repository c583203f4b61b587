/* activation: out = act(x). binary: out = a + b or a * b. */
#include <math.h>

#include "toy.h"

double toy_activate(const char* kind, double x) {
  if (strcmp(kind, "silu") == 0) return x / (1 + exp(-x));
  if (strcmp(kind, "gelu") == 0) return x / 2 * (1 + erf(x / sqrt(2.0)));
  if (strcmp(kind, "gelu_tanh") == 0)
    return x / 2 * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
  if (strcmp(kind, "relu") == 0) return x < 0 ? 0 : x;
  return x;
}

static kf_status run_activation(const kf_row* row, const kf_call* call, const kf_plan* plan,
                                const kf_run_context* context, kf_reason* reason) {
  const DLTensor *x = toy_tensor(call, "x"), *out = toy_tensor(call, "out");
  const char* kind = toy_host->choice(call, "kind");
  const int64_t rows = toy_num_rows(x), n = toy_row_length(x);
  (void)row, (void)plan, (void)context, (void)reason;
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = toy_row(x, r);
    float* to = toy_row(out, r);
    for (int64_t i = 0; i < n; ++i) to[i] = (float)toy_activate(kind, (double)from[i]);
  }
  return KF_OK;
}

static kf_status run_binary(const kf_row* row, const kf_call* call, const kf_plan* plan,
                            const kf_run_context* context, kf_reason* reason) {
  const DLTensor *a = toy_tensor(call, "a"), *b = toy_tensor(call, "b"), *out = toy_tensor(call, "out");
  const int is_add = strcmp(toy_host->choice(call, "kind"), "add") == 0;
  const int64_t rows = toy_num_rows(a), n = toy_row_length(a);
  (void)row, (void)plan, (void)context, (void)reason;
  for (int64_t r = 0; r < rows; ++r) {
    const float *p = toy_row(a, r), *q = toy_row(b, r);
    float* to = toy_row(out, r);
    for (int64_t i = 0; i < n; ++i) to[i] = is_add ? p[i] + q[i] : p[i] * q[i];
  }
  return KF_OK;
}

static const char* const activation_fields[] = {"kind", "x", "out", NULL};
static const char* const binary_fields[] = {"kind", "a", "b", "out", NULL};

const kf_row toy_activation = {
    TOY_ROW(activation_fields, 1),
    .name = "toy::activation",
    .op = "activation",
    .families = KF_FAMILY_FUSED | KF_FAMILY_VANILLA,
    .condition = "f32",
    .run = run_activation,
};

const kf_row toy_binary = {
    TOY_ROW(binary_fields, 1),
    .name = "toy::binary",
    .op = "binary",
    .families = KF_FAMILY_FUSED | KF_FAMILY_VANILLA,
    .condition = "f32",
    .run = run_binary,
};
