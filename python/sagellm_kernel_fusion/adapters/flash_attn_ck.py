"""FlashAttention-2 of ROCm's builds, over AMD's composable_kernel: flash_attn's functions, with less in them.

Soft caps are taken and ignored there (csrc/flash_attn_ck/mha_fwd.cpp: `const float /*softcap*/`), so that none is given
here; pages are multiples of 128 keys (mha_fwd_kvcache.cpp)."""

from __future__ import annotations

import os
from dataclasses import replace

from . import flash_attn, hip
from .row import Row

BUILT_FOR = ("gfx90a", "gfx942", "gfx950")


def _lacking() -> str | None:
    if os.environ.get("FLASH_ATTENTION_TRITON_AMD_ENABLE") == "TRUE":
        return "FLASH_ATTENTION_TRITON_AMD_ENABLE is TRUE: this adapter is written for composable_kernel's functions"
    return hip.lacking("flash_attn", BUILT_FOR)


LIBRARY = replace(
    flash_attn.LIBRARY,
    install="pip install flash-attn --no-build-isolation, with ROCm",
    source="flash-attn 2.8.4 by ROCm (Dao-AILab/flash-attention 01c72c8a, csrc/flash_attn_ck)",
    lacking=_lacking,
)


def _declines(**fields) -> str | None:
    return flash_attn.declines(**fields, page_multiple=128)


def _attention(
    q, k, v, lse=None, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None, kv_layout="HND",
    softmax_scale=0.0, causal=True, window_left=-1, window_right=-1, alibi_slopes=None,
):  # fmt: skip
    return flash_attn.attention(
        q, k, v, lse, cu_seqlens_q, cu_seqlens_k, block_tables, context_lens, kv_layout, softmax_scale, causal,
        window_left, window_right, alibi_slopes=alibi_slopes, library=LIBRARY,
    )  # fmt: skip


ROWS = (
    Row(
        "flash_attn_ck::attention", "attention", "library", LIBRARY,
        "f16 and bf16; head_dim a multiple of 8 up to 256; dense, packed, or one query token a sequence of a paged "
        "cache (NHD, pages of a multiple of 128); windows, ALiBi",
        _attention, _declines, devices=("rocm",),
    ),
)  # fmt: skip
