"""xFormers' memory-efficient attention: signatures of xformers/ops/fmha/__init__.py and the checks of Inputs and of its
flash operator (https://github.com/facebookresearch/xformers, v0.0.33.post2)."""

import torch
from plain_attention import attend

from . import fmha
from .fmha import attn_bias as _bias

calls = []


def _attend(query, key, value, attn_bias, p, scale):
    calls.append(type(attn_bias).__name__)
    if query.ndim not in (4, 5) or not query.ndim == key.ndim == value.ndim:
        raise ValueError("Query/Key/Value should all have BMGHK, BMHK or BMK shape.")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError("Query/Key/Value should either all have the same dtype")
    if query.shape[2:] != key.shape[2:] or key.shape != value.shape or query.shape[0] != key.shape[0]:
        raise ValueError("Incompatible shapes for attention inputs")
    if query.dtype not in (torch.float16, torch.bfloat16) or query.shape[-1] % 8 or query.shape[-1] > 256 or p:
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")
    if query.ndim == 5:  # groups of heads that share keys, without copies
        assert key.shape[3] == 1 or key.stride(3) == 0
    causal, left, right = (False, -1, -1) if attn_bias is None else attn_bias.window()
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    each = [
        attend(q.flatten(1, -2), k.flatten(1, -2), v.flatten(1, -2), scale, causal=causal, left=left, right=right)
        for q, k, v in zip(query, key, value, strict=True)
    ]
    out, lse = (torch.stack(x) for x in zip(*each, strict=True))
    padded = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32))  # as its CUTLASS operator returns it
    return out.reshape(query.shape), padded.reshape(len(query), *query.shape[2:-1], -1)


def memory_efficient_attention_forward(
    query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
):
    return _attend(query, key, value, attn_bias, p, scale)[0]


def memory_efficient_attention_forward_requires_grad(
    query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
):
    return _attend(query, key, value, attn_bias, p, scale)


__all__ = ["_bias", "fmha"]
