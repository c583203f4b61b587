"""vLLM's attention over a paged cache (https://github.com/vllm-project/vllm): its FlashAttention with block tables.

The `paged_attention_v1` of older versions read keys as [blocks, heads, head_dim / x, page, x], a layout that no cache
here has, and is gone from the CUDA build."""

from __future__ import annotations

from .conditions import dtypes, head_dims, longest, not_empty, one_token_each, pages, whole_lse, write_lse
from .library import Library
from .row import Row

LIBRARY = Library(
    "vllm.vllm_flash_attn",
    "pip install vllm",
    "vLLM of 2026 (vllm-project/vllm 01420e05, vllm/vllm_flash_attn/flash_attn_interface.py)",
    {
        "flash_attn_varlen_func": (
            "q", "k", "v", "max_seqlen_q", "cu_seqlens_q", "max_seqlen_k", "seqused_k", "softmax_scale", "causal",
            "window_size", "softcap", "alibi_slopes", "block_table", "return_softmax_lse", "out",
        ),
    },
)  # fmt: skip


def _declines(
    q, k, v, lse=None, block_tables=None, kv_layout="HND", alibi_slopes=None, causal=True, **rest
) -> str | None:
    if block_tables is None:
        return "no block_tables: this kernel takes paged caches"
    return (
        dtypes({"q": q, "k": k, "v": v}, ("f16", "bf16"))
        or not_empty({"q": q, "k": k, "v": v})
        or head_dims(q, v)
        or pages(k, kv_layout, multiple=16)
        or whole_lse(lse, alibi_slopes, causal)
    )


def _attention(
    q, k, v, out, lse=None, cu_seqlens_q=None, block_tables=None, context_lens=None, kv_layout="NHD",
    softmax_scale=0.0, causal=True, window_left=-1, window_right=-1, softcap=0.0, alibi_slopes=None,
):  # fmt: skip
    one_each = cu_seqlens_q is None
    result = LIBRARY("flash_attn_varlen_func")(
        q, k, v,
        max_seqlen_q=1 if one_each else longest(cu_seqlens_q),
        cu_seqlens_q=one_token_each(q.shape[0], q) if one_each else cu_seqlens_q,
        max_seqlen_k=block_tables.shape[1] * k.shape[1],  # a bound: the lengths are on the device
        seqused_k=context_lens, block_table=block_tables, softmax_scale=softmax_scale or None, causal=causal,
        window_size=[window_left, 0 if causal else window_right], softcap=softcap, alibi_slopes=alibi_slopes,
        return_softmax_lse=lse is not None, out=out,
    )  # fmt: skip
    if lse is not None:
        write_lse(lse, result[1])


ROWS = (
    Row(
        "vllm::attention", "attention", "library", LIBRARY,
        "f16 and bf16; head_dim a multiple of 8 up to 256; paged (NHD, pages of a multiple of 16); windows, softcap, "
        "ALiBi",
        _attention, _declines,
    ),
)  # fmt: skip
