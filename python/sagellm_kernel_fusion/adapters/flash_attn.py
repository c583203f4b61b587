"""FlashAttention-2 (https://github.com/Dao-AILab/flash-attention): dense, packed and paged attention.

Its conventions are ours: [batch, seqlen, heads, head_dim], causal and windows from the bottom right, heads of a group
in order, ALiBi as -slope |distance|, softcap on scaled scores, natural lse."""

from __future__ import annotations

from .conditions import dtypes, head_dims, longest, not_empty, pages, whole_lse, write_lse
from .library import Library
from .row import Row

_OPTIONS = ("softmax_scale", "causal", "window_size", "softcap", "alibi_slopes")
LIBRARY = Library(
    "flash_attn",
    "pip install flash-attn --no-build-isolation",
    "flash-attn 2.8.4 (Dao-AILab/flash-attention 0251105a, flash_attn/flash_attn_interface.py)",
    {
        "flash_attn_func": ("q", "k", "v", *_OPTIONS, "return_attn_probs"),
        "flash_attn_varlen_func": (
            "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", *_OPTIONS,
            "return_attn_probs",
        ),
        "flash_attn_with_kvcache": (
            "q", "k_cache", "v_cache", "cache_seqlens", "block_table", *_OPTIONS, "return_softmax_lse",
        ),
    },
)  # fmt: skip


def declines(
    q, k, v, lse=None, block_tables=None, cu_seqlens_q=None, kv_layout="HND", alibi_slopes=None, causal=True,
    page_multiple=256, **rest,
) -> str | None:  # fmt: skip
    reason = (
        dtypes({"q": q, "k": k, "v": v}, ("f16", "bf16"))
        or not_empty({"q": q, "k": k, "v": v})
        or head_dims(q, v)
        or whole_lse(lse, alibi_slopes, causal)
    )
    if reason or block_tables is None:
        return reason
    if cu_seqlens_q is not None:
        return "cu_seqlens_q with block_tables: this kernel takes one query token a sequence of a paged cache"
    return pages(k, kv_layout, multiple=page_multiple)


def options_of(softmax_scale: float, causal: bool, window_left: int, window_right: int, softcap: float) -> dict:
    """As FlashAttention-2 and -3 take them."""
    return {
        "softmax_scale": softmax_scale or None,
        "causal": causal,
        "window_size": (window_left, 0 if causal else window_right),
        "softcap": softcap,
    }


def attention(
    q, k, v, lse=None, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None, kv_layout="HND",
    softmax_scale=0.0, causal=True, window_left=-1, window_right=-1, softcap=0.0, alibi_slopes=None, library=LIBRARY,
):  # fmt: skip
    options = options_of(softmax_scale, causal, window_left, window_right, softcap) | {"alibi_slopes": alibi_slopes}
    wanted = lse is not None
    if block_tables is not None:
        out, got = library("flash_attn_with_kvcache")(
            q.unsqueeze(1), k, v, cache_seqlens=context_lens, block_table=block_tables, return_softmax_lse=True,
            **options,
        )  # fmt: skip
        out, got = out.squeeze(1), got.squeeze(-1).t()
    elif cu_seqlens_q is not None:
        lengths = longest(cu_seqlens_q), longest(cu_seqlens_k)
        function = library("flash_attn_varlen_func")
        result = function(q, k, v, cu_seqlens_q, cu_seqlens_k, *lengths, return_attn_probs=wanted, **options)
        out, got = result[:2] if wanted else (result, None)
    else:
        result = library("flash_attn_func")(q, k, v, return_attn_probs=wanted, **options)
        out, got = result[:2] if wanted else (result, None)
    if wanted:
        write_lse(lse, got)
    return out


ROWS = (
    Row(
        "flash_attn::attention", "attention", "library", LIBRARY,
        "f16 and bf16; head_dim a multiple of 8 up to 256; dense, packed, or one query token a sequence of a paged "
        "cache (NHD, pages of a multiple of 256); windows, softcap, ALiBi",
        attention, declines,
    ),
)  # fmt: skip
