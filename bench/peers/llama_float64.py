"""The Llama forward pass of a GGUF file in plain NumPy, float64 throughout: what float32 engines are measured against.

It reads the file with the `gguf` library and shares nothing with this library or with transformers. Weights are what
the file's formats say, so the answers are those of the low-bit model itself and not of one that was rounded again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


class Llama:
    def __init__(self, path: Path):
        reader = GGUFReader(path)
        self._tensors = {t.name: t for t in reader.tensors}

        def value(key: str):
            return reader.fields[f"llama.{key}"].contents()

        self.layers = value("block_count")
        self.heads, self.kv_heads = value("attention.head_count"), value("attention.head_count_kv")
        self.head_dim = value("embedding_length") // self.heads
        self.eps = value("attention.layer_norm_rms_epsilon")
        self.theta = value("rope.freq_base")

    def weight(self, name: str) -> np.ndarray:
        tensor = self._tensors[f"{name}.weight"]
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float64)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * self.weight(name)

    def rotate(self, x: np.ndarray) -> np.ndarray:
        """x [tokens, heads, head_dim]: neighbouring pairs, as GGUF's llama files order them, turned by the position."""
        frequencies = self.theta ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        angles = np.arange(len(x))[:, None, None] * frequencies
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

    def attention(self, x: np.ndarray, layer: str) -> np.ndarray:
        count = len(x)
        q, k, v = (
            (x @ self.weight(f"{layer}.attn_{name}").T).reshape(count, heads, self.head_dim)
            for name, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads))
        )
        q, k = self.rotate(q), self.rotate(k)
        out, group = np.empty_like(q), self.heads // self.kv_heads
        later = np.triu(np.ones((count, count), bool), 1)
        for head in range(self.heads):
            scores = q[:, head] @ k[:, head // group].T / np.sqrt(self.head_dim)
            scores[later] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head // group]
        return out.reshape(count, -1) @ self.weight(f"{layer}.attn_output").T

    def ffn(self, x: np.ndarray, layer: str) -> np.ndarray:
        gate, up = (x @ self.weight(f"{layer}.ffn_{name}").T for name in ("gate", "up"))
        return (gate / (1 + np.exp(-gate)) * up) @ self.weight(f"{layer}.ffn_down").T

    def logits(self, tokens) -> np.ndarray:
        """float64 logits [tokens, vocab] after every token."""
        table = self.weight("token_embd")
        x = table[np.asarray(tokens)]
        for n in range(self.layers):
            layer = f"blk.{n}"
            x = x + self.attention(self.norm(x, f"{layer}.attn_norm"), layer)
            x = x + self.ffn(self.norm(x, f"{layer}.ffn_norm"), layer)
        head = self.weight("output") if "output.weight" in self._tensors else table
        return self.norm(x, "output_norm") @ head.T
