"""Engines that run the same model file: each takes tokens and gives the next token's logits.

An engine's own work is timed from the call to the logits lying in memory, without sampling. `make` builds an
engine by name; libraries are imported where they are used, so that a missing one costs only its own rows.
"""

from __future__ import annotations

import copy
import ctypes
import functools
from pathlib import Path
from typing import Protocol

import numpy as np


class Engine(Protocol):
    """A loaded model with room for one sequence."""

    name: str
    package: str  # whose version stands in the report
    precision: str

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """Forget what went before, read int32 tokens[n], return float32 logits[vocab] after the last one."""

    def decode(self, token: int) -> np.ndarray:
        """Read one more token, return float32 logits[vocab] after it."""


class TransformersEngine:
    """transformers over its default (growing) cache; engines may share one model, which holds the weights."""

    package = "transformers"

    def __init__(self, model, attention: str, name: str | None = None):
        import torch

        self.torch, self.model, self.attention, self.cache = torch, model, attention, None
        short = {torch.float32: "", torch.bfloat16: "-bf16"}[model.dtype]
        self.name = name or f"transformers-{attention}{short}"
        self.precision = str(model.dtype).removeprefix("torch.")

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        if self.model.config._attn_implementation != self.attention:
            self.model.set_attn_implementation(self.attention)
        self.cache = None
        return self._forward(tokens)

    def decode(self, token: int) -> np.ndarray:
        return self._forward([token])

    def _forward(self, tokens) -> np.ndarray:
        with self.torch.inference_mode():
            ids = self.torch.as_tensor(tokens, dtype=self.torch.long)[None]
            out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return out.logits[0, -1].float().numpy()


@functools.cache  # kept for good: llama.cpp calls it to the very end
def _quiet():
    """A log callback that drops everything; by default llama.cpp prints every tensor."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaCppEngine:
    """llama.cpp through the bindings' low-level calls: one llama_decode a prefill or token, no sampler."""

    package = "llama-cpp-python"
    precision = "file"  # weights stay in the file's own types, activations are quantized to 8 bits

    def __init__(self, path: Path, threads: int, context: int, flash: str = "auto"):
        import llama_cpp

        self.api = llama_cpp
        self.name = "llama.cpp" if flash == "auto" else f"llama.cpp-flash-{flash}"
        llama_cpp.llama_log_set(_quiet(), ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()  # n_batch 2048, n_ubatch 512, f16 cache
        params.n_ctx = context
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[flash]
        self.context = self.model and llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)
        return self._forward(np.ascontiguousarray(tokens, np.int32))

    def decode(self, token: int) -> np.ndarray:
        return self._forward(np.array([token], np.int32))

    def _forward(self, tokens: np.ndarray) -> np.ndarray:
        # llama_batch_get_one takes positions on from the cache and asks for the last token's logits only.
        ids = tokens.ctypes.data_as(ctypes.POINTER(self.api.llama_token))
        status = self.api.llama_decode(self.context, self.api.llama_batch_get_one(ids, len(tokens)))
        if status != 0:
            raise RuntimeError(f"llama_decode of {len(tokens)} tokens failed: {status}")
        logits = self.api.llama_get_logits_ith(self.context, -1)  # waits for the result
        return np.ctypeslib.as_array(logits, (self.vocab_size,)).copy()

    def __del__(self):
        if getattr(self, "context", None):
            self.api.llama_free(self.context)
        if getattr(self, "model", None):
            self.api.llama_model_free(self.model)


class KfEngine:
    """Our own engine: anything that has prefill(tokens) and decode(token)."""

    package = "sagellm-kernel-fusion"

    def __init__(self, name: str, model, precision: str):
        self.name, self.precision = name, precision
        self.prefill, self.decode = model.prefill, model.decode


def make_kf(name: str, path: Path, threads: int, context: int) -> KfEngine:
    """The one place where our engine is built, from a name: kf-WEIGHTS or kf-WEIGHTS-FUSION."""
    import sagellm_kernel_fusion as kf

    _, weights, *rest = name.split("-")
    fusion = rest[0] if rest else "measured"
    model = kf.load_model(path, threads=threads, context=context, weights=weights, fusion=fusion)
    return KfEngine(name, model, {"f32": "float32", "file": "file"}[weights])


def fused_copy(model, threads: int):
    """The model under fuse_model, its weights shared with the other engines'."""
    import sagellm_kernel_fusion as kf

    shared = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    kf.fuse_model(shared, kf.KernelFusionConfig(num_threads=threads))
    return shared


NAMES = (
    "transformers-sdpa", "transformers-eager", "transformers-sdpa-bf16", "transformers-fused",
    "llama.cpp", "llama.cpp-flash-off",
    "kf-f32", "kf-file", "kf-f32-all", "kf-file-all", "kf-f32-none", "kf-file-none",
)  # fmt: skip


def make(names: list[str], path: Path, threads: int, context: int) -> list[Engine]:
    """The named engines, in that order; transformers engines of one dtype share their weights."""
    models, engines = {}, []
    for name in names:
        family, _, rest = name.partition("-")
        if family == "transformers":
            import torch
            from gguf_llama import load_model

            torch.set_num_threads(threads)
            attention, _, short = rest.partition("-")
            dtype = "bfloat16" if short == "bf16" else "float32"
            if dtype not in models:
                models[dtype] = load_model(path, dtype, "sdpa" if attention == "fused" else attention)
            if attention == "fused":
                engines.append(TransformersEngine(fused_copy(models[dtype], threads), "kernel_fusion", name))
            else:
                engines.append(TransformersEngine(models[dtype], attention))
        elif family == "llama.cpp":
            engines.append(LlamaCppEngine(path, threads, context, rest.removeprefix("flash-") or "auto"))
        elif family == "kf":
            engines.append(make_kf(name, path, threads, context))
        else:
            raise ValueError(f"unknown engine {name!r}: expected one of {', '.join(NAMES)}")
    return engines
