"""The configuration, field by field as the specification names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from typing import Literal, get_args

from . import _kf
from .errors import refusing

FusionTarget = Literal["attention", "ffn", "layernorm", "softmax", "activation", "ln_linear", "gelu_linear"]
AttentionBackend = Literal["flash2", "flash3", "paged", "xformers", "vanilla", "triton"]
FusionBackend = Literal["cuda", "triton", "rocm", "tensorrt"]
QuantDtype = Literal["int4", "int8", "fp8"]
SparsePattern = Literal["n:m", "unstructured"]
FusionChoice = str | Sequence[str]  # "measured", "all", "none", or names of rules


@dataclass
class KernelFusionConfig:
    """What to fuse, with which kernels. Fields after the specification's own are keyword-only.

    A value that a field does not take is refused when it is given, later assignments included. docs/configuration.md
    says what each field does on each backend. A manager reads num_threads, profile_kernels, log_fusion_stats,
    custom_kernels and libraries when it is made, and the other fields at every call."""

    # Attention
    attention_backend: AttentionBackend = "flash2"
    use_paged_attention: bool = True  # False: a call with block tables is refused
    page_size: int = 16  # tokens a page of the K/V caches that the library makes; a given cache has its own
    enable_gqa: bool = True  # False: fewer K/V heads than query heads are refused
    num_kv_heads: int | None = None  # None: as the tensors say

    # FFN
    fuse_ffn: bool = True  # gate, up, activation and down in one call
    fuse_gelu_linear: bool = True  # a GELU and the linear layer after it
    fuse_silu_linear: bool = True

    # Norms
    fuse_ln: bool = True
    fuse_ln_linear: bool = True  # a norm and the linear layer after it
    fuse_rmsnorm: bool = True

    # Softmax
    fuse_softmax: bool = True
    use_online_softmax: bool = True  # False: attention writes its scores out

    # With quantization and sparsity
    fuse_with_quant: bool = False  # low-bit operands are read by the kernels; False: dequantized to memory first
    quant_dtype: QuantDtype | None = None  # what low-bit operands must be of; None: any
    fuse_with_sparse: bool = False
    sparse_pattern: SparsePattern | None = None

    # Custom kernels
    custom_kernels: dict[str, Callable] | None = None  # registered when a manager is made
    use_triton: bool = False
    use_cuda_graph: bool = False  # only kernels whose launches can be recorded and replayed

    # Performance
    backend: FusionBackend | str = "cuda"  # the kernels for device tensors; or a registered backend's name
    enable_tf32: bool = True
    enable_fp16: bool = True
    enable_bf16: bool = False

    # Telemetry
    profile_kernels: bool = False  # time every call
    log_fusion_stats: bool = True  # count calls, and log what they come to

    _: KW_ONLY
    # Further fusions of whole graphs
    fuse_residual: bool = True  # the residual added where it is read or written anyway
    fuse_qkv: bool = True  # the three layers before attention as one
    fuse_rope: bool = True  # rotation, QK-norm and the cache's append in one call
    fuse_lm_head: bool = True  # the last layer and the greedy choice as one
    fuse_lora: bool = True  # low-rank adapters added by the layer that they belong to
    allow_fallback: bool = False  # False: what the configured kernels cannot serve is an error
    deterministic: bool = False  # a row has the same bits whatever the batch: only kernels that promise it
    num_threads: int = 0  # of a call on the CPU; 0: all
    libraries: list[str] | None = None  # other projects whose kernels may be taken; None: all that are installed
    # How graph rules are applied: "measured" keeps what is faster here, "all", "none", or just the rules of these
    # names ("rule,rule" or a list)
    fusion: FusionChoice = "measured"
    only_rules: list[str] = field(default_factory=list)  # non-empty: just these graph rules
    except_rules: list[str] = field(default_factory=list)  # never these

    def __setattr__(self, name: str, value) -> None:
        if name not in _CHECKS:
            near = get_close_matches(name, _CHECKS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise refusing(f"KernelFusionConfig: there is no field {name}{hint}", field=name)
        if problem := _CHECKS[name](value):
            raise refusing(f"KernelFusionConfig: {name}: expected {problem}, got {value!r}", field=name)
        object.__setattr__(self, name, value)
        self.__dict__.pop("_bound", None)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_bound"}

    def bound(self) -> _kf.Config:
        """The configuration as the C++ library has it; made again when a field has changed."""
        if (bound := self.__dict__.get("_bound")) is None:
            values = {name: getattr(self, name) for name in _BOUND}
            if self.backend in get_args(FusionBackend):
                values["backend"] = self.backend
            bound = self.__dict__["_bound"] = _kf.Config(values)
        return bound

    def work_dtype(self) -> str:
        """The 16-bit type that the library may choose where the choice is its own; f32 where it may choose none."""
        return "bf16" if self.enable_bf16 else "f16" if self.enable_fp16 else "f32"


# What a field takes, in words where the value is not that.


def _boolean(value) -> str | None:
    return None if isinstance(value, bool) else "True or False"


def _at_least(least: int) -> Callable[[object], str | None]:
    def check(value):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and value >= least else f"an integer of at least {least}"

    return check


def _one_of(choices: Sequence[str]) -> Callable[[object], str | None]:
    return lambda value: None if isinstance(value, str) and value in choices else f"one of {', '.join(choices)}"


def _or_none(check: Callable[[object], str | None]) -> Callable[[object], str | None]:
    def checked(value):
        problem = None if value is None else check(value)
        return problem and f"None or {problem}"

    return checked


def _backend(value) -> str | None:
    from .registry import KernelFusionBackendRegistry  # its backends have configurations

    return _one_of(list(dict.fromkeys([*get_args(FusionBackend), *KernelFusionBackendRegistry.names()])))(value)


def _kernels(value) -> str | None:
    good = isinstance(value, dict) and all(isinstance(name, str) for name in value)
    return None if good else "a dictionary of kernels by operator name"


def _names(value) -> str | None:
    good = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
    return None if good else "a list of names"


def _libraries(value) -> str | None:
    from .adapters import LIBRARIES  # they are rows of a manager, which has a configuration

    good = not _names(value) and all(name in LIBRARIES for name in value)
    return None if good else f"a list of {', '.join(LIBRARIES)}"


@cache
def _known_rules() -> tuple[str, ...]:
    return tuple(rule["name"] for rule in _kf.rules())


def _rules(value) -> str | None:
    good = not _names(value) and set(value) <= set(_known_rules())
    return None if good else f"a list of rules among {', '.join(_known_rules())}"


_MODES = ("measured", "all", "none")


def _fusion(value) -> str | None:
    if isinstance(value, str):
        value = [] if value in _MODES else [name.strip() for name in value.split(",")]
    return (problem := _rules(value)) and f"{', '.join(_MODES)}, or {problem}"


def _threads(value) -> str | None:
    return None if not _at_least(0)(value) and value <= _MAX_THREADS else f"an integer of 0 to {_MAX_THREADS}"


_CHECKS: dict[str, Callable[[object], str | None]] = {
    f.name: _boolean for f in fields(KernelFusionConfig) if isinstance(f.default, bool)
} | {
    "attention_backend": _one_of(get_args(AttentionBackend)),
    "page_size": _at_least(1),
    "num_kv_heads": _or_none(_at_least(1)),
    "quant_dtype": _or_none(_one_of(get_args(QuantDtype))),
    "sparse_pattern": _or_none(_one_of(get_args(SparsePattern))),
    "custom_kernels": _or_none(_kernels),
    "backend": _backend,
    "num_threads": _threads,
    "libraries": _or_none(_libraries),
    "fusion": _fusion,
    "only_rules": _rules,
    "except_rules": _rules,
}
_MAX_THREADS = 4096
_OWN = ("backend", "custom_kernels", "libraries", "fusion", "only_rules", "except_rules")
# The fields that C++ has under the same name and takes as they are.
_BOUND = [n for n in _CHECKS if n not in _OWN]
