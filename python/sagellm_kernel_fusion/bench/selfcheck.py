"""The cases on a device, each kernel against the CPU's reference: what the owner of a card runs, and sends back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .. import _kf
from ..errors import UnavailableError, refusing
from ..registry import ALIASES, KernelFusionBackendRegistry
from ..vendors.vendor import REGISTERED
from .environment import environment


def usable_backend(name: str, where: str = "selfcheck") -> dict:
    """The backend of this name or alias as `backends()` has it. Raises where it cannot be used here; `where`: what
    asked for it."""
    name = ALIASES.get(name, name)
    if name not in _kf.backend_names() and name in KernelFusionBackendRegistry.names():
        KernelFusionBackendRegistry.backend_class(name)  # of another distribution: loaded now
    if name not in _kf.backend_names():
        raise refusing(f"{where}: backend: expected one of {', '.join(_kf.backend_names())}, got {name}")
    [row] = _kf.backends(name)
    if not row["available"]:
        raise UnavailableError(f"backend {name}: {row['reason']}", {"backend": name})
    return row


def select(ops: Sequence[str], every: int = 1) -> list[dict]:
    """The cases of test size, of these ops (none: all): of each op the first of every so many."""
    if unknown := [op for op in ops if op not in _kf.ops()]:
        raise refusing(f"selfcheck: op: expected some of {', '.join(_kf.ops())}, got {', '.join(unknown)}")
    if every < 1:
        raise refusing(f"selfcheck: every: expected at least 1, got {every}")
    cases: dict[str, list[dict]] = {}
    for case in _kf.cases():
        if not case["bench"] and (not ops or case["op"] in ops):
            cases.setdefault(case["op"], []).append(case)
    return [c for of_op in cases.values() for c in of_op[::every]]


def selfcheck(
    backend: str, ops: Sequence[str] = (), every: int = 1, step: Callable[[str], None] = lambda name: None
) -> dict:
    """Every kernel of the backend on every case. The report: backend, device, environment, ok, served (whether a
    kernel of its own served a case), cases, rows ({kernel, level, cases, served, failed, max_error, declined: {reason:
    count}}) and failures ({case, kernel, detail})."""
    there = usable_backend(backend)
    name, device = there["name"], there["devices"][0]
    levels = {row.name: row.level for vendor in REGISTERED.values() for row in vendor.table()}
    rows: dict[str, dict] = {}
    failures = []
    cases = select(ops, every)
    for case in cases:
        step(case["name"])
        for check in _kf.check_case(case["name"], name):
            kernel = check["kernel"].removesuffix("+packed")
            level = levels.get(kernel, "runs" if name == "cpu" else "")
            row = rows.setdefault(kernel, _row(kernel, level))
            _count(row, check)
            if check["supported"] and not check["ok"]:
                failures.append({"case": case["name"], "kernel": check["kernel"], "detail": check["detail"]})
    served = any(row["served"] for row in _that_count(rows.values()))
    return {
        "kind": "selfcheck",
        "backend": name,
        "device": device,
        "environment": environment() | {"torch": _torch_versions()},
        "ok": served and not failures,
        "served": served,
        "cases": len(cases),
        "rows": list(rows.values()),
        "failures": failures,
    }


def _that_count(rows: Iterable[dict]) -> list[dict]:
    """The rows of which one has to serve: a vendor's own, where these ops have any, and not PyTorch's beside them,
    which serve without the vendor's library, too."""
    plain = {row.name for vendor in REGISTERED.values() for row in vendor.table() if row.family == "vanilla"}
    rows = [row for row in rows if not row["kernel"].endswith("_reference")]
    own = [row for row in rows if row["kernel"] not in plain and not row["kernel"].endswith("_unfused")]
    return own or rows


def _row(kernel: str, level: str) -> dict:
    return {"kernel": kernel, "level": level, "cases": 0, "served": 0, "failed": 0, "max_error": 0.0, "declined": {}}


def _count(row: dict, check: dict) -> None:
    row["cases"] += 1
    if not check["supported"]:
        row["declined"][check["reason"]] = row["declined"].get(check["reason"], 0) + 1
        return
    row["served"] += 1
    row["failed"] += not check["ok"]
    row["max_error"] = max(row["max_error"], check["relative_error"])


_PACKAGES = ("torch", "torch-npu", "torch-mlu", "torch-mlu-ops", "torch-xmlir", "kunlun-ops", "paddlepaddle-xpu")


def _torch_versions() -> dict:
    """Of what is installed, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
