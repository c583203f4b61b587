"""Folders as Hugging Face lays them out: config.json, *.safetensors, and where sharded an index."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import NotServedError, refusing
from .common import Metadata, ModelFile, aligned, every, linear_scaling, parts_of, rows_of, split_merged

_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_DEQUANTIZED = {"F64": np.dtype(np.float64)}  # what no kernel takes and float32 can stand for
_INDEX = "model.safetensors.index.json"


def _json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise refusing(f"{path}: cannot be read: {error.strerror or error}", file=path) from error
    except (ValueError, RecursionError) as error:
        raise refusing(f"{path}: not JSON: {error}", file=path) from error
    if not isinstance(values, dict):
        raise refusing(f"{path}: expected a JSON object, got {type(values).__name__}", file=path)
    return values


def _files(folder: Path) -> list[Path]:
    """The shards that the index names, or the one file there is."""
    if (folder / _INDEX).is_file():
        names = _json(folder / _INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise refusing(f"{folder / _INDEX}: expected a weight_map of names to files", file=folder / _INDEX)
        shards = sorted(set(names.values()))
        for shard in shards:
            if Path(shard).name != shard:
                raise refusing(f"{folder / _INDEX}: expected files of this folder, got {shard}", file=folder / _INDEX)
            if not (folder / shard).is_file():
                raise refusing(f"{folder}: missing {shard}, which {_INDEX} names", file=folder / shard)
        return [folder / shard for shard in shards]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise refusing(f"{folder}: expected one .safetensors file or {_INDEX}, found {len(files)} files", file=folder)
    return files


def _tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, np.ndarray]]]:
    """Arrays over the file's memory; of tensors that kernels do not take, the element type and the values (or bytes).

    The library checks the header (sizes, offsets, overlaps); it copies tensors out, so they are mapped here, at the
    offsets that it found good. The format packs tensors end to end: one behind an odd number of bytes is copied.
    """
    try:
        with safe_open(path, framework="np"):
            pass
        data = np.memmap(path, np.uint8, "r")
        start = 8 + int(data[:8].view("<u8")[0])
        header = json.loads(bytes(data[8:start]))
        arrays, unserved = {}, {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            stored, kind = np.asarray(data[start + begin : start + end]), entry["dtype"]
            if dtype := _DTYPES.get(kind) or _DEQUANTIZED.get(kind):
                stored = stored.view(dtype).reshape(entry["shape"])
            if kind in _DTYPES:
                arrays[name] = aligned(stored)
            else:
                unserved[name] = kind, stored
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise refusing(f"{path}: not a whole safetensors file: {error}", file=path) from error
    return arrays, unserved


_GEMMA = ("gemma2", "gemma3_text")
_GELU_TANH = ("gelu_pytorch_tanh", "gelu_tanh", "gelu_new")


def _rope(meta: Metadata) -> dict:
    """Base and scaling of the rotary frequencies: newer files keep both in rope_parameters, Gemma 3's for each kind of
    layer."""
    given = meta.values.get("rope_parameters")
    kinds = given if isinstance(given, dict) and ("full_attention" in given or "sliding_attention" in given) else None
    values = (kinds.get("full_attention") if kinds else given or meta.values.get("rope_scaling")) or {}
    if not isinstance(values, dict):
        raise refusing(f"{meta.path}: rope_scaling: expected an object, got {values!r}", file=meta.path)
    scaling = Metadata(values, meta.path)
    if scaling.number("partial_rotary_factor", default=1.0) != 1.0:
        raise NotServedError(f"{meta.path}: partial_rotary_factor other than 1 is not served")
    gemma3 = meta.values["model_type"] == "gemma3_text"
    rope = {
        "rope_theta": (scaling if isinstance(given, dict) else meta).number("rope_theta", 1e6 if gemma3 else 10000.0)
    }
    if gemma3:
        local = Metadata((kinds.get("sliding_attention") or {}) if kinds else meta.values, meta.path)
        if kinds and local.text("rope_type", default="default") != "default":
            raise NotServedError(f"{meta.path}: rope_parameters: sliding_attention is served unscaled alone")
        rope["local_rope_theta"] = local.number("rope_theta" if kinds else "rope_local_base_freq", default=10000.0)
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return rope
    if kind == "linear":
        return rope | {"rope_scaling": linear_scaling(scaling.number("factor"))}
    if kind != "llama3":
        raise NotServedError(
            f"{meta.path}: rope_scaling of type {kind} is not served; served are default, linear, llama3"
        )
    return rope | {"rope_scaling": _llama3(scaling)}


def _llama3(scaling: Metadata) -> dict:
    return {
        "factor": scaling.number("factor"),
        "low_freq_factor": scaling.number("low_freq_factor"),
        "high_freq_factor": scaling.number("high_freq_factor"),
        "original_max_position": scaling.integer("original_max_position_embeddings"),
    }


def config_of(meta: Metadata) -> dict:
    """The fields of the C++ ModelConfig, of what config.json holds."""
    architecture = meta.text("model_type")
    gemma = architecture in _GEMMA
    key = "hidden_activation" if gemma else "hidden_act"
    served = _GELU_TANH if gemma else ("silu", "swish")
    if (activation := meta.text(key, default=served[0])) not in served:
        raise NotServedError(f"{meta.path}: {key} {activation} is not served; served is {served[0]}")
    if meta.number("partial_rotary_factor", default=1.0) != 1.0:
        raise NotServedError(f"{meta.path}: partial_rotary_factor other than 1 is not served")
    hidden, heads = meta.integer("hidden_size"), meta.integer("num_attention_heads")
    config = {
        "architecture": architecture,
        "hidden_size": hidden,
        "intermediate_size": meta.integer("intermediate_size"),
        "num_layers": meta.integer("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": meta.integer("num_key_value_heads", default=heads),
        "head_dim": meta.integer("head_dim", default=256 if gemma else hidden // heads or 1),
        "vocab_size": meta.integer("vocab_size"),
        "max_positions": meta.integer("max_position_embeddings"),
        **_sliding_window(meta, architecture),
        "rms_norm_eps": meta.number("rms_norm_eps", default=1e-6),
        **_rope(meta),
        "rope_interleaved": False,
        "tie_embeddings": meta.flag("tie_word_embeddings", default=gemma),
    }
    if architecture in ("llama", "qwen3"):
        config["qkv_bias"] = meta.flag("attention_bias", default=False)
    if gemma:
        config |= _gemma(meta, architecture)
    return config


def _gemma(meta: Metadata, architecture: str) -> dict:
    for flag in ("attention_bias", "use_bidirectional_attention"):
        if meta.flag(flag, default=False):
            raise NotServedError(f"{meta.path}: {flag} of {architecture} is not served")
    gemma2 = architecture == "gemma2"
    fields = {"attention_scale": meta.number("query_pre_attn_scalar", default=256.0) ** -0.5}
    for name, key, usual in (
        ("attention_softcap", "attn_logit_softcapping", 50.0),
        ("logit_softcap", "final_logit_softcapping", 30.0),
    ):
        if key in meta.values and meta.values[key] is None:  # none, said so
            continue
        if key in meta.values or gemma2:
            fields[name] = meta.number(key, default=usual)
    return fields


def _sliding_window(meta: Metadata, architecture: str) -> dict:
    # Qwen's files name a window that they switch off; where it is on, the first layers have none. Of Gemma every second
    # layer (every sixth of Gemma 3) attends all.
    gemma = architecture in _GEMMA
    if not meta.flag("use_sliding_window", default=gemma or architecture in ("mistral", "phi3")):
        return {"sliding_window": 0}
    layers = meta.integer("num_hidden_layers")
    window = meta.integer("sliding_window", default=4096 if gemma else 0, at_least=0)
    if meta.values.get("layer_types") is not None:
        kinds = meta.texts("layer_types")
        if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise NotServedError(
                f"{meta.path}: layer_types: expected full_attention or sliding_attention for each of {layers} layers, "
                f"got {kinds}"
            )
        full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    elif gemma:
        period = meta.integer("sliding_window_pattern", default=2 if architecture == "gemma2" else 6)
        full = every(period, layers)
    else:
        first = meta.integer("max_window_layers", default=0, at_least=0) if architecture.startswith("qwen") else 0
        full = every(1, min(first, layers))
    return {"sliding_window": window, "full_layers": full}


def read_safetensors(folder: Path) -> ModelFile:
    """config.json and the tensors of a folder, memory-mapped."""
    values = _json(folder / "config.json")
    tensors: dict[str, np.ndarray] = {}
    unserved: dict[str, tuple[str, np.ndarray]] = {}
    for path in _files(folder):
        arrays, others = _tensors(path)
        if twice := {*tensors, *unserved} & {*arrays, *others}:
            raise refusing(f"{path}: {min(twice)} is in another shard too", file=path)
        tensors |= arrays
        unserved |= others
    config = config_of(Metadata(values, folder / "config.json"))
    tensors = split_merged(config, tensors)
    unserved = {
        part: (kind, rows_of(stored, rows))
        for name, (kind, stored) in unserved.items()
        for part, rows in parts_of(config, name, stored.shape)
    }

    def values_of(name: str) -> np.ndarray:
        if name in tensors:
            return tensors[name].astype(np.float32)
        kind, stored = unserved[name]
        if kind not in _DEQUANTIZED:
            raise NotServedError(f"{folder}: {name} is stored as {kind.lower()}, which is not dequantized")
        return stored.astype(np.float32)

    kinds = {name: kind.lower() for name, (kind, _) in unserved.items()}
    return ModelFile(folder, "safetensors", config, tensors, values, values_of, kinds)
