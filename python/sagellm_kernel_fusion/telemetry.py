"""What a manager's calls came to: statistics, measured gains, a timeline."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

from . import _kf
from .checks import flag
from .errors import KernelFusionError, NotServedError, refusing
from .files import write_or_refuse

_log = logging.getLogger("sagellm_kernel_fusion")
_BUDGET_SECONDS = 1.0  # of one report
_SPEEDUPS = {"attention_speedup": "attention", "ffn_speedup": "gated_ffn"}


class Gains:
    """Measurements of the distinct calls of a manager, each made once."""

    def __init__(self, core: _kf.Manager):
        self._core = core
        self._measured: dict[tuple[str, str], dict | None] = {}  # by kernel and shapes; None: cannot be measured
        self._lock = threading.Lock()

    def reset(self) -> None:
        with self._lock:
            self._measured.clear()

    def report(self, measure: bool) -> dict[str, float]:
        measure = flag("report: measure", measure)
        calls = self._core.distinct()
        if measure:
            with self._lock:
                self._measure(calls)
        report = self._gains(calls)
        for row in self._core.counts():
            key = f"kernel_calls_{row['op']}"
            report[key] = report.get(key, 0.0) + row["launches"]
        return report

    def _measure(self, calls: list[dict]) -> None:
        open_calls = [c for c in calls if (c["kernel"], c["shapes"]) not in self._measured]
        open_calls.sort(key=lambda c: -c["calls"])
        deadline = time.monotonic() + _BUDGET_SECONDS
        for i, call in enumerate(open_calls):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            key = call["kernel"], call["shapes"]
            try:
                # A share of what is left, so that the many small ones are all reached.
                self._measured[key] = self._core.replay(*key, left / (len(open_calls) - i) / 2)
            except KernelFusionError as error:
                _log.debug("%s cannot be measured: %s", call["kernel"], error)
                self._measured[key] = None

    def _gains(self, calls: list[dict]) -> dict[str, float]:
        known = []
        for call in calls:
            measured = self._measured.get((call["kernel"], call["shapes"]))
            if measured is not None and measured["agreed"]:
                known.append((call, measured))
        report = {}
        for key, op in _SPEEDUPS.items():
            of_op = [(c, m) for c, m in known if c["op"] == op]
            if any(m["kernel"] != m["baseline"] for _, m in of_op):
                report[key] = _ratio(of_op, "baseline_seconds", "seconds")
        if any(m["kernel"] != m["baseline"] for _, m in known):
            report["e2e_speedup"] = _ratio(known, "baseline_seconds", "seconds")
            report["kernel_calls_reduction"] = 1 - 1 / _ratio(known, "baseline_launches", "launches")
            plain = max(m["baseline_bytes"] for _, m in known)
            if plain > 0:
                report["memory_saving"] = 1 - max(m["bytes"] for _, m in known) / plain
        return report


def _ratio(known: list[tuple[dict, dict]], above: str, below: str) -> float:
    return sum(c["calls"] * m[above] for c, m in known) / sum(c["calls"] * m[below] for c, m in known)


def stats_of(core: _kf.Manager, timed: bool) -> dict:
    ops: dict[str, dict] = {}
    for row in core.counts():
        op = ops.setdefault(row["op"], {"calls": 0, "kernel_calls": 0, "fallbacks": 0, "kernels": {}})
        op["calls"] += row["calls"]
        op["kernel_calls"] += row["launches"]
        op["fallbacks"] += row["fallbacks"]
        op["kernels"][row["kernel"]] = {
            "calls": row["calls"],
            "kernel_calls": row["launches"],
            "bytes": row["bytes"],
            "flops": row["flops"],
            "seconds": row["seconds"] if timed else None,
            "fallbacks": row["fallbacks"],
            "fallback_reason": row["fallback_reason"],
        }
    return {"ops": ops, "distinct_calls": core.distinct()}


def log_report(report: dict[str, float], counts: list[dict]) -> None:
    """One line of gains, and one for each kernel that served calls outside the configured family."""
    _log.info("kernel fusion: %s", ", ".join(f"{name} {value:.4g}" for name, value in report.items()) or "no calls")
    for row in counts:
        if row["fallbacks"]:
            _log.warning(
                "%s served %d calls of %s as a fallback: %s",
                row["kernel"], row["fallbacks"], row["op"], row["fallback_reason"],
            )  # fmt: skip


class SpanExporter:
    """A manager's timed calls as OpenTelemetry's spans, each given once."""

    def __init__(self, core: _kf.Manager):
        # torch.compile's tracer loses the object of methods that it looks up itself.
        self._call, self._spans = core.call, core.spans
        self._given: dict[int, int] = {}  # by thread, the number of the last call that was given
        self._own = threading.local()  # last: the number of this thread's last call
        self._lock = threading.Lock()

    def call(self, *arguments):
        """A call of the manager's core, given at once where the program has set up OpenTelemetry: its span is then a
        child of the caller's."""
        results = self._call(*arguments)
        if (tracer := _tracer_of_the_program()) is not None:
            last = getattr(self._own, "last", 0)
            if spans := self._spans(last, True):
                self._own.last = spans[-1][6]
                self._export(spans, tracer)
        return results

    def export(self, tracer=None) -> int:
        """tracer: an OpenTelemetry Tracer; None: that of the global provider."""
        if tracer is None:
            try:
                import opentelemetry.trace  # noqa: F401
            except ImportError as error:
                raise NotServedError(
                    "export_spans: opentelemetry is not installed: pip install opentelemetry-sdk, or use write_trace"
                ) from error
            if (tracer := _tracer_of_the_program()) is None:
                raise refusing(
                    "export_spans: expected a tracer, or OpenTelemetry's provider to be set "
                    "(opentelemetry.trace.set_tracer_provider); found neither, and spans would be lost"
                )
        if not hasattr(tracer, "start_span"):
            raise refusing(f"export_spans: tracer: expected OpenTelemetry's Tracer, got {type(tracer).__name__}")
        return self._export(self._spans(), tracer)

    def _export(self, spans: list[tuple], tracer) -> int:
        # Calls are timed by the steady clock, spans are dated.
        epoch = time.time_ns() - time.monotonic_ns()
        with self._lock:
            new = [span for span in spans if span[6] > self._given.get(span[5], 0)]
            for op, kernel, shapes, start, seconds, thread, number in new:
                began = epoch + int(start * 1e9)
                attributes = {"kf.op": op, "kf.kernel": kernel, "kf.shapes": shapes, "thread.id": _signed(thread)}
                span = tracer.start_span(kernel, start_time=began, attributes=attributes)
                span.end(began + int(seconds * 1e9))
                self._given[thread] = number
        return len(new)


def _tracer_of_the_program():
    """That of the provider which the program has set up; None: it has none, and nothing is imported for it."""
    if (trace := sys.modules.get("opentelemetry.trace")) is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    return provider.get_tracer("sagellm_kernel_fusion", _kf.__version__)


def _signed(number: int) -> int:
    """Attributes are 64-bit integers with a sign."""
    return number - (1 << 64) if number >= 1 << 63 else number


def write_chrome_trace(path: str | os.PathLike, spans: list[tuple]) -> int:
    """Trace Event Format, complete events; times in microseconds."""
    try:
        path = Path(path)
    except TypeError:
        raise refusing(f"write_trace: path: expected the name of a file, got {type(path).__name__}") from None
    threads: dict[int, int] = {}
    events = [
        {
            "name": kernel,
            "cat": op,
            "ph": "X",
            "ts": start * 1e6,
            "dur": seconds * 1e6,
            "pid": os.getpid(),
            "tid": threads.setdefault(thread, len(threads)),
            "args": {"op": op, "shapes": shapes},
        }
        for op, kernel, shapes, start, seconds, thread, _ in spans
    ]
    write_or_refuse({path: json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})})
    return len(events)
