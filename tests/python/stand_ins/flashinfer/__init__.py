"""FlashInfer 0.6.18: signatures of flashinfer/prefill.py and flashinfer/norm, lse of base 2 [tokens, heads] as
include/flashinfer/attention/prefill.cuh writes it (https://github.com/flashinfer-ai/flashinfer, fb28d724)."""

import math

import torch
from plain_attention import attend, check

__version__ = "0.6.18"
calls = []


def _attend(q, k, v, causal, sm_scale, window_left, logits_soft_cap):
    check(q.dtype in (torch.float16, torch.bfloat16) and q.dtype == k.dtype == v.dtype, "dtype")
    check(q.shape[-1] in (64, 128, 256, 512), f"Unsupported head_dim: {q.shape[-1]}")
    scale = q.shape[-1] ** -0.5 if sm_scale is None else sm_scale
    out, lse = attend(q, k, v, scale, causal=causal, left=window_left, softcap=logits_soft_cap or 0.0)
    return out, (lse / math.log(2)).t()


def single_prefill_with_kv_cache(
    q, k, v, scale_q=None, scale_k=None, scale_v=None, o_dtype=None, custom_mask=None, packed_custom_mask=None,
    causal=False, kv_layout="NHD", pos_encoding_mode="NONE", use_fp16_qk_reduction=False, sm_scale=None,
    window_left=-1, logits_soft_cap=None, rope_scale=None, rope_theta=None, backend="auto", return_lse=False,
    kv_cache_sf=None, k_scale=None, v_scale=None,
):  # fmt: skip
    calls.append("single_prefill_with_kv_cache")
    check(q.ndim == k.ndim == v.ndim == 3 and kv_layout == "NHD", "q: [qo_len, num_qo_heads, head_dim]")
    out, lse = _attend(q, k, v, causal, sm_scale, window_left, logits_soft_cap)
    return (out, lse) if return_lse else out


class BatchPrefillWithPagedKVCacheWrapper:
    def __init__(
        self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, qo_indptr_buf=None,
        paged_kv_indptr_buf=None, paged_kv_indices_buf=None, paged_kv_last_page_len_buf=None, custom_mask_buf=None,
        mask_indptr_buf=None, backend="auto", jit_args=None, jit_kwargs=None,
    ):  # fmt: skip
        check(float_workspace_buffer.dtype == torch.uint8 and kv_layout in ("NHD", "HND"), "workspace")
        self._kv_layout = kv_layout

    def plan(
        self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
        head_dim_qk, page_size, head_dim_vo=None, custom_mask=None, packed_custom_mask=None, causal=False,
        pos_encoding_mode="NONE", use_fp16_qk_reduction=False, sm_scale=None, window_left=-1, logits_soft_cap=None,
        rope_scale=None, rope_theta=None, q_data_type="float16", kv_data_type=None, o_data_type=None,
        non_blocking=True, prefix_len_ptr=None, token_pos_in_items_ptr=None, token_pos_in_items_len=0,
        max_item_len_ptr=None, seq_lens=None, seq_lens_q=None, block_tables=None, max_token_per_sequence=None,
        max_sequence_kv=None, fixed_split_size=None, disable_split_kv=False,
    ):  # fmt: skip
        for name, x in (("qo_indptr", qo_indptr), ("indptr", paged_kv_indptr), ("indices", paged_kv_indices)):
            check(x.dtype == torch.int32 and x.ndim == 1, f"{name} must be int32")
        check(len(qo_indptr) == len(paged_kv_indptr) == len(paged_kv_last_page_len) + 1, "batch size")
        check(len(paged_kv_indices) == paged_kv_indptr[-1], "paged_kv_indices: [paged_kv_indptr[-1]]")
        check(paged_kv_last_page_len.max() <= page_size and paged_kv_last_page_len.min() >= 0, "last page")
        self._tables = qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len
        self._shape = num_qo_heads, num_kv_heads, head_dim_qk, page_size
        self._options, self._dtype = (causal, sm_scale, window_left, logits_soft_cap), q_data_type

    def run(
        self, q, paged_kv_cache, *args, q_scale=None, k_scale=None, v_scale=None, out=None, lse=None, return_lse=False,
        enable_pdl=None, window_left=None, sinks=None, kv_cache_sf=None, skip_softmax_threshold_scale_factor=None,
        use_fp16_softmax=None, uses_spcompress=None,
    ):  # fmt: skip
        calls.append(f"paged {self._kv_layout}")
        heads, kv_heads, head_dim, page_size = self._shape
        pools = [x if self._kv_layout == "NHD" else x.transpose(1, 2) for x in paged_kv_cache]
        check(q.shape[1:] == (heads, head_dim) and q.dtype == self._dtype, "q does not fit the plan")
        check(all(x.shape[1:] == (page_size, kv_heads, head_dim) for x in pools), "the cache does not fit the plan")
        of_q, of_pages, indices, last = self._tables
        each = []
        for i in range(len(last)):
            pages = indices[of_pages[i] : of_pages[i + 1]].long()
            length = 0 if len(pages) == 0 else (len(pages) - 1) * page_size + int(last[i])
            rows = [x[pages].flatten(0, 1)[:length] for x in pools]
            each.append(_attend(q[of_q[i] : of_q[i + 1]], *rows, *self._options))
        result, sums = (torch.cat(x) for x in zip(*each, strict=True))
        if out is not None:
            check(out.shape == q.shape and out.dtype == q.dtype, "out")
            result = out.copy_(result)
        return (result, sums) if return_lse else result


def rmsnorm(input, weight, eps=1e-6, out=None, enable_pdl=None):
    calls.append("rmsnorm")
    check(input.ndim in (2, 3) and weight.shape == input.shape[-1:] and weight.dtype == input.dtype, "rmsnorm")
    x = input.float()
    result = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()).to(input.dtype)
    return result if out is None else out.copy_(result)
