"""Rows of our own Triton kernels (kernels.py): GELU + linear, norm + linear, RMSNorm, softmax, gated FFN, as
the specification sketches them. On the CPU they run through Triton's interpreter, where TRITON_INTERPRET=1 is set at
import."""

from __future__ import annotations

import math
import os

from ..adapters.conditions import dtypes, not_empty
from ..adapters.library import Library
from ..adapters.row import Row

_FLOATS = ("f32", "f16", "bf16")
_DEVICES = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)
LIBRARY = Library("triton", "pip install triton", "triton 3", {"jit": ("fn",), "next_power_of_2": ("n",)})


def _even_rows(operands: dict) -> str | None:
    """Rows that lie evenly apart can be read as one matrix."""
    for name, value in operands.items():
        shape, strides = value.shape, value.strides
        for i in range(len(shape) - 2):
            if shape[i] > 1 and shape[i + 1] > 1 and strides[i] != strides[i + 1] * shape[i + 1]:
                return f"{name} has strides {list(strides)}: this kernel takes rows that lie evenly apart"
    return None


def _rows_decline(x, out=None, **rest) -> str | None:
    if not x.shape:
        return "x has no dimension: this kernel takes rows"
    return dtypes({"x": x}, _FLOATS) or not_empty({"x": x}) or _even_rows({"x": x} | ({"out": out} if out else {}))


def _linear_declines(x, weight, out=None, **rest) -> str | None:
    return dtypes({"x": x, "weight": weight}, _FLOATS) or not_empty({"weight": weight}) or _rows_decline(x, out)


def _ffn_declines(x, gate_weight, up_weight, down_weight, out=None, **rest) -> str | None:
    weights = {"gate_weight": gate_weight, "up_weight": up_weight, "down_weight": down_weight}
    return dtypes({"x": x} | weights, _FLOATS) or not_empty(weights) or _rows_decline(x, out)


def _matrix(x):
    return x.view(-1, x.shape[-1])


def _block(width: int) -> int:
    return min(LIBRARY("next_power_of_2")(width), 4096)


def _rms_norm(x, weight, out, eps=1e-6, weight_offset=0.0):
    from . import kernels

    x, out = _matrix(x), _matrix(out)
    width = x.shape[1]
    kernels.rms_norm[(len(x),)](
        x, weight, out, width, x.stride(0), out.stride(0), eps, weight_offset, BLOCK=_block(width)
    )


def _softmax(x, out, lse=None, scale=1.0):
    from . import kernels

    x, out = _matrix(x), _matrix(out)
    sums = None if lse is None else lse if lse.is_contiguous() else lse.new_empty(lse.shape)
    width = x.shape[1]
    kernels.softmax[(len(x),)](
        x, out, sums if sums is not None else out, width, x.stride(0), out.stride(0), scale,
        WITH_LSE=lse is not None, BLOCK=_block(width),
    )  # fmt: skip
    if sums is not lse:
        lse.copy_(sums)


def _tiles(rows: int, outputs: int, x) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid, and the tiles: few rows where there are few, narrower blocks of the reduction for wider elements."""
    block_m = 16 if rows <= 16 else 64
    tile = {"BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_K": 32 if x.element_size() > 2 else 64}
    return (math.ceil(rows / block_m), math.ceil(outputs / tile["BLOCK_N"])), tile


def _product(
    x, weight, out, bias=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5, norm_weight_offset=0.0,
    pre_activation="none", tf32=False,
):  # fmt: skip
    from . import kernels

    x, out = _matrix(x), _matrix(out)
    rows, width = x.shape
    grid, tile = _tiles(rows, out.shape[1], x)
    kernels.linear[grid](
        x, weight, _or(bias, x), _or(norm_weight, x), _or(norm_bias, x), out, rows, out.shape[1], width,
        x.stride(0), weight.stride(0), weight.stride(1), out.stride(0), eps, norm_weight_offset,
        NORM=norm, BEFORE=pre_activation, WITH_BIAS=bias is not None, WITH_NORM_BIAS=norm_bias is not None,
        WIDE=not x.is_cuda, PRECISION=_precision(x, tf32), **tile,
    )  # fmt: skip


def _precision(x, tf32: bool) -> str:
    """Of AMD's GPUs most have no TF32, and Triton refuses to compile for it."""
    import torch

    return "tf32" if tf32 and x.dtype is torch.float32 and torch.version.hip is None else "ieee"


def _or(operand, other):
    """A pointer that is not read, where there is no operand."""
    return other if operand is None else operand


def _activation_linear(x, weight, out, bias=None, pre_activation="gelu_tanh", tf32=False):
    _product(x, weight, out, bias, pre_activation=pre_activation, tf32=tf32)


def _norm_linear(
    x, weight, out, norm_weight, norm_bias=None, bias=None, norm="layer", eps=1e-5, norm_weight_offset=0.0, tf32=False
):
    _product(x, weight, out, bias, norm, norm_weight, norm_bias, eps, norm_weight_offset, tf32=tf32)


def _ffn(x, gate_weight, up_weight, down_weight, out, activation="silu", tf32=False):
    from . import kernels

    x = _matrix(x)
    rows, width = x.shape
    hidden = x.new_empty(rows, gate_weight.shape[1])
    grid, tile = _tiles(rows, hidden.shape[1], x)
    kernels.gate_and_up[grid](
        x, gate_weight, up_weight, hidden, rows, hidden.shape[1], width, x.stride(0), *gate_weight.stride(),
        *up_weight.stride(), hidden.stride(0), KIND=activation, WIDE=not x.is_cuda,
        PRECISION=_precision(x, tf32), **tile,
    )  # fmt: skip
    _product(hidden, down_weight, out, tf32=tf32)


_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
_NO_NORM, _NO_PRE = {"norm": ("none",)}, {"pre_activation": ("none",)}
_WHERE = "use_triton or backend triton (on the CPU through Triton's interpreter, TRITON_INTERPRET=1); f32, f16, bf16"
_MORE = {"devices": _DEVICES, "graph_safe": True}
ROWS = (
    Row("triton::rms_norm", "rms_norm", "triton", LIBRARY, f"{_WHERE}; no residual", _rms_norm, _rows_decline, **_MORE),
    Row("triton::softmax", "softmax", "triton", LIBRARY, f"{_WHERE}; no mask", _softmax, _rows_decline, **_MORE),
    Row(
        "triton::gelu_linear", "linear", "triton", LIBRARY, f"{_WHERE}; an activation before the product; bias",
        _activation_linear, _linear_declines, transposed=("weight",),
        fixed={"pre_activation": _ACTIVATIONS, "activation": ("none",)} | _NO_NORM, **_MORE,
    ),
    Row(
        "triton::ln_linear", "linear", "triton", LIBRARY, f"{_WHERE}; LayerNorm or RMSNorm before the product; bias",
        _norm_linear, _linear_declines, transposed=("weight",),
        fixed={"norm": ("layer", "rms"), "activation": ("none",)} | _NO_PRE, **_MORE,
    ),
    Row(
        "triton::gated_ffn", "gated_ffn", "triton", LIBRARY, f"{_WHERE}; no norm, no residual; two launches", _ffn,
        _ffn_declines, transposed=("gate_weight", "up_weight", "down_weight"),
        fixed={"activation": _ACTIVATIONS} | _NO_NORM | _NO_PRE, launches=2, **_MORE,
    ),
)  # fmt: skip
