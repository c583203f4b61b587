"""Gated FFNs in the specification's forms."""

from __future__ import annotations

from ..config import KernelFusionConfig
from ..manager import KernelFusionManager

_manager = KernelFusionManager(KernelFusionConfig(log_fusion_stats=False))
_sparse = KernelFusionConfig(fuse_with_sparse=True, log_fusion_stats=False)


class FusedFFN:
    """down(silu(gate(x)) * up(x)) in one call (Shazeer, GLU Variants, 2020)."""

    def forward(self, x, gate_w, up_w, down_w):
        """x [..., hidden], gate_w and up_w [hidden, intermediate], down_w [intermediate, hidden]."""
        return _manager.fuse_ffn(x, gate_w, up_w, down_w)


class FusedSparseFFN:
    """The same with sparse weights, which stay compressed."""

    def forward(self, x, sparse_gate_w, sparse_up_w, sparse_down_w):
        """x [..., hidden]; SparseTensors [intermediate, hidden], [intermediate, hidden] and [hidden, intermediate], as
        `sparsify` makes them of torch.nn.Linear's weights."""
        return _manager.fuse_ffn(x, sparse_gate_w, sparse_up_w, sparse_down_w, _sparse)
