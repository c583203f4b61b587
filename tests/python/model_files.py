"""Small model files, made: a Llama of two layers as GGUF and as a safetensors folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFValueType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from safetensors.numpy import save_file


@dataclass(frozen=True)
class Shape:
    hidden: int = 64
    intermediate: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocab: int = 272


TINY = Shape()


def tiny_weights(shape: Shape, seed: int = 3) -> dict[str, np.ndarray]:
    """float32 weights by Hugging Face name."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = {"model.embed_tokens.weight": matrix(shape.vocab, shape.hidden)}
    for n in range(shape.layers):
        layer = f"model.layers.{n}."
        weights |= {
            f"{layer}input_layernorm.weight": 1 + 0.1 * rng.standard_normal(shape.hidden).astype(np.float32),
            f"{layer}self_attn.q_proj.weight": matrix(q, shape.hidden),
            f"{layer}self_attn.k_proj.weight": matrix(kv, shape.hidden),
            f"{layer}self_attn.v_proj.weight": matrix(kv, shape.hidden),
            f"{layer}self_attn.o_proj.weight": matrix(shape.hidden, q),
            f"{layer}post_attention_layernorm.weight": 1 + 0.1 * rng.standard_normal(shape.hidden).astype(np.float32),
            f"{layer}mlp.gate_proj.weight": matrix(shape.intermediate, shape.hidden),
            f"{layer}mlp.up_proj.weight": matrix(shape.intermediate, shape.hidden),
            f"{layer}mlp.down_proj.weight": matrix(shape.hidden, shape.intermediate),
        }
    weights["model.norm.weight"] = np.ones(shape.hidden, np.float32)
    weights["lm_head.weight"] = matrix(shape.vocab, shape.hidden)
    return weights


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{_GGUF_NAMES[stem]}.weight"
    number, _, rest = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{_GGUF_NAMES[rest]}.weight"


def byte_tokens(vocab: int) -> list[str]:
    """A vocabulary of the 256 bytes as byte-level BPE writes them, one pair of them, then special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    letters = [chr(b) if b in printable else chr(next(rest)) for b in range(256)]
    return [*letters, "th", "<|end|>", *(f"<|{i}|>" for i in range(vocab - 258))]


def write_gguf(path: Path, shape: Shape, kind: str = "q4_1", architecture: str = "llama", **overrides) -> Path:
    """The weights as a GGUF file: norms in f32, matrices in `kind`."""
    quantization = GGMLQuantizationType[kind.upper()]
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(byte_tokens(shape.vocab))
    writer.add_token_types([1] * 257 + [3] * (shape.vocab - 257))
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(257)
    for key, value in overrides.items():
        name = key.replace("__", ".")
        writer.kv_data[0].pop(name, None)
        writer.add_key_value(name, *value)
    for name, weight in tiny_weights(shape).items():
        if weight.ndim == 1:
            writer.add_tensor(gguf_name(name), weight)
        else:
            writer.add_tensor(gguf_name(name), quantize(weight, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_gguf_of(model, path: Path, kind: str = "f32", **overrides) -> Path:
    """A model of transformers (Phi-3, Gemma) as its GGUF file: names as the gguf package has them, ones added to
    Gemma's norms, vectors in f32, matrices in `kind`. Overrides: other metadata, None leaves a key out."""
    config = model.config
    name = config.model_type.removesuffix("_text")
    gemma = name.startswith("gemma")
    quantization = GGMLQuantizationType[kind.upper()]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    u32, f32 = GGUFValueType.UINT32, GGUFValueType.FLOAT32
    rope = config.rope_parameters
    values = {
        "context_length": (config.max_position_embeddings, u32),
        "embedding_length": (config.hidden_size, u32),
        "block_count": (config.num_hidden_layers, u32),
        "feed_forward_length": (config.intermediate_size, u32),
        "attention.head_count": (config.num_attention_heads, u32),
        "attention.head_count_kv": (config.num_key_value_heads, u32),
        "attention.key_length": (head_dim, u32),
        "attention.value_length": (head_dim, u32),
        "attention.layer_norm_rms_epsilon": (config.rms_norm_eps, f32),
        "rope.freq_base": (rope.get("full_attention", rope)["rope_theta"], f32),
    }
    if config.sliding_window:
        values["attention.sliding_window"] = (config.sliding_window, u32)
    if name == "gemma2":
        values["attn_logit_softcapping"] = (config.attn_logit_softcapping, f32)
        values["final_logit_softcapping"] = (config.final_logit_softcapping, f32)
    writer = GGUFWriter(path, name)
    for key, value in (values | overrides).items():
        if value is not None:
            writer.add_key_value(f"{name}.{key}", *value)
    names = get_tensor_name_map(MODEL_ARCH[name.upper()], config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight, known = tensor.numpy(), names.get_name(key, try_suffixes=(".weight",))
        if weight.ndim == 1:
            writer.add_tensor(known, weight + 1 if gemma else weight)
        else:
            writer.add_tensor(known, quantize(weight, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def hf_config(shape: Shape) -> dict:
    return {
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }


def write_safetensors(folder: Path, shape: Shape, dtype=np.float32, shards: int = 1, **config) -> Path:
    """The weights as a safetensors folder, in one file or several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(shape) | config))
    weights = {name: w.astype(dtype) for name, w in tiny_weights(shape).items()}
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    names, places = list(weights), {}
    for k in range(shards):
        file = f"model-{k + 1:05}-of-{shards:05}.safetensors"
        save_file({n: weights[n] for n in names[k::shards]}, folder / file)
        places |= dict.fromkeys(names[k::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


BF16 = ml_dtypes.bfloat16
