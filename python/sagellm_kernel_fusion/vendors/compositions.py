"""Ops over PyTorch's own operators, which every accelerator's plug-in has."""

from __future__ import annotations

from ..adapters.conditions import dtypes


def softmax(x, lse=None, mask=None, scale=1.0):
    """In f32; a row of -inf alone gives zeros and lse -inf, one with inf NaNs."""
    import torch

    z = x.float() * scale
    if mask is not None:
        z = z.masked_fill(~mask, -float("inf")) if mask.dtype is torch.bool else z + mask
    if lse is not None:
        sums = torch.logsumexp(z, -1)
        lse.copy_(sums.masked_fill(sums == float("inf"), float("nan")))
    nothing = (z == -float("inf")).all(-1, keepdim=True)
    return torch.softmax(z, -1).masked_fill(nothing, 0).to(x.dtype)


def shifted(weight, offset: float):
    """A norm's weight and what is added to it, which is 1 for Gemma."""
    return weight if offset == 0 else weight + offset


def activate(x, kind: str):
    import torch

    f = torch.nn.functional
    if kind in ("gelu", "gelu_tanh"):
        return f.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")
    return {"silu": f.silu, "relu": f.relu, "none": torch.clone}[kind](x)


def binary(a, b, kind="add"):
    return a + b if kind == "add" else a * b


def embedding(ids, table, scale=1.0):
    """Scaled in f32, in which the result may be wanted: in the table's dtype a device would round the scale, too."""
    rows = table.index_select(0, ids.reshape(-1)).view(*ids.shape, table.shape[-1])
    return rows if scale == 1 else rows.float() * scale


def floats_of_table(table, **rest) -> str | None:
    """Why a table is none that PyTorch indexes: the core has tables of GGUF's block formats, too."""
    return dtypes({"table": table}, ("f32", "f16", "bf16"))


def rounded_logits(x, **rest) -> str | None:
    """Why the largest of logits that are written in x's dtype is none to go by."""
    if x.dtype == "bf16":
        return "x is bf16: the logits of this kernel are rounded to bf16, in which many are equal; it takes f32, f16"
    return None


def argmax(logits, max=None):
    found = logits.argmax(-1)
    if max is not None:
        max.copy_(logits.gather(-1, found.unsqueeze(-1)).squeeze(-1))
    return found
