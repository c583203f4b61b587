"""kf explain"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from .. import _kf
from ..arrays import layout
from ..call import Selection
from ..call import explain as explain_call
from ..errors import refusing
from ..files import write_or_refuse
from ..reports import Table
from .console import out, print_table

_SHAPE = re.compile(r"(?P<name>\w+)=(?:(?P<dtype>[a-z0-9_]+):)?(?P<dims>\d+(?:x\d+)*)$")


def explain(
    target: Annotated[str, typer.Argument(metavar="OP|model", help="An op (kf info lists them), or the word model.")],
    path: Annotated[Path | None, typer.Argument(help="After model: a GGUF file or a safetensors folder.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", "-s", help="An operand, NAME=[DTYPE:]AxBxC, as in x=512x576 or weight=q4_1:576x576."),
    ] = None,
    attr: Annotated[
        list[str] | None, typer.Option("--attr", "-a", help="An attribute, NAME=VALUE, as in causal=false.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Element type of operands that name none (tables: i32).")] = "f32",
    family: Annotated[
        list[str] | None,
        typer.Option(help="Allow only this kernel family: reference, vanilla, fused, library, custom."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="model: new tokens of the step (1: decoding).")] = 128,
    context: Annotated[
        int, typer.Option(min=0, help="model: tokens of the sequence after the step (0: the new ones).")
    ] = 0,
    fusion: Annotated[str, typer.Option(help="model: all, measured, none, or RULE,RULE.")] = "all",
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg", help="model: draw the graphs, as SVG: FILE before fusion, FILE-fused, FILE-both side by side."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Which kernel would serve a call and why each other does not; or a model's graph before and after fusion.

    kf explain rms_norm -s x=512x576 -s weight=576

    kf explain linear -s x=1x576 -s weight=q4_1:1536x576

    kf explain model MODEL.gguf --tokens 1 --svg graph.svg
    """
    if target == "model":
        if path is None:
            raise refusing("kf explain model: expected a GGUF file or a safetensors folder after it")
        _explain_model(path, tokens, max(tokens, context), fusion, svg, as_json)
    else:
        if path is not None:
            raise refusing(f"kf explain {target}: expected operands as --shape, got {path}")
        _explain_op(target, shape or [], attr or [], dtype, family, as_json)


def _operands(op: str, shapes: list[str], attrs: list[str], dtype: str) -> dict:
    if op not in _kf.ops():
        raise refusing(f"op: expected one of {', '.join(_kf.ops())}, or model; got {op}")
    fields = {f["name"]: f for f in _kf.ops()[op]["fields"]}
    values: dict = {}
    for text in shapes:
        if not (match := _SHAPE.match(text)):
            raise refusing(f"--shape: expected NAME=[DTYPE:]AxBxC, got {text}")
        default = "i32" if fields.get(match["name"], {}).get("integers") else dtype
        values[match["name"]] = layout(match["dtype"] or default, [int(n) for n in match["dims"].split("x")])
    for text in attrs:
        name, equals, value = text.partition("=")
        if not equals:
            raise refusing(f"--attr: expected NAME=VALUE, got {text}")
        values[name] = _parse(fields.get(name, {}).get("kind", ""), name, value)
    return values


def _parse(kind: str, name: str, value: str):
    try:
        if kind == "bool":
            return {"true": True, "false": False}[value.lower()]
        return {"int": int, "float": float}.get(kind, str)(value)
    except (ValueError, KeyError):
        raise refusing(f"--attr {name}: expected a {kind}, got {value}") from None


def _explain_op(
    op: str, shapes: list[str], attrs: list[str], dtype: str, families: list[str] | None, as_json: bool
) -> None:
    selection = Selection(families=tuple(families)) if families else None
    rows = explain_call(op, selection, **_operands(op, shapes, attrs, dtype))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    out().print(f"{op}: {_kf.ops()[op]['summary']}")
    shown = [
        ["→" if r["selected"] else "", r["kernel"], r["families"].replace("|", ", "), r["reason"] or _verdict(r)]
        for r in rows
    ]
    print_table(Table(["", "kernel", "family", ""], shown, text_columns=4))
    if not any(r["selected"] for r in rows):
        out().print("No allowed kernel serves this call: it would raise not_implemented.")


def _verdict(row: dict) -> str:
    return "runs" if row["selected"] else "would serve; an earlier one does"


def _explain_model(path: Path, tokens: int, context: int, fusion: str, svg: Path | None, as_json: bool) -> None:
    from ..models import load_model

    model = load_model(path, fusion=fusion, context=context, max_step_tokens=max(tokens, 4), max_batch_size=1)
    engine = model.engine
    shape = engine.shape_of("ids", tokens, 1, 1, context)
    before, after, applied = engine.graph("ids"), engine.fused_graph(shape), engine.applied(shape)
    if svg is not None:
        write_or_refuse(
            {
                svg: engine.graph("ids", "svg"),
                svg.with_stem(f"{svg.stem}-fused"): engine.fused_graph(shape, "svg"),
                svg.with_stem(f"{svg.stem}-both"): engine.before_after_svg(shape),
            }
        )
    if as_json:
        print(
            json.dumps({"before": before, "after": after, "applied": applied, "steps": engine.explain(shape)}, indent=1)
        )
        return
    console = out()
    for title, text in (("Before fusion", before), ("After fusion", after), ("As it runs", engine.explain(shape))):
        console.print(f"{title}, {text.strip().count(chr(10)) + 1} nodes", style="bold")
        print(text)
    rows = [[a["rule"], a["label"], "kept" if a["kept"] else "not kept", a["reason"]] for a in applied]
    print_table(Table(["rule", "place", "", "why"], rows, "What became of each rule", 4))
