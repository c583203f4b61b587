// One function an op, over the default dispatcher of the device that the tensors lie on.

#include "kf/dispatch.h"
#include "kf/ops/attention.h"
#include "kf/ops/elementwise.h"
#include "kf/ops/linear.h"
#include "kf/ops/norm.h"
#include "kf/ops/rope.h"
#include "kf/ops/sampling.h"

namespace kf {
namespace {

template <class P>
void run(const P& p) {
  default_dispatcher(P::kOp, &p).run(p);
}

}  // namespace

void linear(const LinearParams& p) { run(p); }
void qkv_linear(const QkvLinearParams& p) { run(p); }
void gated_ffn(const GatedFfnParams& p) { run(p); }
void lm_head_argmax(const LmHeadArgmaxParams& p) { run(p); }
void rms_norm(const RmsNormParams& p) { run(p); }
void layer_norm(const LayerNormParams& p) { run(p); }
void binary(const BinaryParams& p) { run(p); }
void activation(const ActivationParams& p) { run(p); }
void gated_activation(const GatedActivationParams& p) { run(p); }
void softmax(const SoftmaxParams& p) { run(p); }
void dequantize(const DequantizeParams& p) { run(p); }
void quantize(const QuantizeParams& p) { run(p); }
void attention(const AttentionParams& p) { run(p); }
void attention_scores(const AttentionScoresParams& p) { run(p); }
void attention_mask(const AttentionMaskParams& p) { run(p); }
void attention_values(const AttentionValuesParams& p) { run(p); }
void merge_attention(const MergeAttentionParams& p) { run(p); }
void rope(const RopeParams& p) { run(p); }
void append_kv(const AppendKvParams& p) { run(p); }
void rope_append(const RopeAppendParams& p) { run(p); }
void embedding(const EmbeddingParams& p) { run(p); }
void argmax(const ArgmaxParams& p) { run(p); }
void sample(const SampleParams& p) { run(p); }

}  // namespace kf
