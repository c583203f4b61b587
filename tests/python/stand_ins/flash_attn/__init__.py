"""flash-attn 2.8.4: signatures of flash_attn/flash_attn_interface.py, checks of csrc/flash_attn/flash_api.cpp
(https://github.com/Dao-AILab/flash-attention, 0251105a)."""

import torch
from plain_attention import attend, check, of_pages

__version__ = "2.8.4"
calls = []  # what was called, for the tests


def _checked(q, k, v):
    check(q.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type")
    check(k.dtype == q.dtype == v.dtype, "query and key must have the same dtype")
    check(q.stride(-1) == k.stride(-1) == v.stride(-1) == 1, "Input tensor must have contiguous last dimension")
    head_size = q.shape[-1]
    check(head_size <= 256, "FlashAttention forward only supports head dimension at most 256")
    check(head_size % 8 == 0, "query, key, value, and out_ must have a head_size that is a multiple of 8")
    check(q.shape[-2] % k.shape[-2] == 0, "Number of heads in key/value must divide number of heads in query")
    check(k.shape[-1] == v.shape[-1] == head_size, "k must have shape (batch_size, seqlen_k, num_heads_k, head_size)")
    return head_size**-0.5


def _slopes(alibi_slopes, sequence, heads):
    if alibi_slopes is None:
        return None
    check(alibi_slopes.dtype == torch.float32, "ALiBi slopes must have dtype fp32")
    check(alibi_slopes.shape[-1] == heads, "alibi_slopes shape")
    return alibi_slopes if alibi_slopes.ndim == 1 else alibi_slopes[sequence]


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):  # fmt: skip
    calls.append("flash_attn_func")
    scale = _checked(q, k, v) if softmax_scale is None else (_checked(q, k, v), softmax_scale)[1]
    check(q.ndim == k.ndim == v.ndim == 4 and len(q) == len(k) > 0, "batch size must be positive")
    each = [
        attend(
            q[i], k[i], v[i], scale, causal=causal, left=window_size[0], right=window_size[1], softcap=softcap,
            slopes=_slopes(alibi_slopes, i, q.shape[2]),
        )
        for i in range(len(q))
    ]  # fmt: skip
    out, lse = (torch.stack(x) for x in zip(*each, strict=True))
    return (out, lse, None) if return_attn_probs else out


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    calls.append("flash_attn_varlen_func")
    scale = _checked(q, k, v) if softmax_scale is None else (_checked(q, k, v), softmax_scale)[1]
    check(cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32, "cu_seqlens_q must have dtype int32")
    check(q.ndim == k.ndim == 3 and block_table is None, "q must have shape (total_q, num_heads, head_size)")
    of_q, of_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    assert isinstance(max_seqlen_q, int) and isinstance(max_seqlen_k, int)
    assert max_seqlen_q >= of_q.max() and max_seqlen_k >= of_k.max()
    each = [
        attend(
            a, b, c, scale, causal=causal, left=window_size[0], right=window_size[1], softcap=softcap,
            slopes=_slopes(alibi_slopes, i, q.shape[1]),
        )
        for i, (a, b, c) in enumerate(
            zip(q.split(of_q.tolist()), k.split(of_k.tolist()), v.split(of_k.tolist()), strict=True)
        )
    ]  # fmt: skip
    out, lse = torch.cat([o for o, _ in each]), torch.cat([s for _, s in each], -1)
    return (out, lse, None) if return_attn_probs else out


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
    cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False,
):  # fmt: skip
    calls.append("flash_attn_with_kvcache")
    scale = (
        _checked(q, k_cache, v_cache) if softmax_scale is None else (_checked(q, k_cache, v_cache), softmax_scale)[1]
    )
    check(k is v is None and block_table is not None, "this stand-in attends paged caches")
    check(block_table.dtype == cache_seqlens.dtype == torch.int32, "block_table must have dtype torch.int32")
    check(k_cache.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256")
    check(q.ndim == 4 and len(q) == len(block_table) == len(cache_seqlens), "batch size")
    each = [
        attend(
            q[i], *(of_pages(x, block_table[i], cache_seqlens[i]) for x in (k_cache, v_cache)), scale, causal=causal,
            left=window_size[0], right=window_size[1], softcap=softcap, slopes=_slopes(alibi_slopes, i, q.shape[2]),
        )
        for i in range(len(q))
    ]  # fmt: skip
    out, lse = (torch.stack(x) for x in zip(*each, strict=True))
    return (out, lse) if return_softmax_lse else out
