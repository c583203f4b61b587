"""The specification's kernel classes: thin forms of KernelFusionManager's operators.

All take the tensors that the manager takes, and hand its errors on. Those of accelerators are over their backends, and
raise UnavailableError where these cannot be used.
"""

from .attention import FlashAttention2, FusedINT4Attention, GroupedQueryAttention, PagedAttention
from .ffn import FusedFFN, FusedSparseFFN
from .vendors import AscendFlashAttention, AscendFusedFFN, MLUFlashAttention, ROCmFlashAttention

__all__ = [
    "AscendFlashAttention",
    "AscendFusedFFN",
    "FlashAttention2",
    "FusedFFN",
    "FusedINT4Attention",
    "FusedSparseFFN",
    "GroupedQueryAttention",
    "MLUFlashAttention",
    "PagedAttention",
    "ROCmFlashAttention",
]
