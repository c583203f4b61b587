"""A stand-in of torch_mlu_ops: the functions, parameters and order that Cambricon/vllm-mlu 8fa99fd9 calls them with
(vllm_mlu/_mlu_ops.py), the checks of its callers there and in DeepLink-org/dlinfer (vendor/camb), computed by
PyTorch."""

from __future__ import annotations

import itertools

import torch

calls: list[str] = []  # what was called
_F16 = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, *_F16)


def _require(condition, message: str) -> None:
    if not condition:
        raise RuntimeError(f"stand-in of torch_mlu_ops: {message}")


def _called(name: str, *tensors) -> None:
    calls.append(name)
    for t in tensors:
        _require(t is None or t.device.type == "mlu", f"{name}: a tensor on {t.device if t is not None else ''}")


def _share(a, b) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


# Attention


def _attend(q, k, v, scale, causal, left, right):
    """q [S, N, D], k and v [T, Nkv, D]; positions from the bottom right. A row that sees no key is not promised."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("snd,tnd->nst", q.float(), k) * scale
    at = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0] - torch.arange(k.shape[0])[None]
    hidden = torch.zeros(at.shape, dtype=torch.bool)
    if causal or right >= 0:
        hidden |= at < -(0 if causal else right)
    if left >= 0:
        hidden |= at > left
    scores = scores.masked_fill(hidden.to(scores.device), -float("inf"))
    return torch.einsum("nst,tnd->snd", torch.softmax(scores, -1), v)


def _gather(cache, table, length):
    """cache [blocks, Nkv, block_size, D] to [length, Nkv, D]."""
    return cache[table.long()].transpose(1, 2).reshape(-1, cache.shape[1], cache.shape[3])[:length]


def flash_attention(
    q, k, v, out, cu_seq_lens_q, cu_seq_lens_kv, alibi_slope, attn_bias, max_seq_len_q, max_seq_len_kv, softmax_scale,
    is_causal, window_size_left=-1, window_size_right=-1, compute_dtype=torch.float, return_lse=False,
    block_tables=None, k_quant_scale=None, v_quant_scale=None, q_quant_scale=None, out_quant_scale=None,
    out_dtype=torch.half,
):  # fmt: skip
    _called("flash_attention", q, k, v, out, cu_seq_lens_q, cu_seq_lens_kv, block_tables)
    _require(q.dim() == 3 and out.shape == q.shape and q.is_contiguous(), "q and out [total, heads, head_dim]")
    _require(not _share(out, q), "out is q")
    _require(q.dtype in _F16 and q.dtype == k.dtype == v.dtype == out.dtype, "f16 or bf16, one dtype")
    _require(cu_seq_lens_q.dtype is torch.int32 and cu_seq_lens_kv.dtype is torch.int32, "lengths are int32")
    _require(alibi_slope is None and attn_bias is None and not return_lse, "not in this stand-in")
    of_q, of_k = cu_seq_lens_q.tolist(), cu_seq_lens_kv.tolist()
    lengths = [b - a for a, b in itertools.pairwise(of_q)]
    keys = [b - a for a, b in itertools.pairwise(of_k)]
    _require(max(lengths) <= max_seq_len_q and max(keys) <= max_seq_len_kv, "a sequence longer than the longest")
    if block_tables is not None:
        _require(block_tables.dtype is torch.int32 and k.dim() == 4, "pages [blocks, heads, block_size, head_dim]")
        _require(bool((block_tables >= 0).all() and (block_tables < k.shape[0]).all()), "a block that is not there")
    for i, n in enumerate(keys):
        rows = slice(of_q[i], of_q[i + 1])
        if block_tables is None:
            mine = k[of_k[i] : of_k[i + 1]], v[of_k[i] : of_k[i + 1]]
        else:
            mine = _gather(k, block_tables[i], n), _gather(v, block_tables[i], n)
        if n and lengths[i]:
            out[rows] = _attend(q[rows], *mine, softmax_scale, is_causal, window_size_left, window_size_right).to(
                q.dtype
            )
    return out


def single_query_cached_kv_attn(
    q, k_cache, v_cache, out, block_tables, context_lens, k_cache_quant_scale, v_cache_quant_scale, alibi_slopes,
    max_contxt_len, windows_size_left, windows_size_right, softmax_scale, q_quant_scale=None, head_size_v=-1,
    compute_dtype=torch.float32, mask=None, kv_cache_quant_bit_size=-1,
):  # fmt: skip
    _called("single_query_cached_kv_attn", q, k_cache, v_cache, out, block_tables, context_lens)
    _require(q.dim() == 4 and q.shape[1] == 1 and q.is_contiguous(), "q [batch, 1, heads, head_dim]")
    _require(k_cache.dim() == 4 and k_cache.is_contiguous() and v_cache.is_contiguous(), "whole pools")
    _require(windows_size_right == -1, "windows_size_right must be -1")
    _require(block_tables.dtype is torch.int32 and context_lens.dtype is torch.int32, "int32 tables")
    _require(bool((block_tables >= 0).all() and (block_tables < k_cache.shape[0]).all()), "a block that is not there")
    _require(alibi_slopes is None, "not in this stand-in")
    if kv_cache_quant_bit_size == 8:
        for cache, scale in ((k_cache, k_cache_quant_scale), (v_cache, v_cache_quant_scale)):
            _require(cache.dtype is torch.int8 and scale.dtype is torch.float32, "int8 with scales in f32")
            _require(scale.shape == cache.shape[:3], "scales [blocks, heads, block_size]")
        k_cache = k_cache.float() * k_cache_quant_scale[..., None]
        v_cache = v_cache.float() * v_cache_quant_scale[..., None]
    else:
        _require(k_cache_quant_scale is None and v_cache_quant_scale is None, "scales without a bit size")
    _require(q.shape[2] // k_cache.shape[1] <= (256 if q.dtype is torch.bfloat16 else 128), "heads a K/V head")
    _require(not _share(out, q), "out is q")
    for i, n in enumerate(context_lens.tolist()):
        _require(n <= max_contxt_len, "a context longer than the longest")
        if n:
            keys, values = _gather(k_cache, block_tables[i], n), _gather(v_cache, block_tables[i], n)
            left = windows_size_left
            out[i] = _attend(q[i], keys, values, softmax_scale, True, left, -1).to(q.dtype)


def reshape_paged_cache(k, v, k_cache, v_cache, slot_mapping, direction=False):
    _called("reshape_paged_cache", k, v, k_cache, v_cache, slot_mapping)
    _require(k.dim() == 3 and k_cache.dim() == 4 and slot_mapping.dim() == 1, "k [tokens, heads, head_dim]")
    _require(slot_mapping.dtype is torch.int32 and not direction, "slots are int32")
    for i, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            block, row = divmod(slot, k_cache.shape[2])
            k_cache[block, :, row], v_cache[block, :, row] = k[i], v[i]


def quant_to_paged_cache(k, v, k_cache, v_cache, k_cache_quant_scale, v_cache_quant_scale, slot_mapping):
    """Cambricon's documentation of 1.x: a scale for each token and head, the largest over 127."""
    _called("quant_to_paged_cache", k, v, k_cache, v_cache, k_cache_quant_scale, v_cache_quant_scale, slot_mapping)
    _require(slot_mapping.dtype is torch.int32 and slot_mapping.dim() == 1, "slots are int32")
    for new, cache, scales in ((k, k_cache, k_cache_quant_scale), (v, v_cache, v_cache_quant_scale)):
        _require(cache.dtype is torch.int8 and scales.dtype is torch.float32, "int8 with scales in f32")
        _require(scales.shape == cache.shape[:3] and cache.is_contiguous(), "scales [blocks, heads, block_size]")
        for i, slot in enumerate(slot_mapping.tolist()):
            if slot >= 0:
                block, row = divmod(slot, cache.shape[2])
                scale = new[i].float().abs().amax(-1) / 127
                codes = (new[i].float() / scale.clamp_min(1e-30)[:, None]).round().clamp(-128, 127)
                cache[block, :, row], scales[block, :, row] = codes.to(torch.int8), scale


