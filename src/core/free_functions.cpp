// One function an op, over the default dispatcher.

#include "kf/dispatch.h"
#include "kf/ops/attention.h"
#include "kf/ops/elementwise.h"
#include "kf/ops/linear.h"
#include "kf/ops/norm.h"
#include "kf/ops/rope.h"
#include "kf/ops/sampling.h"

namespace kf {

void linear(const LinearParams& p) { default_dispatcher().run(p); }
void qkv_linear(const QkvLinearParams& p) { default_dispatcher().run(p); }
void gated_ffn(const GatedFfnParams& p) { default_dispatcher().run(p); }
void lm_head_argmax(const LmHeadArgmaxParams& p) { default_dispatcher().run(p); }
void rms_norm(const RmsNormParams& p) { default_dispatcher().run(p); }
void layer_norm(const LayerNormParams& p) { default_dispatcher().run(p); }
void binary(const BinaryParams& p) { default_dispatcher().run(p); }
void activation(const ActivationParams& p) { default_dispatcher().run(p); }
void gated_activation(const GatedActivationParams& p) { default_dispatcher().run(p); }
void softmax(const SoftmaxParams& p) { default_dispatcher().run(p); }
void dequantize(const DequantizeParams& p) { default_dispatcher().run(p); }
void attention(const AttentionParams& p) { default_dispatcher().run(p); }
void attention_scores(const AttentionScoresParams& p) { default_dispatcher().run(p); }
void attention_mask(const AttentionMaskParams& p) { default_dispatcher().run(p); }
void attention_values(const AttentionValuesParams& p) { default_dispatcher().run(p); }
void rope(const RopeParams& p) { default_dispatcher().run(p); }
void append_kv(const AppendKvParams& p) { default_dispatcher().run(p); }
void rope_append(const RopeAppendParams& p) { default_dispatcher().run(p); }
void embedding(const EmbeddingParams& p) { default_dispatcher().run(p); }
void argmax(const ArgmaxParams& p) { default_dispatcher().run(p); }
void sample(const SampleParams& p) { default_dispatcher().run(p); }

}  // namespace kf
