"""vLLM's FlashAttention over its paged cache: the signature of vllm/vllm_flash_attn/flash_attn_interface.py
(https://github.com/vllm-project/vllm, 01420e05), the checks of FlashAttention-2 with pages of a multiple of 16."""

import torch
from flash_attn import _checked, _slopes
from plain_attention import attend, check, of_pages

calls = []


def flash_attn_varlen_func(
    q, k, v, max_seqlen_q, cu_seqlens_q, max_seqlen_k, cu_seqlens_k=None, seqused_k=None, q_v=None, dropout_p=0.0,
    softmax_scale=None, causal=False, window_size=None, softcap=0.0, alibi_slopes=None, deterministic=False,
    return_attn_probs=False, block_table=None, return_softmax_lse=False, out=None, scheduler_metadata=None,
    q_descale=None, k_descale=None, v_descale=None, num_splits=0, output_scale=None, fa_version=2, s_aux=None,
    cp_world_size=1, cp_rank=0, cp_tot_seqused_k=None, mask_mod=None, block_sparse_tensors=None, aux_tensors=None,
    aux_tensor_leading_dims=None, dynamic_causal=None,
):  # fmt: skip
    calls.append("flash_attn_varlen_func")
    assert cu_seqlens_k is not None or seqused_k is not None, "cu_seqlens_k or seqused_k must be provided"
    assert cu_seqlens_k is None or seqused_k is None, "cu_seqlens_k and seqused_k cannot be provided at the same time"
    assert block_table is None or seqused_k is not None, "seqused_k must be provided if block_table is provided"
    assert fa_version == 2 and block_table is not None
    assert window_size is None or len(window_size) == 2
    scale = _checked(q, k, v)
    scale = scale if softmax_scale is None else softmax_scale
    check(cu_seqlens_q.dtype == block_table.dtype == seqused_k.dtype == torch.int32, "must have dtype int32")
    check(k.shape[1] % 16 == 0, "Paged KV cache block size must be divisible by 16")
    lengths = cu_seqlens_q.diff()
    assert max_seqlen_q >= lengths.max() and max_seqlen_k >= seqused_k.max()
    left, right = window_size or (-1, -1)
    each = [
        attend(
            one, *(of_pages(x, block_table[i], seqused_k[i]) for x in (k, v)), scale, causal=causal, left=left,
            right=right, softcap=softcap, slopes=_slopes(alibi_slopes, i, q.shape[1]),
        )
        for i, one in enumerate(q.split(lengths.tolist()))
    ]  # fmt: skip
    result, lse = torch.cat([o for o, _ in each]), torch.cat([s for _, s in each], -1)
    if out is not None:
        check(out.dtype == q.dtype and out.stride(-1) == 1, "Output must have the same dtype as inputs")
        result = out.copy_(result)
    return (result, lse) if return_softmax_lse else result