def dequant_from_paged_cache(
    key, value, key_cache, value_cache, key_cache_quant_scale, value_cache_quant_scale, context_lengths,
    max_context_len, context_seq_offset, block_tables, quant_mode=0, quant_bit=8,
):  # fmt: skip
    """As vllm-mlu's prefill calls it: sequences one after another, in the queries' dtype."""
    _called("dequant_from_paged_cache", key, value, key_cache, value_cache, context_lengths, block_tables)
    _require(quant_mode == 1 and quant_bit == 8 and context_seq_offset is None, "not in this stand-in")
    _require(context_lengths.dtype is torch.int32 and block_tables.dtype is torch.int32, "int32 tables")
    _require(max_context_len == int(context_lengths.max()), "the longest context")
    for out, cache, scale in ((key, key_cache, key_cache_quant_scale), (value, value_cache, value_cache_quant_scale)):
        _require(cache.dtype is torch.int8 and scale.dtype is torch.float32, "int8 with scales in f32")
        _require(scale.shape == cache.shape[:3] and out.dtype in _F16, "scales [blocks, heads, block_size]")
        begin, wide = 0, cache.float() * scale[..., None]
        for i, n in enumerate(context_lengths.tolist()):
            out[begin : begin + n] = _gather(wide, block_tables[i], n).to(out.dtype)
            begin += n
        _require(begin == out.shape[0], "[total_seq_len, head_num, head_size]")


# Norms


