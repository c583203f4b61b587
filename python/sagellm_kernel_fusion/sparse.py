"""Sparse weights of linear layers: the elements that are not zero, and a bit for each that says where they belong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from numbers import Real

import numpy as np

from . import _kf
from .arrays import NUMPY_DTYPES
from .checks import flag, integer, one_of, shape_of, sizes
from .errors import refusing
from .packed_once import made_once
from .quantized import QuantizedTensor, quantize

_SCALED = ("int4", "i8", "fp8_e4m3", "fp8_e5m2")
_DTYPES = ("f32", "f16", "bf16", *_SCALED)


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """A weight `shape` [out, in] kept as its values, for every op that takes a weight of a linear layer. Made by
    `sparsify`; given by its parts it is checked: every group of m has n values, every row as many as its offsets say.

    data: the values in the order of the columns; n:m [out, in / m * n] (of "int4" uint8, two a byte, the low half
    first), unstructured [values], rows one after another. dtype: "f32", "f16", "bf16", or "int4", "i8", "fp8_e4m3",
    "fp8_e5m2" with scales, zeros and group_size as a QuantizedTensor [out, in] has them. mask: uint8 [out,
    ceil(in / 8)], bit k % 8 of byte k / 8 of a row for column k. offsets: int64 [out + 1], of unstructured weights.
    n, m: the pattern, both 0 for unstructured weights.
    """

    data: object
    mask: object
    shape: tuple[int, int]
    offsets: object | None = None
    n: int = 0
    m: int = 0
    dtype: str = "f32"
    scales: object | None = None
    zeros: object | None = None
    group_size: int = 0

    def __post_init__(self):
        object.__setattr__(self, "shape", sizes("SparseTensor: shape", self.shape))
        for name in ("n", "m", "group_size"):
            object.__setattr__(self, name, integer(f"SparseTensor: {name}", getattr(self, name)))
        one_of("SparseTensor: dtype", self.dtype, _DTYPES)
        shape_of("SparseTensor: data", self.data)
        mask = shape_of("SparseTensor: mask", self.mask)
        if len(self.shape) != 2 or len(mask) != 2 or mask[0] != self.shape[0]:
            raise refusing(
                f"SparseTensor: mask: expected a row for each of a matrix {list(self.shape)}, got shape {list(mask)}"
            )
        if (self.scales is not None) != (self.dtype in _SCALED):
            raise refusing(
                f"SparseTensor: scales: expected {'some' if self.dtype in _SCALED else 'none'} for {self.dtype}"
            )
        _kf.check_sparse(self._values(), self.mask, self.offsets, self.n, self.m, self.shape[1])

    def _values(self) -> _kf.TypedArray:
        sizes = [int(size) for size in self.data.shape]
        if self.dtype == "int4" and sizes:
            sizes[-1] *= 2
        return _kf.TypedArray(self.data, self.dtype, sizes)

    @property
    def pattern(self) -> str:
        """ "2:4" and its like, or "unstructured"."""
        return f"{self.n}:{self.m}" if self.m else "unstructured"

    @property
    def sparsity(self) -> float:
        """The share of elements that are not stored."""
        rows, columns = self.shape
        kept = rows * columns // self.m * self.n if self.m else int(self.offsets[-1])
        return 1 - kept / (rows * columns) if rows * columns else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of its values, of the mask and offsets that place them, and of their scales and zero points."""
        parts = (self.data, self.mask, self.offsets, self.scales, self.zeros)
        return sum(int(part.nbytes) for part in parts if part is not None)

    def fields(self, name: str) -> dict:
        """The operands and attributes that an op has for a weight of this name."""
        return {
            name: self._values(),
            f"{name}_scales": self.scales,
            f"{name}_zeros": self.zeros,
            f"{name}_group_size": self.group_size,
            f"{name}_mask": self.mask,
            f"{name}_offsets": self.offsets,
            f"{name}_n": self.n,
            f"{name}_m": self.m,
        }

    def densify(self) -> np.ndarray:
        """float32 values [out, in]."""
        dense = np.empty(self.shape, np.float32)
        _kf.densify(
            self._values(), self.scales, self.zeros, self.group_size, self.mask, self.offsets, self.n, self.m, dense
        )
        return dense


def _pattern_named(pattern: str, n: int, m: int) -> tuple[int, int]:
    if isinstance(pattern, str):
        if pattern == "unstructured":
            return 0, 0
        if pattern == "n:m":
            return integer("sparsify: n", n), integer("sparsify: m", m)
        if match := re.fullmatch(r"(\d{1,3}):(\d{1,3})", pattern):
            return int(match[1]), int(match[2])
    raise refusing(f'sparsify: pattern: expected "n:m", one like "2:4", or "unstructured", got {pattern!r}')


