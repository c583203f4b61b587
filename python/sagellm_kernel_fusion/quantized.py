"""Weights, and keys and values, of integers or 8-bit floats with scales beside them: made of arrays, or taken from the
files of AWQ and GPTQ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _kf
from .arrays import NUMPY_DTYPES
from .checks import flag, integer, one_of, shape_of, sizes
from .errors import NotServedError, refusing
from .packed_once import made_once

# By the names that people use.
CODE_DTYPES = {
    "int4": "int4",
    "int8": "i8",
    "i8": "i8",
    "fp8": "fp8_e4m3",
    "fp8_e4m3": "fp8_e4m3",
    "fp8_e5m2": "fp8_e5m2",
}
# What codes lie in.
_STORED = {
    "int4": ("uint8",),
    "i8": ("int8",),
    "fp8_e4m3": ("float8_e4m3fn", "uint8", "int8"),
    "fp8_e5m2": ("float8_e5m2", "uint8", "int8"),
}
_DEFAULT_GROUPS = {"int4": 128}
_SCALES_DTYPES = ("f32", "f16", "bf16")
# The column that nibble i of a word of AWQ's holds, among the word's eight.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _dtype_named(name: str) -> str:
    if not isinstance(name, str) or name not in CODE_DTYPES:
        raise refusing(f"dtype: expected int4, int8, fp8 (that is fp8_e4m3) or fp8_e5m2, got {name}")
    return CODE_DTYPES[name]


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """(data - zeros) * scales: a weight [out, in] for every op that takes one of a linear layer; or, of 3 or 4
    dimensions, keys or values in any form that `ops.attention` takes.

    data: of "int4" uint8 with half the last dimension, two's complement, the low half of a byte first; of "int8" int8;
    of "fp8_e4m3" and "fp8_e5m2" bytes or ml_dtypes' floats. scales f32, f16 or bf16, of a weight [out, ceil(in /
    group_size)]; group_size 0 is the row. fp8 weights also take scales [1, 1] and, with groups of 128, [ceil(out /
    128), ceil(in / 128)]. Scales of keys and values have their dimensions, each of full size or 1 (one for all), and
    last head_dim / group_size. zeros int8, like scales, for integers only.
    """

    data: object
    scales: object
    zeros: object | None = None
    group_size: int = 0
    dtype: str = "int4"

    def __post_init__(self):
        object.__setattr__(self, "dtype", _dtype_named(self.dtype))
        object.__setattr__(self, "group_size", integer("QuantizedTensor: group_size", self.group_size))
        shape_of("QuantizedTensor: data", self.data)
        stored, expected = str(getattr(self.data, "dtype", "")).rpartition(".")[2], _STORED[self.dtype]
        if stored not in expected:
            raise refusing(
                f"QuantizedTensor: data: expected {' or '.join(expected)} for {self.dtype}"
                f"{' (two a byte; `from_codes` packs codes that are one an element)' if self.dtype == 'int4' else ''}, "
                f"got {stored or 'no dtype'}"
            )
        if len(self.data.shape) not in (2, 3, 4):
            raise refusing(
                "QuantizedTensor: data: expected a matrix, or keys or values of 3 or 4 dimensions, "
                f"got shape {list(self.data.shape)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes in elements, two of which lie in a byte of int4."""
        *outer, width = (int(size) for size in self.data.shape)
        return (*outer, width * (2 if self.dtype == "int4" else 1))

    @property
    def nbytes(self) -> int:
        """Bytes of its codes, scales and zero points."""
        return sum(int(part.nbytes) for part in (self.data, self.scales, self.zeros) if part is not None)

    def fields(self, name: str) -> dict:
        """The operands and attributes that an op has for an operand of this name."""
        return {
            name: _kf.TypedArray(self.data, self.dtype, self.shape),
            f"{name}_scales": self.scales,
            f"{name}_zeros": self.zeros,
            f"{name}_group_size": self.group_size,
        }

    def dequantize(self) -> np.ndarray:
        """float32 values."""
        shape_of("QuantizedTensor: scales", self.scales)
        values = np.empty(self.shape, np.float32)
        weight = self.fields("weight")
        _kf.dequantize(weight["weight"], self.scales, self.zeros, self.group_size, values)
        return values


