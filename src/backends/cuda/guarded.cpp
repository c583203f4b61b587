#include "backends/cuda/guarded.h"

#include <map>
#include <set>
#include <string>
#include <utility>

#include "backends/cuda/supports.h"
#include "core/fields.h"

namespace kf::cuda {
namespace {

// What a weight is read with, by the operand's name.
void add_weight(std::set<std::string>& names, const std::string& weight) {
  for (const char* beside : {"", "_scales", "_zeros", "_mask", "_offsets"}) names.insert(weight + beside);
}

// Ops whose kernels say for themselves which dtypes they take.
const std::set<Op>& ops_of_many_dtypes() {
  static const std::set<Op> ops = {Op::linear,         Op::qkv_linear,      Op::gated_ffn,
                                   Op::lm_head_argmax, Op::attention,       Op::attention_scores,
                                   Op::attention_mask, Op::attention_values};
  return ops;
}

// The operands that these kernels know: whatever else an op may take (adapters) is refused.
const std::map<Op, std::set<std::string>>& known_operands() {
  static const std::map<Op, std::set<std::string>> known = [] {
    std::map<Op, std::set<std::string>> ops = {
        {Op::linear, {"x", "bias", "residual", "out", "norm_weight", "norm_bias"}},
        {Op::qkv_linear, {"x", "q_bias", "k_bias", "v_bias", "q", "k", "v", "norm_weight", "norm_bias"}},
        {Op::gated_ffn, {"x", "residual", "out", "norm_weight", "norm_bias"}},
        {Op::lm_head_argmax, {"x", "ids", "max", "norm_weight", "norm_bias"}},
        {Op::rms_norm, {"x", "weight", "residual", "out", "residual_out"}},
        {Op::layer_norm, {"x", "weight", "bias", "residual", "out", "residual_out"}},
        {Op::binary, {"a", "b", "out"}},
        {Op::activation, {"x", "out"}},
        {Op::gated_activation, {"gate", "up", "out"}},
        {Op::softmax, {"x", "out", "lse", "mask"}},
        {Op::quantize, {"x", "out"}},
        {Op::rope, {"x", "positions", "cos", "sin", "norm_weight", "out"}},
        {Op::append_kv, {"k", "v", "slot_mapping", "k_cache", "v_cache"}},
        {Op::rope_append,
         {"q", "k", "v", "positions", "cos", "sin", "q_norm_weight", "k_norm_weight", "slot_mapping",
          "k_cache", "v_cache", "q_out"}},
        {Op::attention,
         {"q", "k", "v", "out", "lse", "cu_seqlens_q", "cu_seqlens_k", "block_tables", "context_lens",
          "alibi_slopes", "attn_mask", "sinks", "k_scales", "k_zeros", "v_scales", "v_zeros"}},
        {Op::attention_scores,
         {"q", "k", "scores", "cu_seqlens_q", "cu_seqlens_k", "block_tables", "context_lens", "k_scales",
          "k_zeros"}},
        {Op::attention_mask,
         {"scores", "out", "cu_seqlens_q", "cu_seqlens_k", "block_tables", "context_lens", "alibi_slopes",
          "attn_mask", "block_layout"}},
        {Op::attention_values,
         {"probs", "v", "out", "cu_seqlens_q", "cu_seqlens_k", "block_tables", "context_lens", "v_scales",
          "v_zeros"}},
        {Op::merge_attention, {"out_a", "lse_a", "out_b", "lse_b", "out", "lse"}},
        {Op::embedding, {"ids", "table", "out"}},
        {Op::argmax, {"logits", "ids", "max"}},
        {Op::sample, {"logits", "ids"}},
    };
    add_weight(ops[Op::linear], "weight");
    for (const char* w : {"q_weight", "k_weight", "v_weight"}) add_weight(ops[Op::qkv_linear], w);
    for (const char* w : {"gate_weight", "up_weight", "down_weight"}) add_weight(ops[Op::gated_ffn], w);
    add_weight(ops[Op::lm_head_argmax], "weight");
    return ops;
  }();
  return known;
}

// What lies beside operands in 8 or 4 bits that a kernel writes.
const std::set<std::string>& beside_written_codes() {
  static const std::set<std::string> names = {"static_scale",  "out_scales",     "k_cache_scales",
                                              "k_cache_zeros", "v_cache_scales", "v_cache_zeros"};
  return names;
}

// Only those, and of data only f32, f16 and bf16; of kernels that write codes these, too.
Support known_only(Op op, const void* params, bool writes_codes) {
  const auto found = known_operands().find(op);
  if (found == known_operands().end())
    return Support::no(std::string(op_name(op)) + ": its operands are not listed in known_operands()");
  const std::set<std::string>& known = found->second;
  for (const Field& f : Fields(op, params)) {
    if (!f.is_given()) continue;
    if (writes_codes && beside_written_codes().contains(f.name)) continue;
    if (!known.contains(f.name)) return Support::no(std::string(f.name) + " given: this kernel takes none");
    const DType dtype = f.view->dtype;
    if (writes_codes || dtype == DType::i32 || dtype == DType::i64 || dtype == DType::boolean ||
        ops_of_many_dtypes().contains(op))
      continue;
    if (const Support plain = plain_dtype(f.name, *f.view); !plain) return plain;
  }
  return Support::yes();
}

}  // namespace

Kernel guarded(Kernel k, bool writes_codes) {
  k.supports = [op = k.op, writes_codes, supports = k.supports](const void* params, const PlanContext& ctx) {
    if (const Support s = known_only(op, params, writes_codes); !s) return s;
    return supports(params, ctx);
  };
  return k;
}

}  // namespace kf::cuda
