"""Norms, linear layers with what comes before and after them, the gated FFN, rotary embeddings, softmax, activations:
Paddle's fused operators where Kunlun 2 has them, else compositions of its plain ones."""

from __future__ import annotations

import math

from ...adapters.conditions import dtypes, not_empty
from ..compositions import shifted
from ..layers import Layers, operands_of_layer
from ..layouts import whole_heads
from ..row import VendorRow
from .operators import ALL, FUSED_LAYER_NORM, FUSED_LINEAR, FUSED_RMS_NORM, FUSED_ROPE, F, needing

FLOATS = ("f32", "f16")
_LINE = 2 * math.sqrt(2 / math.pi)  # of gelu_tanh's argument, twice
_CUBE = 0.044715 * _LINE


def row(name: str, op: str, needs: tuple[str, ...], condition: str, function, declines, **rest) -> VendorRow:
    return VendorRow(
        f"kunlun2::{name}", op, "library", needing(*needs), condition, function, declines, devices=("kunlun",),
        arrays="paddle", **rest,
    )  # fmt: skip


# Norms


def _norm_declines(x, weight, bias=None, residual=None, **rest) -> str | None:
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    return dtypes({n: v for n, v in given.items() if v is not None}, FLOATS) or not_empty({"x": x})


def rms_norm(x, weight, residual=None, residual_out=None, eps=1e-6, weight_offset=0.0):
    rows = x.reshape([-1, x.shape[-1]])
    beside = None if residual is None else residual.reshape(rows.shape)
    out, total, *_ = ALL(FUSED_RMS_NORM)(
        x=rows, norm_weight=shifted(weight, weight_offset), norm_bias=None, epsilon=eps, begin_norm_axis=1,
        residual=beside,
    )  # fmt: skip
    if residual_out is not None:
        residual_out.copy_(total.reshape(x.shape), False)
    return out.reshape(x.shape)


def layer_norm(x, weight, bias=None, eps=1e-5):
    return ALL(F + "layer_norm")(x=x, normalized_shape=[x.shape[-1]], weight=weight, bias=bias, epsilon=eps)


def _add_layer_norm(x, weight, bias=None, residual=None, residual_out=None, eps=1e-5):
    """Its weights are f32 whatever x is."""
    rows = x.reshape([-1, x.shape[-1]])
    out, total, *_ = ALL(FUSED_LAYER_NORM)(
        x=rows, norm_weight=weight.astype("float32"), norm_bias=None if bias is None else bias.astype("float32"),
        epsilon=eps, begin_norm_axis=1, residual=residual.reshape(rows.shape),
    )  # fmt: skip
    if residual_out is not None:
        residual_out.copy_(total.reshape(x.shape), False)
    return out.reshape(x.shape)


def _without_residual(x, weight, residual=None, **rest) -> str | None:
    return "residual is given: this kernel takes none" if residual is not None else _norm_declines(x, weight, **rest)


def _with_residual(x, weight, residual=None, **rest) -> str | None:
    if residual is None:
        return "no residual: this kernel adds one"
    return _norm_declines(x, weight, residual=residual, **rest)


# Softmax and activations


def log_sum_exp(z):
    """A row of -inf alone has -inf."""
    m = ALL("max")(x=z, axis=-1, keepdim=True)
    sums = ALL("sum")(x=ALL("exp")(x=z - m), axis=-1, keepdim=True)
    return ALL("where")(m == -float("inf"), m, m + ALL("log")(x=sums)).squeeze(-1)


def softmax(x, lse=None, mask=None, scale=1.0):
    """In f32; a row of -inf alone gives zeros."""
    import paddle

    z = x.astype("float32") * scale
    if mask is not None and mask.dtype == paddle.bool:
        z = ALL("where")(mask, z, paddle.full([1], -float("inf")))
    elif mask is not None:
        z = z + mask.astype("float32")
    if lse is not None:
        lse.copy_(log_sum_exp(z), False)
    p = ALL(F + "softmax")(x=z, axis=-1)
    blind = ALL("max")(x=z, axis=-1, keepdim=True) == -float("inf")
    return ALL("where")(blind, paddle.zeros([1]), p).astype(x.dtype)


def floats(x, **rest) -> str | None:
    return dtypes({"x": x}, FLOATS) or not_empty({"x": x})


def activate(x, kind: str):
    """gelu_tanh of f32 by a logistic function: 1 + tanh, as Paddle has it, cancels where x is negative. relu keeps a
    NaN, which Paddle's does not."""
    import paddle

    if kind == "gelu_tanh" and x.dtype == paddle.float32:
        return x * ALL(F + "sigmoid")(x=x * (x * x * _CUBE + _LINE))
    if kind in ("gelu", "gelu_tanh"):
        return ALL(F + "gelu")(x=x, approximate=kind == "gelu_tanh")
    if kind == "relu":
        return ALL("where")(x < 0, paddle.zeros([1], x.dtype), x)
    return x.clone() if kind == "none" else ALL(F + "silu")(x=x)


