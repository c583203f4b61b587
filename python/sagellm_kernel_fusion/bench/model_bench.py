"""A whole model, unfused against fused: time to first token, time per token, memory, kernel calls, error of the
logits, and what each fusion rule gains by itself.

Both forms do the same work on the same tokens, taking turns within a round so that drift of the machine hits both; a
figure is the median of the rounds. Nothing is said to be faster unless its result agreed in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .. import _kf
from ..config import FusionChoice
from ..errors import refusing
from ..models import WEIGHTS, fusion_mode, model_weights
from ..weights import ModelFile

# Largest relative error (2-norm, over the logits of a prompt) at which two forms count as the same. f32: rounding in
# another order; at the file's weights 16-bit activations may round too.
LOGIT_TOLERANCE = {"f32": 1e-4, "file": 1e-3}
EMBEDDINGS = ("model.embed_tokens.weight", "token_embd.weight")  # the table, as formats name it
DECODE_AFTER = 512  # where the time per token is read off


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    prompts: tuple[int, ...] = (128, 512, 2048)
    rounds: int = 5
    long_rounds: int = 3  # for prompts of more than 1024
    decode_tokens: int = 48
    rule_prompt: int = 512
    rule_rounds: int = 3
    rule_decode_tokens: int = 24
    check_tokens: int = 128  # positions whose logits are compared
    measure_rules: bool = True

    def rounds_of(self, prompt: int) -> int:
        return self.long_rounds if prompt > 1024 else self.rounds

    def within_prompts(self) -> Effort:
        """Nothing longer than the longest prompt, which engines are made for."""
        longest = max(self.prompts)
        return replace(self, rule_prompt=min(self.rule_prompt, longest), check_tokens=min(self.check_tokens, longest))


QUICK = Effort(
    rounds=3, long_rounds=1, decode_tokens=17, rule_prompt=128, rule_rounds=2, rule_decode_tokens=7, check_tokens=64
)


@dataclass
class Scenario:
    """One form after one prompt length."""

    prompt: int
    ttft_ms: list[float] = field(default_factory=list)  # of each round
    token_ms: list[float] = field(default_factory=list)  # of each token of each round
    activation_mb: float = 0.0  # peak, intermediates and workspaces of the prompt's step
    calls_prompt: int = 0
    calls_token: int = 0

    def ttft(self) -> float:
        return statistics.median(self.ttft_ms)

    def tpot(self) -> float:
        return statistics.median(self.token_ms)


@dataclass
class RuleGain:
    """A rule alone against no rule, with the same kernels otherwise.

    A rule that takes what other rules make (`needs`) is measured on top of them, against them.
    """

    rule: str
    needs: list[str]
    places: int  # where it applied
    ttft_ms: tuple[float, float]  # without, with
    tpot_ms: tuple[float, float]
    calls_token: tuple[int, int]
    activation_mb: tuple[float, float]
    error: float
    ok: bool


@dataclass
class PrecisionResult:
    """Everything at one form of the weights."""

    weights: str  # "f32" or "file"
    label: str  # "f32" or "q4_1"
    weight_mb: float
    token_mb: float  # of them, what a token reads: each weight once, of an untied embedding table next to nothing
    cache_mb: float  # keys and values that a token reads besides, on average
    packed_mb: float
    read_gb_s: float  # at which this machine reads these weights, measured between the rounds of the time per token
    peak_gflops: float  # of f32 multiply-adds in registers, measured in the same run
    prompt_gflop: list[float]  # what each prompt's matrix products and attention take, in the order of the scenarios
    scenarios: dict[str, list[Scenario]]  # mode -> one a prompt length
    error: float
    same_top: float  # share of positions with the same top token
    ok: bool
    rules: list[RuleGain]


class _Runner:
    """One form of the model, with one sequence."""

    def __init__(self, file: ModelFile, weights: dict, options: dict, verdicts=None, packs=None):
        self.engine = _kf.Engine(file.config, weights, options, verdicts, packs=packs)
        self.sequence = self.engine.create_sequence()

    def step(self, tokens: np.ndarray, rows: str = "last", output: str = "ids") -> tuple[float, np.ndarray]:
        """Milliseconds, and the greedy choice (or the logits)."""
        start = time.perf_counter()
        result = self.engine.step([(self.sequence, tokens, rows)], output)
        return (time.perf_counter() - start) * 1e3, result

    def reset(self) -> None:
        self.engine.truncate(self.sequence, 0)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        self.reset()
        return self.step(tokens, "all", "logits")[1]

    def round(self, scenario: Scenario, prompt: np.ndarray, following: np.ndarray, keep: bool) -> None:
        """A prompt and the tokens after it; every form is fed the same ones."""
        self.reset()
        ttft, _ = self.step(prompt)
        scenario.activation_mb = self.engine.last_step["activation_bytes"] / 1e6
        scenario.calls_prompt = self.engine.last_step["launches"]
        # One token unmeasured: its step may have to be planned first.
        times = [self.step(following[i : i + 1])[0] for i in range(len(following))][1:]
        scenario.calls_token = self.engine.last_step["launches"]
        if keep:
            scenario.ttft_ms.append(ttft)
            scenario.token_ms += times


def _tokens(vocab_size: int, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, count).astype(np.int32)


def _options(effort: Effort, threads: int, **more) -> dict:
    longest = max(effort.prompts) + max(effort.decode_tokens, effort.rule_decode_tokens)
    return {"max_seq_len": longest, "max_batch_size": 1, "max_step_tokens": longest, "num_threads": threads, **more}


def _decode_prompt(prompts: Iterable[int]) -> int:
    """After which of them the time per token is read off: 512 tokens, or the nearest."""
    return min(prompts, key=lambda prompt: abs(prompt - DECODE_AFTER))


def _take_turns(
    runners: dict[str, _Runner],
    prompt_length: int,
    effort: Effort,
    vocab_size: int,
    between: Callable[[], None],
) -> dict[str, Scenario]:
    prompt, following = _tokens(vocab_size, prompt_length), _tokens(vocab_size, effort.decode_tokens)
    scenarios = {mode: Scenario(prompt_length) for mode in runners}
    for turn in range(effort.rounds_of(prompt_length) + 1):  # the first plans and warms up
        for mode, runner in runners.items():
            runner.round(scenarios[mode], prompt, following, keep=turn > 0)
        if turn > 0:
            between()
    return scenarios


def compare_logits(expected: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """Relative error in the 2-norm, and the share of rows with the same top token."""
    error = float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))
    return error, float(np.mean(expected.argmax(-1) == got.argmax(-1)))


def _prerequisites(rule: dict) -> list[str]:
    """The rules that make the ops which this one's pattern is of."""
    return [r["name"] for r in _kf.rules() if r["replacement"] in rule["pattern"] and r["name"] != rule["name"]]


