#include "kf/manager.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/operands.h"
#include "kf/error.h"
#include "kf/families.h"

namespace kf {
namespace {

constexpr unsigned kAnyFused = kCustom | kFused | kLibrary;
constexpr unsigned kUnfused = kCustom | kVanilla;

// Where the specification's attention backends are found among a device's kernels. FlashAttention-2 and the
// paged form are our own kernels, or those of libraries; the others name one library or a language.
unsigned attention_families(AttentionBackend backend) {
  switch (backend) {
    case AttentionBackend::flash2:
    case AttentionBackend::paged:
      return kAnyFused;
    case AttentionBackend::vanilla:
      return kUnfused;
    case AttentionBackend::flash3:
      return kCustom | kFlash3;
    case AttentionBackend::xformers:
      return kCustom | kXformers;
    case AttentionBackend::triton:
      return kCustom | kTriton;
  }
  return kAnyFused;
}

using Switch = bool KernelFusionConfig::*;

constexpr std::pair<std::string_view, Switch> kSwitches[] = {
    {"fuse_ffn", &KernelFusionConfig::fuse_ffn},
    {"fuse_gelu_linear", &KernelFusionConfig::fuse_gelu_linear},
    {"fuse_silu_linear", &KernelFusionConfig::fuse_silu_linear},
    {"fuse_ln", &KernelFusionConfig::fuse_ln},
    {"fuse_ln_linear", &KernelFusionConfig::fuse_ln_linear},
    {"fuse_rmsnorm", &KernelFusionConfig::fuse_rmsnorm},
    {"fuse_softmax", &KernelFusionConfig::fuse_softmax},
    {"use_online_softmax", &KernelFusionConfig::use_online_softmax},
    {"fuse_rope", &KernelFusionConfig::fuse_rope},
    {"fuse_qkv", &KernelFusionConfig::fuse_qkv},
    {"fuse_residual", &KernelFusionConfig::fuse_residual},
    {"fuse_lm_head", &KernelFusionConfig::fuse_lm_head},
    {"fuse_lora", &KernelFusionConfig::fuse_lora},
};

// The configuration allows a call to be fused if every switch that governs its form is on.
class Allowed {
 public:
  Allowed(const KernelFusionConfig& config, Op op, const void* params) : c_(config) {
    switch (op) {
      case Op::attention:
        require(&KernelFusionConfig::use_online_softmax);
        break;
      case Op::softmax:
        require(&KernelFusionConfig::fuse_softmax);
        break;
      case Op::rms_norm:
        require(&KernelFusionConfig::fuse_rmsnorm);
        break;
      case Op::layer_norm:
        require(&KernelFusionConfig::fuse_ln);
        break;
      case Op::gated_activation:
        require(&KernelFusionConfig::fuse_ffn);
        break;
      case Op::rope_append:
        require(&KernelFusionConfig::fuse_rope);
        break;
      case Op::rope:
        check(*static_cast<const RopeParams*>(params));
        break;
      case Op::linear:
        check(*static_cast<const LinearParams*>(params));
        break;
      case Op::qkv_linear:
        check(*static_cast<const QkvLinearParams*>(params));
        break;
      case Op::gated_ffn:
        check(*static_cast<const GatedFfnParams*>(params));
        break;
      case Op::lm_head_argmax:
        check(*static_cast<const LmHeadArgmaxParams*>(params));
        break;
      default:
        break;
    }
  }
  explicit operator bool() const { return allowed_; }

 private:
  void require(Switch s) { allowed_ = allowed_ && c_.*s; }

