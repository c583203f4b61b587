"""Whole models: a GGUF file or safetensors folder over the C++ engine, fused or not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from . import _kf
from .arrays import to_numpy
from .checks import at_least, flag, names_of, one_of
from .config import FusionChoice, KernelFusionConfig
from .errors import NotServedError, ResourceExhaustedError, refusing
from .quantized import CODE_DTYPES
from .registry import device_named
from .tokens import TextStream, TokenizerOf, has_tokenizer, load_tokenizer
from .vendors import native_cache
from .weights import Metadata, ModelFile, open_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Weights = Literal["file", "f32"]
WEIGHTS: tuple[Weights, ...] = ("f32", "file")
FUSION_MODES = ("measured", "all", "none")


@dataclass
class Generated:
    """What one prompt became. Times in seconds, from the start of the call."""

    text: str  # empty where the model has no tokenizer
    tokens: list[int]
    reason: str  # "length", "stop" or "cancelled"
    seconds_to_first_token: float
    seconds: float


class Model:
    """A model ready to run. `load_model` makes one. For one caller at a time: others meanwhile, and calls from within
    generate's on_text, are refused.

    `engine` is the C++ engine: its steps, cache, graphs and counters.
    """

    def __init__(self, file: ModelFile, weights: dict, engine_options: dict, verdicts, count_calls: bool):
        self.path = file.path
        self.config = dict(file.config)
        self._file = file
        self._made_of = weights, engine_options, verdicts
        self._counts_calls = count_calls
        self.engine = _kf.Engine(file.config, weights, engine_options, verdicts, count_calls)
        self._sequence: int | None = None
        self._busy = threading.Lock()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # The engine refuses a second caller of a step; prefill and decode are several that belong together.
        if not self._busy.acquire(blocking=False):
            raise refusing("model: in use: another call is under way, in another thread or around this one")
        try:
            yield
        finally:
            self._busy.release()

    @cached_property
    def counting(self) -> Model:
        """This model where it counts its calls, else another one that does, over the same weights, with a cache of its
        own."""
        return self if self._counts_calls else Model(self._file, *self._made_of, count_calls=True)

    @cached_property
    def tokenizer(self) -> TokenizerOf:
        """The file's own tokenizer: text to token ids and back, its chat template, the ids that end an answer."""
        return load_tokenizer(self._file)

    def prefill(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Forgets what went before, reads tokens [n], returns float32 logits [vocab_size] after the last one."""
        return self._feed(tokens, "last", afresh=True)[0]

    def decode(self, token: int) -> np.ndarray:
        """Reads one more token, returns float32 logits [vocab_size] after it."""
        return self._feed([token], "last")[0]

    def logits(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Forgets what went before, reads tokens [n], returns float32 logits [n, vocab_size] after each."""
        return self._feed(tokens, "all", afresh=True)

    def reset(self) -> None:
        """Forgets the sequence that prefill and decode work on."""
        with self._alone():
            self._forget()

    def _forget(self) -> None:
        if self._sequence is not None:
            self.engine.truncate(self._sequence, 0)

    def _feed(self, tokens, rows: str, afresh: bool = False) -> np.ndarray:
        ids = token_ids(tokens, self.config["vocab_size"])
        if ids.size == 0:
            raise refusing("tokens: expected at least one id, got none")
        with self._alone():
            if self._sequence is None:
                self._sequence = self.engine.create_sequence()
            length, longest = 0 if afresh else self.engine.length(self._sequence), self.engine.max_seq_len
            if length + ids.size > longest:
                raise ResourceExhaustedError(
                    f"tokens: {ids.size} after {length} are more than this model was loaded for: max_seq_len is "
                    f"{longest}; load it with a longer context"
                )
            if afresh:
                self._forget()
            size = self.engine.max_step_tokens
            chunks = [ids[i : i + size] for i in range(0, len(ids), size)]
            before = "all" if rows == "all" else "none"
            try:
                outputs = [self._step(chunk, before) for chunk in chunks[:-1]]
                outputs.append(self._step(chunks[-1], rows))
            except BaseException:
                self.engine.truncate(self._sequence, length)  # the chunks before the one that failed
                raise
        return np.concatenate(outputs) if rows == "all" else outputs[-1]

    def _step(self, ids: np.ndarray, rows: str) -> np.ndarray:
        return self.engine.step([(self._sequence, ids, rows)])

    def generate(
        self,
        prompts: str | Sequence[int] | np.ndarray | Sequence[str] | Sequence[Sequence[int]],
        max_new_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        stop: bool = True,
        on_text: Callable[[int, str], object] | None = None,
    ) -> Generated | list[Generated]:
        """Continues a prompt, or several together in one batch.

        prompts: a text or token ids [n], or a list of texts or of token ids; a single one gives a single result, a
        list, however long, a list. temperature 0 is
        greedy; otherwise tokens are drawn as `ops.sample` says, by `seed`. stop=False goes on past the end-of-text
        token. on_text(prompt number, piece) is told of text as it comes; returning False ends that prompt.
        """
        if not (on_text is None or callable(on_text)):
            raise refusing(
                f"on_text: expected a function of a prompt's number and a text, got {type(on_text).__name__}"
            )
        stop = flag("stop", stop)
        single = isinstance(prompts, str) or _is_ids(prompts)
        if not isinstance(prompts, Iterable) or isinstance(prompts, bytes) or getattr(prompts, "ndim", 1) == 0:
            raise refusing(f"prompts: expected a text, or a list of texts or token lists, got {type(prompts).__name__}")
        if getattr(prompts, "is_nested", False):
            prompts = prompts.unbind()  # torch's tensors of several lengths
        texts = [prompts] if single else list(prompts)
        vocab_size = self.config["vocab_size"]
        # Ids alone need none, as of a model of transformers that was made here.
        needed = on_text is not None or any(isinstance(p, str) for p in texts) or has_tokenizer(self._file)
        tokenizer = self.tokenizer if needed else None
        stop_ids = tokenizer.stop_ids if tokenizer else Metadata(self._file.metadata, self.path).ids("eos_token_id")
        requests = [
            {
                "prompt": tokenizer.encode(p) if isinstance(p, str) else token_ids(p, vocab_size).tolist(),
                "max_new_tokens": max_new_tokens,
                "stop_ids": stop_ids if stop else [],
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "seed": seed,
            }
            for p in texts
        ]
        streams = [] if on_text is None else [TextStream(tokenizer) for _ in requests]

        def on_token(request: int, token: int) -> bool:
            piece = streams[request].push(token) if streams else ""
            return not piece or on_text(request, piece) is not False

        with self._alone():
            made = self.engine.generate(requests, on_token)
            for i, stream in enumerate(streams):
                if rest := stream.rest():
                    on_text(i, rest)
        results = [
            Generated(
                tokenizer.decode(r["tokens"]) if tokenizer else "",
                r["tokens"],
                r["reason"],
                r["seconds_to_first_token"],
                r["seconds"],
            )
            for r in made
        ]
        return results[0] if single else results


def _is_ids(prompts) -> bool:
    """Whether these are the ids of one prompt."""
    if (ndim := getattr(prompts, "ndim", None)) is not None:
        return ndim == 1
    return isinstance(prompts, (list, tuple)) and len(prompts) > 0 and all(isinstance(p, Integral) for p in prompts)


def token_ids(tokens, vocab_size: int) -> np.ndarray:
    """`tokens` as int32 [n], none of them changed on the way."""
    try:
        ids = np.asarray(tokens)
    except (
        ValueError,
        OverflowError,
        TypeError,
        RuntimeError,
        NotImplementedError,
    ) as error:  # torch's of the last three
        raise refusing(f"tokens: expected ids in a list: {error}") from error
    if ids.ndim != 1:
        raise refusing(f"tokens: expected ids [n], got shape {list(ids.shape)}")
    if ids.size == 0:
        return np.empty(0, np.int32)
    if ids.dtype.kind not in "iu":
        raise refusing(f"tokens: expected integers of at most 64 bits, got {ids.dtype}")
    for extreme in (int(ids.min()), int(ids.max())):
        if not 0 <= extreme < vocab_size:
            raise refusing(f"tokens: token id {extreme} is not in the vocabulary of {vocab_size}")
    return np.ascontiguousarray(ids, np.int32)


def fusion_mode(fusion: FusionChoice) -> tuple[str, list[str]]:
    """The engine's mode and the rules that it is restricted to: names of rules apply all of these and no others."""
    if isinstance(fusion, str) and fusion in FUSION_MODES:
        return fusion, []
    known = [r["name"] for r in _kf.rules()]
    names = [name.strip() for name in (fusion.split(",") if isinstance(fusion, str) else names_of("fusion", fusion))]
    if not names or not set(names) <= set(known):
        got = ",".join(names) or "nothing"
        raise refusing(f"fusion: expected {', '.join(FUSION_MODES)}, or rules among {', '.join(known)}; got {got}")
    return "all", names


def load_model(
    path: str | Path | PreTrainedModel,
    *,
    fuse_kernels: bool = True,
    fusion_config: KernelFusionConfig | None = None,
    weights: Weights = "file",
    fusion: FusionChoice | None = None,
    only_rules: Sequence[str] = (),
    except_rules: Sequence[str] = (),
    threads: int = 0,
    context: int = 0,
    max_batch_size: int = 4,
    max_step_tokens: int = 512,
    cache_dtype: str | None = None,
    families: Sequence[str] = (),
    device: str = "cpu",
    verdicts: _kf.VerdictStore | None = None,
    count_calls: bool = False,
) -> Model:
    """Loads a GGUF file or a safetensors folder; or a model of transformers, whose weights it shares (on the CPU).

    Served are Llama, Mistral, Qwen2, Qwen3, Phi-3, Gemma 2 and Gemma 3 (text).

    fuse_kernels=False (or fusion="none") is the baseline: the same model in primitive ops, as an eager framework runs
    it. fusion: "measured" keeps each fusion that is faster here, "all" takes every one, names of rules ("rule,rule" or
    a list; `sagellm_kernel_fusion.rules()`) take all of these; `only_rules` and `except_rules` restrict them. weights:
    "file" computes with them as they are stored, "f32" dequantizes them first. context: the longest sequence (0: the
    model's, at most 4096). max_step_tokens: longer prompts are fed in chunks of as many. threads 0: all. families: the
    kernels that may be used, as in `Selection` (none: the fused ones and, for what no rule joins, the vanilla ones;
    for the baseline the vanilla ones). cache_dtype: of keys and values, "f32", "f16", "bf16", or quantized with a scale
    for each token and head: "int8", "int4", "fp8", "fp8_e5m2"; None: as the activations, which are f32 on the CPU, and
    on a device f16 or bf16 where all weights are. device: where the model runs, "cpu", of a build with that backend
    "cuda" or "cuda:1", or a vendor's ("ascend"); weights are copied there once, and pages of the cache are as the
    vendor's operators have them, but of a page_size that is asked for. verdicts: where measured fusions are kept (None:
    on disk, in the user's cache).
    """
    file = path if isinstance(path, ModelFile) else open_model(path)
    config = KernelFusionConfig() if fusion_config is None else fusion_config
    if not isinstance(config, KernelFusionConfig):
        raise refusing(f"fusion_config: expected a KernelFusionConfig, got {type(config).__name__}")
    device = device_named(device)
    fuse_kernels = flag("fuse_kernels", fuse_kernels)
    mode, named = fusion_mode((config.fusion if fuse_kernels else "none") if fusion is None else fusion)
    one_of("weights", weights, WEIGHTS)
    if not (verdicts is None or isinstance(verdicts, _kf.VerdictStore)):
        raise refusing(f"verdicts: expected a VerdictStore, got {type(verdicts).__name__}")
    if verdicts is None and mode == "measured":
        verdicts = _kf.VerdictStore(_kf.VerdictStore.default_path())
    tensors = model_weights(file, weights)
    activations = activation_dtype_of(tensors, device)
    cache_dtype = activations if cache_dtype is None else cache_dtype
    if not isinstance(cache_dtype, str):
        raise refusing(f"cache_dtype: expected the name of a dtype, as f16, got {type(cache_dtype).__name__}")
    options = {
        "baseline": mode == "none",
        "activation_dtype": activations,
        "families": names_of("families", families),
        "max_seq_len": at_least("context", context, 0) or min(file.config["max_positions"], 4096),
        "max_batch_size": max_batch_size,
        "max_step_tokens": max_step_tokens,
        "num_threads": threads,
        "device": device,
        "allow_fallback": config.allow_fallback,
        "cache": {
            "dtype": CODE_DTYPES.get(cache_dtype, cache_dtype),
            **_pages(config, mode, device),
        },
        "fusion": {
            "mode": mode,
            "only": _restricted(named, [*config.only_rules, *names_of("only_rules", only_rules)]),
            "except": [*config.except_rules, *names_of("except_rules", except_rules), *_rules_off(config)],
        },
    }
    return Model(file, tensors, options, verdicts, count_calls)


def _pages(config: KernelFusionConfig, mode: str, device: str) -> dict:
    """The baseline's cache is contiguous: it has no use for pages. A vendor's has the vendor's, unless other ones are
    asked for."""
    if mode == "none":
        return {"page_size": 0}
    chosen = {} if config.page_size == KernelFusionConfig.page_size else {"page_size": config.page_size}
    return {"page_size": config.page_size} | native_cache(device) | chosen


def activation_dtype_of(weights: dict, device: str) -> str:
    """What a model computes in: f32 on the CPU; on a device f16 or bf16, where all its weights are."""
    dtypes = {str(w.dtype) for w in weights.values()}
    names = {"float16": "f16", "f16": "f16", "bfloat16": "bf16", "bf16": "bf16"}
    return names.get(dtypes.pop(), "f32") if device != "cpu" and len(dtypes) == 1 else "f32"


def _restricted(named: list[str], only: list[str]) -> list[str]:
    """Rules that both ask for; an empty list restricts nothing."""
    if not named or not only:
        return named or only
    if both := [name for name in named if name in only]:
        return both
    raise refusing(f"fusion: {', '.join(named)} and only_rules {', '.join(only)} have no rule in common")


def _rules_off(config: KernelFusionConfig) -> list[str]:
    """The rules that the configuration's switches turn off."""
    switches = {"use_online_softmax", *(r["flag"] for r in _kf.rules())}
    return _kf.rules_off({name: getattr(config, name) for name in switches})


def model_weights(file: ModelFile, weights: Weights) -> dict:
    """The file's tensors, or with "f32" float32 copies of them."""
    if weights == "file":
        if file.unserved:
            name, dtype = next(iter(file.unserved.items()))
            raise NotServedError(
                f"{file.path}: {name} is stored as {dtype}, which no kernel takes (served are f32, f16, bf16, "
                f'{", ".join(n for n, d in _kf.dtypes().items() if d["is_block"])}); weights="f32" dequantizes it'
            )
        return dict(file.tensors)
    arena = _Arena()
    return {name: _as_f32(file, name, arena) for name in [*file.tensors, *file.unserved]}


class _Arena:
    """Keeps arrays one after another in large blocks: numpy asks for huge pages for arrays of 4 MB and more, and a
    matrix that is read from pages of 4 KB takes up to a third longer."""

    BLOCK_BYTES, ALIGNMENT = 64 << 20, 64

    def __init__(self) -> None:
        self._free = np.empty(0, np.uint8)

    def keep(self, array: np.ndarray) -> np.ndarray:
        """A copy in a block; what is as large as one is kept as it is."""
        if array.nbytes >= self.BLOCK_BYTES:
            return array
        if array.nbytes > self._free.nbytes:
            block = np.empty(self.BLOCK_BYTES + self.ALIGNMENT, np.uint8)
            self._free = block[-block.ctypes.data % self.ALIGNMENT :]
        copy = self._free[: array.nbytes].view(array.dtype).reshape(array.shape)
        self._free = self._free[-(-array.nbytes // self.ALIGNMENT) * self.ALIGNMENT :]
        copy[...] = array
        return copy


def _as_f32(file: ModelFile, name: str, arena: _Arena) -> np.ndarray:
    tensor = file.tensors.get(name)
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor, dtype=np.float32)  # of the file itself where it has float32
    if tensor is None or len(tensor.shape) != 2:
        return arena.keep(file.dequantize(name))
    return arena.keep(to_numpy(tensor))
