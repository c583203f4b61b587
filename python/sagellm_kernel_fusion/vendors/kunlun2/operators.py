"""Paddle's functions that the rows call, with the kernels behind them."""

from __future__ import annotations

from functools import cache

from ..paddle import PaddleFunctions

SOURCE = "PaddlePaddle 3.3.1, whose kernels for Kunlun 2 paddle/phi/backends/xpu/xpu2_op_list.cc lists (00201fe6)"
_F32, _FLOATS = ("float32",), ("float32", "float16")
_INCUBATE = "incubate.nn.functional."

# By function: its parameters that are given, the names that its kernel had in Paddle's versions, and the dtypes of it
# that the rows need.
FUNCTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "matmul": (("x", "y", "transpose_y"), ("matmul",), _FLOATS),
    "add": (("x", "y"), ("elementwise_add", "add"), _FLOATS),
    "multiply": (("x", "y"), ("elementwise_mul", "multiply"), _FLOATS),
    "gather": (("x", "index"), ("gather",), _FLOATS),
    "scatter_": ((), ("scatter",), ("float32", "int32")),
    "where": (("condition", "x", "y"), ("where",), _FLOATS),
    "max": (("x", "axis", "keepdim"), ("reduce_max", "max"), _F32),
    "sum": (("x", "axis", "keepdim"), ("reduce_sum", "sum"), _F32),
    "exp": (("x",), ("exp",), _F32),
    "log": (("x",), ("log",), _F32),
    "clip": (("x", "min", "max"), ("clip",), ("int32",)),
    "mean": (("x", "axis", "keepdim"), ("reduce_mean", "mean"), _F32),
    "tanh": (("x",), ("tanh",), _F32),
    "rsqrt": (("x",), ("rsqrt",), _F32),
    "tile": (("x", "repeat_times"), ("tile",), _F32),
    "concat": (("x", "axis"), ("concat",), _FLOATS),
    "nn.functional.softmax": (("x", "axis"), ("softmax",), _F32),
    "nn.functional.silu": (("x",), ("silu",), _FLOATS),
    "nn.functional.gelu": (("x", "approximate"), ("gelu",), _FLOATS),
    "nn.functional.sigmoid": (("x",), ("sigmoid",), _F32),
    "nn.functional.layer_norm": (("x", "normalized_shape", "weight", "bias", "epsilon"), ("layer_norm",), _FLOATS),
    "nn.functional.swiglu": (("x", "y"), ("swiglu",), _FLOATS),
    _INCUBATE + "fused_rms_norm": (
        ("x", "norm_weight", "norm_bias", "epsilon", "begin_norm_axis", "residual"),
        ("rms_norm", "fused_rms_norm_quant"), _FLOATS,
    ),
    _INCUBATE + "fused_layer_norm": (
        ("x", "norm_weight", "norm_bias", "epsilon", "begin_norm_axis", "residual"),
        ("fused_bias_residual_layernorm",), _FLOATS,
    ),
    _INCUBATE + "fused_linear_activation": (
        ("x", "y", "bias", "trans_x", "trans_y", "activation"), ("fused_gemm_epilogue",), _FLOATS,
    ),
    _INCUBATE + "fused_rotary_position_embedding": (
        ("q", "sin", "cos", "use_neox_rotary_style"), ("fused_rotary_position_embedding",), _F32,
    ),
}  # fmt: skip


def _vendor():
    from . import KUNLUN2

    return KUNLUN2


@cache
def needing(*names: str) -> PaddleFunctions:
    """The library of a row that calls these."""
    return PaddleFunctions(
        "paddle", _vendor().install, SOURCE, {n: FUNCTIONS[n][0] for n in names}, vendor=_vendor,
        kernels={n: FUNCTIONS[n][1:] for n in names},
    )  # fmt: skip


FUSED_RMS_NORM, FUSED_LAYER_NORM = _INCUBATE + "fused_rms_norm", _INCUBATE + "fused_layer_norm"
FUSED_LINEAR, FUSED_ROPE = _INCUBATE + "fused_linear_activation", _INCUBATE + "fused_rotary_position_embedding"
F = "nn.functional."
ALL = needing(*FUNCTIONS)
