"""GGUF files, through the `gguf` library."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, ReaderTensor
from gguf.quants import dequantize

from .. import _kf
from ..arrays import GgufTensor
from ..errors import NotServedError, refusing
from .common import Metadata, ModelFile, aligned

# The library's errors for damaged files are of many kinds; all mean that the file is not what it should be.
_DAMAGED = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError)
_BLOCK_ALIGNMENT = 2  # blocks hold 16-bit scales and bytes
_BLOCK_FORMATS = {
    GGMLQuantizationType.Q4_0: "q4_0",
    GGMLQuantizationType.Q4_1: "q4_1",
    GGMLQuantizationType.Q5_0: "q5_0",
    GGMLQuantizationType.Q8_0: "q8_0",
    GGMLQuantizationType.Q4_K: "q4_k",
    GGMLQuantizationType.Q6_K: "q6_k",
}


class _CheckedReader(GGUFReader):
    """The library's reader, made to stop at the end of the file (a count from a damaged file may be anything), and to
    read arrays at one go: a vocabulary's strings one by one through NumPy take seconds."""

    def _get(self, offset, dtype, count=1, *args, **kwargs):
        self._check_end(int(offset) + np.dtype(dtype).itemsize * int(count))
        return super()._get(offset, dtype, count, *args, **kwargs)

    def _check_end(self, end: int) -> None:
        if end > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, within what should reach to byte {end}")

    def _get_field_parts(self, orig_offs, raw_type):
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        item_type, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        kind, count, start = GGUFValueType(item_type[0]), int(length[0]), orig_offs + 12
        if scalar := self.gguf_scalar_to_np.get(kind):
            items, size = [self._get(start, scalar, count)], np.dtype(scalar).itemsize * count
        elif kind == GGUFValueType.STRING:
            items, size = self._strings(start, count)
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        return 12 + size, [item_type, length, *items], list(range(2, 2 + len(items))), [GGUFValueType.ARRAY, kind]

    def _strings(self, start: int, count: int) -> tuple[list[memoryview], int]:
        data, offset, items = memoryview(self.data), start, []
        for _ in range(count):
            self._check_end(offset + 8)
            begin = offset + 8
            offset = begin + int.from_bytes(data[offset:begin], "little")
            self._check_end(offset)
            items.append(data[begin:offset])
        return items, offset - start


def _open(path: Path) -> GGUFReader:
    try:
        return _CheckedReader(path)
    except _DAMAGED as error:
        raise refusing(f"{path}: not a whole GGUF file: {error}", file=path) from error
    except OSError as error:
        raise refusing(f"{path}: cannot be read: {error.strerror or error}", file=path) from error


def _array(tensor: ReaderTensor) -> np.ndarray | GgufTensor | None:
    """The tensor over the file's memory; None where kernels do not take its element type."""
    shape = tuple(int(n) for n in reversed(tensor.shape))
    data = np.asarray(tensor.data)
    if tensor.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return aligned(data)
    if tensor.tensor_type == GGMLQuantizationType.BF16:
        return aligned(data.view(ml_dtypes.bfloat16))
    if name := _BLOCK_FORMATS.get(tensor.tensor_type):
        return GgufTensor(aligned(data, _BLOCK_ALIGNMENT), name, shape)
    return None


def _config(meta: Metadata, names: set[str], vocab_size: int) -> dict:
    architecture = meta.text("general.architecture")
    if architecture in ("phi3", "gemma2", "gemma3_text"):
        # The model would be; but their converters merge, rename and change tensors.
        raise NotServedError(
            f"{meta.path}: model architecture '{architecture}' is not served as a GGUF file; a folder of safetensors is"
        )
    key = f"{architecture}.".__add__
    hidden, heads = meta.integer(key("embedding_length")), meta.integer(key("attention.head_count"))
    head_dim = meta.integer(key("attention.key_length"), default=hidden // heads or 1)
    if (value_dim := meta.integer(key("attention.value_length"), default=head_dim)) != head_dim:
        raise NotServedError(f"{meta.path}: expected keys and values of one head_dim, got {head_dim} and {value_dim}")
    if (rotary := meta.integer(key("rope.dimension_count"), default=head_dim)) != head_dim:
        raise NotServedError(f"{meta.path}: expected rotary positions over all {head_dim} of a head, got {rotary}")
    if (scaling := meta.text(key("rope.scaling.type"), default="none")) != "none":
        raise NotServedError(f"{meta.path}: {key('rope.scaling.type')}: expected none, got {scaling}")
    window = meta.integer(key("attention.sliding_window"), default=0, at_least=0)
    positions = meta.integer(key("context_length"))
    if window and architecture != "llama":  # the file does not say which layers have it: what is shorter needs none
        positions, window = min(positions, window), 0
    return {
        "architecture": architecture,
        "hidden_size": hidden,
        "intermediate_size": meta.integer(key("feed_forward_length")),
        "num_layers": meta.integer(key("block_count")),
        "num_heads": heads,
        "num_kv_heads": meta.integer(key("attention.head_count_kv"), default=heads),
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "max_positions": positions,
        "sliding_window": window,
        "rms_norm_eps": meta.number(key("attention.layer_norm_rms_epsilon"), default=1e-5),
        "rope_theta": meta.number(key("rope.freq_base"), default=10000.0),
        "rope_interleaved": architecture == "llama",  # its converter permutes the rows of q and k
        "tie_embeddings": "output.weight" not in names,
    }


def read_gguf(path: Path) -> ModelFile:
    """Metadata and tensors of a GGUF file. Weights stay on disk until they are used."""
    reader = _open(path)
    try:
        values = {name: value.contents() for name, value in reader.fields.items()}
    except _DAMAGED as error:
        raise refusing(f"{path}: metadata that cannot be read: {error}", file=path) from error
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in by_name:
        raise refusing(f"{path}: expected a tensor token_embd.weight, found {len(by_name)} others", file=path)
    if len(by_name["token_embd.weight"].shape) != 2:
        raise refusing(f"{path}: token_embd.weight: expected a matrix, got another shape", file=path)
    vocab_size = int(by_name["token_embd.weight"].shape[-1])

    tensors, unserved, sources = {}, {}, {}
    for tensor in reader.tensors:
        name = _kf.canonical_tensor_name(tensor.name) or tensor.name
        if name in sources:
            raise refusing(f"{path}: {tensor.name} is there twice", file=path)
        sources[name] = tensor
        if (array := _array(tensor)) is None:
            unserved[name] = tensor.tensor_type.name.lower()
        else:
            tensors[name] = array

    def values_of(name: str) -> np.ndarray:
        tensor = sources[name]
        shape = tuple(int(n) for n in reversed(tensor.shape))
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise NotServedError(f"{path}: {name} is stored as {unserved[name]}, which is not dequantized") from error
        return np.ascontiguousarray(values, np.float32).reshape(shape)

    config = _config(Metadata(values, path), set(by_name), vocab_size)
    return ModelFile(path, "gguf", config, tensors, values, values_of, unserved)
