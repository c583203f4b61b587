"""What arguments have to be, said in words where they are not."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import numpy as np

from .errors import refusing

_END = 2**63  # of the library's integers


def shape_of(what: str, x) -> tuple[int, ...]:
    """Of an array of any library."""
    try:
        shape = getattr(x, "shape", None)
    except RuntimeError:  # torch's nested tensors have none
        shape = None
    if shape is None:
        raise refusing(f"{what}: expected an array, got {'none' if x is None else type(x).__name__}")
    return tuple(int(size) for size in shape)


def integer(what: str, value) -> int:
    """An integer of any library's."""
    try:
        number = operator.index(value)
    except TypeError:
        raise refusing(f"{what}: expected an integer, got {value!r}") from None
    if not -_END <= number < _END:
        raise refusing(f"{what}: expected an integer of 64 bits, got {number}")
    return number


def at_least(what: str, value, least: int) -> int:
    if (number := integer(what, value)) < least:
        raise refusing(f"{what}: expected an integer of at least {least}, got {number}")
    return number


def sizes(what: str, shape) -> tuple[int, ...]:
    try:
        dims = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise refusing(f"{what}: expected a sequence of integers, got {shape!r}") from None
    if not all(0 <= size < _END for size in dims):
        raise refusing(f"{what}: expected sizes of at least 0 and less than 2^63, got {dims}")
    return dims


def flag(what: str, value) -> bool:
    """A truth value, or a number in its place; an array has none."""
    if not isinstance(value, (bool, int, np.bool_)):
        raise refusing(f"{what}: expected True or False, got {type(value).__name__}")
    return bool(value)


def text(what: str, value) -> str:
    """One that has bytes: half of a character's pair has none."""
    try:
        if isinstance(value, str) and value.encode() is not None:
            return value
    except UnicodeEncodeError:
        pass
    raise refusing(f"{what}: expected a text, got {value!r:.80}")


def names_of(what: str, value) -> list[str]:
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(name, str) for name in value):
        raise refusing(f"{what}: expected a list of names, got {value!r:.80}")
    return list(value)


def one_of(what: str, value, names: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in names:
        raise refusing(f"{what}: expected one of {', '.join(names)}, got {value!r}")
    return value
