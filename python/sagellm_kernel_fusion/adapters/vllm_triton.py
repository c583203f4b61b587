"""vLLM's attention on ROCm over a paged cache that is [pages, page_size, kv_heads, head_dim]: its kernel in Triton.

The `paged_attention` of its ROCm library reads keys as [pages, heads, head_dim / x, page_size, x], which no cache here
has."""

from __future__ import annotations

from . import hip
from .conditions import blind_rows_are_zeros, dtypes, head_dims, longest, not_empty, one_token_each, pages
from .library import Library
from .row import Row

COMPILED_FOR = ("gfx90a", "gfx942", "gfx950")  # of those with waves of 64 lanes, what Triton has code for

LIBRARY = Library(
    "vllm.v1.attention.ops.triton_unified_attention",
    "vLLM's build for ROCm",
    "vLLM of 2026 (vllm-project/vllm 00139433, vllm/v1/attention/ops/triton_unified_attention.py)",
    {
        "unified_attention": (
            "q", "k", "v", "out", "cu_seqlens_q", "max_seqlen_q", "seqused_k", "max_seqlen_k", "softmax_scale",
            "causal", "window_size", "block_table", "softcap", "q_descale", "k_descale", "v_descale", "alibi_slopes",
            "sinks",
        ),
    },
    lacking=lambda: hip.lacking("vllm", COMPILED_FOR),
)  # fmt: skip


def _declines(
    q, k, v, cu_seqlens_q=None, block_tables=None, kv_layout="HND", causal=True, window_right=-1, alibi_slopes=None,
    sinks=None, **rest,
) -> str | None:  # fmt: skip
    if block_tables is None:
        return "no block_tables: this kernel takes paged caches"
    if not causal and (cu_seqlens_q is not None or window_right >= 0):
        return "causal False: this kernel takes causal attention, and one query token a sequence"
    if sinks is not None and alibi_slopes is not None:
        return "sinks with alibi_slopes: this kernel's leaves out the bias that a whole row has"
    return (
        dtypes({"q": q, "k": k, "v": v}, ("f16", "bf16"))
        or not_empty({"q": q, "k": k, "v": v})
        or head_dims(q, v)
        or pages(k, kv_layout, multiple=32)  # tiles of 32 keys, whose pages are looked up before they are hidden
    )


def _attention(
    q, k, v, out, cu_seqlens_q=None, block_tables=None, context_lens=None, kv_layout="NHD", softmax_scale=0.0,
    causal=True, window_left=-1, window_right=-1, alibi_slopes=None, sinks=None,
):  # fmt: skip
    one_each = cu_seqlens_q is None
    LIBRARY("unified_attention")(
        q=q, k=k, v=v, out=out,
        cu_seqlens_q=one_token_each(q.shape[0], q) if one_each else cu_seqlens_q,
        max_seqlen_q=1 if one_each else longest(cu_seqlens_q),
        seqused_k=context_lens, max_seqlen_k=block_tables.shape[1] * k.shape[1],  # a bound: lengths are on the device
        softmax_scale=softmax_scale or q.shape[-1] ** -0.5, causal=True, window_size=(window_left, 0),
        block_table=block_tables, softcap=0.0, q_descale=None, k_descale=None, v_descale=None,
        alibi_slopes=alibi_slopes, sinks=sinks,
    )  # fmt: skip
    if not one_each:  # of a tile whose other rows see keys they are NaN
        blind_rows_are_zeros(out, cu_seqlens_q, context_lens, causal=True)


ROWS = (
    Row(
        "vllm_triton::attention", "attention", "library", LIBRARY,
        "f16 and bf16; head_dim a multiple of 8 up to 256; paged (NHD, pages of a multiple of 32), causal; windows, "
        "ALiBi or sinks",
        _attention, _declines, devices=("rocm",),
    ),
)  # fmt: skip
