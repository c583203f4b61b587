"""The configuration, field by field as the specification names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

FusionTarget = Literal["attention", "ffn", "layernorm", "softmax", "activation", "ln_linear", "gelu_linear"]
AttentionBackend = Literal["flash2", "flash3", "paged", "xformers", "vanilla", "triton"]
FusionBackend = Literal["cuda", "triton", "rocm", "tensorrt"]
FusionChoice = str | Sequence[str]  # "measured", "all", "none", or names of rules


@dataclass
class KernelFusionConfig:
    """What to fuse, with which kernels. Fields after the specification's own are keyword-only."""

    # Attention
    attention_backend: AttentionBackend = "flash2"
    use_paged_attention: bool = True
    page_size: int = 16  # tokens a page of the K/V cache
    enable_gqa: bool = True
    num_kv_heads: int | None = None  # None: as the tensors say

    # FFN
    fuse_ffn: bool = True  # gate, up, activation and down in one call
    fuse_gelu_linear: bool = True
    fuse_silu_linear: bool = True

    # Norms
    fuse_ln: bool = True
    fuse_ln_linear: bool = True
    fuse_rmsnorm: bool = True

    # Softmax
    fuse_softmax: bool = True
    use_online_softmax: bool = True  # False: the scores are written out

    # With quantization and sparsity
    fuse_with_quant: bool = False
    quant_dtype: str | None = None  # "int4" or "fp8"
    fuse_with_sparse: bool = False
    sparse_pattern: str | None = None  # "n:m" or "unstructured"

    # Custom kernels
    custom_kernels: dict[str, Callable] | None = None
    use_triton: bool = False
    use_cuda_graph: bool = False

    # Performance
    backend: FusionBackend = "cuda"
    enable_tf32: bool = True
    enable_fp16: bool = True
    enable_bf16: bool = False

    # Telemetry
    profile_kernels: bool = False
    log_fusion_stats: bool = True

    _: KW_ONLY
    # Further fusions of whole graphs
    fuse_residual: bool = True  # the residual added where it is read or written anyway
    fuse_qkv: bool = True  # the three layers before attention as one
    fuse_rope: bool = True  # rotation, QK-norm and the cache's append in one call
    fuse_lm_head: bool = True  # the last layer and the greedy choice as one
    allow_fallback: bool = False  # False: what the configured kernels cannot serve is an error
    # How graph rules are applied: "measured" keeps what is faster here, "all", "none", or just the rules of these
    # names ("rule,rule" or a list)
    fusion: FusionChoice = "measured"
    only_rules: list[str] = field(default_factory=list)  # non-empty: just these graph rules
    except_rules: list[str] = field(default_factory=list)  # never these
