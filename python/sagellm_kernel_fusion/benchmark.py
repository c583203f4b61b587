"""A model fused and unfused, as the specification compares them: five figures."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .checks import at_least
from .config import KernelFusionConfig
from .errors import refusing
from .models import Model, load_model, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The ops that attention consists of, fused and not (a softmax stands nowhere else in these models).
_ATTENTION = {"attention", "attention_scores", "attention_mask", "softmax", "attention_values"}
_PROMPT, _DECODE, _ROUNDS = 512, 16, 3


def measure_performance(model: Model, test_inputs: Sequence[Sequence[int]] | None = None, decode_tokens: int = _DECODE):
    """Runs prompts, each followed by `decode_tokens` greedy tokens.

    test_inputs: token ids, a list for each prompt; None: one prompt of 512 (or as many as the model takes). Calls are
    counted and timed one by one: of a model that was not loaded for that (`load_model(..., count_calls=True)`) another
    one is made over its weights, at the first measurement.

    Returns attn_time, ffn_time and total_time in seconds, peak_mem in bytes (intermediates and workspaces of the
    largest step), kernel_calls, and logits after the last prompt.
    """
    if not isinstance(model, Model):
        raise refusing(f"measure_performance: model: expected one of load_model's, got {type(model).__name__}")
    at_least("measure_performance: decode_tokens", decode_tokens, 0)
    if test_inputs is None:
        test_inputs = _prompts(model, decode_tokens)
    elif not isinstance(test_inputs, Iterable) or isinstance(test_inputs, (str, bytes)) or _is_number(test_inputs):
        raise refusing(
            f"measure_performance: test_inputs: expected a list of prompts, each of token ids, got {test_inputs!r:.80}"
        )
    prompts = [token_ids(prompt, model.config["vocab_size"]) for prompt in test_inputs]
    if not prompts:
        raise refusing("measure_performance: test_inputs: expected at least one prompt, got none")
    model = model.counting
    engine = model.engine
    engine.reset_calls()
    peak, total, logits = 0, 0.0, None
    for prompt in prompts:
        start = time.perf_counter()
        logits = model.prefill(prompt)
        peak = max(peak, engine.last_step["activation_bytes"])
        token = int(logits.argmax())
        for _ in range(decode_tokens):
            token = int(model.decode(token).argmax())
            peak = max(peak, engine.last_step["activation_bytes"])
        total += time.perf_counter() - start
    calls = engine.distinct_calls()
    return {
        "attn_time": sum(c["seconds"] for c in calls if c["op"] in _ATTENTION),
        "ffn_time": sum(c["seconds"] for c in calls if _is_ffn(c, model.config["intermediate_size"])),
        "total_time": total,
        "peak_mem": peak,
        "kernel_calls": sum(c["calls"] * c["launches"] for c in calls),
        "logits": logits,
    }


def _is_number(x) -> bool:
    return getattr(x, "ndim", 1) == 0


def _is_ffn(call: dict, intermediate_size: int) -> bool:
    """Whether one of its operands is as wide as the FFN's inside, which nothing else in a layer is."""
    sizes = {int(size) for shape in re.findall(r"\[([\d, ]+)\]", call["shapes"]) for size in shape.split(",")}
    return call["op"] not in _ATTENTION and ("ffn" in call["op"] or intermediate_size in sizes)


def _prompts(model: Model, decode_tokens: int) -> list[np.ndarray]:
    length = min(_PROMPT, model.engine.max_seq_len - decode_tokens)
    return [np.random.default_rng(0).integers(0, model.config["vocab_size"], length)]


def benchmark_kernel_fusion(
    model_path: str | Path | PreTrainedModel,
    config: KernelFusionConfig | None = None,
    test_inputs: Sequence[Sequence[int]] | None = None,
    *,
    decode_tokens: int = _DECODE,
    rounds: int = _ROUNDS,
    threads: int = 0,
) -> dict[str, float]:
    """The model at `model_path` (a GGUF file or a safetensors folder; or a model of transformers, whose weights it
    shares) without fusion against the same with `config`'s.

    Both do the same work, in turns, each figure from the faster of its rounds. Returns attention_speedup, ffn_speedup,
    memory_saving, kernel_calls_reduction and e2e_speedup. Raises where the two do not agree: nothing is said to be
    faster then. `kf bench model` measures the same models more closely, and rule by rule.
    """
    at_least("benchmark_kernel_fusion: decode_tokens", decode_tokens, 0)
    at_least("benchmark_kernel_fusion: rounds", rounds, 1)
    options = {"count_calls": True, "threads": threads, "max_batch_size": 1}
    forms = {
        "vanilla": load_model(model_path, fuse_kernels=False, **options),
        "fused": load_model(model_path, fuse_kernels=True, fusion_config=config, **options),
    }
    best: dict[str, dict] = {}
    for turn in range(rounds + 1):  # the first plans and warms up
        for name, model in forms.items():
            measured = measure_performance(model, test_inputs, decode_tokens)
            if turn == 0 or measured["total_time"] < best[name]["total_time"] or turn == 1:
                best[name] = measured
    vanilla, fused = best["vanilla"], best["fused"]
    _check_agreement(vanilla["logits"], fused["logits"])
    return {
        "attention_speedup": vanilla["attn_time"] / fused["attn_time"],
        "ffn_speedup": vanilla["ffn_time"] / fused["ffn_time"],
        "memory_saving": 1 - fused["peak_mem"] / vanilla["peak_mem"],
        "kernel_calls_reduction": 1 - fused["kernel_calls"] / vanilla["kernel_calls"],
        "e2e_speedup": vanilla["total_time"] / fused["total_time"],
    }


def _check_agreement(expected: np.ndarray, got: np.ndarray) -> None:
    from .bench.model_bench import LOGIT_TOLERANCE, compare_logits

    error, _ = compare_logits(expected[None], got[None])
    if not error <= LOGIT_TOLERANCE["file"]:
        raise refusing(
            f"benchmark_kernel_fusion: the fused model's logits differ by {error:.2g} from the unfused one's"
        )
