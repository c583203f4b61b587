"""The report of `kf bench model --device`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..bench.step_bench import StepForm, StepResult
from .document import Document, Section, Table, environment_facts, ms, percent_less, times

_COLUMNS = [
    "batch", "form", "a step", "tokens/s", "speed-up", "prompt", "launches", "kernels", "activations", "logits' error",
]  # fmt: skip
_FORMS = (
    "Unfused: primitive ops over the best library kernels, launched one by one. Fused: the graph after its rules, "
    "launched one by one. Replayed: the same from a recording of its launches, where the device makes one. Kernels of "
    "a step are counted by CUPTI."
)


def _ratio(result: StepResult, form: StepForm) -> float | None:
    return result.forms[0].step() / form.step() if form.ok else None


def _name(form: StepForm) -> str:
    return "not replayed" if form.form == "replayed" and not form.replayed else form.form


def _row(result: StepResult, form: StepForm) -> list[str]:
    counted = str(form.kernels) if form.kernels >= 0 else "–"
    time = f"{ms(form.step())} ms" if form.ok else "–"
    rate = f"{result.effort.batch * 1e3 / form.step():.0f}" if form.ok else "–"
    return [
        str(result.effort.batch), _name(form), time, rate, times(_ratio(result, form)), f"{ms(form.prompt_ms)} ms",
        str(form.launches), counted, f"{form.activation_mb:.1f} MB", f"{form.error:.1e}",
    ]  # fmt: skip


def step_document(name: str, results: Sequence[StepResult], environment: dict) -> Document:
    first = results[0]
    table = Table(_COLUMNS, [_row(r, f) for r in results for f in r.forms], text_columns=2)
    best = [(times(_ratio(r, r.forms[-1])), f"a step of batch {r.effort.batch}") for r in results if r.forms[-1].ok]
    saved = (first.forms[0].activation_mb, first.forms[-1].activation_mb)
    highlights = [*best, (percent_less(*saved), "activation memory")]
    summary = [
        f"{name} in {first.label} on {first.device}, {first.effort.context} tokens in the cache; forms in turns, "
        "results compared in the same run."
    ]
    section = Section("Decoding", _FORMS, [table])
    title = f"Kernel fusion on {name}, {first.device}"
    return Document(title, summary, highlights, environment_facts(environment), [section])


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _json_row(name: str, result: StepResult, form: StepForm) -> dict:
    known = {
        "model": name,
        "precision": result.label,
        "scenario": f"context_{result.effort.context}",
        "batch_size": result.effort.batch,
        "memory_mb": form.activation_mb,
        "mode": form.form,
        "cache_mb": form.cache_mb,
        "launches": form.launches,
        "kernels_counted_by_cupti": form.kernels,
        "replayed": form.replayed,
        "logits_relative_error": form.error,
        "results_agree": form.ok,
        "steps": len(form.step_ms),
    }
    if not form.ok:
        return known
    return known | {
        "ttft_ms": form.prompt_ms + form.step(),
        "tbt_ms": form.step(),
        "throughput_tps": result.effort.batch * 1e3 / form.step(),
        "latency_p50_ms": _percentile(form.step_ms, 0.50),
        "latency_p95_ms": _percentile(form.step_ms, 0.95),
        "latency_p99_ms": _percentile(form.step_ms, 0.99),
    }


def step_json(name: str, results: Sequence[StepResult], environment: dict, fusion: str) -> dict:
    """The sibling benchmark suite's end-to-end format; keys of ours besides."""
    rows = [_json_row(name, r, f) for r in results for f in r.forms]
    timed = [row for row in rows if row["results_agree"]]
    summary = {"total_rows": len(rows)}
    for key in ("ttft_ms", "tbt_ms", "throughput_tps"):
        summary[f"avg_{key}"] = statistics.fmean(row[key] for row in timed)
    return {
        "kind": "e2e",
        "simulate": False,
        "models": [name],
        "batch_sizes": [r.effort.batch for r in results],
        "precisions": [results[0].label],
        "summary": summary,
        "rows": rows,
        "weights_mb": results[0].weight_mb,
        "kernels_not_counted": results[0].not_counted,
        "fusion": fusion,
        "environment": environment,
    }
