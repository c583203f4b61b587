"""What tables have in common: conditions on layouts."""

from __future__ import annotations


def is_contiguous(x) -> bool:
    """Of an operand as a row is asked about it: shape and strides."""
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