class _RuleBench:
    """Rules one at a time; all forms with the same kernels, so that a difference is the rule's own."""

    def __init__(self, file: ModelFile, weights: dict, kind: str, effort: Effort, threads: int):
        self.file, self.weights, self.kind, self.effort, self.threads = file, weights, kind, effort, threads
        vocab_size = file.config["vocab_size"]
        self.prompt = _tokens(vocab_size, effort.rule_prompt)
        self.following = _tokens(vocab_size, effort.rule_decode_tokens)
        self.packs = _kf.PackCache()  # one copy for all forms
        self.none = self.runner([])

    def runner(self, rules: list[str]) -> _Runner:
        fusion = {"mode": "all", "only": rules} if rules else {"mode": "none"}
        families = ["custom", "fused", "library", "vanilla"]
        options = _options(self.effort, self.threads, families=families, fusion=fusion)
        return _Runner(self.file, self.weights, options, packs=self.packs)

    def places(self, runner: _Runner, rule: dict) -> int:
        shape = runner.engine.shape_of("ids", len(self.prompt), 1, 1, len(self.prompt))
        return sum(a["kept"] and a["rule"] == rule["name"] for a in runner.engine.applied(shape))

    def measure(self, rule: dict) -> RuleGain | None:
        """None: it applies nowhere in this model."""
        before, needs = self.none, []
        after = self.runner([rule["name"]])
        if not (places := self.places(after, rule)):
            needs = _prerequisites(rule)
            after = self.runner([*needs, rule["name"]])
            if not needs or not (places := self.places(after, rule)):
                return None
            before = self.runner(needs)
        checked = self.prompt[: self.effort.check_tokens]
        error, _ = compare_logits(before.logits(checked), after.logits(checked))
        a, b = Scenario(len(self.prompt)), Scenario(len(self.prompt))
        for turn in range(self.effort.rule_rounds + 1):
            before.round(a, self.prompt, self.following, keep=turn > 0)
            after.round(b, self.prompt, self.following, keep=turn > 0)
        return RuleGain(
            rule["name"],
            needs,
            places,
            (a.ttft(), b.ttft()),
            (a.tpot(), b.tpot()),
            (a.calls_token, b.calls_token),
            (a.activation_mb, b.activation_mb),
            error,
            error <= LOGIT_TOLERANCE[self.kind],
        )


