"""What a kernel-fusion backend is: the specification's protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from .config import KernelFusionConfig


class KernelFusionProtocol(ABC):
    """A backend of kernel fusion. Register an implementation with `KernelFusionBackendRegistry`.

    `device_types` are those whose tensors it claims ("npu", "mlu"; as `tensor.device.type` says): a manager hands their
    calls over. An implementation may have more of KernelFusionManager's methods; what it lacks is refused.
    """

    device_types: tuple[str, ...] = ()

    @abstractmethod
    def fuse_attention(self, q, k, v, config: KernelFusionConfig | None = None, **options):
        """softmax(q k^T / sqrt(head_dim)) v. q [batch, seqlen_q, num_heads, head_dim], k and v [batch, seqlen_k,
        num_kv_heads, head_dim]; `options` as in KernelFusionManager.fuse_attention."""

    @abstractmethod
    def fuse_ffn(self, x, gate_weight, up_weight, down_weight, config: KernelFusionConfig | None = None, **options):
        """(silu(x @ gate_weight) * (x @ up_weight)) @ down_weight. x [..., hidden], gate_weight and up_weight [hidden,
        intermediate], down_weight [intermediate, hidden]."""

    @abstractmethod
    def fuse_layernorm_linear(
        self, x, ln_weight, ln_bias, linear_weight, config: KernelFusionConfig | None = None, **options
    ):
        """layer_norm(x) @ linear_weight. x [..., n], ln_weight and ln_bias [n], linear_weight [n, out]."""

    @abstractmethod
    def register_custom_kernel(self, name: str, kernel: Callable, **options) -> None:
        """Puts `kernel` before the others of the operator `name`."""

    @abstractmethod
    def report(self) -> dict[str, float]:
        """Speed-ups, memory saved and kernel calls."""
