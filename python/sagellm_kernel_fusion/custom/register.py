"""Whatever is registered as a custom kernel, as a row."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from .. import _kf
from ..checks import flag
from ..errors import refusing
from . import triton_kernel
from .adapter import Adapter
from .cuda_source import CudaSource, add_row
from .fused_kernel import FusedKernel
from .served import Served, served
from .triton_kernel import TritonKernel


def register(
    core: _kf.Manager, name: str, kernel, *, op: str | None, reference: Callable | None, graph_safe: bool
) -> list[Adapter]:
    """Adds the row `custom::<name>`; returns its function and its reference's, where that is given."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise refusing(f"register_custom_kernel: name: expected a name, got {name!r}")
    graph_safe = flag("register_custom_kernel: graph_safe", graph_safe)
    if isinstance(kernel, FusedKernel):
        op, graph_safe = op or kernel.op, graph_safe or kernel.graph_safe
        reference = reference or kernel.reference
    if reference is not None and not callable(reference):
        raise refusing(
            f"register_custom_kernel: {name}: reference: expected a callable, got {type(reference).__name__}"
        )
    form = served(name if op is None else op)
    check = None if reference is None else Adapter(f"{name}::reference", reference, form)
    if isinstance(kernel, CudaSource):
        condition = f"CUDA source, for {op or name}; checked before use"
        add_row(core, name, kernel, form, condition, check and check.run)
        return [] if check is None else [check]
    adapter = _adapter(name, kernel, form)
    condition = f"{adapter.what}, for {op or name}; checked before use"
    core.add_kernel(
        f"custom::{name}", form.op, condition, graph_safe, adapter.supports, adapter.run, check and check.run
    )
    return [adapter] if check is None else [adapter, check]


def _adapter(name: str, kernel, form: Served) -> Adapter:
    if triton_kernel.is_triton(kernel):
        kernel = TritonKernel(kernel)
    if isinstance(kernel, TritonKernel):
        launch = triton_kernel.launcher(name, kernel, form.op, form.transposed)
        declines = triton_kernel.declines(kernel, form.transposed)
        return Adapter(name, launch, form, what="a Triton kernel", declines=declines, kind="torch")
    if isinstance(kernel, FusedKernel):
        apply = _apply_of(kernel, form)
        return Adapter(name, apply, form, what=type(kernel).__name__, declines=kernel.supports)
    if not callable(kernel):
        raise refusing(
            f"register_custom_kernel: {name}: expected a callable, a Triton kernel, TritonKernel, CudaSource or "
            f"FusedKernel, got {type(kernel).__name__}"
        )
    return Adapter(name, kernel, form)


def _apply_of(kernel: FusedKernel, form: Served) -> Callable:
    """`apply` with its first parameter under the name of the op's first operand."""
    signature = inspect.signature(kernel.apply)
    first, *others = signature.parameters.values()
    operand = _kf.ops()[form.op]["fields"][0]["name"]

    def apply(**operands):
        return kernel.apply(operands.pop(operand), **operands)

    apply.__signature__ = signature.replace(parameters=[first.replace(name=operand), *others])
    return apply