def activation(x, kind="silu"):
    return activate(x, kind)


def gated(gate, up, kind: str = "silu"):
    return ALL(F + "swiglu")(x=gate, y=up) if kind == "silu" else activate(gate, kind) * up


def _gated_declines(gate, up, **rest) -> str | None:
    return dtypes({"gate": gate, "up": up}, FLOATS) or not_empty({"gate": gate})


# Rotary embedding


def rope_declines(x, positions, cos, sin, norm_weight=None, **rest) -> str | None:
    return whole_heads(x, cos, norm_weight) or floats(x)


def _halves_decline(x, positions, cos, sin, interleaved=False, **rest) -> str | None:
    if interleaved:
        return "interleaved pairs: this kernel turns halves"
    return rope_declines(x, positions, cos, sin, **rest)


def _turned(x, positions, cos, sin, norm_weight, norm_eps, norm_weight_offset):
    """What is turned, and a row of the tables a token, all in f32: 16-bit tables would turn large positions by wrong
    angles."""
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, eps=norm_eps, weight_offset=norm_weight_offset)
    tables = (ALL("gather")(x=t, index=positions).astype("float32").unsqueeze(1) for t in (cos, sin))
    return x.astype("float32"), *tables


def _fused_rope(x, positions, cos, sin, norm_weight=None, norm_eps=1e-6, norm_weight_offset=0.0):
    import paddle

    work, c, s = _turned(x, positions, cos, sin, norm_weight, norm_eps, norm_weight_offset)
    c, s = (paddle.concat((t, t), -1).unsqueeze(0) for t in (c, s))
    out, *_ = ALL(FUSED_ROPE)(q=work.unsqueeze(0), sin=s, cos=c, use_neox_rotary_style=False)
    return out.squeeze(0).astype(x.dtype)


def rope(x, positions, cos, sin, norm_weight=None, norm_eps=1e-6, norm_weight_offset=0.0, interleaved=False):
    import paddle

    work, c, s = _turned(x, positions, cos, sin, norm_weight, norm_eps, norm_weight_offset)
    half = x.shape[-1] // 2
    a, b = (work[..., ::2], work[..., 1::2]) if interleaved else (work[..., :half], work[..., half:])
    pair = (a * c - b * s, b * c + a * s)
    out = paddle.stack(pair, -1).reshape(x.shape) if interleaved else paddle.concat(pair, -1)
    return out.astype(x.dtype)


# Layers


def _declines(x, **rest) -> str | None:
    operands = operands_of_layer(x, **rest)
    return dtypes(operands, FLOATS) or not_empty(operands)


def product(x, weight, bias=None, residual=None, activation="none"):
    """act(x @ weight^T + bias) + residual, one launch each."""
    return LAYERS.after(ALL("matmul")(x=x, y=weight, transpose_y=True), bias, residual, activation)


def _joined(x, weight, bias, residual=None, activation="none"):
    """The same with the bias in the product's launch."""
    y = ALL(FUSED_LINEAR)(x=x, y=weight, bias=bias, trans_x=False, trans_y=True, activation=None)
    return LAYERS.after(y, None, residual, activation)


def _joined_declines(x, weight, bias=None, **rest) -> str | None:
    return "no bias: this kernel adds one" if bias is None else _declines(x, weight=weight, bias=bias, **rest)


def _hidden(y, gate_weight, up_weight, activation):
    return gated(product(y, gate_weight), product(y, up_weight), activation)


LAYERS = Layers(activate, rms_norm, layer_norm, product, _hidden)
_WITH_EPILOGUE = Layers(activate, rms_norm, layer_norm, _joined, _hidden)


# The rest of a model


def embedding(ids, table, scale=1.0):
    rows = ALL("gather")(x=table, index=ids.flatten()).reshape([*ids.shape, table.shape[-1]])
    return rows if scale == 1 else rows.astype("float32") * scale


def argmax(logits, max=None):
    """A NaN before all else, and the first of equals, of which Paddle's own says neither."""
    import paddle

    x = logits.astype("float32")
    unordered, nothing = x != x, paddle.full([1], -float("inf"))
    some = ALL("max")(x=unordered.astype("float32"), axis=-1, keepdim=True) > 0
    largest = ALL("max")(x=ALL("where")(unordered, nothing, x), axis=-1, keepdim=True)
    taken = (some & unordered) | (~some & (x == largest))
    places = ALL("where")(taken, -paddle.arange(x.shape[-1], dtype="float32").expand(x.shape), nothing)
    if max is not None:
        max.copy_(ALL("where")(some, paddle.full([1], float("nan")), largest).squeeze(-1), False)
    return -ALL("max")(x=places, axis=-1)


