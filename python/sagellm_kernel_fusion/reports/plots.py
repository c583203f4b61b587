"""Plots as inline SVG that take their text colour from the page, so that they suit a light and a dark one."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib

UNFUSED, FUSED = "#9aa5b1", "#2f7de1"
GAIN, LOSS = "#2a9d6f", "#c8553d"
_INK = "#010203"  # stands for the page's text colour until the SVG is written

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def _figure(width: float, height: float):
    # The object interface: pyplot would keep state and look for a display.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    return re.sub(r'(<svg [^>]*?)height="[^"]*"', r'\1role="img"', text, count=1)


def _unique_ids(svg: str, prefix: str) -> str:
    """Clip paths and markers of several plots on one page must not share names."""
    return re.sub(r'(id="|url\(#|href="#)', rf"\1{prefix}-", svg)


def grouped_bars(
    groups: Sequence[str], series: dict[str, Sequence[float]], unit: str, notes: Sequence[str] = (), *, name: str
) -> str:
    """Bars side by side: unfused first, fused second. `notes` stand over the last bar of a group."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(1.6 + 1.3 * len(groups), 2.9)
        width = 0.8 / len(series)
        for k, (label, values) in enumerate(series.items()):
            x = [i + (k - (len(series) - 1) / 2) * width for i in range(len(groups))]
            bars = axes.bar(x, values, width * 0.92, label=label, color=(UNFUSED, FUSED)[min(k, 1)])
            axes.bar_label(bars, fmt=lambda v: f"{v:.3g}", fontsize=8, padding=1)
        for i, note in enumerate(notes):
            top = max(values[i] for values in series.values())
            axes.annotate(note, (i, top), xytext=(0, 12), textcoords="offset points", ha="center", weight="bold")
        axes.set_xticks(range(len(groups)), groups)
        axes.set_ylabel(unit)
        axes.margins(y=0.22)
        axes.legend(loc="upper left", fontsize=8)
        return _unique_ids(_svg(figure), name)


def signed_bars(labels: Sequence[str], values: Sequence[float], unit: str, *, name: str) -> str:
    """Horizontal bars to both sides of zero, the largest gain on top."""
    order = sorted(range(len(labels)), key=lambda i: values[i])
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(6.2, 0.9 + 0.3 * len(labels))
        ordered = [values[i] for i in order]
        bars = axes.barh([labels[i] for i in order], ordered, 0.7, color=[GAIN if v >= 0 else LOSS for v in ordered])
        axes.bar_label(bars, fmt=lambda v: f"{v:+.1f}", fontsize=8, padding=2)
        axes.axvline(0, color=_INK, linewidth=0.6)
        axes.set_xlabel(unit)
        axes.margins(x=0.15)
        return _unique_ids(_svg(figure), name)
