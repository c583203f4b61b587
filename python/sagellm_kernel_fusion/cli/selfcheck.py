"""kf selfcheck"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Steps, out, print_table


def selfcheck(
    backend: Annotated[
        str | None, typer.Option("--backend", help="Which backend; by default the one that is detected.")
    ] = None,
    op: Annotated[list[str] | None, typer.Option("--op", help="Cases of this op only; may be given again.")] = None,
    every: Annotated[int, typer.Option("--every", help="One of so many cases of each op; 1: all.")] = 8,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")] = None,
) -> None:
    """Checks every kernel of a device against the CPU's reference on the test cases; exit code 1 where one is wrong."""
    from ..bench.selfcheck import select, selfcheck, usable_backend
    from ..files import write_or_refuse
    from ..registry import KernelFusionBackendRegistry
    from ..reports import Table
    from ..reports.write import to_json

    name = usable_backend(backend or KernelFusionBackendRegistry.detect_backend())["name"]
    with Steps(len(select(op or [], every))) as steps:
        report = selfcheck(name, op or [], every, steps.next)
    rows = [
        [r["kernel"], r["level"], str(r["cases"]), str(r["served"]), str(r["failed"]), f"{r['max_error']:.2g}"]
        for r in report["rows"]
    ]
    columns = ["kernel", "level", "cases", "served", "wrong", "largest error"]
    print_table(Table(columns, rows, f"{name}: {report['device']['name']} {report['device']['isa']}", 2))
    for failure in report["failures"][:20]:
        out().print(f"{failure['case']} on {failure['kernel']}: {failure['detail']}", markup=False)
    if json_file is not None:
        write_or_refuse({json_file: to_json(report)})
    verdict = "every kernel is right" if report["ok"] else f"{len(report['failures'])} wrong results"
    if not report["served"]:
        declined = next((reason for r in report["rows"] for reason in r["declined"]), "")
        verdict = "no kernel served any case" + (f": {declined}" if declined else "")
    out().print(f"{report['cases']} cases: {verdict}", markup=False)
    if not report["ok"]:
        raise typer.Exit(1)
