"""Attention in the specification's forms."""

from __future__ import annotations

from ..checks import shape_of
from ..config import KernelFusionConfig
from ..errors import refusing
from ..manager import KernelFusionManager

_manager = KernelFusionManager(KernelFusionConfig(log_fusion_stats=False))

_int4 = KernelFusionConfig(fuse_with_quant=True, quant_dtype="int4", log_fusion_stats=False)


class FlashAttention2:
    """Exact attention in blocks, with an online softmax (Dao, FlashAttention-2, 2023): O(seqlen) memory."""

    def forward(self, q, k, v, causal: bool = True, softmax_scale: float | None = None):
        """q [batch, seqlen_q, num_heads, head_dim], k and v [batch, seqlen_k, num_kv_heads, head_dim]; causal from the
        bottom right; softmax_scale None is 1 / sqrt(head_dim)."""
        return _manager.fuse_attention(q, k, v, causal=causal, softmax_scale=softmax_scale)

    def forward_varlen(self, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q: int, max_seqlen_k: int):
        """Sequences one after another, causal: q [total_q, num_heads, head_dim], k and v [total_k, num_kv_heads,
        head_dim]; cu_seqlens int32 [batch + 1], where each begins and the last ends."""
        return _manager.fuse_attention(
            q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen_k,
        )  # fmt: skip


class PagedAttention:
    """Attention of one query token a sequence over a paged cache (Kwon et al., vLLM, 2023)."""

    def __init__(self, num_heads: int, head_dim: int, page_size: int = 16):
        _expect_sizes(num_heads=num_heads, head_dim=head_dim, page_size=page_size)
        self.num_heads, self.head_dim, self.page_size = num_heads, head_dim, page_size

    def forward(self, query, key_cache, value_cache, block_tables, context_lens):
        """query [num_tokens, num_heads, head_dim], caches [num_blocks, num_kv_heads, page_size, head_dim], block_tables
        int32 [num_tokens, max_num_blocks], context_lens int32 [num_tokens]."""
        _expect("query", query, {-2: self.num_heads, -1: self.head_dim})
        _expect("key_cache", key_cache, {-2: self.page_size, -1: self.head_dim})
        return _manager.fuse_attention(
            query, key_cache, value_cache, block_tables=block_tables, context_lens=context_lens
        )


class GroupedQueryAttention:
    """Causal attention whose query heads share K/V heads (Ainslie et al., GQA, 2023); K/V are read once for a group and
    never repeated in memory."""

    def __init__(self, num_q_heads: int, num_kv_heads: int, head_dim: int):
        _expect_sizes(num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
        if num_q_heads % num_kv_heads:
            raise refusing(f"num_q_heads: expected a multiple of num_kv_heads, {num_kv_heads}, got {num_q_heads}")
        self.num_q_heads, self.num_kv_heads, self.head_dim = num_q_heads, num_kv_heads, head_dim
        self.num_queries_per_kv = num_q_heads // num_kv_heads

    def forward(self, q, k, v):
        """q [batch, seqlen_q, num_q_heads, head_dim], k and v [batch, seqlen_k, num_kv_heads, head_dim]."""
        _expect("q", q, {-2: self.num_q_heads, -1: self.head_dim})
        _expect("k", k, {-2: self.num_kv_heads, -1: self.head_dim})
        return _manager.fuse_attention(q, k, v)


class FusedINT4Attention:
    """Causal attention over int4 keys and values, which are dequantized in registers and never written as floats."""

    def forward(self, q_fp16, k_int4, v_int4, k_scales=None, v_scales=None):
        """q [batch, seqlen_q, num_heads, head_dim] of any activation type; k_int4 and v_int4 uint8 [batch, seqlen_k,
        num_kv_heads, head_dim / 2], two values a byte, the low half first, with scales [batch, seqlen_k, num_kv_heads,
        groups]; or QuantizedTensors, which have theirs."""
        return _manager.fuse_attention(q_fp16, k_int4, v_int4, _int4, k_scales=k_scales, v_scales=v_scales)


def _expect_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise refusing(f"{name}: expected a positive integer, got {size!r}")


def _expect(name: str, array, sizes: dict[int, int]) -> None:
    shape = list(shape_of(name, array))
    for axis, size in sizes.items():
        if len(shape) < -axis or shape[axis] != size:
            raise refusing(f"{name}: expected {size} in dimension {axis} as configured, got shape {shape}")
