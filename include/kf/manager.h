// The specification's face: a configuration of what may be fused, and a manager that runs ops as it says. The
// tensors choose the device, the configuration the kernel family on it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kf/call_log.h"
#include "kf/dispatch.h"
#include "kf/ops/attention.h"
#include "kf/ops/elementwise.h"
#include "kf/ops/linear.h"
#include "kf/ops/norm.h"
#include "kf/ops/rope.h"
#include "kf/ops/sampling.h"
#include "kf/rules.h"
#include "kf/telemetry.h"

namespace kf {

enum class AttentionBackend : std::uint8_t { flash2, flash3, paged, xformers, vanilla, triton };
inline constexpr const char* kAttentionBackendNames[] = {"flash2",   "flash3",  "paged",
                                                         "xformers", "vanilla", "triton"};

enum class FusionBackend : std::uint8_t { cuda, triton, rocm, tensorrt };
inline constexpr const char* kFusionBackendNames[] = {"cuda", "triton", "rocm", "tensorrt"};

struct KernelFusionConfig {
  // Attention
  AttentionBackend attention_backend = AttentionBackend::flash2;
  bool use_paged_attention = true;           // off: a call with block tables is refused
  std::int64_t page_size = 16;               // of caches that the library makes; a given cache has its own
  bool enable_gqa = true;                    // off: fewer K/V heads than query heads are refused
  std::optional<std::int64_t> num_kv_heads;  // given: other K/V head counts are refused

  // FFN
  bool fuse_ffn = true;          // gate + up + activation + down
  bool fuse_gelu_linear = true;  // off: a GELU stands alone before its linear layer
  bool fuse_silu_linear = true;

  // Norms
  bool fuse_ln = true;         // LayerNorm in one kernel, with its residual
  bool fuse_ln_linear = true;  // a norm and the linear layer after it
  bool fuse_rmsnorm = true;

  // Softmax
  bool fuse_softmax = true;
  bool use_online_softmax = true;  // off: attention writes its scores

  // Quantization and sparsity
  bool fuse_with_quant = false;
  std::optional<std::string> quant_dtype;  // "int4", "int8", "fp8"
  bool fuse_with_sparse = false;
  std::optional<std::string> sparse_pattern;  // "n:m", "unstructured"

  // Kernels of the user's, in front of all others
  std::vector<Kernel> custom_kernels;
  bool use_triton = false;
  bool use_cuda_graph = false;

  // Performance. On the CPU arithmetic is f32 whatever these say. enable_tf32: Selection::tf32 of the calls.
  FusionBackend backend =
      FusionBackend::cuda;  // where CUDA devices are concerned; the CPU's tensors run on the CPU
  bool enable_tf32 = true;
  bool enable_fp16 = true;
  bool enable_bf16 = false;

  // Telemetry
  bool profile_kernels = false;  // time every kernel
  bool log_fusion_stats = true;  // count calls; off: stats() stays empty

  // Beyond the specification
  bool fuse_rope = true;      // rotary positions with the heads' norm and with writing the cache
  bool fuse_qkv = true;       // the three linear layers before attention as one
  bool fuse_residual = true;  // a residual added by the layer before it
  bool fuse_lm_head = true;   // the last layer and the greedy choice
  bool fuse_lora = true;      // low-rank adapters added by the layer that they belong to
  bool allow_fallback =
      false;  // a call that the configured family cannot serve goes to another, and is counted
  bool deterministic = false;  // a row has the same bits whatever the batch: only kernels that promise it
  int num_threads = 0;         // up to kMaxThreads; 0: the device's default
  FusionPolicy::Mode fusion = FusionPolicy::Mode::measured;  // of graphs

  // Throws invalid_argument, naming the field.
  void validate() const;
  // Whether the switch of this name is on ("fuse_ffn"); how fusion rules name what governs them.
  bool is_on(std::string_view flag) const;
};

// Safe for concurrent calls, once kernels are registered.
class KernelFusionManager {
 public:
  // A device's calls are served by the first of `backends` of its type; none given: all_backends().
  explicit KernelFusionManager(KernelFusionConfig config = {}, std::span<const Backend* const> backends = {});

