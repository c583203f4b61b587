"""Liger kernels (https://github.com/linkedin/Liger-Kernel), written in Triton: norms and gated activations.

Its softmax has no row: it gives NaN for rows of -inf alone, for which ours promises zeros."""

from __future__ import annotations

from .conditions import dtypes, not_empty
from .library import Library
from .row import Row

_WIDEST = 65536  # of a row: its calculate_settings()
_FLOATS = ("f32", "f16", "bf16")
LIBRARY = Library(
    "liger_kernel.ops",
    "pip install liger-kernel",
    "liger-kernel 0.8.2 (linkedin/Liger-Kernel ead96b61, src/liger_kernel/ops)",
    {
        "LigerRMSNormFunction.forward": ("X", "W", "eps", "offset", "casting_mode", "in_place"),
        "LigerLayerNormFunction.forward": ("X", "W", "B", "eps"),
        "LigerSiLUMulFunction.forward": ("a", "b"),
        "LigerGELUMulFunction.forward": ("a", "b"),
    },
)


def _declines(**fields) -> str | None:
    operands = {n: v for n, v in fields.items() if hasattr(v, "strides") and not n.endswith(("weight", "bias", "out"))}
    first, value = next(iter(operands.items()))
    if not value.shape or value.shape[-1] > _WIDEST:
        return f"{first} has shape {list(value.shape)}: this kernel takes rows of up to {_WIDEST}"
    return dtypes(operands, _FLOATS) or not_empty(operands)


def _layer_norm_declines(bias=None, **fields) -> str | None:
    return "no bias: this kernel takes one" if bias is None else _declines(**fields)


def _rms_norm(x, weight, eps=1e-6, weight_offset=0.0):
    # "gemma": all arithmetic in f32, as ours
    return LIBRARY("LigerRMSNormFunction.apply")(x, weight, eps, weight_offset, "gemma", False)


def _layer_norm(x, weight, bias, eps=1e-5):
    return LIBRARY("LigerLayerNormFunction.apply")(x, weight, bias, eps)


def _gated_activation(gate, up, kind="silu"):
    name = "LigerSiLUMulFunction" if kind == "silu" else "LigerGELUMulFunction"
    return LIBRARY(f"{name}.apply")(gate, up)


_ROWS_OF = f"f32, f16 and bf16; rows of up to {_WIDEST}"
ROWS = (
    Row(
        "liger::rms_norm", "rms_norm", "library", LIBRARY, f"{_ROWS_OF}; no residual", _rms_norm, _declines,
        graph_safe=True,
    ),
    Row(
        "liger::layer_norm", "layer_norm", "library", LIBRARY, f"{_ROWS_OF}; with bias, no residual", _layer_norm,
        _layer_norm_declines, graph_safe=True,
    ),
    Row(
        "liger::gated_activation", "gated_activation", "library", LIBRARY, f"{_ROWS_OF}; silu and gelu_tanh",
        _gated_activation, _declines, fixed={"kind": ("silu", "gelu_tanh")}, graph_safe=True,
    ),
)  # fmt: skip