def sparsify(
    x,
    pattern: str = "n:m",
    *,
    n: int = 2,
    m: int = 4,
    sparsity: float = 0.0,
    prune: bool = True,
    dtype: str | None = None,
    group_size: int | None = None,
    symmetric: bool = True,
    scales_dtype: str = "f32",
) -> SparseTensor:
    """A matrix [out, in] of f32, f16 or bf16 (or what has `to_dense()`, as torch's semi-structured and sparse tensors)
    as a SparseTensor.

    pattern: "2:4", "1:4", "4:8", ... ("n:m" is that of `n` and `m`) keeps the n largest of every m neighbours of a row;
    "unstructured" keeps what is not 0, or with `sparsity` drops the smallest, that share of all elements. prune=False
    refuses an x that has more than n values that are not 0 in some group, instead of dropping them. dtype "int4",
    "int8" or "fp8" quantizes what is kept, as `quantize` does.
    """
    strided = "strided" in str(getattr(x, "layout", "strided"))
    if hasattr(x, "to_dense") and (not strided or "SemiStructured" in type(x).__name__):
        x = x.to_dense()
    if len(shape_of("sparsify: x", x)) != 2:
        raise refusing(f"sparsify: x: expected a matrix, got shape {list(x.shape)}")
    n, m = _pattern_named(pattern, n, m)
    if not isinstance(sparsity, Real):
        raise refusing(f"sparsify: sparsity: expected a share from 0 to 1, got {sparsity!r}")
    rows, columns = (int(size) for size in x.shape)
    mask = np.zeros((rows, -(-columns // 8)), np.uint8)
    count, kind = _kf.choose(x, n, m, float(sparsity), mask)
    kept = _packed(x, kind, mask, count, n, m)
    if (
        not flag("sparsify: prune", prune)
        and m
        and (lost := np.count_nonzero(_float32(x)) - np.count_nonzero(kept.densify()))
    ):
        raise refusing(
            f"sparsify: x: expected at most {n} values that are not 0 in every {m} of a row, got {lost} more; "
            "prune=True drops the smallest"
        )
    if dtype is None:
        return kept
    codes = quantize(kept.densify(), dtype, group_size=group_size, symmetric=symmetric, scales_dtype=scales_dtype)
    return _packed(codes.fields("x")["x"], codes.dtype, mask, count, n, m, codes)


_MASKS = ((2, 4), (4, 8))


def check_masked(what: str, weight, dim: int) -> None:
    """Refuses a dense matrix that is not masked n:m along `dim`, the reduction; looked at when it is first used. It is
    read dense, so a later change makes no result wrong. Anything else is left to others."""
    if getattr(weight, "ndim", 0) != 2 or isinstance(weight, (SparseTensor, QuantizedTensor, _kf.TypedArray)):
        return
    if (
        "strided" in str(getattr(weight, "layout", "strided"))
        and hasattr(weight, "__dlpack__")
        and "meta" not in str(getattr(weight, "device", ""))
    ):
        made_once(weight, f"masked along {dim}", (), lambda: _check_masked(what, weight, dim))


def _check_masked(what: str, weight, dim: int) -> bool:
    size, present = shape_of(what, weight)[dim], weight != 0
    for n, m in _MASKS:
        groups = (size // m, m, -1) if dim == 0 else (-1, size // m, m)
        if size % m == 0 and (not size or int(present.reshape(groups).sum(dim + 1).max()) <= n):
            return True
    raise refusing(
        f"{what}: sparse_pattern is configured as n:m: expected at most 2 values that are not 0 in every 4 neighbours "
        f"along the reduction, or 4 in every 8, got a dense matrix with more; sparsify() drops the smallest, and "
        "sparse_pattern=None takes it as it is"
    )


def _float32(x) -> np.ndarray:
    return np.asarray(x.float() if hasattr(x, "float") else x, np.float32)


def _packed(x, dtype: str, mask: np.ndarray, count: int, n: int, m: int, codes: QuantizedTensor | None = None):
    """What the mask keeps of x, whose elements are of `dtype`."""
    rows, columns = (int(size) for size in x.shape)
    shape = [rows, columns // m * n] if m else [count + (count % 2 if dtype == "int4" else 0)]
    if dtype == "int4" and shape[-1] % 2:
        raise refusing(f"sparsify: x: expected rows of an even number of int4 values, got {shape[-1]}")
    offsets = None if m else np.zeros(rows + 1, np.int64)
    if dtype == "int4":
        data = np.zeros([*shape[:-1], shape[-1] // 2], np.uint8)
        raw = data
    else:
        data = np.zeros(shape, NUMPY_DTYPES[dtype])
        raw = data.view(np.uint8)
    _kf.pack_values(x, raw, shape, mask, offsets, n, m)
    scaled = {} if codes is None else {"scales": codes.scales, "zeros": codes.zeros, "group_size": codes.group_size}
    return SparseTensor(data, mask, (rows, columns), offsets, n, m, dtype, **scaled)


def densify(weight: SparseTensor) -> np.ndarray:
    """The weight [out, in] in float32, zeros where it has no value."""
    if not isinstance(weight, SparseTensor):
        raise refusing(f"densify: weight: expected a SparseTensor, got {type(weight).__name__}")
    return weight.densify()
