"""Kernels as CUDA C++ source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import _kf
from ..errors import UnavailableError, refusing


@dataclass(frozen=True)
class CudaSource:
    """CUDA C++ that the library compiles for the device at hand (NVRTC) and launches.

    entry: the name of the `__global__` function. args: operands and sizes by the names that its op has for them, in the
    order of the function's parameters. grid and block: thread blocks and threads a block, three numbers at most, or a
    function of the operands that returns them.
    """

    source: str
    entry: str
    args: Sequence[str]
    grid: Sequence[int] | Callable
    block: Sequence[int] | Callable = (256,)
    options: Sequence[str] = ()

    def __post_init__(self):
        if self.entry not in self.source:
            raise refusing(f"CudaSource: entry: expected a function of the source, got {self.entry}")


def refuse_without_cuda(name: str) -> None:
    """CUDA source is compiled and run by the CUDA backend, where there is one."""
    row = next((b for b in _kf.backends() if b["name"] == "cuda"), None)
    reason = "is not compiled into this build" if row is None else row["reason"] or "does not take source yet"
    message = f"custom kernel {name}: CUDA source needs the backend cuda, which {reason}"
    raise UnavailableError(message, {"kernel": name})
