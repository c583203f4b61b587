"""Ops over PyTorch's own operators, which every accelerator's plug-in has."""

from __future__ import annotations


def softmax(x, lse=None, mask=None, scale=1.0):
    """In f32; a row of -inf alone gives zeros and lse -inf."""
    import torch

    z = x.float() * scale
    if mask is not None:
        z = z.masked_fill(~mask, -float("inf")) if mask.dtype is torch.bool else z + mask
    if lse is not None:
        lse.copy_(torch.logsumexp(z, -1))
    nothing = (z == -float("inf")).all(-1, keepdim=True)
    return torch.softmax(z, -1).masked_fill(nothing, 0).to(x.dtype)


def binary(a, b, kind="add"):
    return a + b if kind == "add" else a * b