def measure_rules(
    file: ModelFile, weights: dict, kind: str, effort: Effort, threads: int, say: Callable[[str], None]
) -> list[RuleGain]:
    """Each rule that applies to this model, alone against none (or on top of the rules whose op it takes)."""
    bench = _RuleBench(file, weights, kind, effort, threads)
    gains = []
    for rule in _kf.rules():
        say(f"rule {rule['name']} by itself")
        if gain := bench.measure(rule):
            gains.append(gain)
    return gains


def _label(file: ModelFile, kind: str) -> str:
    """What most of the weights are stored as."""
    if kind == "f32":
        return "f32"
    sizes: dict[str, int] = {}
    for tensor in file.tensors.values():
        name = str(tensor.dtype)
        sizes[name] = sizes.get(name, 0) + int(np.prod(tensor.shape))
    return max(sizes, key=sizes.__getitem__)


def measure_precision(
    file: ModelFile, kind: str, effort: Effort, threads: int, fusion: FusionChoice, say: Callable[[str], None]
) -> PrecisionResult:
    say("loading")
    mode, only = fusion_mode(fusion)
    weights = model_weights(file, kind)
    verdicts = _kf.VerdictStore(_kf.VerdictStore.default_path())
    runners = {
        "unfused": _Runner(file, weights, _options(effort, threads, baseline=True)),
        "fused": _Runner(file, weights, _options(effort, threads, fusion={"mode": mode, "only": only}), verdicts),
    }
    vocab_size = file.config["vocab_size"]
    say("comparing logits")
    checked = _tokens(vocab_size, effort.check_tokens)
    error, same_top = compare_logits(*(runners[m].logits(checked) for m in ("unfused", "fused")))
    scenarios: dict[str, list[Scenario]] = {mode: [] for mode in runners}
    read = [w for name, w in weights.items() if file.config["tie_embeddings"] or name not in EMBEDDINGS]
    # Memory differs by where its pages lie, and a machine shared with others by the minute: so it is these weights
    # themselves that are read, beside the tokens that they are compared with.
    read_gb_s: list[float] = []
    for length in effort.prompts:
        say(f"prompt of {length}, then {effort.decode_tokens} tokens")
        probe = length == _decode_prompt(effort.prompts)
        between = (lambda: read_gb_s.append(_kf.read_bandwidth(read))) if probe else (lambda: None)
        for mode, scenario in _take_turns(runners, length, effort, vocab_size, between).items():
            scenarios[mode].append(scenario)
    packed = runners["fused"].engine.packed_bytes / 1e6
    del runners
    return PrecisionResult(
        kind,
        _label(file, kind),
        sum(w.nbytes for w in weights.values()) / 1e6,
        sum(w.nbytes for w in read) / 1e6,
        _cache_mb(file.config, effort),
        packed,
        statistics.median(read_gb_s),
        _kf.multiply_add_peak(),
        [prompt_gflop(file.config, length) for length in effort.prompts],
        scenarios,
        error,
        same_top,
        error <= LOGIT_TOLERANCE[kind],
        measure_rules(file, weights, kind, effort, threads, say) if effort.measure_rules else [],
    )


