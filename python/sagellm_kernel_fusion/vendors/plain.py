"""The ops that fusions are made of, by plain operators one after another, as a model without fusion has them: what
reports hold a vendor's rows against. The core makes the unfused forms of all other ops of them. Here by PyTorch's, for
a device that it computes on; Kunlun 2 has Paddle's (kunlun2/plain.py)."""

from __future__ import annotations

import itertools

from .compositions import activate, argmax, binary, embedding, shifted, softmax
from .operators import Operators
from .row import VendorRow
from .vendor import Vendor


def _linear(x, weight, bias=None):
    import torch

    return torch.nn.functional.linear(x, weight, bias)


def _rms_norm(x, weight, eps=1e-6, weight_offset=0.0):
    import torch

    h = x.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps) * shifted(weight.float(), weight_offset)).to(x.dtype)


def _layer_norm(x, weight, bias=None, eps=1e-5):
    import torch

    return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def _activation(x, kind="silu"):
    return activate(x, kind)


def _rope(x, positions, cos, sin, interleaved=False):
    import torch

    rows = positions.long()
    c, s = (t[rows].float().unsqueeze(-2) for t in (cos, sin))
    work, width = x.float(), 2 * cos.shape[-1]
    turned, rest = work[..., :width], work[..., width:]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pair = (a * c - b * s, b * c + a * s)
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat((turned, rest), -1).to(x.dtype)


def _append_kv(k, v, k_cache, v_cache, slot_mapping, kv_layout="HND"):
    import torch

    kept = slot_mapping >= 0
    slots = slot_mapping[kept].long()
    for new, cache in ((k, k_cache), (v, v_cache)):
        pool = cache.transpose(1, 2) if kv_layout == "HND" else cache
        page = torch.div(slots, pool.shape[1], rounding_mode="floor")
        pool[page, slots - page * pool.shape[1]] = new[kept].to(cache.dtype)


# Attention: the scores, their mask and the sums, each a result in memory


def sequences(tokens, cu_seqlens_q, cu_seqlens_k, context_lens):
    """(first query, end, first key, number of keys) of each sequence, on the host."""
    if cu_seqlens_k is not None:
        of_k = [(a, b - a) for a, b in itertools.pairwise(cu_seqlens_k.tolist())]
    else:
        of_k = [(0, n) for n in context_lens.tolist()]
    of_q = itertools.pairwise(range(tokens + 1) if cu_seqlens_q is None else cu_seqlens_q.tolist())
    return [(*q, *k) for q, k in zip(of_q, of_k, strict=True)]


