/* out = act(x weight^T + bias) + residual. A plan over constant weights keeps them transposed, so that the inner loop runs
 * over what lies side by side. */
#include <stdio.h>
#include <stdlib.h>

#include "toy.h"

struct kf_plan {
  float* weight; /* [in, out], contiguous; null: read as it comes */
};

static kf_status plan_weight(const kf_row* row, const kf_call* call, const kf_plan_context* context,
                             kf_planned* planned, kf_reason* reason) {
  const DLTensor* weight = toy_tensor(call, "weight");
  const int64_t out = weight->shape[0], in = weight->shape[1];
  kf_plan* plan;
  (void)row;
  /* One row of sums. kf gives every run this much memory of its own. */
  planned->workspace_bytes = (size_t)out * sizeof(double);
  if (!context->weights_are_constant) return KF_OK;
  plan = (kf_plan*)malloc(sizeof *plan);
  if (plan) plan->weight = (float*)malloc((size_t)(out * in + 1) * sizeof(float));
  if (!plan || !plan->weight) {
    free(plan);
    snprintf(reason->text, sizeof reason->text, "no memory for a weight of %lld x %lld", (long long)out,
             (long long)in);
    return KF_RESOURCE_EXHAUSTED;
  }
  for (int64_t n = 0; n < out; ++n)
    for (int64_t k = 0; k < in; ++k)
      plan->weight[k * out + n] =
          ((const float*)weight->data)[n * weight->strides[0] + k * weight->strides[1]];
  planned->plan = plan;
  return KF_OK;
}

static void free_plan(const kf_row* row, kf_plan* plan) {
  (void)row;
  free(plan->weight);
  free(plan);
}

static kf_status multiply(const kf_call* call, const kf_plan* plan, const kf_run_context* context,
                          const char* activation, const DLTensor* bias, const DLTensor* residual) {
  const DLTensor *x = toy_tensor(call, "x"), *weight = toy_tensor(call, "weight"),
                 *out = toy_tensor(call, "out");
  const int64_t tokens = x->shape[0], in = x->shape[1], n_out = weight->shape[0];
  const float* w = plan ? plan->weight : (const float*)weight->data;
  const int64_t step_k = plan ? n_out : weight->strides[1], step_n = plan ? 1 : weight->strides[0];
  double* sums = (double*)context->workspace;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* from = toy_row(x, t);
    float* to = toy_row(out, t);
    for (int64_t n = 0; n < n_out; ++n) sums[n] = 0;
    for (int64_t k = 0; k < in; ++k)
      for (int64_t n = 0; n < n_out; ++n) sums[n] += (double)from[k] * (double)w[k * step_k + n * step_n];
    for (int64_t n = 0; n < n_out; ++n) {
      const double b = bias ? (double)((const float*)bias->data)[n * bias->strides[0]] : 0;
      const double y = toy_activate(activation, sums[n] + b);
      to[n] = (float)(y + (residual ? (double)toy_row(residual, t)[n * residual->strides[1]] : 0));
    }
  }
  return KF_OK;
}

static kf_status run(const kf_row* row, const kf_call* call, const kf_plan* plan,
                     const kf_run_context* context, kf_reason* reason) {
  (void)row, (void)reason;
  return multiply(call, plan, context, "none", NULL, NULL);
}

static kf_status run_fused(const kf_row* row, const kf_call* call, const kf_plan* plan,
                           const kf_run_context* context, kf_reason* reason) {
  (void)row, (void)reason;
  return multiply(call, plan, context, toy_host->choice(call, "activation"), toy_tensor(call, "bias"),
                  toy_tensor(call, "residual"));
}

static const char* const fields[] = {"x", "weight", "out", NULL};
static const char* const fused_fields[] = {"activation", "x", "weight", "out", "bias", "residual", NULL};

const kf_row toy_linear = {
    TOY_ROW(fields, 0),
    .name = "toy::linear",
    .op = "linear",
    .families = KF_FAMILY_FUSED | KF_FAMILY_VANILLA,
    .condition = "f32, nothing before or after the product",
    .plan = plan_weight,
    .free_plan = free_plan,
    .run = run,
};

const kf_row toy_linear_fused = {
    TOY_ROW(fused_fields, 1),
    .name = "toy::linear_fused",
    .op = "linear",
    .families = KF_FAMILY_FUSED,
    .condition = "f32, bias, activation and residual",
    .plan = plan_weight,
    .free_plan = free_plan,
    .run = run_fused,
};
