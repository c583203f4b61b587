"""The report of `kf bench model`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..bench.model_bench import (
    DECODE_AFTER,
    PrecisionResult,
    RuleGain,
    Scenario,
    peak_share,
    token_gb_s,
    tpot_scenario,
    weights_gb_s,
)
from .document import Document, Section, Table, environment_facts, ms, percent_less, times
from .plots import grouped_bars, signed_bars

_MODES = ("unfused", "fused")


def _pair(result: PrecisionResult, i: int) -> tuple[Scenario, Scenario]:
    return tuple(result.scenarios[mode][i] for mode in _MODES)


def _tpot_pair(result: PrecisionResult) -> tuple[Scenario, Scenario]:
    return tuple(tpot_scenario(result, mode) for mode in _MODES)


def _ratio(result: PrecisionResult, before: float, after: float) -> float | None:
    return before / after if result.ok and after > 0 else None


def _time_row(r: PrecisionResult, what: str, before: float, after: float) -> list[str]:
    change = percent_less(before, after) if r.ok else "–"
    return [r.label, what, f"{ms(before)} ms", f"{ms(after)} ms", change, times(_ratio(r, before, after))]


def comparison_table(results: Sequence[PrecisionResult]) -> Table:
    """Unfused against fused, one line a figure."""
    rows = []
    for r in results:
        for i in range(len(r.scenarios["fused"])):
            a, b = _pair(r, i)
            rows.append(_time_row(r, f"time to first token, prompt {a.prompt}", a.ttft(), b.ttft()))
        a, b = _tpot_pair(r)
        rows.append(_time_row(r, f"time per token after {a.prompt}", a.tpot(), b.tpot()))
        calls = (a.calls_token, b.calls_token)
        rows.append([r.label, "kernel calls per token", *map(str, calls), percent_less(*calls), ""])
        a, b = _pair(r, -1)
        memory = (a.activation_mb, b.activation_mb)
        what = f"peak activation memory, prompt {a.prompt}"
        rows.append([r.label, what, *(f"{mb:.1f} MB" for mb in memory), percent_less(*memory), ""])
    return Table(["weights", "figure", "unfused", "fused", "change", "speed-up"], rows, text_columns=2)


def _reading(r: PrecisionResult) -> str:
    rate = token_gb_s(r, "fused")
    return f"at {rate:.1f} of {r.read_gb_s:.1f} GB/s ({rate / r.read_gb_s:.0%})"


def peak_table(results: Sequence[PrecisionResult]) -> Table:
    """How near a prompt's time comes to what its arithmetic takes at least."""
    rows = []
    for r in results:
        for i, gflop in enumerate(r.prompt_gflop):
            least = gflop / r.peak_gflops * 1e3
            shares = (
                f"{ms(s.ttft())} ms ({peak_share(r, m, i):.0%})" for m, s in zip(_MODES, _pair(r, i), strict=True)
            )
            rows.append(
                [r.label, str(r.scenarios["fused"][i].prompt), f"{gflop:.0f} GFLOP", f"{ms(least)} ms", *shares]
            )
    table = Table(["weights", "prompt", "arithmetic", "takes at least", "unfused", "fused"], rows, text_columns=1)
    peaks = ", ".join(dict.fromkeys(f"{r.peak_gflops:.0f}" for r in results))
    table.caption = (
        f"The first token beside what its matrix products take at this machine's peak of f32 multiply-adds ({peaks} "
        "GFLOP/s, measured in the same run), and the share of that peak reached: fusion cannot save more than the rest."
    )
    return table


def check_table(results: Sequence[PrecisionResult]) -> Table:
    rows = [
        [r.label, f"{r.error:.1e}", f"{r.same_top:.1%}", "agree" if r.ok else "DIFFER", f"{r.weight_mb:.0f} MB",
         f"{r.packed_mb:.0f} MB", _reading(r)]
        for r in results
    ]  # fmt: skip
    columns = [
        "weights",
        "relative error of the logits",
        "same top token",
        "results",
        "weights in memory",
        "packed copies",
        "weights, keys and values read per token",
    ]
    return Table(columns, rows)