def _of_sequence(x, index, first, count, block_tables, kv_layout):
    """A sequence's keys or values, [count, heads, head_dim]."""
    if block_tables is None:
        return x[first : first + count]
    pool = x.transpose(1, 2) if kv_layout == "HND" else x
    pages = block_tables[index, : -(-count // pool.shape[1])].long()
    return pool[pages].reshape(-1, *pool.shape[2:])[:count]


def _repeated(x, heads: int):
    """[..., keys, kv_heads, D] as [..., heads, keys, D], a copy for each query head, in f32."""
    return x.float().repeat_interleave(heads // x.shape[-2], -2).transpose(-2, -3)


def _scores(
    q, k, scores, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None, kv_layout="HND",
    softmax_scale=0.0, softcap=0.0, seqlen_k_max=0,
):  # fmt: skip
    import torch

    def capped(products):
        x = products * (softmax_scale or q.shape[-1] ** -0.5)
        return softcap * torch.tanh(x / softcap) if softcap else x

    if q.dim() == 4:
        scores[..., k.shape[1] :] = -float("inf")
        scores[..., : k.shape[1]] = capped(q.float().transpose(1, 2) @ _repeated(k, q.shape[2]).transpose(-1, -2))
        return
    scores.fill_(-float("inf"))
    for i, (q0, q1, k0, n) in enumerate(sequences(q.shape[0], cu_seqlens_q, cu_seqlens_k, context_lens)):
        if q1 > q0 and n:
            keys = _repeated(_of_sequence(k, i, k0, n, block_tables, kv_layout), q.shape[1])
            scores[:, q0:q1, :n] = capped(q[q0:q1].float().transpose(0, 1) @ keys.transpose(-1, -2))


def _hide(part, keys: int, causal: bool, left: int, right: int):
    """part [..., queries, keys]: positions count from the bottom right."""
    import torch

    queries = part.shape[-2]
    at = torch.arange(keys - queries, keys, device=part.device)[:, None]
    key = torch.arange(part.shape[-1], device=part.device)
    right = 0 if causal else right
    hidden = key >= keys
    if right >= 0:
        hidden = hidden | (key > at + right)
    if left >= 0:
        hidden = hidden | (key < at - left)
    return part.masked_fill(hidden, -float("inf"))


def _mask(
    scores, out, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None, kv_layout="HND",
    seqlen_k=0, causal=True, window_left=-1, window_right=-1,
):  # fmt: skip
    window = (causal, window_left, window_right)
    if scores.dim() == 4:
        out.copy_(_hide(scores, seqlen_k, *window))
        return
    for q0, q1, _, n in sequences(scores.shape[1], cu_seqlens_q, cu_seqlens_k, context_lens):
        out[:, q0:q1] = _hide(scores[:, q0:q1], n, *window)


def _values(
    probs, v, out, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None, kv_layout="HND",
    out_dtype="f32",
):  # fmt: skip
    if probs.dim() == 4:
        out.copy_((probs[..., : v.shape[1]] @ _repeated(v, probs.shape[1])).transpose(1, 2))
        return
    for i, (q0, q1, k0, n) in enumerate(sequences(probs.shape[1], cu_seqlens_q, cu_seqlens_k, context_lens)):
        values = _repeated(_of_sequence(v, i, k0, n, block_tables, kv_layout), probs.shape[0])
        out[q0:q1] = (probs[:, q0:q1, :n] @ values).transpose(0, 1).to(out.dtype)


_FLOATS = ("f32", "f16", "bf16")
_COMPUTED = {  # operands whose elements are computed with
    "linear": ("x", "weight", "bias"), "rms_norm": ("x", "weight"), "layer_norm": ("x", "weight", "bias"),
    "activation": ("x",), "rope": ("x",), "append_kv": ("k", "v", "k_cache", "v_cache"), "attention_scores": ("q", "k"),
    "attention_values": ("v",), "embedding": ("table",), "argmax": ("logits",),
}  # fmt: skip
_ONE_DTYPE = ("linear", "layer_norm")


def declines_of(op: str, floats=_FLOATS, also=lambda **fields: None):
    """also: what else a library's form does not take."""

    def declines(**fields) -> str | None:
        given = [(n, fields[n].dtype) for n in _COMPUTED.get(op, ()) if fields.get(n) is not None]
        for name, dtype in given:
            if dtype not in floats:
                return f"{name} is {dtype}: this kernel takes {', '.join(floats)}"
            if op in _ONE_DTYPE and dtype != given[0][1]:
                return f"{name} is {dtype}, {given[0][0]} {given[0][1]}: this kernel takes one dtype"
        empty = next((f"{n} is empty" for n, v in fields.items() if 0 in getattr(v, "shape", ())), None)
        return empty or also(**fields)

    return declines


def plain_row(vendor: Vendor, op: str, library, whose: str, function, declines, waits: bool = False, **rest):
    return VendorRow(
        f"{vendor.name}::{op}_plain", op, "vanilla", library, f"by {whose} operators", function, declines,
        devices=(vendor.kind,), graph_safe=not waits, saves="nothing: rows are held against it", **rest,
    )  # fmt: skip


def plain_rows(vendor: Vendor) -> tuple[VendorRow, ...]:
    """For a vendor whose device PyTorch computes on."""
    library = Operators(lambda: vendor, "aten", "PyTorch", {})

    def row(op: str, function, launches: int, waits: bool = False) -> VendorRow:
        return plain_row(vendor, op, library, "PyTorch's", function, declines_of(op), waits, launches=launches)

    return (
        row("linear", _linear, 1), row("rms_norm", _rms_norm, 7), row("layer_norm", _layer_norm, 1),
        row("binary", binary, 1), row("activation", _activation, 1), row("softmax", softmax, 5),
        row("rope", _rope, 10), row("append_kv", _append_kv, 6, waits=True),
        row("attention_scores", _scores, 4, waits=True), row("attention_mask", _mask, 4, waits=True),
        row("attention_values", _values, 4, waits=True), row("embedding", embedding, 1), row("argmax", argmax, 1),
    )  # fmt: skip
