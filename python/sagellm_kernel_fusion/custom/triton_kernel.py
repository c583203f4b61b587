"""Triton kernels with their launch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature

from .. import _kf
from ..checks import integer
from ..errors import refusing
from .sizes import sizes_of

# The operands that a parameter of a bare kernel stands for, by its name in the specification.
_POINTERS = {
    "x_ptr": "x", "w_ptr": "weight", "b_ptr": "bias", "ln_w_ptr": "norm_weight", "ln_b_ptr": "norm_bias",
    "linear_w_ptr": "weight", "gate_w_ptr": "gate_weight", "up_w_ptr": "up_weight", "down_w_ptr": "down_weight",
    "q_ptr": "q", "k_ptr": "k", "v_ptr": "v", "residual_ptr": "residual", "out_ptr": "out",
}  # fmt: skip
_BLOCK_SIZE = 128


@dataclass(frozen=True)
class TritonKernel:
    """A `@triton.jit` function with its launch.

        TritonKernel(fn, grid=lambda a: (triton.cdiv(a["N"], 64),), args={"x_ptr": "x", "out_ptr": "out", "BLOCK": 64})

    grid: the program grid, or a function of the arguments that returns it. args: what each parameter of `fn` is given:
    an operand's name, a size's, or a number; or a function of operands and sizes that returns this. Sizes: N (rows of
    x), D and D_in (their width), D_out (the result's), H (the FFN's intermediate width). Parameters that `args` leaves
    out go by the specification's names: x_ptr, w_ptr, b_ptr, ln_w_ptr, ln_b_ptr, linear_w_ptr, gate_w_ptr, up_w_ptr,
    down_w_ptr, q_ptr, k_ptr, v_ptr, residual_ptr, out_ptr, the sizes, eps, and BLOCK_SIZE (128), over cdiv(N,
    BLOCK_SIZE) programs. Weights are [in, out] as x @ W has them, all operands contiguous."""

    fn: Callable
    grid: Sequence[int] | Callable[[Mapping], Sequence[int]] | None = None
    args: Mapping[str, object] | Callable[[Mapping], Mapping[str, object]] | None = None

    def __post_init__(self):
        if not hasattr(self.fn, "arg_names"):
            raise refusing(f"TritonKernel: fn: expected a @triton.jit function, got {type(self.fn).__name__}")
        if not (self.grid is None or callable(self.grid)):
            try:
                object.__setattr__(self, "grid", tuple(integer("TritonKernel: grid", size) for size in self.grid))
            except TypeError:
                raise refusing(
                    f"TritonKernel: grid: expected sizes or a function of the arguments, got {type(self.grid).__name__}"
                ) from None
        if not (self.args is None or callable(self.args) or isinstance(self.args, Mapping)):
            raise refusing(
                f"TritonKernel: args: expected a mapping of parameters or a function, got {type(self.args).__name__}"
            )


def is_triton(kernel) -> bool:
    """Whether it is what @triton.jit makes; without importing Triton."""
    return any(c.__module__.split(".")[0] == "triton" for c in type(kernel).__mro__)


def interpreted(fn) -> bool:
    """Whether the function runs through Triton's interpreter: TRITON_INTERPRET=1 was set when it was defined."""
    return "Interpreted" in type(fn).__name__


def launcher(name: str, kernel: TritonKernel, op: str, transposed: Collection[str]) -> Callable:
    """The launch as a function of the op's fields that it uses, for an Adapter."""
    parameters = list(kernel.fn.arg_names)

    def launch(**operands) -> None:
        values = operands | sizes_of(operands, transposed)
        given = kernel.args(values) if callable(kernel.args) else dict(kernel.args or {})
        arguments = {p: _argument(name, p, given.get(p), values) for p in parameters}
        grid = kernel.grid(arguments) if callable(kernel.grid) else kernel.grid
        if grid is None:
            grid = (math.ceil(values["N"] / arguments.get("BLOCK_SIZE", _BLOCK_SIZE)),)
        kernel.fn[tuple(grid)](**arguments)

    if not callable(kernel.args):  # what such a function uses is not known: it is given everything
        launch.__signature__ = Signature(
            [Parameter(f, Parameter.KEYWORD_ONLY, default=None) for f in _fields_used(kernel, parameters, op)]
        )
    return launch


def _fields_used(kernel: TritonKernel, parameters: list[str], op: str) -> list[str]:
    """The first operand and the result, whose sizes are the call's, and what parameters stand for."""
    fields = [f["name"] for f in _kf.ops()[op]["fields"]]
    named = {given for given in (kernel.args or {}).values() if isinstance(given, str)}
    named |= {_POINTERS.get(p, p) for p in parameters if p not in (kernel.args or {})}
    named |= {fields[0], "out"} | ({"gate_weight"} if "H" in parameters else set())
    return [f for f in fields if f in named]


def _argument(name: str, parameter: str, given, values: Mapping):
    if given is not None:
        return values[given] if isinstance(given, str) and given in values else given
    if parameter == "BLOCK_SIZE":
        return _BLOCK_SIZE
    if parameter == "b_ptr" and values.get("bias") is None:
        return values["out"].new_zeros(values["D_out"])  # a kernel with a bias serves calls without one
    value = values.get(_POINTERS.get(parameter, parameter))
    if value is None:
        raise refusing(f"custom kernel {name}: parameter {parameter}: expected an entry of args, got none")
    return value


def declines(kernel: TritonKernel, transposed: tuple[str, ...]) -> Callable[..., str | None]:
    """Why a launch cannot serve a call."""

    def reason(**fields) -> str | None:
        for operand, value in fields.items():
            if not hasattr(value, "strides"):
                continue
            if value.device.startswith("cpu") and not interpreted(kernel.fn):
                return "a compiled Triton kernel, which CPUs do not run: set TRITON_INTERPRET=1 before it is defined"
            if not _contiguous(value, operand in transposed):
                return f"{operand}: this kernel takes contiguous operands, weights as [in, out]"
        return None

    return reason


def _contiguous(value, transposed: bool) -> bool:
    shape, strides = list(value.shape), list(value.strides)
    if transposed:
        shape.reverse()
        strides.reverse()
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
