"""The specification's classes of accelerators: each over its backend, which must be usable here."""

from __future__ import annotations

from ..config import KernelFusionConfig
from ..errors import refusing
from ..registry import KernelFusionBackendRegistry

_quiet = KernelFusionConfig(log_fusion_stats=False)


class _OfBackend:
    """Raises UnavailableError, with the reason, where the backend's device cannot be used."""

    backend: str

    def __init__(self):
        self._manager = KernelFusionBackendRegistry.backend_class(self.backend)(_quiet)

    def _on_its_device(self, name: str, x) -> None:
        where = getattr(getattr(x, "device", None), "type", None)
        if where not in self._manager.device_types:
            devices = " or ".join(self._manager.device_types)
            raise refusing(f"{type(self).__name__}: {name}: expected a tensor on {devices}, got one on {where}")


class _FlashAttention(_OfBackend):
    def forward(self, q, k, v, causal: bool = True):
        """softmax(q k^T / sqrt(head_dim)) v. q [batch, seqlen_q, num_heads, head_dim], k and v [batch, seqlen_k,
        num_kv_heads, head_dim], on the backend's device; causal from the bottom right."""
        self._on_its_device("q", q)
        return self._manager.fuse_attention(q, k, v, causal=causal)


class AscendFlashAttention(_FlashAttention):
    """Attention by CANN's operators (docs/backends/ascend.md)."""

    backend = "ascend"


class MLUFlashAttention(_FlashAttention):
    """Attention by Cambricon's torch_mlu_ops (docs/backends/cambricon.md)."""

    backend = "mlu"


class ROCmFlashAttention(_FlashAttention):
    """Attention on Hygon's DCU and AMD's GPUs (docs/backends/hygon.md)."""

    backend = "rocm"


class AscendFusedFFN(_OfBackend):
    """down(silu(gate(x)) * up(x)) by CANN's operators."""

    backend = "ascend"

    def forward(self, x, gate_w, up_w, down_w):
        """x [..., hidden], gate_w and up_w [hidden, intermediate], down_w [intermediate, hidden], on the NPU."""
        self._on_its_device("x", x)
        return self._manager.fuse_ffn(x, gate_w, up_w, down_w)
