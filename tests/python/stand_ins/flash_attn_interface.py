"""FlashAttention-3 for Hopper: signatures of hopper/flash_attn_interface.py, checks of hopper/flash_api.cpp
(https://github.com/Dao-AILab/flash-attention, 0251105a)."""

import torch
from flash_attn import _checked
from plain_attention import attend, check, of_pages

calls = []


def _each(pieces, scale, causal, window_size, softcap):
    left, right = window_size
    return [attend(q, k, v, scale, causal=causal, left=left, right=right, softcap=softcap) for q, k, v in pieces]


def flash_attn_func(
    q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    sm_margin=0, return_attn_probs=False,
):  # fmt: skip
    calls.append("flash_attn_func")
    scale = _checked(q, k, v)
    scale = scale if softmax_scale is None else softmax_scale
    check(q.ndim == k.ndim == 4 and len(q) == len(k), "batch_size must be equal to batch_size_k")
    each = _each(zip(q, k, v, strict=True), scale, causal, window_size, softcap)
    out, lse = (torch.stack(x) for x in zip(*each, strict=True))
    return (out, lse) if return_attn_probs else out


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
    softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
    attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0,
    return_attn_probs=False,
):  # fmt: skip
    calls.append("flash_attn_varlen_func")
    scale = _checked(q, k, v)
    scale = scale if softmax_scale is None else softmax_scale
    check(cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32, "cu_seqlens_q must have dtype torch.int32")
    of_q, of_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    assert max_seqlen_q >= of_q.max() and max_seqlen_k >= of_k.max()
    pieces = zip(q.split(of_q.tolist()), k.split(of_k.tolist()), v.split(of_k.tolist()), strict=True)
    each = _each(pieces, scale, causal, window_size, softcap)
    out, lse = torch.cat([o for o, _ in each]), torch.cat([s for _, s in each], -1)
    return (out, lse) if return_attn_probs else out


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None,
    max_seqlen_q=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None,
    causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
    scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False,
):  # fmt: skip
    calls.append("flash_attn_with_kvcache")
    scale = _checked(q, k_cache, v_cache)
    scale = scale if softmax_scale is None else softmax_scale
    check(page_table is not None and page_table.dtype == torch.int32, "page_table must have dtype torch.int32")
    check(cu_seqlens_q is None or max_seqlen_q is not None, "max_seqlen_q must be provided if cu_seqlens_q is provided")
    queries = q if cu_seqlens_q is None else q.split(cu_seqlens_q.diff().tolist())
    check(len(queries) == len(page_table) == len(cache_seqlens), "batch_size must be equal to batch_size_k")
    pieces = (
        (one, *(of_pages(x, page_table[i], cache_seqlens[i]) for x in (k_cache, v_cache)))
        for i, one in enumerate(queries)
    )
    each = _each(pieces, scale, causal, window_size, softcap)
    join = torch.stack if cu_seqlens_q is None else torch.cat
    out = join([o for o, _ in each])
    lse = torch.stack([s for _, s in each]) if cu_seqlens_q is None else torch.cat([s for _, s in each], -1)
    return (out, lse, None, None) if return_softmax_lse else out
