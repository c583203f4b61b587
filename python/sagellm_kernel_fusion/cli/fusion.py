"""kf fusion"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .. import _kf
from ..reports import Table
from ..reports.document import ms
from .console import out, print_table

app = typer.Typer(help="The measured fusions that this machine remembers.", no_args_is_help=True)


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


@app.command("clear")
def clear_verdicts() -> None:
    """Forget them: they are measured anew when next needed."""
    path = _kf.VerdictStore.default_path()
    store = _kf.VerdictStore(path)
    count = len(store.list())
    store.clear()
    store.save()
    out().print(f"{count} fusions forgotten ({path})")
