"""What both readers give, and how they read numbers from untrusted metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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


def split_merged(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Phi-3's merged layers as those that they were merged of: views of their rows. Others as they are, and so is what
    has another number of rows: the weights' own check names it."""
    kv = config["num_kv_heads"] * config["head_dim"]
    rows = {
        ".self_attn.qkv_proj": (config["num_heads"] * config["head_dim"], kv, kv),
        ".mlp.gate_up_proj": (config["intermediate_size"],) * 2,
    }
    split = {}
    for name, array in tensors.items():
        module, _, kind = name.rpartition(".")
        merged = next((m for m in _MERGED if module.endswith(m)), None)
        if config["architecture"] != "phi3" or merged is None or array.shape[:1] != (sum(rows[merged]),):
            split[name] = array
            continue
        ends = np.cumsum(rows[merged])[:-1]
        for part, piece in zip(_MERGED[merged], np.split(array, ends), strict=True):
            split[f"{module.removesuffix(merged)}{part}.{kind}"] = piece
    return split


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
