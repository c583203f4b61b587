"""The report of `kf bench op`."""

from __future__ import annotations

from collections.abc import Sequence

from ..bench.op_bench import OpResult
from .document import Document, Section, Table, environment_facts, ms, times
from .plots import signed_bars

_COLUMNS = ["case", "{}", "fused", "{} ms", "fused ms", "speed-up", "GFLOP/s", "GB/s", "error"]


def op_row(r: OpResult) -> list[str]:
    t = r.timing
    if t is None:
        return [r.case, "–", r.reason, "–", "–", "–", "–", "–", "–"]
    names = [t[k].removeprefix("cpu::") for k in ("baseline", "optimized")]
    rate = t["optimized_ms"] * 1e6
    if not t["ok"]:
        return [r.case, *names, ms(t["baseline_ms"]), "–", "–", "–", "–", f"results differ: {r.reason}"]
    speedup = "same kernel" if r.same_kernel else times(r.speedup)
    return [
        r.case,
        *names,
        ms(t["baseline_ms"]),
        ms(t["optimized_ms"]),
        speedup,
        f"{t['flops'] / rate:.1f}",
        f"{t['bytes'] / rate:.1f}",
        f"{t['relative_error']:.1e}",
    ]


def _called(baseline: str) -> str:
    return "unfused" if baseline == "vanilla" else baseline.removeprefix("cpu::")


def op_table(results: Sequence[OpResult], baseline: str = "vanilla") -> Table:
    return Table([c.format(_called(baseline)) for c in _COLUMNS], [op_row(r) for r in results], text_columns=3)


def op_document(results: Sequence[OpResult], environment: dict, baseline: str = "vanilla") -> Document:
    called = _called(baseline)
    sections = []
    for op in dict.fromkeys(r.op for r in results):
        own = [r for r in results if r.op == op]
        faster = [r for r in own if r.speedup and not r.same_kernel]
        figures = []
        if faster:
            saved = [100 * (1 - 1 / r.speedup) for r in faster]
            plot = signed_bars([r.case for r in faster], saved, f"% less time than {called}", name=f"op-{op}")
            figures.append(("Time saved by the fused kernel", plot))
        sections.append(Section(op, tables=[op_table(own, baseline)], figures=figures))
    wrong = [r.case for r in results if r.timing and not r.timing["ok"]]
    summary = [
        f"{len(results)} cases: the kernel that the library chooses against "
        f"{'the unfused composition' if called == 'unfused' else called}, run in turns on "
        "the same operands; times are medians. GFLOP/s and GB/s are the fused kernel's, operands counted once."
    ]
    if wrong:
        summary.append(f"Results differ, so that nothing is said of their speed: {', '.join(wrong)}.")
    return Document(f"Operators: fused against {called}", summary, [], environment_facts(environment), sections)


def op_json(results: Sequence[OpResult], environment: dict, seconds: float) -> dict:
    """The sibling benchmark suite's operator format; keys of ours besides."""
    comparisons = []
    for r in results:
        t = r.timing
        if t is None:
            continue
        known = {
            "case": r.case,
            "op": r.op,
            "baseline_name": t["baseline"],
            "optimized_name": t["optimized"],
            "baseline_time_ms": t["baseline_ms"],
            "baseline_memory_mb": t["baseline_bytes"] / 1e6,
            "optimized_memory_mb": t["optimized_bytes"] / 1e6,
            "results_agree": t["ok"],
            "relative_error": t["relative_error"],
            "flops": t["flops"],
            "bytes": t["bytes"],
        }
        if t["ok"]:
            saved = t["baseline_ms"] - t["optimized_ms"]
            known |= {
                "optimized_time_ms": t["optimized_ms"],
                "speedup": r.speedup,
                "time_saved_ms": saved,
                "time_saved_pct": 100 * saved / t["baseline_ms"],
            }
        comparisons.append(known)
    return {
        "kind": "operator",
        "device": environment["device"],
        "iterations": min((c.timing["iterations"] for c in results if c.timing), default=0),
        "warmup": 1,
        "comparisons": comparisons,
        "refused": [{"case": r.case, "op": r.op, "reason": r.reason} for r in results if r.timing is None],
        "seconds_per_case": seconds,
        "environment": environment,
    }
