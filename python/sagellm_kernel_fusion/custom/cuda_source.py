"""Kernels as CUDA C++ source."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .. import _kf
from ..checks import at_least, flag, names_of
from ..errors import UnavailableError, refusing
from ..libraries import find_libraries
from .served import Served
from .sizes import sizes_of


@dataclass(frozen=True)
class CudaSource:
    """CUDA C++ that the library compiles for the device at hand (NVRTC, the package nvidia-cuda-nvrtc) and launches.

        CudaSource(r'''extern "C" __global__ void silu(const KF_TYPE* x, KF_TYPE* out, int n) {
                         int i = blockIdx.x * 256 + threadIdx.x;
                         if (i < n) out[i] = x[i] / (1 + expf(-x[i]));
                       }''', "silu", ("x", "out", "x.numel"), grid=lambda a: (-(-a["N"] * a["D"] // 256),))

    entry: the `__global__` function (`"f"`, `"ns::f"`, `"f<4>"`). args: what its parameters are given, in order: an
    operand's name (a pointer, null where an optional one is absent), a size ("x.shape[0]", "x.stride[0]" in elements,
    "x.numel"; N rows of D, which is also D_in; D_out of the result; H of the FFN), or an attribute ("eps"). grid and
    block: thread blocks and threads a block, three numbers at most, or a function of the sizes and the operands'
    layouts (`a["N"]`, `a["x"].shape`) that returns them; asked when a layout is planned. shared_bytes: dynamic shared
    memory. options: for NVRTC. dtypes: what it serves; all floating-point operands of a call have one, which the source
    knows as KF_TYPE. graph_safe: its launches may be recorded and replayed. Operands are contiguous, weights [in, out];
    those whose strides args names may lie in any way. Compiled code is kept in `$KF_CACHE_DIR/cuda`, by content,
    options and architecture."""

    source: str
    entry: str
    args: Sequence[str]
    grid: Sequence[int] | Callable[[Mapping], Sequence[int]]
    block: Sequence[int] | Callable[[Mapping], Sequence[int]] = (256,)
    options: Sequence[str] = ()
    dtypes: Sequence[str] = ("f32",)
    shared_bytes: int | Callable[[Mapping], int] = 0
    graph_safe: bool = True

    def __post_init__(self):
        for name in ("source", "entry"):
            if not isinstance(getattr(self, name), str):
                raise refusing(f"CudaSource: {name}: expected a text, got {type(getattr(self, name)).__name__}")
        for name in ("args", "options", "dtypes"):
            names_of(f"CudaSource: {name}", getattr(self, name))
        for name in ("grid", "block"):
            if not (callable(size := getattr(self, name)) or isinstance(size, (list, tuple))):
                raise refusing(f"CudaSource: {name}: expected up to three numbers or a function, got {size!r:.80}")
        if not callable(self.shared_bytes):
            at_least("CudaSource: shared_bytes", self.shared_bytes, 0)
        flag("CudaSource: graph_safe", self.graph_safe)
        if re.split("<", self.entry)[0].split("::")[-1].strip() not in self.source:
            raise refusing(f"CudaSource: entry: expected a function of the source, got {self.entry}")

    def compile(self, architecture: str, dtype: str = "f32", name: str = "source") -> dict:
        """What NVRTC makes of it for an architecture ("sm_90"), which need not be here: image (bytes), symbol,
        parameters (their types as PTX has them), log, and whether it was cached. Raises InvalidArgumentError with
        NVRTC's log where it does not compile, UnavailableError without NVRTC."""
        find_libraries()
        return _kf.compile_cuda(
            name, self.source, self.entry, list(self.options), architecture=architecture, dtype=dtype
        )


@dataclass(frozen=True)
class Layout:
    """An operand as a launch sees it, without memory. Strides count elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


def add_row(
    core: _kf.Manager, name: str, kernel: CudaSource, form: Served, condition: str, reference: Callable | None
) -> None:
    """The row `custom::<name>` of CUDA devices. Raises UnavailableError where there is none."""
    refuse_without_cuda(name)
    find_libraries()
    core.add_cuda_kernel(
        f"custom::{name}",
        form.op,
        condition,
        kernel.graph_safe,
        kernel.source,
        kernel.entry,
        args_of(kernel, form),
        list(kernel.options),
        list(kernel.dtypes),
        list(form.transposed),
        list(form.fixed),
        lambda fields: launch_shape(name, kernel, form, fields),
        lambda fields: form.declines(fields, [form.field_of(a) for a in kernel.args], name),
        reference,
    )


def args_of(kernel: CudaSource, form: Served) -> list[str]:
    """By the op's own names of its fields."""
    parts = [a.partition(".") for a in kernel.args]
    return [form.field_of(operand) + dot + what for operand, dot, what in parts]


def launch_shape(name: str, kernel: CudaSource, form: Served, fields: Mapping) -> tuple[list[int], list[int], int]:
    """Grid, block and shared memory for a call's layouts."""
    operands = {n: _layout(v, n in form.transposed) for n, v in fields.items() if hasattr(v, "strides")}
    values = (
        operands
        | {n: operands[f] for n, f in form.names.items() if f in operands}
        | sizes_of(operands, form.transposed)
    )

    def numbers(what: str, given) -> list[int]:
        given = given(values) if callable(given) else given
        sizes = [int(n) for n in (given if isinstance(given, Sequence) else (given,))]
        if not 1 <= len(sizes) <= 3:
            raise refusing(f"custom kernel {name}: {what}: expected one to three numbers, got {given}")
        return sizes + [1] * (3 - len(sizes))

    shared = kernel.shared_bytes
    return (
        numbers("grid", kernel.grid),
        numbers("block", kernel.block),
        int(shared(values) if callable(shared) else shared),
    )


def _layout(lent, transposed: bool) -> Layout:
    turn = -1 if transposed else 1
    return Layout(tuple(lent.shape)[::turn], tuple(lent.strides)[::turn], lent.dtype)


def refuse_without_cuda(name: str) -> None:
    """CUDA source is run by the CUDA backend, where there is one."""
    row = next((b for b in _kf.backends() if b["name"] == "cuda"), None)
    reason = "is not compiled into this build" if row is None else row["reason"]
    if reason:
        message = f"custom kernel {name}: CUDA source needs the backend cuda, which {reason}"
        raise UnavailableError(message, {"kernel": name})
