"""What rows have in common: conditions on layouts, as reasons, and conversions between conventions."""

from __future__ import annotations

from collections.abc import Sequence


def dtypes(operands: dict, allowed: Sequence[str]) -> str | None:
    """Of each operand, whether it is one of these, and all alike."""
    first = next(iter(operands))
    for name, value in operands.items():
        if value.dtype not in allowed:
            return f"{name} is {value.dtype}: this kernel takes {', '.join(allowed)}"
        if value.dtype != operands[first].dtype:
            return f"{name} is {value.dtype}, {first} {operands[first].dtype}: this kernel takes one dtype"
    return None


def not_empty(operands: dict) -> str | None:
    for name, value in operands.items():
        if 0 in value.shape:
            return f"{name} has shape {list(value.shape)}: this kernel takes no empty operands"
    return None


def head_dims(q, v, *, multiple: int = 8, at_most: int = 256, one_of: Sequence[int] = ()) -> str | None:
    """head_dim, the same of keys and values."""
    width, of_values = q.shape[-1], v.shape[-1]
    if of_values != width:
        return f"head_dim {width} of q and {of_values} of v: this kernel takes one for both"
    if one_of and width not in one_of:
        return f"head_dim {width}: this kernel takes {', '.join(map(str, one_of))}"
    if width % multiple or width > at_most:
        return f"head_dim {width}: this kernel takes multiples of {multiple} up to {at_most}"
    return None


def pages(k, kv_layout: str, *, multiple: int) -> str | None:
    """A pool [num_pages, page_size, num_kv_heads, head_dim] of pages whose size is a multiple of this."""
    if kv_layout != "NHD":
        return f"kv_layout {kv_layout}: this kernel takes NHD"
    if k.shape[1] % multiple:
        return f"page size {k.shape[1]}: this kernel takes multiples of {multiple}"
    return None


def whole_lse(lse, alibi_slopes, causal: bool) -> str | None:
    """FlashAttention-2 adds slope * column to the scores of a causal row, which leaves out what is alike in all of it:
    the probabilities are the same, the log-sum-exp is not."""
    if lse is not None and alibi_slopes is not None and causal:
        return "lse with alibi_slopes and causal: this kernel's leaves out the bias that a whole row has"
    return None


def longest(offsets) -> int:
    """The longest sequence of cumulative lengths; waits for the device that they lie on."""
    return int((offsets[1:] - offsets[:-1]).max())


def one_token_each(batch: int, like):
    """Cumulative lengths of one query token a sequence."""
    import torch

    return torch.arange(batch + 1, dtype=torch.int32, device=like.device)


def write_lse(lse, got) -> None:
    """Natural log-sum-exp as FlashAttention gives it: a row that sees no key has infinity there, -infinity here."""
    lse.copy_(got.masked_fill(got == float("inf"), -float("inf")))


def blind_rows_are_zeros(out, cu_seqlens_q, keys, causal: bool) -> None:
    """Queries that see no key: of a causal sequence with more queries than keys the first, of one without keys all."""
    offsets, counts = cu_seqlens_q.tolist(), keys.tolist()
    for begin, end, n in zip(offsets, offsets[1:], counts, strict=False):
        blind = max(end - begin - n, 0) if causal else (end - begin) * (n == 0)
        out[begin : begin + blind] = 0
