"""What a report says, before it is HTML, Markdown or text on a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Table:
    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    text_columns: int = 1  # from the left; the others are numbers, right-aligned


@dataclass
class Section:
    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)  # (caption, SVG)


@dataclass
class Document:
    title: str
    summary: list[str]  # sentences
    highlights: list[tuple[str, str]]  # (figure, what it is)
    facts: list[tuple[str, str]]  # the machine and the versions
    sections: list[Section]


def ms(value: float) -> str:
    """Milliseconds with three significant digits."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def times(ratio: float | None) -> str:
    """A speed-up; a dash where none was measured or the results did not agree."""
    return "–" if ratio is None else f"{ratio:.2f}x"


def percent_less(before: float, after: float) -> str:
    """How much less `after` is, "-35%"."""
    return "–" if before <= 0 else f"{(after - before) / before:+.0%}"


def environment_facts(environment: dict) -> list[tuple[str, str]]:
    packages = ", ".join(f"{name} {v}" for name, v in environment["packages"].items())
    return [
        ("Device", environment["device"]),
        ("Instruction set", f"{environment['isa']}, {environment['threads']} threads"),
        ("Memory", f"{environment['memory_gb']} GB, last-level cache {environment['l3_mb']} MB"),
        ("System", f"{environment['system']}, Python {environment['python']}"),
        ("Versions", f"sagellm-kernel-fusion {environment['version']}, {packages}"),
        ("Date", environment["date"]),
    ]