def _saved(pair: tuple[float, float]) -> float:
    return 100 * (pair[0] - pair[1]) / pair[0]


def rule_table(rules: Sequence[RuleGain]) -> Table:
    rows = [
        [
            g.rule + (" *" if g.needs else ""),
            str(g.places),
            f"{ms(g.ttft_ms[0])} → {ms(g.ttft_ms[1])} ms" if g.ok else "–",
            f"{-_saved(g.ttft_ms):+.1f}%" if g.ok else "–",
            f"{ms(g.tpot_ms[0])} → {ms(g.tpot_ms[1])} ms" if g.ok else "–",
            f"{-_saved(g.tpot_ms):+.1f}%" if g.ok else "–",
            f"{g.calls_token[0]} → {g.calls_token[1]}",
            f"{g.activation_mb[0]:.1f} → {g.activation_mb[1]:.1f} MB",
            f"{g.error:.1e}",
        ]
        for g in rules
    ]
    columns = ["rule alone", "places", "first token", "", "per token", "", "calls per token", "activations", "error"]
    return Table(columns, rows)


def _figures(r: PrecisionResult) -> list[tuple[str, str]]:
    pairs = [_pair(r, i) for i in range(len(r.scenarios["fused"]))]
    prompts = [f"prompt {a.prompt}" for a, _ in pairs]

    def bars(caption: str, unit: str, key: str, value, with_ratio: bool) -> tuple[str, str]:
        series = {mode: [value(pair[k]) for pair in pairs] for k, mode in enumerate(_MODES)}
        notes = [times(_ratio(r, value(a), value(b))) for a, b in pairs] if with_ratio else []
        return caption, grouped_bars(prompts, series, unit, notes, name=f"{r.weights}-{key}")

    figures = [
        bars("Time to first token", "ms", "ttft", Scenario.ttft, True),
        bars("Time per token after the prompt", "ms", "tpot", Scenario.tpot, True),
        bars("Peak activation memory of the prompt", "MB", "memory", lambda s: s.activation_mb, False),
    ]
    agreed = [g for g in r.rules if g.ok]
    for key, what in (("ttft_ms", "time to first token"), ("tpot_ms", "time per token")) if agreed else ():
        saved = [_saved(getattr(g, key)) for g in agreed]
        plot = signed_bars([g.rule for g in agreed], saved, "% less time", name=f"{r.weights}-rules-{key}")
        figures.append((f"What each rule saves by itself: {what}", plot))
    return figures


def _precision_section(r: PrecisionResult) -> Section:
    verdict = "The two forms agree." if r.ok else "THE TWO FORMS DIFFER: nothing is said of their speed."
    text = f"Prompts followed by single tokens; medians of interleaved rounds. {verdict}"
    tables = []
    if r.rules:
        tables = [rule_table(r.rules)]
        tables[0].caption = (
            "Each fusion rule by itself against none, all kernels otherwise the same. "
            "* takes what another rule makes: on top of that rule, against it."
        )
    return Section(f"{r.label} weights", text, tables, _figures(r))


_FUSED = {"measured": "the rules that were measured to win here", "all": "every rule"}