def binary(a, b, kind="add"):
    return ALL("add" if kind == "add" else "multiply")(x=a, y=b)


def all_floats(**operands) -> str | None:
    tensors = {n: v for n, v in operands.items() if hasattr(v, "dtype") and n not in ("ids", "out")}
    return dtypes(tensors, FLOATS) or not_empty(tensors)


def _argmax_declines(logits, max=None, **rest) -> str | None:
    if logits.shape[-1] > 1 << 24:
        return f"{logits.shape[-1]} logits: this kernel takes at most 2^24, whose places f32 has"
    return dtypes({"logits": logits}, FLOATS) or not_empty({"logits": logits})


_F = "f32 and f16"
_ANY = f"{_F}, all operands of one dtype; a norm or an activation before"
_ONE = "one launch for what Paddle's plain operators take several for"
ACTIVATIONS = (F + "silu", F + "gelu", F + "sigmoid", "where", "multiply")
_BEFORE = (FUSED_RMS_NORM, F + "layer_norm", *ACTIVATIONS)
_GATED = (*ACTIVATIONS, F + "swiglu")
_LAYER = ("matmul", "add", *_BEFORE)
SOFTMAX = ("max", "where", "multiply", "add", "exp", "sum", "log")
_TURN = ("gather", FUSED_RMS_NORM)
ROWS = (
    row(
        "rms_norm", "rms_norm", (FUSED_RMS_NORM,), f"{_F}; a residual", rms_norm, _norm_declines, graph_safe=True,
        saves="one launch for the square, mean, root and two products, two with a residual (of 5 and 6)",
    ),
    row(
        "add_layer_norm", "layer_norm", (FUSED_LAYER_NORM,), f"{_F}; with a residual", _add_layer_norm, _with_residual,
        graph_safe=True, launches=2, saves="the sum and the norm in one operator",
    ),
    row(
        "layer_norm", "layer_norm", (F + "layer_norm",), f"{_F}; without a residual", layer_norm, _without_residual,
        graph_safe=True, saves="one launch for mean, variance and the two products (of 8)",
    ),
    row(
        "linear_bias", "linear", (FUSED_LINEAR, *_LAYER), f"{_ANY}, a bias and any activation or a residual after",
        _WITH_EPILOGUE.linear, _joined_declines, graph_safe=True, launches=2,
        saves="the bias in the product's launch: the output is not read again for it",
    ),
    row(
        "linear", "linear", _LAYER, f"{_ANY}, a bias, an activation or a residual after", LAYERS.linear, _declines,
        graph_safe=True, launches=3, saves="one launch a norm or activation; nothing for bias and residual",
    ),
    row(
        "qkv_linear", "qkv_linear", _LAYER, _ANY, LAYERS.qkv_linear, _declines, graph_safe=True, launches=6,
        saves="the norm is done once for three products",
    ),
    row(
        "gated_ffn", "gated_ffn", (*_LAYER, *_GATED), f"{_ANY}, a residual after", LAYERS.gated_ffn, _declines,
        graph_safe=True, launches=5,
        saves="silu and product in one launch (3 of 5 passes over the intermediate)",
    ),
    row(
        "rope", "rope", (FUSED_ROPE, *_TURN), f"halves of whole heads; a norm before it; {_F}", _fused_rope,
        _halves_decline, graph_safe=True, launches=6,
        saves="one launch for halves, four products and two sums (of 8); tables are gathered apart",
    ),
    row(
        "rope_composed", "rope", ("multiply", "add", *_TURN),
        f"halves and interleaved, of whole heads; a norm before it; {_F}; also where a version has no fused operator",
        rope, rope_declines, graph_safe=True, launches=11, saves="nothing: it is the plain operators",
    ),
    row(
        "activation", "activation", ACTIVATIONS, _F, activation, floats, graph_safe=True, saves=_ONE,
    ),
    row(
        "gated_activation", "gated_activation", _GATED, _F, lambda gate, up, kind="silu": gated(gate, up, kind),
        _gated_declines, graph_safe=True, launches=2,
        saves="swiglu: one launch of two, the activated half neither written nor read",
    ),
    row(
        "softmax", "softmax", (F + "softmax", *SOFTMAX), f"{_F}; masks, log-sum-exp", softmax, floats,
        graph_safe=True, launches=5, saves="one launch for maximum, difference, exp, sum and quotient",
    ),
    row("binary", "binary", ("add", "multiply"), _F, binary, all_floats, graph_safe=True, saves="nothing"),
    row(
        "embedding", "embedding", ("gather", "multiply"), f"{_F}; a scale", embedding, all_floats, graph_safe=True,
        saves="nothing",
    ),
    row(
        "argmax", "argmax", ("max", "where"), f"{_F}; up to 2^24 logits", argmax, _argmax_declines, graph_safe=True,
        launches=12, saves="nothing",
    ),
)  # fmt: skip
