// Every op, in the order of the Op enumeration.

#include <array>
#include <string_view>
#include <type_traits>

#include "kf/error.h"
#include "ops/ops.h"

namespace kf {
namespace {

template <class P>
constexpr OpInfo make_op(const char* name, const char* summary) {
  static_assert(std::is_trivially_copyable_v<P> && sizeof(P) <= kMaxParamsBytes);
  return {
      P::kOp,
      name,
      summary,
      [](const void* p) -> std::shared_ptr<void> {
        return p ? std::make_shared<P>(*static_cast<const P*>(p)) : std::make_shared<P>();
      },
      [](void* p, FieldVisitor& v) { static_cast<P*>(p)->visit(v); },
      [](void* p) { ops::infer(*static_cast<P*>(p)); },
      [](const void* p) { ops::validate(*static_cast<const P*>(p)); },
      [](const void* p) { ops::validate_data(*static_cast<const P*>(p)); },
      [](const void* p) { return ops::cost(*static_cast<const P*>(p)); },
      sizeof(P),
  };
}

constexpr std::array<OpInfo, kNumOps> kOps = {
    make_op<LinearParams>("linear", "out = act(pro(x) @ weight^T + bias) + residual"),
    make_op<BinaryParams>("binary", "out = a + b or a * b"),
    make_op<ActivationParams>("activation", "out = act(x)"),
    make_op<RmsNormParams>("rms_norm",
                           "h = x + residual; out = h / sqrt(mean(h^2) + eps) * (weight_offset + weight)"),
    make_op<LayerNormParams>("layer_norm",
                             "h = x + residual; out = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias"),
    make_op<SoftmaxParams>("softmax", "out = exp(z - lse), z = scale x + mask, lse = log sum exp(z)"),
    make_op<RopeParams>("rope", "pairs turned by the angle of the position"),
    make_op<AppendKvParams>("append_kv", "k_cache[slot] = k, v_cache[slot] = v"),
    make_op<AttentionScoresParams>("attention_scores",
                                   "scores = softcap tanh(softmax_scale q k^T / softcap)"),
    make_op<AttentionMaskParams>("attention_mask", "scores + bias where a row may attend, -inf elsewhere"),
    make_op<AttentionValuesParams>("attention_values", "out = probs v"),
    make_op<MergeAttentionParams>(
        "merge_attention", "out = (e^lse_a out_a + e^lse_b out_b) / e^lse, lse = log(e^lse_a + e^lse_b)"),
    make_op<EmbeddingParams>("embedding", "out[t] = scale * table[ids[t]]"),
    make_op<ArgmaxParams>("argmax", "ids[t] = argmax(logits[t])"),
    make_op<SampleParams>("sample", "ids[b] drawn from softmax(logits[b] / temperature), truncated"),
    make_op<DequantizeParams>("dequantize", "out = x as a plain float"),
    make_op<QuantizeParams>("quantize",
                            "out = x / scale in 8 bits, scale = max |x| / 127, 448 or 57344 of the row"),
    make_op<GatedActivationParams>("gated_activation", "out = act(gate) * up"),
    make_op<RopeAppendParams>("rope_append", "q_out = rope(q); caches[slot] = rope(k), v"),
    make_op<AttentionParams>(
        "attention", "out = softmax(softmax_scale q k^T + bias) v over the keys that a row may attend"),
    make_op<QkvLinearParams>("qkv_linear", "q, k, v = pro(x) @ {q,k,v}_weight^T + {q,k,v}_bias"),
    make_op<GatedFfnParams>("gated_ffn",
                            "out = (act(pro(x) @ gate^T) * (pro(x) @ up^T)) @ down^T + residual"),
    make_op<LmHeadArgmaxParams>("lm_head_argmax", "ids[t] = argmax(pro(x[t]) @ weight^T)"),
};

consteval bool one_row_an_op() {
  for (std::size_t i = 0; i < kOps.size(); ++i)
    if (kOps[i].name == nullptr || kOps[i].op != static_cast<Op>(i)) return false;
  return true;
}
static_assert(one_row_an_op(), "a row an op, in the order of the Op enumeration");

// Of known lengths, so that most comparisons are of these alone: every call from Python looks its op up.
constexpr auto kNames = [] {
  std::array<std::string_view, kNumOps> names;
  for (std::size_t i = 0; i < kOps.size(); ++i) names[i] = kOps[i].name;
  return names;
}();

}  // namespace

const OpInfo& op_info(Op op) { return kOps[static_cast<std::size_t>(op)]; }

std::span<const OpInfo> all_ops() { return kOps; }

const OpInfo* find_op(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i)
    if (name == kNames[i]) return &kOps[i];
  return nullptr;
}

}  // namespace kf
