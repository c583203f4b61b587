"""What tables have in common: conditions on layouts."""

from __future__ import annotations


def is_contiguous(x) -> bool:
    """Of an operand as a row is asked about it: shape and strides."""
    if 0 in x.shape:
        return True
    step = 1
    for size, stride in zip(reversed(x.shape), reversed(x.strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


_AROUND = ("norm_weight", "norm_bias", "bias", "q_bias", "k_bias", "v_bias", "residual")


def prologue_and_epilogue(**operands) -> dict:
    """Those of a layer's operands that stand before and after its products and are there, by name."""
    return {name: operands[name] for name in _AROUND if operands.get(name) is not None}


def eight_bits(**operands) -> str | None:
    """Why these two are no keys and values, or caches of them, of i8."""
    if all(o.dtype == "i8" for o in operands.values()):
        return None
    (k, of_k), (v, of_v) = operands.items()
    return f"{k} is {of_k.dtype}, {v} {of_v.dtype}: this kernel takes i8 with scales"


def hnd_pages(k, v, block_tables, kv_layout: str, multiple: int = 16) -> str | None:
    """Why these are no paged cache in HND, whole, with pages of a multiple of this."""
    if block_tables is None:
        return "not paged: this kernel takes block_tables"
    if kv_layout != "HND":
        return f"kv_layout {kv_layout}: this kernel takes HND; make the cache so (make_kv_cache(kv_layout='HND'))"
    if k.shape[2] % multiple:
        return f"page size {k.shape[2]}: this kernel takes multiples of {multiple}"
    if not is_contiguous(k) or not is_contiguous(v):
        return "a cache that is not contiguous: this kernel takes whole pools"
    return None


def whole_heads(x, cos, norm_weight) -> str | None:
    """Why rope would not turn all of a head, after a norm in x's dtype if any."""
    if 2 * cos.shape[-1] != x.shape[-1]:
        return f"rotary_dim {2 * cos.shape[-1]} of head_dim {x.shape[-1]}: this kernel rotates whole heads"
    if norm_weight is not None and norm_weight.dtype != x.dtype:
        return f"norm_weight is {norm_weight.dtype}, x {x.dtype}: this kernel takes one dtype"
    return None
