"""Kernels of other projects as rows of a manager's table: flash_attn 2 and 3, xFormers, FlashInfer, vLLM, Liger. A row
imports its project when a call that it would serve comes, and says why it declines the others. The table has our own in
Triton (../triton/) as well."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _kf
from .row import Row
from .table import TABLE

__all__ = ["LIBRARIES", "TABLE", "Row", "list_kernels", "register"]

LIBRARIES = tuple(dict.fromkeys(row.project for row in TABLE))  # as KernelFusionConfig.libraries names them


def register(core: _kf.Manager, projects: Sequence[str] | None = None, table: Sequence[Row] = TABLE) -> None:
    """Puts the rows of these projects (None: of all) before a manager's other kernels, the first of them first."""
    for row in reversed([r for r in table if projects is None or r.project in projects]):
        core.add_kernel(
            row.name, row.op, row.words, row.graph_safe, row.supports, row.run, None, row.family, row.launches,
            check_sizes=False, devices=list(dict.fromkeys(("cpu", *row.devices))),
        )  # fmt: skip


def list_kernels() -> list[dict]:
    """Every kernel: those of the backends compiled in, in the order of trial (of a backend that cannot be used here,
    its own table without the unfused compositions); then those of other projects, which a manager tries before them.
    backend, name, op, families, condition; for these the backend is the project."""
    return _kf.kernels() + [
        {"backend": row.project, "name": row.name, "op": row.op, "families": row.family, "condition": row.words}
        for row in TABLE
    ]
