"""Norms, linear layers with what comes before and after them, the gated FFN, rotary embeddings and activations."""

from __future__ import annotations

from ...adapters.conditions import dtypes, not_empty
from ..compositions import activate, argmax, binary, embedding, floats_of_table, rounded_logits, shifted, softmax
from ..layers import Layers, operands_of_layer
from ..layouts import is_contiguous, whole_heads
from ..low_bit import (
    AS_THEY_ARE,
    ROUNDED,
    Codes,
    LowBitLayers,
    a_scale_an_output,
    are_codes,
    declines_of,
    scales_in_dtype_of,
)
from ..row import VendorRow
from .operators import ALL, bf16_problem, needing

FLOATS = ("f32", "f16", "bf16")
_NORMS = ("fused_rms_norm", "fused_layer_norm")
_HALF_A_WEIGHT = "half the bytes of a 16-bit weight"


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


def rms_norm(x, weight, residual=None, residual_out=None, eps=1e-6, weight_offset=0.0):
    return _norm("fused_rms_norm", x, shifted(weight, weight_offset), None, residual, residual_out, eps)


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


def _rope_declines(x, positions, cos, sin, norm_weight=None, **rest) -> str | None:
    return whole_heads(x, cos, norm_weight) or _floats(x)


def _rope(x, positions, cos, sin, norm_weight=None, norm_eps=1e-6, norm_weight_offset=0.0, interleaved=False):
    """x [tokens, heads, head_dim], in f32 with the tables, which have a row a token: 16-bit tables would turn large
    positions by wrong angles."""
    import torch

    dtype = x.dtype
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, eps=norm_eps, weight_offset=norm_weight_offset)
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


def _argmax_declines(x, **rest) -> str | None:
    return rounded_logits(x) or _declines(x, **rest)


# Low-bit weights


_GROUPS = (64, 128, 256, 512)  # of inputs, as Cambricon documents them


def _w8a8_problem(x, codes: Codes) -> str | None:
    return are_codes(codes, "i8") or a_scale_an_output(codes)


def _low_bit_problem(x, codes: Codes, *taken: str) -> str | None:
    if reason := are_codes(codes, *taken):
        return reason
    if codes.zeros is not None:
        return f"{codes.name} has zeros: this kernel takes none"
    inputs = codes.weight.shape[-1]
    if codes.weight.dtype == "int4" and (inputs % 2 or not is_contiguous(codes.weight)):
        return f"{codes.name} has {inputs} inputs: this kernel takes whole weights of an even number of int4"
    if a_scale_an_output(codes) is None:
        return None
    if codes.group not in _GROUPS or inputs % codes.group:
        return f"{codes.name} has groups of {codes.group}: this kernel takes whole rows, or groups of 64, 128, 256, 512"
    return scales_in_dtype_of(x, codes)


def _low_bit_product(y, codes: Codes, bias):
    """Scales of outputs are f32, of groups y's; of four bits two codes are in a byte, the first in the low half: so
    kf's lie."""
    import torch

    weight, bits = codes.weight.view(torch.int8), 4 if codes.weight.dtype is torch.uint8 else 8
    scales = codes.scales.reshape(-1).float() if codes.scales.numel() == weight.shape[0] else codes.scales
    return ALL("weight_only_quant_matmul")(y, weight.contiguous(), scales.contiguous(), None, bias, None, "none", bits)


def _rounded(y):
    import torch

    y = y.contiguous()
    smooth = torch.ones(y.shape[-1], dtype=torch.float32, device=y.device)
    return *ALL("per_token_smooth_quantize")(y, smooth), y.dtype


def _product_of_integers(entered, codes: Codes, bias):
    rounded, of_tokens, dtype = entered
    scales = codes.scales.reshape(-1).float()
    y = ALL("smooth_quant_matmul")(rounded, of_tokens, codes.weight.contiguous(), scales, dtype)
    return y if bias is None else y + bias


