/* What the files of the toy share: its rows, and how they walk over tensors. */
#ifndef TOY_H
#define TOY_H

#include <string.h>

#include <kf/kf_c.h>

extern const kf_host* toy_host; /* what kf_plugin_open() was given */

/* The rows, each in the file of its op; toy.c puts them into the table. */
extern const kf_row toy_rms_norm, toy_residual_rms_norm;
extern const kf_row toy_activation, toy_binary;
extern const kf_row toy_linear, toy_linear_fused;

/* An operand of the call; null where it has none. */
static inline const DLTensor* toy_tensor(const kf_call* call, const char* name) {
  const DLManagedTensor* t = toy_host->tensor(call, name);
  return t ? &t->dl_tensor : NULL;
}

/* What all rows of the toy have. Their context is the list of their operands: `fields` without the attributes, which come first. */
#define TOY_ROW(all_fields, num_attributes)                                           \
  .struct_size = sizeof(kf_row), .flags = KF_ROW_GRAPH_SAFE | KF_ROW_BATCH_INVARIANT, \
  .fields = (all_fields), .context = (void*)((all_fields) + (num_attributes)), .supports = toy_takes_f32

/* supports(): whether each operand that the call has is f32; else the refusal says which is not (toy.c). */
kf_status toy_takes_f32(const kf_row* row, const kf_call* call, const kf_plan_context* context,
                        kf_reason* reason);

/* All dimensions but the last. */
static inline int64_t toy_num_rows(const DLTensor* t) {
  int64_t rows = 1;
  for (int i = 0; i < t->ndim - 1; ++i) rows *= t->shape[i];
  return rows;
}
static inline int64_t toy_row_length(const DLTensor* t) { return t->ndim > 0 ? t->shape[t->ndim - 1] : 1; }

/* Where a row begins. Rows may be apart, and lie in any order: strides count elements. */
static inline float* toy_row(const DLTensor* t, int64_t row) {
  int64_t offset = 0;
  for (int i = t->ndim - 2; i >= 0; --i) {
    offset += row % t->shape[i] * t->strides[i];
    row /= t->shape[i];
  }
  return (float*)((char*)t->data + t->byte_offset) + offset;
}

/* silu, gelu, gelu_tanh, relu or none (elementwise.c). */
double toy_activate(const char* kind, double x);

#endif
