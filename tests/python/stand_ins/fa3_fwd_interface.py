"""fa3-fwd 0.0.3 (https://pypi.org/project/fa3-fwd, fa3_fwd_interface.py): FlashAttention-3's functions, of a build
without f16, pages and windows (fa3_fwd_config.py)."""

import flash_attn_interface
import torch
from plain_attention import check

calls = []


def _built_for(q, window_size):
    check(q.dtype == torch.bfloat16, "This flash attention build does not support FP16.")
    check(window_size in ((-1, -1), (-1, 0)), "This flash attention build does not support local attention.")


def flash_attn_func(
    q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    sm_margin=0, return_attn_probs=False,
):  # fmt: skip
    calls.append("flash_attn_func")
    _built_for(q, window_size)
    return flash_attn_interface.flash_attn_func(
        q, k, v, softmax_scale, causal, window_size=window_size, softcap=softcap, return_attn_probs=return_attn_probs
    )


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
    softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
    attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0,
    return_attn_probs=False,
):  # fmt: skip
    calls.append("flash_attn_varlen_func")
    _built_for(q, window_size)
    return flash_attn_interface.flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=softmax_scale, causal=causal,
        window_size=window_size, softcap=softcap, return_attn_probs=return_attn_probs,
    )  # fmt: skip


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None,
    max_seqlen_q=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None,
    causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
    scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False,
):  # fmt: skip
    check(page_table is None, "This flash attention build does not support paged KV.")
