"""What both readers give, and how they read numbers from untrusted metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import GgufTensor
from ..errors import InvalidArgumentError, refusing


@dataclass
class ModelFile:
    """A model as it lies on disk.

    config: the fields of the C++ ModelConfig. tensors: by canonical (Hugging Face) name, each a memory-mapped array or
    a GgufTensor. metadata: the GGUF key-value pairs, or config.json.
    """

    path: Path
    format: str  # "gguf" or "safetensors"
    config: dict[str, Any]
    tensors: dict[str, np.ndarray | GgufTensor]
    metadata: Mapping[str, Any]
    # Values as float32, for element types that the kernels do not take; by canonical name.
    dequantize: Callable[[str], np.ndarray]
    unserved: dict[str, str] = field(default_factory=dict)  # tensors not in `tensors`: name -> element type


def aligned(array: np.ndarray, alignment: int | None = None) -> np.ndarray:
    """The array, or where it lies across its elements' boundaries a copy that does not: kernels read whole elements."""
    return array if array.ctypes.data % (alignment or array.itemsize) == 0 else array.copy()


_MERGED = {
    ".self_attn.qkv_proj": (".self_attn.q_proj", ".self_attn.k_proj", ".self_attn.v_proj"),
    ".mlp.gate_up_proj": (".mlp.gate_proj", ".mlp.up_proj"),
}


def parts_of(config: Mapping[str, Any], name: str, shape: Sequence[int]) -> list[tuple[str, slice | None]]:
    """What a tensor was merged of (Phi-3's layers), each with its rows. Any other is its own part, and so is one of
    another number of rows: the weights' own check names it."""
    module, _, kind = name.rpartition(".")
    merged = next((m for m in _MERGED if module.endswith(m)), None)
    if config["architecture"] != "phi3" or merged is None:
        return [(name, None)]
    kv = config["num_kv_heads"] * config["head_dim"]
    sizes = {
        ".self_attn.qkv_proj": (config["num_heads"] * config["head_dim"], kv, kv),
        ".mlp.gate_up_proj": (config["intermediate_size"],) * 2,
    }[merged]
    if tuple(shape[:1]) != (sum(sizes),):
        return [(name, None)]
    ends = list(accumulate(sizes))
    return [
        (f"{module.removesuffix(merged)}{part}.{kind}", slice(end - size, end))
        for part, size, end in zip(_MERGED[merged], sizes, ends, strict=True)
    ]


def rows_of(tensor: np.ndarray | GgufTensor, rows: slice | None) -> np.ndarray | GgufTensor:
    """A view of these rows; None: the tensor itself."""
    if rows is None:
        return tensor
    if isinstance(tensor, GgufTensor):
        return GgufTensor(tensor.data[rows], tensor.dtype, (rows.stop - rows.start, tensor.shape[1]))
    return tensor[rows]


def split_merged(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors by name, merged ones as views of their parts."""
    return {
        part: rows_of(tensor, rows)
        for name, tensor in tensors.items()
        for part, rows in parts_of(config, name, tensor.shape)
    }


def every(period: int, layers: int) -> list[int]:
    """Every period-th layer, the last of each group. A count from a damaged file may be anything: beyond what a model
    may have, which is refused later, none is listed."""
    return list(range(period - 1, min(layers, 1 << 16), period))


def linear_scaling(factor: float) -> dict[str, float]:
    """Every rotary frequency divided: every one is below the lowest that stays."""
    far = float(np.finfo(np.float32).max)
    return {"factor": factor, "low_freq_factor": far / 2, "high_freq_factor": far}


class Metadata:
    """Typed look-ups in a mapping that came from a file."""

    def __init__(self, values: Mapping[str, Any], path: Path):
        self.values, self.path = values, path

    def fail(self, key: str, expected: str) -> InvalidArgumentError:
        got = repr(self.values[key])[:80] if key in self.values else "nothing"
        return refusing(f"{self.path}: {key}: expected {expected}, got {got}", file=self.path, key=key)

    def integer(self, key: str, default: int | None = None, at_least: int = 1) -> int:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value < 2**31:
            raise self.fail(key, f"an integer of at least {at_least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value) or value <= 0:
            raise self.fail(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.fail(key, "a text")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.fail(key, "a list of texts")
        return value

    def ids(self, key: str) -> list[int]:
        """Token ids: one, a list of them, or none."""
        value = self.values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31 for i in ids):
            raise self.fail(key, "a token id or several")
        return list(ids)
