"""The specification's kernel classes: thin forms of KernelFusionManager's operators, over one manager.

All take the tensors that the manager takes, and hand its errors on.
"""

from .attention import FlashAttention2, FusedINT4Attention, GroupedQueryAttention, PagedAttention
from .ffn import FusedFFN, FusedSparseFFN

__all__ = [
    "FlashAttention2",
    "FusedFFN",
    "FusedINT4Attention",
    "FusedSparseFFN",
    "GroupedQueryAttention",
    "PagedAttention",
]
