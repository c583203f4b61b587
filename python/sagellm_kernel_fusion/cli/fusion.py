"""kf fusion"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .. import _kf
from ..errors import refusing
from ..reports import Table
from ..reports.document import ms
from .console import out, print_table

app = typer.Typer(help="The measured fusions that this machine remembers, and overruling them.", no_args_is_help=True)


@app.command("list")
def list_verdicts(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Every fusion that was measured: both times, the error, and whether it is kept."""
    verdicts = _kf.VerdictStore(_kf.VerdictStore.default_path()).list()
    if as_json:
        print(json.dumps(verdicts, indent=1))
        return
    rows = [
        [v["rule"], v["signature"], "kept" if v["keep"] else "not kept", ms(v["unfused_ms"]), ms(v["fused_ms"]),
         f"{v['max_error']:.1e}", v["reason"]]
        for v in verdicts
    ]  # fmt: skip
    columns = ["rule", "shapes", "", "unfused ms", "fused ms", "error", "why"]
    print_table(Table(columns, rows, f"{len(rows)} fusions in {_kf.VerdictStore.default_path()}", 3))


_Rule = Annotated[str, typer.Argument(metavar="RULE", help="A fusion rule (kf info lists them).")]
_Shapes = Annotated[
    str, typer.Argument(metavar="[SHAPES]", help="Only where the shapes, as kf fusion list shows them, contain this.")
]


@app.command("keep")
def keep_rule(rule: _Rule, shapes: _Shapes = "") -> None:
    """Overrule what was measured: apply this rule there from now on."""
    _overrule(rule, shapes, True)


@app.command("drop")
def drop_rule(rule: _Rule, shapes: _Shapes = "") -> None:
    """Overrule what was measured: do not apply this rule there."""
    _overrule(rule, shapes, False)


def _overrule(rule: str, shapes: str, keep: bool) -> None:
    known = [r["name"] for r in _kf.rules()]
    if rule not in known:
        raise refusing(f"rule: expected one of {', '.join(known)}, got {rule}")
    path = _kf.VerdictStore.default_path()
    store = _kf.VerdictStore(path)
    # Another build's verdicts do not count, and need no overruling.
    chosen = [
        v
        for v in store.list()
        if v["rule"] == rule and shapes in v["signature"] and store.find(rule, v["signature"], v["device"]) == v
    ]
    if not chosen:
        where = f" at shapes with {shapes}" if shapes else ""
        raise refusing(
            f"{rule}: no measured fusion{where} is remembered ({path}): run the model first, or kf fusion list"
        )
    if keep and any(wrong := [v["signature"] for v in chosen if v["fused_ms"] == 0]):
        # Forms whose results differed were not timed.
        raise refusing(f"{rule}: the fused results were wrong at {wrong[0]}: that cannot be kept")
    for verdict in chosen:
        store.put(verdict | {"keep": keep, "reason": f"{'kept' if keep else 'dropped'} by hand"})
    store.save()
    out().print(f"{rule}: {'kept' if keep else 'dropped'} in {len(chosen)} places ({path})")


@app.command("clear")
def clear_verdicts() -> None:
    """Forget them: they are measured anew when next needed."""
    path = _kf.VerdictStore.default_path()
    store = _kf.VerdictStore(path)
    count = len(store.list())
    store.clear()
    store.save()
    out().print(f"{count} fusions forgotten ({path})")
