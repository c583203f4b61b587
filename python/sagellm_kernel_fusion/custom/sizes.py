"""Sizes of a call, by the names that launches have for them."""

from __future__ import annotations

import math
from collections.abc import Mapping


def sizes_of(operands: Mapping) -> dict[str, int]:
    """Of the call's first operand (N rows of D, which is D_in), of its result (D_out) and of the FFN (H)."""
    x, out = operands.get("x", operands.get("q")), operands.get("out")
    width = int(x.shape[-1])
    sizes = {"N": math.prod(x.shape[:-1]), "D": width, "D_in": width}
    if out is not None:
        sizes["D_out"] = int(out.shape[-1])
    if (gate := operands.get("gate_weight")) is not None:
        sizes["H"] = int(gate.shape[-1])
    return sizes