  void check(const RopeParams& p) {
    if (p.norm_weight.present()) require(&KernelFusionConfig::fuse_rope);
  }
  void check(const LinearParams& p) {
    check(p.prologue);
    if (p.activation != Activation::none) require(&KernelFusionConfig::fuse_ffn);
    if (p.residual.present()) require(&KernelFusionConfig::fuse_residual);
    if (p.lora.present()) require(&KernelFusionConfig::fuse_lora);
  }
  void check(const QkvLinearParams& p) {
    check(p.prologue);
    require(&KernelFusionConfig::fuse_qkv);
  }
  void check(const GatedFfnParams& p) {
    check(p.prologue);
    require(&KernelFusionConfig::fuse_ffn);
    if (p.residual.present()) require(&KernelFusionConfig::fuse_residual);
  }
  void check(const LmHeadArgmaxParams& p) {
    check(p.prologue);
    require(&KernelFusionConfig::fuse_lm_head);
  }
  void check(const Prologue& p) {
    if (p.norm != NormKind::none) require(&KernelFusionConfig::fuse_ln_linear);
    switch (p.activation) {
      case Activation::gelu:
      case Activation::gelu_tanh:
        require(&KernelFusionConfig::fuse_gelu_linear);
        break;
      case Activation::silu:
        require(&KernelFusionConfig::fuse_silu_linear);
        break;
      case Activation::relu:
        require(&KernelFusionConfig::fuse_ffn);
        break;
      case Activation::none:
        break;
    }
  }

