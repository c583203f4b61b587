"""Norms, linear layers with what comes before and after them, the gated FFN, rotary embeddings and activations."""

from __future__ import annotations

from ...adapters.conditions import dtypes, not_empty
from ..compositions import activate, binary, softmax
from ..layers import Layers, operands_of_layer
from ..layouts import prologue_and_epilogue, scales_problem, whole_heads
from ..row import VendorRow
from .operators import ALL, bf16_problem, needing

FLOATS = ("f32", "f16", "bf16")


# Norms


def _norm_declines(x, weight, bias=None, residual=None, **rest) -> str | None:
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    operands = {name: value for name, value in given.items() if value is not None}
    return dtypes(operands, FLOATS) or bf16_problem(x) or not_empty({"x": x})


def _norm(function: str, x, weight, bias, residual, residual_out, eps):
    """With store_output_before_norm it gives (y, x + residual)."""
    rows = x.reshape(-1, x.shape[-1])
    beside = None if residual is None else residual.reshape(rows.shape)
    keep = residual is not None and residual_out is not None
    got = ALL(function)(rows, beside, weight, bias, None, eps, keep)
    if keep:
        residual_out.copy_(got[1].view(x.shape))
    elif residual_out is not None:
        residual_out.copy_(x)
    return (got[0] if isinstance(got, tuple) else got).view(x.shape)


def rms_norm(x, weight, residual=None, residual_out=None, eps=1e-6):
    return _norm("fused_rms_norm", x, weight, None, residual, residual_out, eps)


def layer_norm(x, weight, bias=None, residual=None, residual_out=None, eps=1e-5):
    return _norm("fused_layer_norm", x, weight, bias, residual, residual_out, eps)


# Activations are PyTorch's: what act_mode "gelu" computes is not documented


def _activation(x, kind="silu"):
    return activate(x, kind)


def _floats(x, **rest) -> str | None:
    return dtypes({"x": x}, FLOATS) or bf16_problem(x) or not_empty({"x": x})


def _gated(gate, up, kind="silu"):
    return activate(gate, kind) * up


def _gated_declines(gate, up, **rest) -> str | None:
    return dtypes({"gate": gate, "up": up}, FLOATS) or bf16_problem(gate) or not_empty({"gate": gate})


# Rotary embedding


def _rope_declines(x, positions, cos, sin, norm_weight=None, norm_weight_offset=0.0, **rest) -> str | None:
    return whole_heads(x, cos, norm_weight) or _floats(x)


def _rope(x, positions, cos, sin, norm_weight=None, norm_eps=1e-6, interleaved=False):
    """x [tokens, heads, head_dim], in f32 with the tables, which have a row a token: 16-bit tables would turn large
    positions by wrong angles."""
    import torch

    dtype = x.dtype
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, eps=norm_eps)
    rows = positions.long()
    cos, sin = cos[rows].float(), sin[rows].float()
    if interleaved:
        cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
    else:
        cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    work = x.float().contiguous()[None]
    tokens = work.shape[1]
    return ALL("apply_rotary")(work, sin, cos, None, None, interleaved, False, False, tokens)[0].to(dtype)


# Layers


def _declines(x, **rest) -> str | None:
    operands = operands_of_layer(x, **rest)
    return dtypes(operands, FLOATS) or bf16_problem(x) or not_empty(operands)


def product(x, weight, bias=None, residual=None, activation="none"):
    """act(x @ weight^T + bias) + residual. silu is in the product's launch; so is a residual without an activation,
    whose order is not documented. Weights that are not [out, in] in memory are PyTorch's to multiply."""
    import torch

    if not weight.is_contiguous():
        y = torch.nn.functional.linear(x, weight, bias)
        y = y if activation == "none" else activate(y, activation)
        return y if residual is None else y + residual
    within = "silu" if activation == "silu" else "none"
    joined = residual is not None and activation == "none"
    added, beta = (residual, 1.0) if joined else (None, 0.0)
    y = ALL("matmul")(x.contiguous(), weight, bias, added, within, 1.0, beta)
    if activation not in ("none", within):
        y = activate(y, activation)
    return y if residual is None or joined else y + residual


def _hidden(y, gate_weight, up_weight, activation):
    return product(y, gate_weight, activation=activation).mul_(product(y, up_weight))


LAYERS = Layers(activate, rms_norm, layer_norm, product, _hidden)


# Low-bit weights


def _w8_declines(x, weight, weight_scales=None, **rest) -> str | None:
    return _w8a8_declines(x, weight, weight_scales, **rest) or scales_problem(x, weight_scales)


def _w8a8_declines(x, weight, weight_scales=None, weight_zeros=None, **rest) -> str | None:
    if weight_scales is None or weight.dtype != "i8":
        return f"weight is {weight.dtype}: this kernel takes i8 with scales"
    if weight_zeros is not None or list(weight_scales.shape) not in ([weight.shape[0], 1], [weight.shape[0]]):
        return "weight has zeros or groups: this kernel takes a scale an output"
    operands = {"x": x} | prologue_and_epilogue(**rest)
    return dtypes(operands, ("f16", "bf16")) or bf16_problem(x) or not_empty({"x": x})


