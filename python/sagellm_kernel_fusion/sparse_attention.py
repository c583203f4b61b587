"""Sparse attention: dynamic n:m along the keys, block layouts, and lists of pages a head."""

from __future__ import annotations

from functools import cache

import numpy as np

from .checks import integer, one_of
from .config import KernelFusionConfig
from .errors import refusing
from .manager import KernelFusionManager

_PATTERNS = ("n:m", "block", "pages")


@cache
def _manager(backend: str) -> KernelFusionManager:
    return KernelFusionManager(KernelFusionConfig(attention_backend=backend, log_fusion_stats=False))


class FusedSparseAttention:
    """Attention in which each query row attends a part of the keys.

        FusedSparseAttention("n:m", n=2, m=4)(q, k, v)
        FusedSparseAttention("block", block_layout=layout, block_size=64)(q, k, v)
        FusedSparseAttention("pages")(q, k_pool, v_pool, page_lists=pages, block_tables=t, context_lens=n)

    "n:m"    of every m neighbouring keys of a sequence, counted from its first, a row keeps the n with the largest
             scores, as soft cap, slopes and mask leave them; of equal ones the earlier; a NaN counts as infinity. The
             softmax is over what is kept (Chen et al., Dynamic N:M Fine-grained Structured Sparse Attention
             Mechanism, 2022). It says what is attended; it does not read less.
    "block"  block_layout, boolean, [query blocks, key blocks] for all heads, [heads, ...], or [batch or 1, heads, ...];
             heads are num_heads, num_kv_heads or 1. Or int32 with four dimensions, the last a list of key blocks,
             ascending, -1 after the last. block_size: tokens of a block, of queries and keys, or (of queries, of
             keys). Blocks that no row attends are not read.
    "pages"  over a paged cache (block_tables), page_lists int [batch, num_heads, num_kv_heads or 1, n], in any order,
             -1 anywhere for none: the pages that a head attends, by their places in the sequence's row of
             block_tables. Pages that no head lists are not read, and may be -1 there.

    use_flash_attention=False writes scores and probabilities whole, as an eager framework does (and reads all keys).
    Causal or not, windows and all else are options of the call, as KernelFusionManager.fuse_attention has them.
    """

    def __init__(
        self, sparsity_pattern: str = "n:m", n: int = 2, m: int = 4, use_flash_attention: bool = True, *,
        block_layout=None, block_size: int | tuple[int, int] = 64,
    ):  # fmt: skip
        one_of("FusedSparseAttention: sparsity_pattern", sparsity_pattern, _PATTERNS)
        n, m = integer("FusedSparseAttention: n", n), integer("FusedSparseAttention: m", m)
        if sparsity_pattern == "n:m" and not 1 <= n <= m:
            raise refusing(f"FusedSparseAttention: n, m: expected 1 <= n <= m, got {n}, {m}")
        if block_layout is not None and sparsity_pattern != "block":
            raise refusing(
                f'FusedSparseAttention: block_layout: expected none with "{sparsity_pattern}", but with "block"'
            )
        self.sparsity_pattern, self.n, self.m = sparsity_pattern, n, m
        if not isinstance(use_flash_attention, bool):
            raise refusing(
                f"FusedSparseAttention: use_flash_attention: expected True or False, got {use_flash_attention!r}"
            )
        self.use_flash_attention = use_flash_attention
        self.block_layout = block_layout
        one = "FusedSparseAttention: block_size"
        self.block_size = (
            tuple(integer(one, size) for size in block_size)
            if isinstance(block_size, (tuple, list))
            else (integer(one, block_size),) * 2
        )

    def __call__(self, q, k, v, *, block_layout=None, page_lists=None, **options):
        """q [batch, seqlen_q, num_heads, head_dim], k and v [batch, seqlen_k, num_kv_heads, head_dim], or the other
        forms of fuse_attention, with its options; causal unless causal=False. Returns out like q; with return_lse=True
        also lse."""
        for name, given, pattern in (("block_layout", block_layout, "block"), ("page_lists", page_lists, "pages")):
            if given is not None and self.sparsity_pattern != pattern:
                raise refusing(
                    f'FusedSparseAttention: {name}: expected none with "{self.sparsity_pattern}", but with "{pattern}"'
                )
        if self.sparsity_pattern == "n:m":
            options["keep"] = (self.n, self.m)
        elif self.sparsity_pattern == "block":
            layout = self.block_layout if block_layout is None else block_layout
            if layout is None:
                raise refusing('FusedSparseAttention: block_layout: expected one with "block", got none')
            options["block_layout"], options["block_size"] = _of_four_dimensions(layout), self.block_size
        else:
            if page_lists is None or options.get("block_tables") is None:
                raise refusing('FusedSparseAttention: expected page_lists and block_tables with "pages", got none')
            rows = 1 if options.get("kv_layout") == "NHD" else 2
            if len(k.shape) != 4:
                raise refusing(f"FusedSparseAttention: k: expected a page pool of 4 dimensions, got {len(k.shape)}")
            options["block_layout"], options["block_size"] = _in_order(page_lists), (0, int(k.shape[rows]))
        return _manager("flash2" if self.use_flash_attention else "vanilla").fuse_attention(q, k, v, **options)


def _of_four_dimensions(layout):
    rank = len(layout.shape) if hasattr(layout, "shape") else 0
    if rank not in (2, 3, 4):
        raise refusing(
            "FusedSparseAttention: block_layout: expected an array [query blocks, key blocks], with heads or batch and "
            f"heads before them, got {rank} dimensions"
        )
    return layout.reshape((1,) * (4 - rank) + tuple(layout.shape)) if rank < 4 else layout


def _in_order(page_lists) -> np.ndarray:
    """[batch, heads, n] pages as one query block's list of key blocks: ascending, each once, -1 after the last."""
    try:
        lists = np.asarray(page_lists) if not hasattr(page_lists, "__dlpack__") else np.from_dlpack(page_lists)
    except ValueError:  # rows of several lengths
        lists = np.empty(0)
    if lists.ndim != 3 or not np.issubdtype(lists.dtype, np.integer):
        raise refusing(
            "FusedSparseAttention: page_lists: expected integers [batch, heads, n], -1 for none, got "
            f"{lists.dtype} of {lists.ndim} dimensions"
        )
    if lists.size and (lists.min() < -1 or lists.max() > np.iinfo(np.int32).max - 1):
        raise refusing(f"FusedSparseAttention: page_lists: expected pages of 0 or more, or -1, got {lists.min()}")
    last = np.iinfo(np.int32).max
    ordered = np.sort(np.where(lists < 0, last, lists).astype(np.int32), -1)
    ordered[..., 1:][ordered[..., 1:] == ordered[..., :-1]] = last
    ordered.sort(-1)
    ordered[ordered == last] = -1
    return ordered[:, :, None]
