"""A stand-in of kunlun_ops: the functions and parameters that baidu/vLLM-Kunlun 09869ee7 gives (vllm_kunlun/ops/
_custom_ops.py, ops/paged_attn.py, v1/attention/backends/kunlun_attn.py, quantization/kernels/scale_mm.py), and what its
callers take care of, computed by PyTorch."""

from __future__ import annotations

import itertools

import torch

calls: list[str] = []  # what was called
_F16 = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, *_F16)
_HEAD_DIMS = (32, 64, 80, 96, 112, 120, 128, 192, 256, 512)


def _require(condition, message: str) -> None:
    if not condition:
        raise RuntimeError(f"stand-in of kunlun_ops: {message}")


def _called(name: str, *tensors) -> None:
    calls.append(name)
    for t in tensors:
        _require(t is None or t.device.type == "cuda", f"{name}: a tensor on {t.device if t is not None else ''}")
        _require(t is None or t.is_contiguous(), f"{name}: a tensor that is not contiguous")


# Attention


def _attend(q, k, v, scale, causal, sink):
    """q [S, N, D], k and v [T, Nkv, D]; positions from the bottom right. A row that sees no key is not promised."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("snd,tnd->nst", q.float(), k) * scale
    if causal:
        hidden = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool).triu(k.shape[0] - q.shape[0] + 1)
        scores = scores.masked_fill(hidden.to(scores.device), -float("inf"))
    if sink is None:
        return torch.einsum("nst,tnd->snd", torch.softmax(scores, -1), v)
    beside = sink[:, None, None].expand(-1, scores.shape[1], 1)
    return torch.einsum("nst,tnd->snd", torch.softmax(torch.cat((scores, beside), -1), -1)[..., :-1], v)


def _pages(cache, table, length):
    """cache [blocks, Nkv, block_size, D] to [length, Nkv, D]."""
    _require(bool((table >= 0).all() and (table < cache.shape[0]).all()), "a block that is not there")
    return cache[table.long()].transpose(1, 2).reshape(-1, cache.shape[1], cache.shape[3])[:length]


def _lod(host, device) -> list[int]:
    _require(host.device.type == "cpu" and device.device.type == "cuda", "lengths on the host and on the device")
    _require(host.dtype is torch.int32 and device.dtype is torch.int32, "lengths are int32")
    _require(host.tolist() == device.tolist(), "the same lengths on the host and on the device")
    return host.tolist()


def _heads(q, k, v, out) -> None:
    _require(q.dtype in _F16 and q.dtype == k.dtype == v.dtype == out.dtype, "f16 or bf16, one dtype")
    _require(q.shape[-1] in _HEAD_DIMS, f"head size {q.shape[-1]}")


def prefill_attention(
    q, k, v, out, is_causal, is_prefix_cache=False, alpha=1.0, block_table=None, context_qlen_lod_cpu=None,
    context_qlen_lod_xpu=None, context_kvlen_lod_cpu=None, context_kvlen_lod_xpu=None, alibi_slopes=None,
    softmax_lse=None, swa_left=-1, swa_right=-1, sink=None,
):  # fmt: skip
    _called("prefill_attention", q, k, v, out, block_table, sink)
    _heads(q, k, v, out)
    _require(q.dim() == 3 and out.shape == q.shape, "q and out [total, heads, head_dim]")
    _require(alibi_slopes is None and softmax_lse is None and swa_left == swa_right == -1, "not in this stand-in")
    _require(sink is None or sink.dtype is torch.float32, "sinks are float32")
    of_q = _lod(context_qlen_lod_cpu, context_qlen_lod_xpu)
    of_k = _lod(context_kvlen_lod_cpu, context_kvlen_lod_xpu) if is_prefix_cache else of_q
    _require(of_q[-1] == q.shape[0], "lengths of all queries")
    if is_prefix_cache:
        _require(k.dim() == 4 and block_table.dtype is torch.int32, "pages [blocks, heads, block_size, head_dim]")
    else:
        _require(k.dim() == 3 and k.shape[0] == q.shape[0] and block_table is None, "as many keys as queries")
    scale = alpha / q.shape[-1] ** 0.5
    for i, ((q0, q1), (k0, k1)) in enumerate(zip(itertools.pairwise(of_q), itertools.pairwise(of_k), strict=True)):
        _require(q1 > q0 and k1 > k0, "a sequence without queries or keys")
        _require(not is_causal or q1 - q0 <= k1 - k0, "a query that sees no key")
        mine = [_pages(x, block_table[i], k1 - k0) if is_prefix_cache else x[k0:k1] for x in (k, v)]
        out[q0:q1] = _attend(q[q0:q1], *mine, scale, is_causal, sink).to(q.dtype)


def speculative_attention(
    out, q, k_cache, v_cache, context_lens_cpu, context_lens_xpu, batch_num, qlen, max_context_len, head_num, head_dim,
    scale, kv_head_num, block_size, max_num_blocks_per_seq, max_window_size, block_tables, sink=None,
):  # fmt: skip
    _called("speculative_attention", out, q, k_cache, v_cache, block_tables, sink)
    _heads(q, k_cache, v_cache, out)
    _require(q.shape == (1, batch_num * qlen, head_num, head_dim) and qlen == 1, "q [1, batch, heads, head_dim]")
    _require(k_cache.shape[1:] == (kv_head_num, block_size, head_dim), "pages [blocks, heads, block_size, head_dim]")
    _require(block_tables.dtype is torch.int32 and block_tables.shape == (batch_num, max_num_blocks_per_seq), "tables")
    _require(max_window_size == -1 and (sink is None or sink.dtype is torch.float32), "not in this stand-in")
    for i, n in enumerate(_lod(context_lens_cpu, context_lens_xpu)):
        _require(0 < n <= max_context_len, "contexts from 1 to the longest")
        mine = [_pages(x, block_tables[i], n) for x in (k_cache, v_cache)]
        out[i] = _attend(q[0, i : i + 1], *mine, scale, False, sink)[0].to(q.dtype)


def reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, BLHD_LAYOUT=True):
    _called("reshape_and_cache_flash", key, value, key_cache, value_cache, slot_mapping)
    _require(not BLHD_LAYOUT and key.dim() == 3 and key_cache.dim() == 4, "[blocks, heads, block_size, head_dim]")
    _require(key.dtype in _F16 and key.dtype == key_cache.dtype == value_cache.dtype, "f16 or bf16, one dtype")
    for i, slot in enumerate(slot_mapping.tolist()):
        _require(slot >= 0, "a slot below 0")
        block, row = divmod(slot, key_cache.shape[2])
        key_cache[block, :, row], value_cache[block, :, row] = key[i], value[i]


# Norms


def _rms(h, weight, eps):
    return h * (h.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight.float()


def rmsnorm(
    x, weight, output, eps=1e-5, interweave=False, store_output_before_norm=True, bias=None, residual_output=None,
    output_max=None,
):  # fmt: skip
    _called("rmsnorm", x, weight, output)
    _require(x.dim() == 2 and x.dtype in _FLOATS and weight.dtype == output.dtype == x.dtype, "x [rows, n], one dtype")
    _require(bias is None and residual_output is None and output_max is None, "not in this stand-in")
    output.copy_(_rms(x.float(), weight, eps))


def add_rmsnorm(
    x, y, weight, output, eps=1e-5, interweaved=False, store_output_before_norm=True, bias=None, smooth=None,
    residual_output=None, output_max=None,
):  # fmt: skip
    _called("add_rmsnorm", x, y, weight, output, residual_output)
    _require(x.dim() == 2 and x.dtype in _FLOATS and x.dtype == y.dtype == weight.dtype, "x [rows, n], one dtype")
    _require(bias is None and smooth is None and output_max is None and residual_output is not None, "the sum is kept")
    h = x.float() + y.float()
    residual_output.copy_(h)
    output.copy_(_rms(h, weight, eps))


# Activations, rotary embeddings, products


def swiglu(x, y):
    _called("swiglu", x, y)
    _require(x.dim() == 2 and x.shape[1] == 2 * y.shape[1] and x.dtype == y.dtype, "x [rows, 2 n], y [rows, n]")
    gate, up = x.float().chunk(2, -1)
    y.copy_(torch.nn.functional.silu(gate) * up)


def rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox):
    _called("rotary_embedding", positions, query, key, cos_sin_cache)
    _require(positions.dtype is torch.int64 and query.dim() == key.dim() == 2, "query [tokens, heads * head_size]")
    _require(query.dtype == key.dtype == cos_sin_cache.dtype, "one dtype")
    cos, sin = (t[:, None] for t in cos_sin_cache[positions].chunk(2, -1))
    for x in (query, key):
        heads = x.view(x.shape[0], -1, head_size)
        first, second = heads.chunk(2, -1) if is_neox else (heads[..., ::2], heads[..., 1::2])
        turned = (first * cos - second * sin, second * cos + first * sin)
        heads.copy_(torch.cat(turned, -1) if is_neox else torch.stack(turned, -1).flatten(-2))


def quant2d(x, y, max, force_sdnn=False):
    _called("quant2d", x, y, max)
    _require(y.dtype is torch.int8 and max.dtype is torch.float32 and max.shape == (x.shape[0], 1), "a maximum a row")
    max.copy_(x.float().abs().amax(-1, keepdim=True))
    y.copy_((x.float() / max.clamp_min(1e-30) * 127).round())


def matmul(
    x, w, out, x_trans=False, w_trans=True, alpha=1.0, beta=0.0, bias=None, x_max=None, w_max=None, x_pc_max=None,
    w_pc_max=None,
):  # fmt: skip
    _called("matmul", x, w, out, bias, x_pc_max, w_pc_max)
    _require(not x_trans and w_trans and alpha == 1 and beta == 0 and x_max is None and w_max is None, "not here")
    _require(x.dtype is torch.int8 and w.dtype is torch.int8, "int8 operands")
    _require(x_pc_max.shape == (x.shape[0], 1) and w_pc_max.shape == (w.shape[0], 1), "a maximum a row")
    _require(bias is None or bias.dtype is torch.float32, "a float32 bias")
    y = (x.long() @ w.long().t()).float() * (x_pc_max / 127) * (w_pc_max / 127).t()
    out.copy_(y if bias is None else y + bias)
