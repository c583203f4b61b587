"""kf info"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .. import _kf
from ..adapters import LIBRARIES, list_kernels
from ..bench.environment import environment
from ..reports import Table
from ..vendors import detect
from .console import out, print_table


def info(
    brief: Annotated[bool, typer.Option("--brief", help="The devices only, not every kernel.")] = False,
    op: Annotated[str | None, typer.Option("--op", help="Kernels of this op only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Devices, backends, and every kernel with the condition under which it serves."""
    kernels = [k for k in list_kernels() if op is None or k["op"] == op]
    if op is not None:
        _require_op(op)
    if as_json:
        found = [f._asdict() for f in detect()]
        values = {"environment": environment(), "backends": _kf.backends(), "plugins": _kf.plugins()}
        values |= {"detected": found, "kernels": kernels, "rules": _kf.rules()}
        print(json.dumps(values, indent=1))
        return
    _print_devices()
    _print_detected()
    if brief:
        for backend in dict.fromkeys(k["backend"] for k in kernels if k["backend"] not in LIBRARIES):
            own = [k for k in kernels if k["backend"] == backend]
            out().print(f"{backend}: {len(own)} kernels for {len({k['op'] for k in own})} ops (kf info lists them)")
        out().print(f"rows for kernels of other projects: {', '.join(LIBRARIES)}")
        out().print(f"{len(_kf.rules())} fusion rules")
        return
    rows = [[k["op"], k["name"], k["families"].replace("|", ", "), k["condition"]] for k in kernels]
    print_table(Table(["op", "kernel", "family", "serves"], rows, "Kernels, in the order in which they are tried", 4))
    rules = [[r["name"], r["summary"], r["flag"]] for r in _kf.rules()]
    if op is None:
        print_table(Table(["rule", "what it fuses", "configured by"], rules, "Fusion rules of graphs", 3))


def _require_op(op: str) -> None:
    from ..errors import refusing

    if op not in _kf.ops():
        raise refusing(f"--op: expected one of {', '.join(_kf.ops())}, got {op}")


def _print_detected() -> None:
    found = detect()
    chosen = next(f.backend for f in found if f.cause is None)
    others = "; ".join(f"not {f.backend}: {f.cause}" for f in found if f.cause is not None)
    out().print(f"detected for PyTorch: {chosen} ({others})", markup=False)


def _print_devices() -> None:
    console = out()
    for plugin in _kf.plugins():
        loaded = f"loaded, version {plugin['version']}" if plugin["backend"] else f"not loaded: {plugin['error']}"
        console.print(f"plug-in {plugin['backend'] or plugin['path']}: {loaded}")
    for backend in _kf.backends():
        if not backend["available"]:
            console.print(f"{backend['name']}: not available: {backend['reason']}")
        for d in backend["devices"]:
            caches = ", ".join(
                f"{name} {d[key] / 2**20:.3g} MB" for name, key in (("L2", "l2_bytes"), ("L3", "l3_bytes")) if d[key]
            )
            console.print(
                f"{d['device']}: {d['name']}; instruction set {d['isa']}, {d['num_threads']} threads, {caches}, "
                f"memory {d['memory_bytes'] / 2**30:.0f} GB"
            )