  const KernelFusionConfig& c_;
  bool allowed_ = true;
};

void check_choice(const char* field, const std::optional<std::string>& value,
                  std::initializer_list<const char*> choices) {
  if (!value || std::ranges::find(choices, *value) != choices.end()) return;
  throw_invalid(fmt::format("KernelFusionConfig: {} must be one of {}, got '{}'", field,
                            fmt::join(choices, ", "), *value));
}

const char* backend_name(AttentionBackend backend) {
  return kAttentionBackendNames[static_cast<int>(backend)];
}

}  // namespace

void KernelFusionConfig::validate() const {
  if (page_size < 1)
    throw_invalid(fmt::format("KernelFusionConfig: page_size must be at least 1, got {}", page_size));
  if (num_kv_heads && *num_kv_heads < 1) {
    throw_invalid(fmt::format("KernelFusionConfig: num_kv_heads must be at least 1, got {}", *num_kv_heads));
  }
  if (num_threads < 0 || num_threads > kMaxThreads) {
    throw_invalid(fmt::format("KernelFusionConfig: num_threads must be 0 (the default) to {}, got {}",
                              kMaxThreads, num_threads));
  }
  check_choice("quant_dtype", quant_dtype, {"int4", "int8", "fp8"});
  check_choice("sparse_pattern", sparse_pattern, {"n:m", "unstructured"});
}

bool KernelFusionConfig::is_on(std::string_view flag) const {
  if (flag == "attention_backend")
    return attention_backend != AttentionBackend::vanilla && use_online_softmax;
  for (const auto& [name, member] : kSwitches) {
    if (name == flag) return this->*member;
  }
  throw_invalid(fmt::format("KernelFusionConfig: '{}' is not a switch of fusion", flag));
}

KernelFusionManager::KernelFusionManager(KernelFusionConfig config, std::span<const Backend* const> backends)
    : config_((config.validate(), std::move(config))),
      log_(config_.profile_kernels),
      dispatchers_({.num_threads = config_.num_threads, .sink = config_.log_fusion_stats ? &log_ : nullptr},
                   backends) {
  // What the first device's refuses (a bad environment) is said now.
  dispatchers_.on({backends.empty() ? DeviceType::cpu : backends.front()->device_type, 0});
  // Each goes in front of the table: backwards, so that the first given is the first tried.
  std::for_each(config_.custom_kernels.rbegin(), config_.custom_kernels.rend(),
                [&](const Kernel& kernel) { register_custom_kernel(kernel); });
}

Selection KernelFusionManager::selection(const KernelFusionConfig& config, Op op, const void* params) {
  Selection s;
  s.allow_fallback = config.allow_fallback;
  s.graph_safe = config.use_cuda_graph;
  s.batch_invariant = config.deterministic;
  s.tf32 = config.enable_tf32;
  s.families = op == Op::attention ? attention_families(config.attention_backend) : kAnyFused;
  if (config.backend == FusionBackend::triton && op != Op::attention &&
      device_of(op, params).type != DeviceType::cpu)
    s.families = kCustom | kTriton;
  else if (config.use_triton)
    s.families |= kTriton;
  if (!Allowed(config, op, params)) s.families = kUnfused;
  return s;
}

FusionPolicy KernelFusionManager::fusion_policy() const {
  FusionPolicy policy;
  policy.mode = config_.fusion;
  for (const Rule& rule : builtin_rules()) {
    if (!rule.flag.empty() && !config_.is_on(rule.flag)) policy.except.push_back(rule.name);
  }
  return policy;
}

// What the configuration says about attention, beyond the choice of kernels.
void KernelFusionManager::check(const KernelFusionConfig& config, Op op, const void* params) {
  if (op != Op::attention) return;
  const auto& p = *static_cast<const AttentionParams*>(params);
  const bool paged = p.tables.paged();
  if (paged && !config.use_paged_attention)
    throw_invalid("attention: block_tables given, but use_paged_attention is off");
  if (!paged && config.attention_backend == AttentionBackend::paged) {
    throw_invalid("attention: attention_backend paged expects block_tables and context_lens, got none");
  }
  if (p.q.rank < 2 || p.k.rank < 2 || p.q.rank > kMaxRank || p.k.rank > kMaxRank)
    return;  // refused when planned
  const std::int64_t num_heads = p.q.dim(-2);
  const std::int64_t num_kv_heads = paged && p.tables.kv_layout == KvLayout::hnd ? p.k.dim(1) : p.k.dim(-2);
  if (config.num_kv_heads && *config.num_kv_heads != num_kv_heads) {
    throw_invalid(fmt::format("attention: num_kv_heads is configured as {}, k has {}", *config.num_kv_heads,
                              num_kv_heads));
  }
  if (!config.enable_gqa && num_heads != num_kv_heads) {
    throw_invalid(
        fmt::format("attention: enable_gqa is off, but q has {} heads and k {}", num_heads, num_kv_heads));
  }
}

Dispatcher& KernelFusionManager::serving(Op op, const void* params, const KernelFusionConfig& config) {
  try {
    return dispatchers_.serving(op, params);
  } catch (const Error& e) {
    if (e.code() != ErrorCode::unavailable) throw;
    auto context = e.context();
    context["backend"] = kFusionBackendNames[static_cast<int>(config.backend)];
    throw Error(e.code(), fmt::format("backend {}: {}", context["backend"], e.what()), context);
  }
}

void KernelFusionManager::run(Op op, const void* params, const Launch& launch) {
  run(op, params, config_, launch);
}

void KernelFusionManager::run(Op op, const void* params, const KernelFusionConfig& config,
                              const Launch& launch) {
  check(config, op, params);
  try {
    serving(op, params, config).run(op, params, selection(config, op, params), launch);
  } catch (const Error& e) {
    if (op != Op::attention || e.code() != ErrorCode::not_implemented) throw;
    auto context = e.context();
    context["attention_backend"] = backend_name(config.attention_backend);
    throw Error(e.code(), fmt::format("attention_backend {}: {}", context["attention_backend"], e.what()),
                context);
  }
}

std::vector<Explained> KernelFusionManager::explain(Op op, const void* params,
                                                    const KernelFusionConfig& config) {
  check(config, op, params);
  return serving(op, params, config).explain(op, params, selection(config, op, params));
}

std::shared_ptr<const Plan> KernelFusionManager::plan(Op op, const void* params,
                                                      const KernelFusionConfig& config) {
  check(config, op, params);
  return serving(op, params, config).plan(op, params, selection(config, op, params));
}

std::vector<const Kernel*> KernelFusionManager::kernels() const {
  std::vector<const Kernel*> all;
  for (const Dispatcher* d : dispatchers_.made())
    for (const Kernel* k : d->kernels()) all.push_back(k);
  return all;
}

}  // namespace kf
