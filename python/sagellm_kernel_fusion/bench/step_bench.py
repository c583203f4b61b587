"""A whole model on an accelerator, one token a sequence at a time: the unfused form, the fused one launched op by op,
and the fused one replayed from a recording of its launches.

All forms hold the same weights and texts and take turns; a time is that of a step as its caller sees it, until the ids
are on the host. Kernels are counted by CUPTI where it is found. Nothing is said of the speed of a form whose logits
differ."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .. import _kf
from ..config import FusionChoice
from ..errors import refusing
from ..models import WEIGHTS, activation_dtype_of, fusion_mode, model_weights
from ..registry import device_named
from ..vendors import native_cache
from ..weights import ModelFile
from .model_bench import LOGIT_TOLERANCE, compare_logits

FORMS = ("unfused", "fused", "replayed")
_WARM_UP = 6  # steps: plans, recordings
_CHUNK = 512
# Half a unit in the last place, relative; some ten results are rounded in a layer, in each of two forms.
_ROUNDING = {"f16": 2.0**-11, "bf16": 2.0**-8}
_ROUNDED = 20


@dataclass(frozen=True)
class StepEffort:
    """How much to measure."""

    batch: int = 1
    context: int = 512  # tokens of each sequence before those that are timed
    tokens: int = 32
    rounds: int = 5

    def __post_init__(self):
        for name in ("batch", "context", "tokens", "rounds"):
            if getattr(self, name) < 1:
                raise refusing(f"{name}: expected at least 1, got {getattr(self, name)}")

    @property
    def longest(self) -> int:
        return self.context + _WARM_UP + 2 + self.rounds * self.tokens


@dataclass
class StepForm:
    """One form of the model at one batch."""

    form: str
    prompt_ms: float = 0.0  # of one prompt, from its first token to its last being read, in chunks
    step_ms: list[float] = field(default_factory=list)
    launches: int = 0
    kernels: int = -1  # a step's, counted by CUPTI; -1: not counted
    replayed: bool = False
    activation_mb: float = 0.0  # peak
    cache_mb: float = 0.0
    error: float = 0.0  # of the logits, from the unfused form's
    ok: bool = True

    def step(self) -> float:
        return statistics.median(self.step_ms)


@dataclass
class StepResult:
    """Every form over one kind of the weights."""

    weights: str
    label: str  # of the activations
    device: str
    effort: StepEffort
    weight_mb: float
    forms: list[StepForm]
    not_counted: str  # why CUPTI counts nothing; empty: it does


class _Runner:
    def __init__(self, form: str, file: ModelFile, weights: dict, options: dict, effort: StepEffort, fusion: dict):
        self.form, self.effort = StepForm(form), effort
        of_form = {"baseline": True} if form == "unfused" else {"fusion": fusion}
        if form == "unfused":
            options = options | {"cache": options["cache"] | {"page_size": 0}}
        self.engine = _kf.Engine(file.config, weights, options | of_form | {"replay": form == "replayed"})
        vocab_size = file.config["vocab_size"]
        rng = np.random.default_rng(0)  # the same texts for every form
        prompts = rng.integers(0, vocab_size, (effort.batch, effort.context - 1)).astype(np.int32)
        self._ids = rng.integers(0, vocab_size, effort.batch).astype(np.int32)
        first = self.engine.create_sequence()
        self._read(prompts[0], first)  # plans
        self.engine.release_sequence(first)
        self._sequences = [self.engine.create_sequence() for _ in prompts]
        for prompt, sequence in zip(prompts, self._sequences, strict=True):
            self.form.prompt_ms = self._read(prompt, sequence)

    def _read(self, prompt: np.ndarray, sequence: int) -> float:
        start = time.perf_counter()
        for i in range(0, len(prompt), _CHUNK):
            self.engine.step([(sequence, prompt[i : i + _CHUNK], "none")])
        return (time.perf_counter() - start) * 1e3

    def step(self, output: str = "ids") -> np.ndarray:
        batch = [(s, self._ids[i : i + 1], "last") for i, s in enumerate(self._sequences)]
        return self.engine.step(batch, output)

    def timed(self, steps: int, keep: bool = True) -> None:
        for _ in range(steps):
            start = time.perf_counter()
            self._ids = self.step()
            if keep:
                self.form.step_ms.append((time.perf_counter() - start) * 1e3)

    def finish(self) -> str:
        """One more step, counted; why it was not."""
        self.form.kernels, problem = _kf.count_kernels(self.step)
        if self.form.kernels < 0:
            self.step()
        last = self.engine.last_step
        self.form.launches, self.form.replayed = last["launches"], last["replayed"]
        self.form.activation_mb = self.engine.peak_activation_bytes / 1e6
        self.form.cache_mb = self.engine.cache_bytes / 1e6
        return problem


def tolerance(label: str, num_layers: int) -> float:
    """Of logits, in the 2-norm: roundings at random in every layer."""
    if label not in _ROUNDING:
        return LOGIT_TOLERANCE["f32"]
    return _ROUNDING[label] * (_ROUNDED * num_layers) ** 0.5


def measure_steps(
    file: ModelFile,
    *,
    device: str,
    effort: StepEffort | None = None,
    weights: str = "file",
    fusion: FusionChoice = "all",
    say: Callable[[str], None] = lambda text: None,
) -> StepResult:
    """The forms in turns. Forms that the device does not serve raise, as they would at work."""
    effort, device = effort or StepEffort(), device_named(device)
    if weights not in WEIGHTS:
        raise refusing(f"weights: expected {' or '.join(WEIGHTS)}, got {weights!r}")
    mode, only = fusion_mode(fusion)
    if mode == "none":
        raise refusing("fusion: expected measured, all or rules, which are measured against none; got none")
    if effort.longest > file.config["max_positions"]:
        raise refusing(
            f"context: {effort.context} tokens and those after them are {effort.longest}; the model takes "
            f"{file.config['max_positions']}"
        )
    tensors = model_weights(file, weights)
    label = activation_dtype_of(tensors, device)
    options = {
        "device": device, "activation_dtype": label, "cache": {"dtype": label} | native_cache(device),
        "max_seq_len": effort.longest,
        "max_batch_size": effort.batch, "max_step_tokens": max(_CHUNK, effort.batch),
    }  # fmt: skip
    runners = []
    for form in FORMS:
        say(f"{form}: {effort.batch} x {effort.context} tokens")
        runners.append(_Runner(form, file, tensors, options, effort, {"mode": mode, "only": only}))
    logits = [r.step("logits") for r in runners]
    for runner, got in zip(runners, logits, strict=True):
        runner.form.error, _ = compare_logits(logits[0], got)
        runner.form.ok = runner.form.error <= tolerance(label, file.config["num_layers"])
        runner.timed(_WARM_UP, keep=False)
    say(f"{effort.rounds} rounds of {effort.tokens} tokens")
    for _ in range(effort.rounds):
        for runner in runners:
            runner.timed(effort.tokens)
    problems = [r.finish() for r in runners]
    weight_mb = sum(w.nbytes for w in tensors.values()) / 1e6
    return StepResult(weights, label, device, effort, weight_mb, [r.form for r in runners], problems[-1])