LOW_BIT = LowBitLayers(LAYERS, lambda y: y.contiguous(), _low_bit_product)
INTEGERS = LowBitLayers(LAYERS, _rounded, _product_of_integers)


def _low_bit_row(name: str, op: str, function, saves: str, launches: int, weights: str) -> VendorRow:
    groups = ", or of groups of 64, 128, 256 and 512"
    return VendorRow(
        f"mlu::{name}", op, "library", needing("weight_only_quant_matmul", *_NORMS),
        f"{weights} weights of a scale an output{groups}; f16 and bf16", function,
        declines_of(op, lambda x, codes: _low_bit_problem(x, codes, *weights.split(" and ")), _around_declines),
        fixed=AS_THEY_ARE, devices=("mlu",), graph_safe=True, launches=launches, saves=saves,
    )  # fmt: skip


def _w8a8_row(op: str, function, saves: str, launches: int) -> VendorRow:
    return VendorRow(
        f"mlu::{op}_w8a8", op, "library", needing("per_token_smooth_quantize", "smooth_quant_matmul", *_NORMS),
        "i8 weights of a scale an output, inputs rounded to i8; f16 and bf16", function,
        declines_of(op, _w8a8_problem, _around_declines), fixed=ROUNDED, devices=("mlu",), graph_safe=True,
        launches=launches, saves=f"{saves}; {_HALF_A_WEIGHT}",
    )  # fmt: skip


def _around_declines(x, **rest) -> str | None:
    return bf16_problem(x)


_ANY = "f32, f16 and bf16, all operands of one dtype; a norm or an activation before"
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
        "mlu::lm_head_argmax", "lm_head_argmax", "library", needing("matmul", *_NORMS),
        "f32 and f16, all operands of one dtype; a norm or an activation before", LAYERS.lm_head_argmax,
        _argmax_declines, devices=("mlu",), graph_safe=True, launches=3, saves="nothing: norm, product and argmax",
    ),
    VendorRow(
        "mlu::gated_ffn", "gated_ffn", "library", needing("matmul", *_NORMS), _ANY + ", a residual after",
        LAYERS.gated_ffn, _declines, devices=("mlu",), graph_safe=True, launches=5,
        saves="silu in the gate's launch, the residual in the last product's: 4 launches for 6",
    ),
    _w8a8_row("linear", INTEGERS.linear, "products of integers", 3),
    _low_bit_row("linear_w8", "linear", LOW_BIT.linear, f"{_HALF_A_WEIGHT}, never expanded in memory", 2, "i8"),
    _low_bit_row(
        "linear_w4", "linear", LOW_BIT.linear, "a quarter of the bytes of a 16-bit weight, never expanded in memory", 2,
        "int4",
    ),
    _w8a8_row(
        "qkv_linear", INTEGERS.qkv_linear,
        "the norm and the rounding are done once for three products, of integers", 5,
    ),
    _low_bit_row(
        "qkv_linear_low_bit", "qkv_linear", LOW_BIT.qkv_linear,
        "the norm is done once for three products; half or a quarter of the bytes of 16-bit weights", 4, "i8 and int4",
    ),
    _w8a8_row(
        "gated_ffn", INTEGERS.gated_ffn, "the norm and the rounding are done once for two products, of integers", 8
    ),
    _low_bit_row(
        "gated_ffn_low_bit", "gated_ffn", LOW_BIT.gated_ffn,
        "the norm is done once for two products; half or a quarter of the bytes of 16-bit weights", 6, "i8 and int4",
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
    VendorRow(
        "mlu::embedding", "embedding", "library", needing(), "f32, f16 and bf16; a scale", embedding, floats_of_table,
        devices=("mlu",), graph_safe=True, saves="PyTorch's own operator: one launch",
    ),
    VendorRow(
        "mlu::argmax", "argmax", "library", needing(), "always", argmax, devices=("mlu",), graph_safe=True,
        saves="PyTorch's own operator: one launch",
    ),
)  # fmt: skip
