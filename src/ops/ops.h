// What each op must define besides its kernels; op_table.cpp makes an OpInfo of it. The four functions of an op live
// in the file of its family: linear.cpp, norm.cpp, elementwise.cpp, attention.cpp, rope.cpp, sampling.cpp.
#pragma once

#include "kf/ops/attention.h"
#include "kf/ops/elementwise.h"
#include "kf/ops/linear.h"
#include "kf/ops/norm.h"
#include "kf/ops/rope.h"
#include "kf/ops/sampling.h"

namespace kf::ops {

#define KF_OP_FUNCTIONS(P)     \
  void infer(P& p);            \
  void validate(const P& p);   \
  void validate_data(const P& p); \
  Cost cost(const P& p);

KF_OP_FUNCTIONS(LinearParams)
KF_OP_FUNCTIONS(QkvLinearParams)
KF_OP_FUNCTIONS(GatedFfnParams)
KF_OP_FUNCTIONS(LmHeadArgmaxParams)
KF_OP_FUNCTIONS(RmsNormParams)
KF_OP_FUNCTIONS(LayerNormParams)
KF_OP_FUNCTIONS(BinaryParams)
KF_OP_FUNCTIONS(ActivationParams)
KF_OP_FUNCTIONS(GatedActivationParams)
KF_OP_FUNCTIONS(SoftmaxParams)
KF_OP_FUNCTIONS(DequantizeParams)
KF_OP_FUNCTIONS(QuantizeParams)
KF_OP_FUNCTIONS(AttentionParams)
KF_OP_FUNCTIONS(AttentionScoresParams)
KF_OP_FUNCTIONS(AttentionMaskParams)
KF_OP_FUNCTIONS(AttentionValuesParams)
KF_OP_FUNCTIONS(MergeAttentionParams)
KF_OP_FUNCTIONS(RopeParams)
KF_OP_FUNCTIONS(AppendKvParams)
KF_OP_FUNCTIONS(RopeAppendParams)
KF_OP_FUNCTIONS(EmbeddingParams)
KF_OP_FUNCTIONS(ArgmaxParams)
KF_OP_FUNCTIONS(SampleParams)
#undef KF_OP_FUNCTIONS

}  // namespace kf::ops
