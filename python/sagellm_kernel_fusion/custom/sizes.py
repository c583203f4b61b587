"""Sizes of a call, by the names that launches have for them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from .. import _kf


def sizes_of(operands: Mapping, transposed: Collection[str]) -> dict[str, int]:
    """N, D, ... of the operands that a call has; those `transposed` are the other way round than the op has them."""
    sizes = {}
    for name, places, rows, dim in _kf.named_sizes():
        place = next((p for p in places if operands.get(p) is not None), None)
        if place is None:
            continue
        shape = tuple(operands[place].shape)[:: -1 if place in transposed else 1]
        sizes[name] = math.prod(shape[:-1]) if rows else int(shape[dim])
    return sizes
