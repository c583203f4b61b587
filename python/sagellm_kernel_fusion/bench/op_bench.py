"""Benchmark cases: the kernel that would run against the unfused one, interleaved, checked in the same run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import _kf
from ..call import FAMILIES, FUSED, VANILLA, Selection
from ..errors import KernelFusionError, NotServedError, refusing


@dataclass
class OpResult:
    case: str
    op: str
    timing: dict | None  # as the binding gives it; None where one side does not serve the case
    reason: str = ""

    @property
    def speedup(self) -> float | None:
        """Only where the results agreed."""
        t = self.timing
        return t["baseline_ms"] / t["optimized_ms"] if t and t["ok"] else None

    @property
    def same_kernel(self) -> bool:
        return bool(self.timing) and self.timing["baseline"] == self.timing["optimized"]


def select_cases(names: Sequence[str]) -> list[dict]:
    """Benchmark cases whose op or name is, or starts with, one of `names`; all without names."""
    bench = [c for c in _kf.cases() if c["bench"]]
    chosen = [c for c in bench if not names or any(c["op"] == n or c["name"].startswith(n) for n in names)]
    if not chosen:
        ops = ", ".join(sorted({c["op"] for c in bench}))
        raise refusing(f"no benchmark case is named {' or '.join(names)}; there are cases of {ops}")
    return chosen


def baseline_of(name: str) -> Selection:
    """Of a kernel family, or of one kernel by its name."""
    if name in FAMILIES:
        return Selection(families=(name,))
    if name not in {k["name"] for k in _kf.kernels()}:
        raise refusing(f"--baseline: expected one of {', '.join(FAMILIES)}, or a kernel's name; got {name}")
    return Selection(kernel=name)


def run_case(case: dict, seconds: float, baseline: Selection = VANILLA, backend: str = "cpu") -> OpResult:
    try:
        timing = _kf.time_case(case["name"], baseline.bound(), FUSED.bound(), seconds, backend)
    except NotServedError as error:
        return OpResult(case["name"], case["op"], None, str(error).splitlines()[0])
    except KernelFusionError as error:
        raise type(error)(f"{case['name']}: {error.message}", error.context) from error
    return OpResult(case["name"], case["op"], timing, timing["detail"])


def run_cases(
    cases: Sequence[dict],
    seconds: float,
    on_result: Callable[[OpResult], None],
    baseline: Selection = VANILLA,
    backend: str = "cpu",
) -> list[OpResult]:
    results = []
    for case in cases:
        results.append(run_case(case, seconds, baseline, backend))
        on_result(results[-1])
    return results