def _linear_w8(
    x, weight, bias=None, residual=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
    pre_activation="none", activation="none", weight_scales=None, weight_group_size=0,
):  # fmt: skip
    y = LAYERS.before(x, norm, norm_weight, norm_bias, eps, pre_activation).contiguous()
    scales = weight_scales.reshape(-1)
    y = ALL("weight_only_quant_matmul")(y, weight.contiguous(), scales, None, bias, None, "none", 8)
    return LAYERS.after(y, None, residual, activation)


def _linear_w8a8(
    x, weight, bias=None, residual=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
    pre_activation="none", activation="none", weight_scales=None, weight_group_size=0, input_quantization="int8",
):  # fmt: skip
    import torch

    y = LAYERS.before(x, norm, norm_weight, norm_bias, eps, pre_activation).contiguous()
    smooth = torch.ones(y.shape[-1], dtype=torch.float32, device=y.device)
    codes, of_tokens = ALL("per_token_smooth_quantize")(y, smooth)
    scales = weight_scales.reshape(-1).float()
    y = ALL("smooth_quant_matmul")(codes, of_tokens, weight.contiguous(), scales, x.dtype)
    return LAYERS.after(y, bias, residual, activation)


_ANY = "f32, f16 and bf16, all operands of one dtype; a norm or an activation before"
_NORMS = ("fused_rms_norm", "fused_layer_norm")
ROWS = (
    VendorRow(
        "mlu::rms_norm", "rms_norm", "library", needing("fused_rms_norm"), "f32, f16 and bf16; a residual", rms_norm,
        _norm_declines, devices=("mlu",), graph_safe=True,
        saves="one launch for the sum and the norm; the sum is not read again",
    ),
    VendorRow(
        "mlu::layer_norm", "layer_norm", "library", needing("fused_layer_norm"), "f32, f16 and bf16; a residual",
        layer_norm, _norm_declines, devices=("mlu",), graph_safe=True,
        saves="one launch for the sum and the norm; the sum is not read again",
    ),
    VendorRow(
        "mlu::linear", "linear", "library", needing("matmul", *_NORMS), _ANY + ", an activation or a residual after",
        LAYERS.linear, _declines, devices=("mlu",), graph_safe=True, launches=2,
        saves="bias, silu or residual in the product's launch",
    ),
    VendorRow(
        "mlu::qkv_linear", "qkv_linear", "library", needing("matmul", *_NORMS), _ANY, LAYERS.qkv_linear,
        _declines, devices=("mlu",), graph_safe=True, launches=6,
        saves="the norm is done once for three products; biases in their launches",
    ),
    VendorRow(
        "mlu::gated_ffn", "gated_ffn", "library", needing("matmul", *_NORMS), _ANY + ", a residual after",
        LAYERS.gated_ffn, _declines, devices=("mlu",), graph_safe=True, launches=5,
        saves="silu in the gate's launch, the residual in the last product's: 4 launches for 6",
    ),
    VendorRow(
        "mlu::linear_w8a8", "linear", "library", needing("per_token_smooth_quantize", "smooth_quant_matmul", *_NORMS),
        "i8 weights of a scale an output, inputs rounded to i8; f16 and bf16", _linear_w8a8, _w8a8_declines,
        fixed={"input_quantization": ("int8",)}, devices=("mlu",), graph_safe=True, launches=3,
        saves="products of integers; half the bytes of a 16-bit weight",
    ),
    VendorRow(
        "mlu::linear_w8", "linear", "library", needing("weight_only_quant_matmul", *_NORMS),
        "i8 weights of a scale an output; f16 and bf16", _linear_w8, _w8_declines, devices=("mlu",), graph_safe=True,
        launches=2, saves="half the bytes of a 16-bit weight, never expanded in memory",
    ),
    VendorRow(
        "mlu::rope", "rope", "library", needing("apply_rotary", "fused_rms_norm"),
        "halves and interleaved, of whole heads; a norm before it; f32, f16 and bf16", _rope, _rope_declines,
        devices=("mlu",), graph_safe=True, launches=7,
        saves="one launch for the halves, products and sum; tables are gathered apart",
    ),
    VendorRow(
        "mlu::activation", "activation", "library", needing(), "f32, f16 and bf16", _activation, _floats,
        devices=("mlu",), graph_safe=True, saves="PyTorch's own operator: one launch",
    ),
    VendorRow(
        "mlu::gated_activation", "gated_activation", "library", needing(), "f32, f16 and bf16", _gated, _gated_declines,
        devices=("mlu",), graph_safe=True, launches=2,
        saves="nothing: tmo.active takes one tensor, and joining two costs what it saves",
    ),
    VendorRow(
        "mlu::softmax", "softmax", "library", needing(), "f32, f16 and bf16; masks", softmax, _floats,
        devices=("mlu",), graph_safe=True, launches=5,
        saves="nothing: it is PyTorch's operator, and zeros for rows of -inf",
    ),
    VendorRow(
        "mlu::binary", "binary", "library", needing(), "always", binary, devices=("mlu",), graph_safe=True,
        saves="PyTorch's own operator: one launch",
    ),
)  # fmt: skip