def _norm(name, x, residual, gamma, beta, bias, eps, store, centre):
    _called(name, x, residual, gamma, beta)
    _require(x.dim() == 2 and x.dtype in _FLOATS and gamma.dtype == x.dtype and bias is None, "x [rows, n], one dtype")
    h = x.float() if residual is None else x.float() + residual.float()
    y = h - h.mean(-1, keepdim=True) if centre else h
    y = y * (y.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * gamma.float()
    y = (y if beta is None else y + beta.float()).to(x.dtype)
    return (y, h.to(x.dtype)) if store else y


def fused_rms_norm(
    x, residual, gamma, beta, bias, eps, store_output_before_norm, quant_scale=None, out=None, dynamic_quant=False
):
    _require(quant_scale is None and out is None and not dynamic_quant, "not in this stand-in")
    return _norm("fused_rms_norm", x, residual, gamma, beta, bias, eps, store_output_before_norm, False)


def fused_layer_norm(
    x, residual, gamma, beta, bias, eps, store_output_before_norm, quant_scale=None, out=None, dynamic_quant=False
):
    _require(quant_scale is None and out is None and not dynamic_quant, "not in this stand-in")
    return _norm("fused_layer_norm", x, residual, gamma, beta, bias, eps, store_output_before_norm, True)


def apply_rotary(
    input, sin_cache, cos_cache, position_ids, cu_seqlens, interleaved, discrete, dynamic_ntk, max_seqlen, output=None
):
    _called("apply_rotary", input, sin_cache, cos_cache)
    _require(
        input.dim() == 4 and input.shape[1] == max_seqlen == cos_cache.shape[0], "input [1, tokens, heads, head_dim]"
    )
    _require(position_ids is None and cu_seqlens is None and not discrete and not dynamic_ntk, "not in this stand-in")
    _require(input.dtype == cos_cache.dtype == sin_cache.dtype, "one dtype")
    cos, sin = cos_cache[None, :, None], sin_cache[None, :, None]
    if interleaved:
        turned = torch.stack((-input[..., 1::2], input[..., ::2]), -1).flatten(-2)
    else:
        first, second = input.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
    return input * cos + turned * sin


# Products


def matmul(a, b, bias=None, c=None, act_mode="none", alpha=1.0, beta=0.0):
    _called("matmul", a, b, bias, c)
    _require(a.dim() == 2 and b.dim() == 2 and a.shape[1] == b.shape[1], "a [m, k], b [n, k]")
    _require(a.is_contiguous() and b.is_contiguous() and a.dtype == b.dtype, "contiguous, one dtype")
    _require(act_mode in ("none", "silu", "gelu"), f"act_mode {act_mode}")
    y = alpha * (a.float() @ b.float().t())
    y = y if bias is None else y + bias.float()
    y = y if c is None else y + beta * c.float()
    if act_mode != "none":
        _require(act_mode == "silu" and c is None, "not in this stand-in")
        y = torch.nn.functional.silu(y)
    return y.to(a.dtype)


def weight_only_quant_matmul(
    a, b, scale, zero=None, bias=None, c=None, act_mode="none", quant_bit_size=8, alpha=1.0, beta=1.0
):
    _called("weight_only_quant_matmul", a, b, scale, bias)
    """Cambricon's documentation: scales [n] in f32, or of groups [n, k / group] in a's dtype; int4 as vllm-mlu packs it
    (gptq_mlu.py), two in a byte, the first in the low half."""
    _require(b.dtype is torch.int8 and b.is_contiguous() and quant_bit_size in (4, 8), "b int8 [n, k], or [n, k / 2]")
    _require(zero is None and c is None and act_mode == "none", "not in this stand-in")
    codes = b if quant_bit_size == 8 else torch.stack((b << 4 >> 4, b >> 4), -1).flatten(1)
    _require(codes.shape[1] == a.shape[1], "b int8 [n, k], or [n, k / 2]")
    if scale.dim() == 1:
        _require(scale.dtype is torch.float32 and scale.shape == (b.shape[0],), "scales [n] in f32")
        scale = scale[:, None]
    else:
        group = codes.shape[1] // scale.shape[1]
        _require(scale.dtype == a.dtype and group in (64, 128, 256, 512), "scales of groups in a's dtype")
        scale = scale.repeat_interleave(group, 1)
    y = a.float() @ (codes.float() * scale.float()).t()
    return (y if bias is None else y + bias.float()).to(a.dtype)


def per_token_smooth_quantize(x, smooth, zero=None, token_count=None, act_mode="none", active_coef=1.0, is_gated=False):
    _called("per_token_smooth_quantize", x, smooth)
    _require(smooth.dtype is torch.float32 and smooth.shape == x.shape[-1:], "smooth f32 [k]")
    y = x.float() * smooth
    scale = y.abs().amax(-1) / 127
    return (y / scale.clamp_min(1e-30)[:, None]).round().to(torch.int8), scale


def smooth_quant_matmul(
    a, a_scale, b, b_scale, dtype, bias=None, c=None, act_mode="none", alpha=1.0, beta=1.0, output=None
):
    _called("smooth_quant_matmul", a, a_scale, b, b_scale)
    _require(a.dtype is torch.int8 and b.dtype is torch.int8 and b_scale.shape == (b.shape[0],), "int8 operands")
    _require(bias is None and c is None and act_mode == "none", "not in this stand-in")
    return ((a.long() @ b.long().t()).float() * a_scale[:, None] * b_scale).to(dtype)
