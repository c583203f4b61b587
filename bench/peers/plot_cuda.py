"""Plots of cuda_peers.py's and llama_decode_torch.py's figures, as SVG files: a group of bars a case, a bar a contender.

    python bench/peers/plot_cuda.py FOLDER PEERS.json [MODEL_PEERS.json]
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path

COLOURS = ("#2f7de1", "#6fb1ff", "#9aa5b1", "#d8973c", "#2a9d6f", "#8d6cc2", "#c8553d", "#5f6b76")
LEFT, WIDTH, BAR, GAP = 330, 860, 11, 8


def plot(title: str, unit: str, cases: dict[str, dict[str, float]]) -> str:
    """Horizontal bars, labelled with their values; contenders in the order in which they come first."""
    names = list(dict.fromkeys(name for bars in cases.values() for name in bars))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    longest = max(value for bars in cases.values() for value in bars.values())
    out, y = [], 26

    def text(x: float, y: float, what: str, more: str = "") -> None:
        out.append(f'<text x="{x:.0f}" y="{y:.0f}" {more}>{escape(what)}</text>')

    text(8, 18, f"{title}, {unit}", 'font-weight="bold" font-size="13"')
    x = 8
    for name in names:
        if x + 7 * len(name) > WIDTH - 20:
            x, y = 8, y + 16
        out.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour[name]}"/>')
        text(x + 14, y + 9, name)
        x += 30 + int(6.3 * len(name))
    y += 24
    for case, bars in cases.items():
        text(LEFT - 8, y + len(bars) * BAR / 2 + 4, case, 'text-anchor="end"')
        for name, value in bars.items():
            length = value / longest * (WIDTH - LEFT - 60)
            out.append(
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 1}" fill="{colour[name]}"/>'
            )
            text(LEFT + length + 4, y + BAR - 2, f"{value:.3g}", 'font-size="9"')
            y += BAR
        y += GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="11">'
        f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>' + "".join(out) + "</svg>\n"
    )


def of(group: dict, figure, without=()) -> dict:
    """By case and contender, where it was measured."""
    return {
        case: {name: figure(row, rows) for name, row in rows.items() if "us" in row and name not in without}
        for case, rows in group.items()
    }


def main() -> None:
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    folder, peers = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    groups, gpu = peers["results"], peers["gpu"]
    plots = {
        "rows": (
            "Rows", "of the speed of a copy of as many bytes",
            of(groups["rows"], lambda row, rows: rows["copy"]["us"] / row["us"], ("copy",)),
        ),
        "prefill": ("Attention of prompts", "TFLOP/s", of(groups["prefill"], lambda row, _: row["tflops"])),
        "decode": (
            "Attention of one token a sequence", "TB/s of keys and values",
            of(groups["decode"], lambda row, _: row["tb_per_s"]),
        ),
        "linear": (
            "Gated FFN; a norm or GELU, then a linear layer", "time in that of the products alone",
            {
                case: {
                    name: row["us"] / next(r["us"] for n, r in rows.items() if n.startswith("the product"))
                    for name, row in rows.items()
                    if "us" in row and not name.startswith("the product")
                }
                for case, rows in (groups["ffn"] | groups["linear"]).items()
            },
        ),
    }  # fmt: skip
    if len(sys.argv) == 4:
        model = json.loads(Path(sys.argv[3]).read_text())["results"]
        plots["model"] = (
            "A step of one token a sequence", "ms",
            {
                f"{r['shape']}, batch {r['batch']}": {n: v for n, v in r["ms_per_step"].items() if n != "eager"}
                for r in model
            },
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, (title, unit, cases) in plots.items():
        (folder / f"cuda-{name}.svg").write_text(plot(f"{title}, bf16, {gpu}", unit, cases))


if __name__ == "__main__":
    main()
