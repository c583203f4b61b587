"""Arrays out: what an op makes is of the kind that the caller put in. No array library but NumPy is imported here; a
caller's own is found among the modules already loaded."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from . import _kf
from .checks import sizes
from .errors import refusing

# Element types of the library as NumPy's.
NUMPY_DTYPES: dict[str, np.dtype] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "fp8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "boolean": np.dtype(np.bool_),
}
_TORCH_DTYPES = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2",
    "i8": "int8", "u8": "uint8", "i32": "int32", "i64": "int64", "boolean": "bool",
}  # fmt: skip


class GgufTensor(_kf.TypedArray):
    """A tensor in one of GGUF's block formats, as it lies in the file: bytes, a format's name, a shape in elements.

        GgufTensor(data, "q4_1", (576, 576))        # data: uint8, 576 * 576 / 32 * 20 bytes

    Anything with bytes goes (a memory map too); nothing is copied. Ops take it wherever a weight may be low-bit.
    """

    def __init__(self, data, dtype: str, shape: Sequence[int]):
        if not isinstance(dtype, str) or not dtype.isascii():
            raise refusing(f"GgufTensor: dtype: expected the name of a format, as q4_1, got {dtype!r}")
        super().__init__(data, dtype, sizes("GgufTensor: shape", shape))
        self.data = data


def layout(dtype: str, shape: Sequence[int]) -> _kf.TypedArray:
    """A tensor's dtype and shape without memory: what `explain` takes. dtype: the library's name, as "f32"."""
    if not isinstance(dtype, str) or not dtype.isascii():
        raise refusing(f"layout: dtype: expected one of {', '.join(NUMPY_DTYPES)}, got {dtype!r}")
    return _kf.TypedArray(None, dtype, sizes("layout: shape", shape))


def allocate(dtype: str, shape: tuple[int, ...], like):
    """An uninitialised array of the kind of `like` (None: NumPy's)."""
    if dtype not in NUMPY_DTYPES:
        raise refusing(f"expected operands of {', '.join(NUMPY_DTYPES)}, whose type results have, got {dtype}")
    if like is None or isinstance(like, np.ndarray):
        return np.empty(shape, NUMPY_DTYPES[dtype])
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        return torch.empty(shape, dtype=getattr(torch, _TORCH_DTYPES[dtype]), device=like.device)
    paddle = sys.modules.get("paddle")
    if paddle is not None and isinstance(like, paddle.Tensor):  # whose names of types are torch's
        return paddle.empty(shape, dtype=_TORCH_DTYPES[dtype], device=like.place)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(like, cupy.ndarray):
        with like.device:
            return cupy.empty(shape, NUMPY_DTYPES[dtype])
    return _aligned(shape, NUMPY_DTYPES[dtype])


_ALIGNMENT = 64  # bytes; JAX copies what it is handed at any other address


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def as_kind_of(array, like):
    """`array` as `like`'s library has it, where that is neither NumPy nor torch: through its from_dlpack."""
    if isinstance(array, np.ndarray) and hasattr(like, "__array_namespace__") and not isinstance(like, np.ndarray):
        try:
            namespace = like.__array_namespace__()
        except NotImplementedError as error:  # JAX's random keys
            raise refusing(f"expected an array of numbers, got {type(like).__name__}") from error
        return namespace.from_dlpack(_Exported(array) if array.dtype.kind == "V" else array)
    return array


class _Exported:
    """An array of a type of ml_dtypes, for which NumPy has no DLPack."""

    def __init__(self, array: np.ndarray):
        name = next(name for name, dtype in NUMPY_DTYPES.items() if dtype == array.dtype)
        self._typed = _kf.TypedArray(array.reshape(-1).view(np.uint8), name, array.shape)

    def __dlpack__(self, **options):
        return self._typed.dlpack()

    def __dlpack_device__(self):
        return 1, 0  # the CPU


def to_numpy(tensor: _kf.TypedArray | np.ndarray) -> np.ndarray:
    """float32 values of an array of any served element type, block formats included."""
    if isinstance(tensor, np.ndarray):
        return tensor.astype(np.float32)
    if len(tensor.shape) != 2:
        raise refusing(f"to_numpy: expected a matrix, got shape {list(tensor.shape)}")
    return _kf.call("dequantize", {"x": tensor})
