// The configuration from a dictionary of its fields.
#include "bindings.h"
#include "dict_fields.h"

namespace kf::python {

KernelFusionConfig fusion_config_from(const nb::dict& values) {
  KernelFusionConfig c;
  DictFields("KernelFusionConfig", values)
      .choose("attention_backend", c.attention_backend, kAttentionBackendNames)
      .read("use_paged_attention", c.use_paged_attention)
      .read("page_size", c.page_size)
      .read("enable_gqa", c.enable_gqa)
      .read("num_kv_heads", c.num_kv_heads)
      .read("fuse_ffn", c.fuse_ffn)
      .read("fuse_gelu_linear", c.fuse_gelu_linear)
      .read("fuse_silu_linear", c.fuse_silu_linear)
      .read("fuse_ln", c.fuse_ln)
      .read("fuse_ln_linear", c.fuse_ln_linear)
      .read("fuse_rmsnorm", c.fuse_rmsnorm)
      .read("fuse_softmax", c.fuse_softmax)
      .read("use_online_softmax", c.use_online_softmax)
      .read("fuse_with_quant", c.fuse_with_quant)
      .read("quant_dtype", c.quant_dtype)
      .read("fuse_with_sparse", c.fuse_with_sparse)
      .read("sparse_pattern", c.sparse_pattern)
      .read("use_triton", c.use_triton)
      .read("use_cuda_graph", c.use_cuda_graph)
      .choose("backend", c.backend, kFusionBackendNames)
      .read("enable_tf32", c.enable_tf32)
      .read("enable_fp16", c.enable_fp16)
      .read("enable_bf16", c.enable_bf16)
      .read("profile_kernels", c.profile_kernels)
      .read("log_fusion_stats", c.log_fusion_stats)
      .read("fuse_rope", c.fuse_rope)
      .read("fuse_qkv", c.fuse_qkv)
      .read("fuse_residual", c.fuse_residual)
      .read("fuse_lm_head", c.fuse_lm_head)
      .read("fuse_lora", c.fuse_lora)
      .read("allow_fallback", c.allow_fallback)
      .read("deterministic", c.deterministic)
      .read("num_threads", c.num_threads)
      .choose("fusion", c.fusion, kFusionModeNames)
      .finish();
  c.validate();
  return c;
}

}  // namespace kf::python
