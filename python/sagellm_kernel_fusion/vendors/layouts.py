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


def prologue_and_epilogue(norm_weight=None, norm_bias=None, bias=None, residual=None, **rest) -> dict:
    """Those of a layer's operands that are there, by name."""
    given = {"norm_weight": norm_weight, "norm_bias": norm_bias, "bias": bias, "residual": residual}
    return {name: value for name, value in given.items() if value is not None}


def scales_problem(x, weight_scales) -> str | None:
    """Why an operator that has scales in x's dtype alone does not take these: rounded, they would be off by as much in
    the whole of an output, which sums of it with a bias or a residual show."""
    if weight_scales.dtype == x.dtype:
        return None
    return (
        f"weight_scales is {weight_scales.dtype}, x {x.dtype}: this kernel takes one dtype (kf.quantize: scales_dtype)"
    )


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