def model_document(
    name: str, results: Sequence[PrecisionResult], environment: dict, fusion: str = "measured"
) -> Document:
    highlights = []
    for r in results:
        if not r.ok:
            continue
        a, b = _pair(r, -1)
        highlights.append((times(a.ttft() / b.ttft()), f"first token, prompt {a.prompt}, {r.label}"))
        a, b = _tpot_pair(r)
        highlights.append((times(a.tpot() / b.tpot()), f"each token after {a.prompt}, {r.label}"))
    a, b = _pair(results[0], -1)
    highlights.append((percent_less(a.activation_mb, b.activation_mb), f"activation memory, prompt {a.prompt}"))
    highlights.append((percent_less(a.calls_token, b.calls_token), "kernel calls per token"))
    overview = Section(
        "Unfused against fused",
        "Unfused: the same model in primitive ops over the best library kernels, every intermediate written, as an "
        f"eager framework runs it. Fused: the graph after {_FUSED.get(fusion, f'the rules {fusion}')}.",
        tables=[comparison_table(results), check_table(results), peak_table(results)],
    )
    summary = [f"{name}, unfused against fused on one machine, in one run, results compared in that run."]
    sections = [overview, *map(_precision_section, results)]
    return Document(f"Kernel fusion on {name}", summary, highlights, environment_facts(environment), sections)


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _row(name: str, r: PrecisionResult, mode: str, s: Scenario) -> dict:
    return {
        "model": name,
        "precision": r.label,
        "scenario": f"prompt_{s.prompt}",
        "batch_size": 1,
        "ttft_ms": s.ttft(),
        "tbt_ms": s.tpot(),
        "throughput_tps": 1e3 / s.tpot(),
        "latency_p50_ms": _percentile(s.token_ms, 0.50),
        "latency_p95_ms": _percentile(s.token_ms, 0.95),
        "latency_p99_ms": _percentile(s.token_ms, 0.99),
        "memory_mb": s.activation_mb,
        "mode": mode,
        "prompt_tokens": s.prompt,
        "kernel_calls_prompt": s.calls_prompt,
        "kernel_calls_token": s.calls_token,
        "rounds": len(s.ttft_ms),
    }


def _comparison(r: PrecisionResult) -> dict:
    a, b = _tpot_pair(r)
    speedups = {}
    if r.ok:
        speedups = {
            "ttft_speedup": {
                str(u.prompt): u.ttft() / f.ttft() for u, f in zip(*(r.scenarios[m] for m in _MODES), strict=True)
            },
            "tbt_speedup": a.tpot() / b.tpot(),
        }
    last = _pair(r, -1)
    return {
        "precision": r.label,
        "results_agree": r.ok,
        "logits_relative_error": r.error,
        "same_top_token": r.same_top,
        "tbt_after_tokens": a.prompt,
        "memory_saving": 1 - last[1].activation_mb / last[0].activation_mb,
        "kernel_calls_reduction": 1 - b.calls_token / a.calls_token,
        "weights_mb": r.weight_mb,
        "packed_mb": r.packed_mb,
        "read_gb_s": r.read_gb_s,
        "peak_gflops": r.peak_gflops,
        "prompt_gflop": r.prompt_gflop,
        "cache_mb": r.cache_mb,
        "token_gb_s": {mode: token_gb_s(r, mode) for mode in _MODES},
        "weights_gb_s": {mode: weights_gb_s(r, mode) for mode in _MODES},
        **speedups,
    }


def _rule(r: PrecisionResult, g: RuleGain) -> dict:
    known = {
        "precision": r.label,
        "rule": g.rule,
        "needs": g.needs,
        "places": g.places,
        "results_agree": g.ok,
        "logits_relative_error": g.error,
        "kernel_calls_token": list(g.calls_token),
        "activation_mb": list(g.activation_mb),
    }
    return known | ({"ttft_ms": list(g.ttft_ms), "tbt_ms": list(g.tpot_ms)} if g.ok else {})


def model_json(name: str, results: Sequence[PrecisionResult], environment: dict, fusion: str = "measured") -> dict:
    """The sibling benchmark suite's end-to-end format; keys of ours besides."""
    rows = [_row(name, r, mode, s) for r in results for mode in _MODES for s in r.scenarios[mode]]
    mean = lambda key: statistics.fmean(row[key] for row in rows)  # noqa: E731
    return {
        "kind": "e2e",
        "simulate": False,
        "models": [name],
        "batch_sizes": [1],
        "precisions": [r.label for r in results],
        "summary": {
            "total_rows": len(rows),
            "avg_ttft_ms": mean("ttft_ms"),
            "avg_tbt_ms": mean("tbt_ms"),
            "avg_throughput_tps": mean("throughput_tps"),
        },
        "rows": rows,
        "comparisons": [_comparison(r) for r in results],
        "rules": [_rule(r, g) for r in results for g in r.rules],
        "tbt_after": DECODE_AFTER,
        "fusion": fusion,
        "environment": environment,
    }