  void attention(const AttentionParams& p, const Launch& launch = {}) { run(p, launch); }
  void linear(const LinearParams& p, const Launch& launch = {}) { run(p, launch); }
  void qkv_linear(const QkvLinearParams& p, const Launch& launch = {}) { run(p, launch); }
  void gated_ffn(const GatedFfnParams& p, const Launch& launch = {}) { run(p, launch); }
  void lm_head_argmax(const LmHeadArgmaxParams& p, const Launch& launch = {}) { run(p, launch); }
  void rms_norm(const RmsNormParams& p, const Launch& launch = {}) { run(p, launch); }
  void layer_norm(const LayerNormParams& p, const Launch& launch = {}) { run(p, launch); }
  void softmax(const SoftmaxParams& p, const Launch& launch = {}) { run(p, launch); }
  void activation(const ActivationParams& p, const Launch& launch = {}) { run(p, launch); }
  void gated_activation(const GatedActivationParams& p, const Launch& launch = {}) { run(p, launch); }
  void rope(const RopeParams& p, const Launch& launch = {}) { run(p, launch); }
  void append_kv(const AppendKvParams& p, const Launch& launch = {}) { run(p, launch); }
  void rope_append(const RopeAppendParams& p, const Launch& launch = {}) { run(p, launch); }
  void embedding(const EmbeddingParams& p, const Launch& launch = {}) { run(p, launch); }
  void argmax(const ArgmaxParams& p, const Launch& launch = {}) { run(p, launch); }
  void sample(const SampleParams& p, const Launch& launch = {}) { run(p, launch); }

  // Any op. Refuses what the configuration excludes, and what its kernel family does not serve.
  void run(Op op, const void* params, const Launch& launch = {});
  template <class P>
  void run(const P& params, const Launch& launch = {}) {
    run(P::kOp, &params, launch);
  }
  // The same under another configuration for this call. Threads, telemetry and custom kernels remain the manager's.
  void run(Op op, const void* params, const KernelFusionConfig& config, const Launch& launch = {});
  std::vector<Explained> explain(Op op, const void* params) { return explain(op, params, config_); }
  std::vector<Explained> explain(Op op, const void* params, const KernelFusionConfig& config);
  template <class P>
  std::vector<Explained> explain(const P& params) {
    return explain(P::kOp, &params);
  }

  // The choice of a kernel ahead of the first call: searching, tuning and compiling are done then.
  std::shared_ptr<const Plan> plan(Op op, const void* params, const KernelFusionConfig& config);
  // The kernels that the configuration lets a call use.
  Selection selection(Op op, const void* params) const { return selection(config_, op, params); }
  static Selection selection(const KernelFusionConfig& config, Op op, const void* params);
  // The rules that it lets a graph use.
  FusionPolicy fusion_policy() const;

  // In front of the others of its device type; before the first call.
  void register_custom_kernel(Kernel kernel) { dispatchers_.add_kernel(std::move(kernel)); }
  // Of the CPU, and of the devices that calls have come for.
  std::vector<const Kernel*> kernels() const;
  // Calls so far by (op, kernel).
  std::map<std::pair<std::string, std::string>, Counters::Entry> stats() const { return log_.counts(); }
  const CallLog& log() const { return log_; }
  void reset() { log_.reset(); }

  const KernelFusionConfig& config() const { return config_; }
  // The dispatcher of a device. Throws unavailable with the cause.
  Dispatcher& dispatcher(Device device = {}) { return dispatchers_.on(device); }

 private:
  static void check(const KernelFusionConfig& config, Op op, const void* params);
  // The dispatcher of the call's device. Throws unavailable, naming the backend that the configuration has for devices.
  Dispatcher& serving(Op op, const void* params, const KernelFusionConfig& config);

  const KernelFusionConfig config_;
  CallLog log_;
  DispatcherSet dispatchers_;
};

}  // namespace kf