def _cache_mb(config: dict, effort: Effort) -> float:
    """Of keys and values, which lie in f32, read by a token halfway between the prompt and the last."""
    length = _decode_prompt(effort.prompts) + effort.decode_tokens / 2
    return length * config["num_layers"] * config["num_kv_heads"] * config["head_dim"] * 2 * 4 / 1e6


def check_options(file: ModelFile, effort: Effort, precisions: Sequence[str], fusion: FusionChoice) -> None:
    """Refuses what would fail, or say nothing, after minutes of measuring."""
    for kind in precisions:
        if kind not in WEIGHTS:
            raise refusing(f"weights: expected {' or '.join(WEIGHTS)}, got {kind!r}")
    if len(set(precisions)) < len(precisions) or not precisions:
        raise refusing(f"weights: expected each form once, got {', '.join(precisions) or 'none'}")
    if fusion_mode(fusion)[0] == "none":
        raise refusing("fusion: expected measured, all or rules, which are measured against none; got none")
    longest, needed = file.config["max_positions"], _options(effort, 0)["max_seq_len"]
    if needed > longest:
        prompt = max(effort.prompts)
        raise refusing(
            f"prompts: {prompt} tokens and those generated after them are {needed}; the model takes {longest}"
        )


def measure_model(
    file: ModelFile,
    *,
    effort: Effort | None = None,
    precisions: Sequence[str] = ("f32", "file"),
    threads: int = 0,
    fusion: FusionChoice = "measured",
    say: Callable[[str], None] = lambda text: None,
) -> list[PrecisionResult]:
    """All of the above for each form of the weights. `say` is told what comes next."""
    effort = (effort or Effort()).within_prompts()
    check_options(file, effort, precisions, fusion)
    return [
        measure_precision(file, kind, effort, threads, fusion, lambda text, kind=kind: say(f"{kind} weights: {text}"))
        for kind in precisions
    ]


def prompt_gflop(config: dict, length: int) -> float:
    """GFLOP of a prompt's matrix products: attention's over the keys that rows see, the last layer's for one row."""
    heads, kv_heads, dim = config["num_heads"], config["num_kv_heads"], config["head_dim"]
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    linear = hidden * dim * (2 * heads + 2 * kv_heads) + 3 * hidden * intermediate
    attention = 2 * heads * dim * (length + 1) / 2  # scores and values, a row sees half of the keys
    per_layer = 2 * length * (linear + attention)
    return (config["num_layers"] * per_layer + 2 * hidden * config["vocab_size"]) / 1e9


def peak_share(result: PrecisionResult, mode: str, i: int) -> float:
    """The share of this machine's multiply-add peak that a prompt's step reaches."""
    return result.prompt_gflop[i] / result.peak_gflops / (result.scenarios[mode][i].ttft() / 1e3)


def weights_gb_s(result: PrecisionResult, mode: str) -> float:
    """GB/s of the weights that a token reads."""
    return result.token_mb / tpot_scenario(result, mode).tpot()


def token_gb_s(result: PrecisionResult, mode: str) -> float:
    """GB/s of all that a token has to read: weights, keys and values."""
    return (result.token_mb + result.cache_mb) / tpot_scenario(result, mode).tpot()


def tpot_scenario(result: PrecisionResult, mode: str) -> Scenario:
    """The scenario that the time per token is read from."""
    prompt = _decode_prompt(s.prompt for s in result.scenarios[mode])
    return next(s for s in result.scenarios[mode] if s.prompt == prompt)
