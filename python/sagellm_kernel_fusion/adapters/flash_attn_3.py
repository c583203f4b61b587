"""FlashAttention-3, for Hopper GPUs (hopper/ of https://github.com/Dao-AILab/flash-attention): dense, packed and paged
attention, in the conventions of FlashAttention-2, without ALiBi; and fa3-fwd (PyPI), the same in wheels, built without
half of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .conditions import dtypes, head_dims, longest, not_empty, pages, write_lse
from .flash_attn import options_of
from .library import Library
from .row import Row

_OPTIONS = ("softmax_scale", "causal", "window_size", "softcap")
_SPLITS = 0  # as many as its heuristic finds right: with one, few queries keep few multiprocessors busy
LIBRARY = Library(
    "flash_attn_interface",
    "build hopper/ of Dao-AILab/flash-attention (package flash_attn_3)",
    "flash_attn_3 (Dao-AILab/flash-attention 0251105a, hopper/flash_attn_interface.py)",
    {
        "flash_attn_func": ("q", "k", "v", *_OPTIONS, "num_splits", "return_attn_probs"),
        "flash_attn_varlen_func": (
            "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", *_OPTIONS,
            "num_splits", "return_attn_probs",
        ),
        "flash_attn_with_kvcache": (
            "q", "k_cache", "v_cache", "cache_seqlens", "page_table", "cu_seqlens_q", "max_seqlen_q", *_OPTIONS,
            "num_splits", "return_softmax_lse",
        ),
    },
)  # fmt: skip
FA3_FWD = replace(
    LIBRARY,
    module="fa3_fwd_interface",
    install="pip install fa3-fwd",
    source="fa3-fwd 0.0.3 (PyPI, fa3_fwd_interface.py)",
)


def _declines(q, k, v, block_tables=None, kv_layout="HND", **rest) -> str | None:
    return (
        dtypes({"q": q, "k": k, "v": v}, ("f16", "bf16"))
        or not_empty({"q": q, "k": k, "v": v})
        or head_dims(q, v)
        or (None if block_tables is None else pages(k, kv_layout, multiple=1))
    )


def _fwd_declines(q, k, v, block_tables=None, causal=True, window_left=-1, window_right=-1, **rest) -> str | None:
    """What its wheels are built without (fa3_fwd_config.py), besides."""
    if block_tables is not None:
        return "block_tables: this kernel's build has no paged caches"
    if window_left >= 0 or (window_right >= 0 and not causal):
        return f"window ({window_left}, {window_right}): this kernel's build has none"
    return dtypes({"q": q, "k": k, "v": v}, ("bf16",)) or _declines(q, k, v)


def _attention_of(library: Library) -> Callable:
    def attention(
        q, k, v, lse=None, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None,
        kv_layout="HND", softmax_scale=0.0, causal=True, window_left=-1, window_right=-1, softcap=0.0,
    ):  # fmt: skip
        options = options_of(softmax_scale, causal, window_left, window_right, softcap) | {"num_splits": _SPLITS}
        if block_tables is not None:
            function, one_each = library("flash_attn_with_kvcache"), cu_seqlens_q is None
            out, got, *_ = function(
                q.unsqueeze(1) if one_each else q, k, v, cache_seqlens=context_lens, page_table=block_tables,
                cu_seqlens_q=cu_seqlens_q, max_seqlen_q=None if one_each else longest(cu_seqlens_q),
                return_softmax_lse=True, **options,
            )  # fmt: skip
            if one_each:
                out, got = out.squeeze(1), got.squeeze(-1).t()
        elif cu_seqlens_q is not None:
            lengths = longest(cu_seqlens_q), longest(cu_seqlens_k)
            function = library("flash_attn_varlen_func")
            out, got = function(q, k, v, cu_seqlens_q, cu_seqlens_k, *lengths, return_attn_probs=True, **options)
        else:
            out, got = library("flash_attn_func")(q, k, v, return_attn_probs=True, **options)
        if lse is not None:
            write_lse(lse, got)
        return out

    return attention


ROWS = (
    Row(
        "flash_attn_3::attention", "attention", "flash3", LIBRARY,
        "attention_backend flash3; f16 and bf16; head_dim a multiple of 8 up to 256; dense, packed or paged (NHD, "
        "pages of any size); windows, softcap",
        _attention_of(LIBRARY), _declines,
    ),
    Row(
        "fa3_fwd::attention", "attention", "flash3", FA3_FWD,
        "attention_backend flash3; bf16; head_dim a multiple of 8 up to 256; dense or packed; softcap",
        _attention_of(FA3_FWD), _fwd_declines,
    ),
)  # fmt: skip
