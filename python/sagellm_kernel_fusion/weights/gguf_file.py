"""GGUF files, through the `gguf` library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, ReaderTensor
from gguf.quants import dequantize

from .. import _kf
from ..arrays import GgufTensor
from ..errors import NotServedError, refusing
from .common import Metadata, ModelFile, aligned, every, linear_scaling, parts_of, rows_of

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


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(tensor.shape))


def _array(tensor: ReaderTensor) -> np.ndarray | GgufTensor | None:
    """The tensor over the file's memory; None where kernels do not take its element type."""
    data = np.asarray(tensor.data)
    if tensor.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return aligned(data)
    if tensor.tensor_type == GGMLQuantizationType.BF16:
        return aligned(data.view(ml_dtypes.bfloat16))
    if name := _BLOCK_FORMATS.get(tensor.tensor_type):
        return GgufTensor(aligned(data, _BLOCK_ALIGNMENT), name, _shape(tensor))
    return None


_ARCHITECTURES = {"gemma3": "gemma3_text"}  # where GGUF's name is not config.json's


def _config(meta: Metadata, names: set[str], vocab_size: int) -> dict:
    prefix = meta.text("general.architecture")
    architecture = _ARCHITECTURES.get(prefix, prefix)
    key = f"{prefix}.".__add__
    hidden, heads = meta.integer(key("embedding_length")), meta.integer(key("attention.head_count"))
    head_dim = meta.integer(key("attention.key_length"), default=hidden // heads or 1)
    if (value_dim := meta.integer(key("attention.value_length"), default=head_dim)) != head_dim:
        raise NotServedError(f"{meta.path}: expected keys and values of one head_dim, got {head_dim} and {value_dim}")
    if (rotary := meta.integer(key("rope.dimension_count"), default=head_dim)) != head_dim:
        raise NotServedError(f"{meta.path}: expected rotary positions over all {head_dim} of a head, got {rotary}")
    scaling = meta.text(key("rope.scaling.type"), default="none")
    if scaling not in ("none", "linear") or "rope_factors_long.weight" in names:
        got = scaling if scaling != "none" else "factors for long texts"
        raise NotServedError(f"{meta.path}: {key('rope.scaling.type')}: expected none or linear, got {got}")
    positions = meta.integer(key("context_length"))
    config = {
        "architecture": architecture,
        "hidden_size": hidden,
        "intermediate_size": meta.integer(key("feed_forward_length")),
        "num_layers": meta.integer(key("block_count")),
        "num_heads": heads,
        "num_kv_heads": meta.integer(key("attention.head_count_kv"), default=heads),
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "max_positions": positions,
        "sliding_window": meta.integer(key("attention.sliding_window"), default=0, at_least=0),
        "rms_norm_eps": meta.number(key("attention.layer_norm_rms_epsilon"), default=1e-5),
        "rope_theta": meta.number(key("rope.freq_base"), default=10000.0),
        "rope_interleaved": architecture == "llama",  # its converter permutes the rows of q and k
        "tie_embeddings": "output.weight" not in names,
    }
    if scaling == "linear":
        config["rope_scaling"] = linear_scaling(meta.number(key("rope.scaling.factor")))
    if architecture in _GEMMA:
        config |= _gemma(meta, key, config)
    elif config["sliding_window"] and architecture not in ("llama", "phi3"):
        # The file does not say which layers have it: what is shorter needs none.
        config |= {"max_positions": min(positions, config["sliding_window"]), "sliding_window": 0}
    return config


# By architecture: the window that a file may leave out, every how many layers one attends all, and the number of layers
# of the one size whose queries are scaled by the width over the heads: no key says that.
_GEMMA = {"gemma2": (4096, 2, 46), "gemma3_text": (0, 6, 62)}


def _gemma(meta: Metadata, key: Callable[[str], str], config: dict) -> dict:
    usual_window, period, scaled_by_width = _GEMMA[config["architecture"]]
    layers, gemma2 = config["num_layers"], config["architecture"] == "gemma2"
    fields = {
        "sliding_window": meta.integer(key("attention.sliding_window"), default=usual_window, at_least=0),
        "norm_weight_offset": 0.0,  # their converter adds the one to the weights
    }
    pattern = meta.values.get(key("attention.sliding_window_pattern"), period)
    if isinstance(pattern, list):
        if len(pattern) != layers or not all(isinstance(windowed, bool) for windowed in pattern):
            raise meta.fail(key("attention.sliding_window_pattern"), f"true or false for each of {layers} layers")
        fields["full_layers"] = [i for i, windowed in enumerate(pattern) if not windowed]
    else:
        period = meta.integer(key("attention.sliding_window_pattern"), default=period)
        fields["full_layers"] = every(period, layers)
    per_head = config["hidden_size"] // config["num_heads"] if layers == scaled_by_width else config["head_dim"]
    fields["attention_scale"] = meta.number(key("attention.scale"), default=max(per_head, 1) ** -0.5)
    for name, which, usual in (
        ("attention_softcap", "attn_logit_softcapping", 50.0),
        ("logit_softcap", "final_logit_softcapping", 30.0),
    ):
        if gemma2 or key(which) in meta.values:
            fields[name] = meta.number(key(which), default=usual)
    if not gemma2:
        fields["local_rope_theta"] = meta.number(key("rope.freq_base_swa"), default=10000.0)
    return fields


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

    config = _config(Metadata(values, path), set(by_name), vocab_size)

    tensors, unserved, sources = {}, {}, {}
    for tensor in reader.tensors:
        merged = _kf.canonical_tensor_name(tensor.name, config["architecture"]) or tensor.name
        array = _array(tensor)
        for name, rows in parts_of(config, merged, _shape(tensor)):
            if name in sources:
                raise refusing(f"{path}: {tensor.name} is there twice", file=path)
            sources[name] = tensor, rows
            if array is None:
                unserved[name] = tensor.tensor_type.name.lower()
            else:
                tensors[name] = rows_of(array, rows)

    def values_of(name: str) -> np.ndarray:
        tensor, rows = sources[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise NotServedError(f"{path}: {name} is stored as {unserved[name]}, which is not dequantized") from error
        return rows_of(np.ascontiguousarray(values, np.float32).reshape(_shape(tensor)), rows)

    return ModelFile(path, "gguf", config, tensors, values, values_of, unserved)
