"""Paddle's CPU build as Kunlun 2 has it: a function takes only the dtypes that xpu2_op_list.cc has for its kernel
(PaddlePaddle/Paddle 00201fe6, paddle/phi/backends/xpu), f16 is computed by Paddle's f32 kernels of the CPU and rounded,
and what Paddle has no CPU kernel for is composed here, under Paddle's own signature."""

from __future__ import annotations

import inspect
from functools import wraps

import paddle

F32, F16, I32, I64, BOOL = paddle.float32, paddle.float16, paddle.int32, paddle.int64, paddle.bool
FLOATS = (F32, F16)
calls: list[str] = []  # what was called

# By kernel, as the list has them.
LIST = {
    "matmul": FLOATS,
    "elementwise_add": (*FLOATS, I64, I32),
    "elementwise_mul": (*FLOATS, I32, I64),
    "gather": (*FLOATS, I32, I64, BOOL),
    "scatter": (I64, I32, F32),
    "where": (I32, I64, *FLOATS),
    "reduce_max": (F32, I32, I64),
    "reduce_sum": (*FLOATS, I64, I32),
    "exp": (F32,),
    "log": FLOATS,
    "clip": (*FLOATS, I64, I32),
    "reduce_mean": FLOATS,
    "tanh": FLOATS,
    "rsqrt": FLOATS,
    "tile": (I32, I64, BOOL, *FLOATS),
    "concat": (*FLOATS, BOOL, I64, I32),
    "softmax": FLOATS,
    "silu": FLOATS,
    "gelu": FLOATS,
    "sigmoid": FLOATS,
    "layer_norm": FLOATS,
    "swiglu": FLOATS,
    "rms_norm": FLOATS,
    "fused_bias_residual_layernorm": FLOATS,
    "fused_gemm_epilogue": FLOATS,
    "fused_rotary_position_embedding": FLOATS,
}
_INDICES = ("index", "condition")  # operands that are not the kernel's to compute with


def _require(condition, message: str) -> None:
    if not condition:
        raise RuntimeError(f"stand-in of Kunlun 2: {message}")


def _fused_linear_activation(x, y, bias, trans_x=False, trans_y=False, activation=None):
    """fused_gemm_epilogue of Kunlun: a matrix without a batch, bias of one output each."""
    _require(not trans_x and x.dim() == y.dim() == 2, "a plain product")
    _require(bias.shape == [y.shape[0 if trans_y else 1]], "a bias an output")
    out = paddle.add(_plain["matmul"](x, y, transpose_y=trans_y), bias)
    return out if activation in (None, "none") else getattr(paddle.nn.functional, activation)(out)


def _fused_rope(
    q, k=None, v=None, sin=None, cos=None, position_ids=None, use_neox_rotary_style=True, time_major=False,
    rotary_emb_base=10000.0,
):  # fmt: skip
    """Halves, in the dtype of q, whose tables have it too: [1, seq_len, 1, head_dim]."""
    _require(k is v is position_ids is None and not use_neox_rotary_style and not time_major, "only halves of q here")
    _require(q.dim() == 4 and list(sin.shape) == list(cos.shape) == [1, q.shape[1], 1, q.shape[3]], "tables")
    _require(q.dtype == sin.dtype == cos.dtype, "one dtype")
    half = q.shape[-1] // 2
    turned = paddle.concat((-q[..., half:], q[..., :half]), -1)
    return q * cos + turned * sin, None, None


def _softmax(x, axis=-1, dtype=None, name=None):
    """Paddle's kernel of the CPU has no value below exp(-64) (phi/kernels/funcs/softmax_impl.h, ValueClip)."""
    x = x.astype("float64")
    e = _plain["exp"](x - _plain["max"](x, axis, True))
    return (e / _plain["sum"](e, axis, keepdim=True)).astype(F32)


_COMPOSED = {
    "nn.functional.softmax": _softmax,
    "incubate.nn.functional.fused_linear_activation": _fused_linear_activation,
    "incubate.nn.functional.fused_rotary_position_embedding": _fused_rope,
}
_plain: dict = {}  # Paddle's own functions


def _up(value):
    if isinstance(value, paddle.Tensor) and value.dtype == F16:
        return value.astype(F32)
    return value


def _down(value):
    if isinstance(value, (tuple, list)):
        return type(value)(map(_down, value))
    if not isinstance(value, paddle.Tensor) or not value._is_initialized() or value.dtype != F32:
        return value
    return value.astype(F16)


def _as_listed(name: str, kernel: str, function, signature):
    allowed = LIST[kernel]

    @wraps(function)
    def call(*args, **kwargs):
        calls.append(name)
        given = signature.bind(*args, **kwargs).arguments
        tensors = {n: v for n, v in given.items() if isinstance(v, paddle.Tensor) and n not in _INDICES}
        for operand, value in tensors.items():
            _require(value.dtype in allowed, f"{name}: {operand} of {value.dtype}: {kernel} has {allowed}")
        if not any(v.dtype == F16 for v in tensors.values()):
            return function(*args, **kwargs)
        return _down(function(*map(_up, args), **{n: _up(v) for n, v in kwargs.items()}))

    return call


def _of_scatter(x, index, updates, overwrite=True, name=None): ...


def _operator(plain):
    def call(self, other):
        if F16 not in (self.dtype, getattr(other, "dtype", None)):
            return plain(self, other)
        return _down(plain(_up(self), _up(other)))  # of a comparison a bool, which stays

    return call


def install(functions: dict[str, tuple[str, ...]]) -> None:
    """functions: by name, what its kernel may be called."""
    for name, kernels in functions.items():
        *path, last = name.split(".")
        module = paddle
        for part in path:
            module = getattr(module, part)
        plain = _plain[name] = getattr(module, last)
        signature = inspect.signature(_of_scatter if name == "scatter_" else plain)
        kernel = next(k for k in kernels if k in LIST)
        setattr(module, last, _as_listed(name, kernel, _COMPOSED.get(name, plain), signature))
    for operator in ("__add__", "__mul__", "__lt__"):
        setattr(paddle.Tensor, operator, _operator(getattr(paddle.Tensor, operator)))