def quantize(
    x,
    dtype: str,
    *,
    group_size: int | None = None,
    symmetric: bool = True,
    rows_per_scale: int = 1,
    scales_dtype: str = "f32",
) -> QuantizedTensor:
    """Rounds a matrix [out, in] of f32, f16 or bf16 to "int4", "int8" or "fp8" (e4m3; or "fp8_e5m2").

    group_size: elements of a row to a scale, 0 for the row; by default 128 for int4 and the row otherwise.
    symmetric=False gives integers a zero for each scale. rows_per_scale, for fp8: 1, 128 with groups of 128, or 0 for
    one scale in all.
    """
    dtype, shape = _dtype_named(dtype), shape_of("quantize: x", x)
    if len(shape) != 2:
        raise refusing(f"quantize: x: expected a matrix, got shape {list(shape)}")
    one_of("quantize: scales_dtype", scales_dtype, _SCALES_DTYPES)
    group_size = integer("quantize: group_size", _DEFAULT_GROUPS.get(dtype, 0) if group_size is None else group_size)
    rows, n = shape
    if dtype == "int4" and n % 2:
        raise refusing(f"quantize: x: expected an even number of columns for int4, got {n}")
    if integer("quantize: rows_per_scale", rows_per_scale) not in (0, 1, 128):
        raise refusing(f"quantize: rows_per_scale: expected 0 (all), 1 or 128, got {rows_per_scale}")
    groups = 1 if group_size <= 0 else -(-n // group_size)
    scale_rows = 1 if rows_per_scale == 0 else -(-rows // rows_per_scale)
    data = np.zeros((rows, n // 2 if dtype == "int4" else n), np.uint8)
    scales = np.zeros((scale_rows, groups), NUMPY_DTYPES[scales_dtype])
    symmetric = flag("quantize: symmetric", symmetric)
    zeros = None if symmetric else np.zeros((scale_rows, groups), np.int8)
    _kf.quantize(x, data, dtype, scales, zeros, group_size)
    return QuantizedTensor(
        data if dtype == "int4" else data.view(NUMPY_DTYPES[dtype]), scales, zeros, group_size, dtype
    )


def quantize_kv(
    x,
    dtype: str,
    *,
    per: str = "row",
    group_size: int = 0,
    symmetric: bool = True,
    heads_axis: int = -2,
    scales_dtype: str = "f32",
) -> QuantizedTensor:
    """Rounds keys or values of f32, f16 or bf16, in any form that `ops.attention` takes, to "int4", "int8" or "fp8"
    (e4m3; or "fp8_e5m2").

    per: what has a scale of its own: "row" (each token and head), "token", "head" or "tensor". group_size: elements of
    head_dim to a scale, a multiple of 16 that divides it; 0 is all. symmetric=False gives integers a zero for each
    scale. heads_axis: where num_kv_heads is, -2 but for a page pool in "HND" (1).
    """
    shape = shape_of("quantize_kv: x", x)
    made = _empty_kv("quantize_kv", shape, dtype, per, group_size, symmetric, heads_axis, scales_dtype)
    _kf.quantize(x, made.data.view(np.uint8), made.dtype, made.scales, made.zeros, made.group_size)
    return made


def quantized_cache(
    shape,
    dtype: str,
    *,
    kv_layout: str = "HND",
    per: str = "row",
    group_size: int = 0,
    symmetric: bool = True,
    scales_dtype: str = "f32",
) -> QuantizedTensor:
    """An empty page pool of keys or of values for `ops.append_kv` and `ops.rope_append`: [num_pages, num_kv_heads,
    page_size, head_dim], or in "NHD" [num_pages, page_size, num_kv_heads, head_dim].

    per "row" and "token": scales are computed for each token (and head) that is appended. "head" and "tensor": they
    are given, and all 1 until they are set (`cache.scales[:] = ...`). The rest is as of `quantize_kv`.
    """
    shape = sizes("quantized_cache: shape", shape)
    if len(shape) != 4:
        raise refusing(f"quantized_cache: shape: expected 4 dimensions, got {list(shape)}")
    one_of("quantized_cache: kv_layout", kv_layout, ("HND", "NHD"))
    heads_axis = 1 if kv_layout == "HND" else 2
    made = _empty_kv("quantized_cache", shape, dtype, per, group_size, symmetric, heads_axis, scales_dtype)
    made.scales[...] = 1
    return made


def _empty_kv(function, shape, dtype, per, group_size, symmetric, heads_axis, scales_dtype) -> QuantizedTensor:
    dtype = _dtype_named(dtype)
    if len(shape) not in (3, 4):
        raise refusing(f"{function}: x: expected 3 or 4 dimensions, got shape {list(shape)}")
    one_of(f"{function}: per", per, ("tensor", "head", "token", "row"))
    one_of(f"{function}: scales_dtype", scales_dtype, _SCALES_DTYPES)
    group_size = integer(f"{function}: group_size", group_size)
    heads_axis = integer(f"{function}: heads_axis", heads_axis)
    outer, head_dim = len(shape) - 1, shape[-1]
    if heads_axis % len(shape) == outer or not -len(shape) <= heads_axis < len(shape):
        raise refusing(f"{function}: heads_axis: expected a dimension before the last, got {heads_axis}")
    if dtype == "int4" and head_dim % 2:
        raise refusing(f"{function}: expected an even head_dim for int4, got {head_dim}")
    if group_size < 0 or (group_size and (group_size % 16 or head_dim % group_size)):
        raise refusing(
            f"{function}: group_size: expected 0 (the row), or a multiple of 16 that divides head_dim {head_dim}, "
            f"got {group_size}"
        )
    if not flag(f"{function}: symmetric", symmetric) and dtype not in ("int4", "i8"):
        raise refusing(f"{function}: symmetric: expected True for {dtype}, which has no zeros, got False")
    heads = {heads_axis % len(shape)}
    own = {"tensor": set(), "head": heads, "token": set(range(outer)) - heads, "row": set(range(outer))}[per]
    groups = head_dim // group_size if group_size else 1
    scales_shape = (*(size if axis in own else 1 for axis, size in enumerate(shape[:-1])), groups)
    data = np.zeros((*shape[:-1], head_dim // 2 if dtype == "int4" else head_dim), np.uint8)
    return QuantizedTensor(
        data if dtype == "int4" else data.view(NUMPY_DTYPES[dtype]),
        np.zeros(scales_shape, NUMPY_DTYPES[scales_dtype]),
        None if symmetric else np.zeros(scales_shape, np.int8),
        group_size,
        dtype,
    )


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """Codes -8 to 7 [out, in] as QuantizedTensor has them: two a byte, the low half first."""
    if codes.ndim != 2 or codes.shape[1] % 2:
        raise refusing(f"int4: expected a matrix with an even number of columns, got shape {list(codes.shape)}")
    if codes.size and not (codes.min() >= -8 and codes.max() <= 7):
        raise refusing(f"int4: expected codes -8 to 7, got {codes.min()} to {codes.max()}")
    low, high = codes[:, 0::2].astype(np.uint8) & 15, codes[:, 1::2].astype(np.uint8) & 15
    return np.ascontiguousarray(low | high << 4)


def _nibbles(words: np.ndarray) -> np.ndarray:
    """The eight nibbles of every 32-bit word, the lowest first, in a new last dimension."""
    words = np.ascontiguousarray(words).view(np.uint32)
    return (words[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & np.uint32(15)).astype(np.int16)


def _of_columns(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> QuantizedTensor:
    """Unsigned codes [in, out], scales and zeros [groups, out], x @ W as AWQ and GPTQ store it, turned to [out, in]."""
    n, groups = codes.shape[0], scales.shape[0] if scales.ndim else 0
    if scales.shape != zeros.shape or scales.shape[1:] != codes.shape[1:] or groups == 0 or n % groups:
        raise refusing(
            f"expected scales and zeros of whole groups for a weight of {list(codes.shape)}, "
            f"got {list(scales.shape)} and {list(zeros.shape)}"
        )
    return QuantizedTensor(
        pack_int4(codes.T - 8),
        np.ascontiguousarray(scales.T),
        np.ascontiguousarray((zeros.T - 8).astype(np.int8)),
        0 if groups == 1 else n // groups,
        "int4",
    )


def _words(name: str, array) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype not in (np.int32, np.uint32) or array.ndim != 2:
        raise refusing(f"{name}: expected a matrix of int32, got {array.dtype} of shape {list(array.shape)}")
    return array


def from_awq(qweight, scales, qzeros) -> QuantizedTensor:
    """A 4-bit layer as AutoAWQ's files have it: qweight int32 [in, out / 8] and qzeros int32 [groups, out / 8], whose
    words hold eight columns in AWQ's order; scales [groups, out]."""

    def columns(words):
        in_order = np.empty((*words.shape, 8), np.int16)
        in_order[..., _AWQ_ORDER] = _nibbles(words)
        return in_order.reshape(words.shape[0], 8 * words.shape[1])

    return _of_columns(columns(_words("qweight", qweight)), np.asarray(scales), columns(_words("qzeros", qzeros)))


def from_gptq(qweight, scales, qzeros, g_idx=None, *, zeros_less_one: bool = True) -> QuantizedTensor:
    """A 4-bit layer as AutoGPTQ's files have it: qweight int32 [in / 8, out], a word eight rows of a column; qzeros
    int32 [groups, out / 8], a word eight columns; scales [groups, out].

    zeros_less_one: zeros are stored less one, as the format named "gptq" has it ("gptq_v2" stores them as they are).
    g_idx, the group of each row, must be in order: with act-order rows of a group lie apart, which no kernel reads.
    """
    qweight, qzeros, scales = _words("qweight", qweight), _words("qzeros", qzeros), np.asarray(scales)
    codes = _nibbles(qweight).transpose(0, 2, 1).reshape(8 * qweight.shape[0], qweight.shape[1])
    zeros = _nibbles(qzeros).reshape(qzeros.shape[0], 8 * qzeros.shape[1]) + bool(zeros_less_one)
    if g_idx is not None:
        size = -(-codes.shape[0] // max(len(zeros), 1))
        if not np.array_equal(np.asarray(g_idx), np.arange(codes.shape[0]) // size):
            raise NotServedError(
                "g_idx: the weight was quantized with act-order (desc_act), under which rows of a group lie apart; "
                "served are groups of neighbouring rows"
            )
    return _of_columns(codes, scales, zeros)


def from_codes(codes, scales, zeros=None, group_size: int = 0, dtype: str = "int4") -> QuantizedTensor:
    """Integers, one an element [out, in]: int4 of -8 to 7 or 0 to 15 (zeros then alike), int8 of -128 to 127. scales
    [out] or [out, groups]; zeros like scales, whole numbers."""
    codes, scales, dtype = np.asarray(codes), np.asarray(scales), _dtype_named(dtype)
    if dtype not in ("int4", "i8"):
        raise refusing(f"dtype: expected int4 or int8 for integer codes, got {dtype}")
    if codes.dtype.kind not in "iu":
        raise refusing(f"codes: expected integers [out, in], got {codes.dtype} of shape {list(codes.shape)}")
    group_size = integer("group_size", group_size)
    shift = 8 if dtype == "int4" and codes.size and codes.min() >= 0 and codes.max() > 7 else 0
    groups = scales.size // codes.shape[0] if codes.ndim == 2 and codes.shape[0] else 0
    if groups == 0 or scales.size % codes.shape[0] or (zeros is not None and np.size(zeros) != scales.size):
        raise refusing(
            f"scales: expected [out] or [out, groups] for codes {list(codes.shape)}, and zeros like them, "
            f"got {list(scales.shape)}" + ("" if zeros is None else f" and {list(np.shape(zeros))}")
        )
    scales = np.ascontiguousarray(scales.reshape(codes.shape[0], groups))
    if zeros is None:
        zeros = np.full(scales.shape, -shift, np.int8) if shift else None
    else:
        zeros = np.asarray(zeros).reshape(scales.shape) - shift
        if not np.array_equal(zeros, np.round(zeros)) or (zeros.size and np.abs(zeros).max() > 127):
            raise refusing("zeros: expected whole numbers of a byte: kernels subtract them from codes")
        zeros = np.ascontiguousarray(zeros, np.int8)
    data = pack_int4(codes.astype(np.int16) - shift) if dtype == "int4" else np.ascontiguousarray(codes, np.int8)
    whole_row = scales.shape[1] == 1 and (group_size <= 0 or group_size >= codes.shape[1])
    return QuantizedTensor(data, scales, zeros, 0 if whole_row else group_size, dtype)


def kv_of_codes(what: str, codes, scales, zeros=None) -> QuantizedTensor:
    """Keys or values as codes with scales beside them: int8; 8-bit floats; or uint8, which is int4, two a byte."""
    name = str(getattr(codes, "dtype", "")).removeprefix("torch.")
    dtypes = {"int8": "i8", "uint8": "int4", "float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"}
    if name not in dtypes:
        raise refusing(
            f"{what}: expected int8, uint8 (int4, two a byte) or an 8-bit float with scales, "
            f"got {name or type(codes).__name__}"
        )
    head_dim = int(codes.shape[-1]) * (2 if name == "uint8" else 1)
    groups = 1 if scales is None else (1, *shape_of(f"{what}_scales", scales))[-1]
    return QuantizedTensor(codes, scales, zeros, head_dim // groups if groups > 1 else 0, dtypes[name])


def as_quantized(weight, dtype: str | None = None) -> QuantizedTensor | None:
    """A QuantizedTensor, or what the quantization module makes (quantized_weight, scales, zeros, group_size; its int4
    one an element), as one, packed once (packed_once.py); None for anything else. dtype: "int8" where codes that fit
    int4 are int8 all the same."""
    if isinstance(weight, QuantizedTensor):
        return weight
    codes = getattr(weight, "quantized_weight", None)
    if codes is None:
        return None
    scales, zeros, group_size = (getattr(weight, name, None) for name in ("scales", "zeros", "group_size"))
    return made_once(
        weight,
        f"quantized {dtype}",
        (codes, scales, zeros, group_size),
        lambda: _of_the_module(codes, scales, zeros, group_size, dtype),
    )


def _of_the_module(codes, scales, zeros, group_size, dtype: str | None) -> QuantizedTensor:
    codes = _as_numpy("quantized_weight", codes)
    if codes.ndim != 2 or codes.dtype.kind not in "iu":
        raise refusing(f"quantized_weight: expected integers [out, in], got {codes.dtype} of shape {list(codes.shape)}")
    fits_int4 = codes.size == 0 or (codes.min() >= -8 and codes.max() <= 15)
    return from_codes(
        codes,
        _as_numpy("scales", scales),
        None if zeros is None else _as_numpy("zeros", zeros),
        int(group_size or 0),
        "int4" if fits_int4 and dtype != "int8" else "int8",
    )


def _as_numpy(name: str, x) -> np.ndarray:
    """Of NumPy's or torch's; bf16, which NumPy lacks, as f32."""
    shape_of(name, x)
    try:
        return np.asarray(x.float().cpu() if hasattr(x, "is_cpu") and x.is_floating_point() else x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise refusing(f"{name}: expected an array of the host, got {type(x).__name__}: {error}") from error
