"""vLLM's attention in Triton: the signature and the assertions of vllm/v1/attention/ops/triton_unified_attention.py
(https://github.com/vllm-project/vllm, 00139433), and what its kernel leaves in rows that see no key."""

import torch
from plain_attention import attend, check, of_pages

calls = []
TILE = 32  # keys, of a call without buffers for segments


def unified_attention(
    q, k, v, out, cu_seqlens_q, max_seqlen_q, seqused_k, max_seqlen_k, softmax_scale, causal, window_size, block_table,
    softcap, q_descale, k_descale, v_descale, seq_threshold_3D=None, num_par_softmax_segments=None,
    softmax_segm_output=None, softmax_segm_max=None, softmax_segm_expsum=None, alibi_slopes=None, output_scale=None,
    qq_bias=None, sinks=None, mm_prefix_range=None, use_alibi_sqrt=False, kv_quant_mode=0, k_scale_cache=None,
    v_scale_cache=None,
):  # fmt: skip
    calls.append("unified_attention")
    assert causal, "Only causal attention is supported"
    assert q_descale is None, "Q scales not supported"
    assert sinks is None or sinks.shape[0] == q.shape[1], "Sinks must be num_query_heads size"
    check(k_descale is v_descale is None and not softcap, "this stand-in has neither")
    check(q.dtype == k.dtype == v.dtype, "tl.dot of one dtype")
    check(cu_seqlens_q.dtype == block_table.dtype == seqused_k.dtype == torch.int32, "lengths and pages in int32")
    check(q.stride(-1) == out.stride(-1) == block_table.stride(-1) == 1, "offsets within a row are not multiplied")
    lengths = cu_seqlens_q.diff().tolist()
    assert max_seqlen_q >= max(lengths) and max_seqlen_k >= seqused_k.max()
    group = q.shape[1] // k.shape[2]
    rows = max(16 // group, 1)  # query tokens of a program
    for i, (one, into) in enumerate(zip(q.split(lengths), out.split(lengths), strict=True)):
        keys = int(seqused_k[i])
        check(-(-keys // TILE) * TILE <= block_table.shape[1] * k.shape[1], "a tile's pages lie in the table's row")
        got, lse = attend(
            one, *(of_pages(x, block_table[i], keys) for x in (k, v)), softmax_scale, causal=True,
            left=window_size[0], slopes=alibi_slopes,
        )  # fmt: skip
        if sinks is not None:
            got = got * torch.sigmoid(lse - sinks[:, None]).t()[..., None].nan_to_num(0)
        # 0 / 0 where other rows of the program see keys and no sink keeps the sum from being 0.
        first = max(len(one) - keys, 0)
        if first % rows and sinks is None:
            got[first // rows * rows : first] = torch.nan
        into.copy_(got)
