"""Linear layers with what comes before and after them, and the gated FFN.

Weights lie as [out, in]. The products are PyTorch's, with the bias in the same launch; what a prologue or an epilogue
adds is an operator of its own."""

from __future__ import annotations

from ...adapters.conditions import dtypes, not_empty
from ..compositions import argmax, rounded_logits
from ..layers import Layers
from ..layouts import is_contiguous
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
from .elementwise import activate
from .norms import layer_norm, rms_norm
from .operators import ALL, needing

FLOATS = ("f32", "f16", "bf16")
AROUND = Layers(activate, rms_norm, layer_norm)


def _gelu_problem(activation="none", pre_activation="none", **rest) -> str | None:
    """PyTorch's own GELU is not called: some versions compute the tanh form whatever they are asked for."""
    is_gelu = activation.startswith("gelu") or pre_activation.startswith("gelu")
    return needing("npu_gelu").problem if is_gelu else None


def _declines(x, norm_weight=None, norm_bias=None, **rest) -> str | None:
    if reason := _gelu_problem(**rest):
        return reason
    operands = {"x": x} | {
        n: v for n, v in rest.items() if hasattr(v, "dtype") and n.endswith(("weight", "bias", "residual"))
    }
    for name, value in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if value is not None:
            operands[name] = value
    return dtypes(operands, FLOATS) or not_empty(operands)


def product(x, weight, bias, out):
    """x @ weight^T + bias into out (None: a new tensor), one launch; bias may be a matrix."""
    import torch

    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def _linear(
    x, weight, out, bias=None, residual=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
    pre_activation="none", activation="none", norm_weight_offset=0.0,
):  # fmt: skip
    import torch

    y = AROUND.before(x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset)
    if residual is not None and bias is None and activation == "none":
        product(y, weight, residual, out)
        return
    if residual is None:
        product(y, weight, bias, out)
        if activation != "none":
            out.copy_(activate(out, activation))
        return
    between = product(y, weight, bias, None)  # out may be the residual's memory, which is read last
    torch.add(between if activation == "none" else activate(between, activation), residual, out=out)


def _qkv(
    x, q_weight, k_weight, v_weight, q, k, v, q_bias=None, k_bias=None, v_bias=None, norm="none", norm_weight=None,
    norm_bias=None, eps=1e-5, pre_activation="none", norm_weight_offset=0.0,
):  # fmt: skip
    y = AROUND.before(x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset)
    for weight, bias, out in ((q_weight, q_bias, q), (k_weight, k_bias, k), (v_weight, v_bias, v)):
        product(y, weight, bias, out)


def _gated_ffn(
    x, gate_weight, up_weight, down_weight, out, residual=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
    pre_activation="none", activation="silu", norm_weight_offset=0.0,
):  # fmt: skip
    """Gate and up go to the two halves of one tensor, which npu_swiglu takes along its first dimension."""
    import torch

    y = AROUND.before(x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset)
    both = y.new_empty(2 * y.shape[0], gate_weight.shape[0])
    torch.mm(y, gate_weight.t(), out=both[: y.shape[0]])
    torch.mm(y, up_weight.t(), out=both[y.shape[0] :])
    product(ALL("npu_swiglu")(both, dim=0), down_weight, residual, out)


def _gated_ffn_plain(
    x, gate_weight, up_weight, down_weight, out, residual=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
    pre_activation="none", activation="silu", norm_weight_offset=0.0,
):  # fmt: skip
    y = AROUND.before(x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset)
    product(activate(y @ gate_weight.t(), activation) * (y @ up_weight.t()), down_weight, residual, out)


def _argmax_declines(x, **rest) -> str | None:
    return rounded_logits(x) or _declines(x, **rest)


def _lm_head_argmax(
    x, weight, max=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5, pre_activation="none",
    norm_weight_offset=0.0,
):  # fmt: skip
    y = AROUND.before(x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset)
    return argmax(y @ weight.t(), max)


# Low-bit weights

_MAX_SIZE = 65535  # of a weight, each way


def _codes_problem(codes: Codes, *taken: str) -> str | None:
    """Why this is no weight of codes that the operators take: whole, so that it is given as one that is transposed."""
    if reason := are_codes(codes, *taken):
        return reason
    shape = list(codes.weight.shape)
    if max(shape) > _MAX_SIZE:
        return f"{codes.name} has shape {shape}: this kernel takes at most {_MAX_SIZE} inputs and outputs"
    return None if is_contiguous(codes.weight) else f"{codes.name} is not contiguous: this kernel takes whole ones"


def _groups_problem(x, codes: Codes) -> str | None:
    wide = codes.weight.shape[-1]
    if codes.group and codes.group != wide and (codes.group % 32 or codes.group > wide - 1):
        return f"groups of {codes.group}: this kernel takes whole rows, or multiples of 32 within them"
    if codes.scales.shape[0] != codes.weight.shape[0]:
        return f"{codes.name}_scales {list(codes.scales.shape)}: this kernel takes a row of them for each output"
    return scales_in_dtype_of(x, codes)


def _w8_problem(x, codes: Codes) -> str | None:
    return _codes_problem(codes, "i8") or _groups_problem(x, codes)


def _w4_problem(x, codes: Codes) -> str | None:
    return _codes_problem(codes, "int4") or _eights_problem(codes) or _groups_problem(x, codes)


def _low_bit_problem(x, codes: Codes) -> str | None:
    eights = _eights_problem(codes) if codes.weight.dtype == "int4" else None
    return _codes_problem(codes, "i8", "int4") or eights or _groups_problem(x, codes)


def _eights_problem(codes: Codes) -> str | None:
    """Of four bits. Below this size, which way a weight lies is not told."""
    outputs, inputs = codes.weight.shape
    if inputs % 8 == 0 and inputs >= 16 and outputs >= 2:
        return None
    return (
        f"{codes.name} has shape {[outputs, inputs]}: this kernel takes 2 outputs or more of a multiple of 8 inputs "
        "from 16"
    )


def _w8a8_problem(x, codes: Codes) -> str | None:
    return _codes_problem(codes, "i8") or a_scale_an_output(codes)


def _low_bit_product(y, codes: Codes, bias):
    """(code - zero) * scale, as the operator has (code + offset) * scale; scales as [groups, out]. Of four bits it
    has eight codes in an int32, the first in the lowest: so kf's lie, two in a byte."""
    import torch

    weight, scales, zeros = codes.weight, codes.scales, codes.zeros
    weight = weight.view(torch.int32) if weight.dtype is torch.uint8 else weight
    groups = scales.shape[1] if scales.dim() == 2 else 1
    scales = scales.reshape(-1, groups).t().contiguous()
    offsets = None if zeros is None else -zeros.reshape(-1, groups).t().contiguous().to(y.dtype)
    if groups == 1:
        scales, offsets = scales[0], None if offsets is None else offsets[0]
    return ALL("npu_weight_quant_batchmatmul")(
        y, weight.t(), scales, antiquant_offset=offsets, bias=_bias_of(bias),
        antiquant_group_size=0 if groups == 1 else codes.group,
    )  # fmt: skip


def _bias_of(bias):
    """Float for bf16 inputs, as the operator has it."""
    import torch

    return bias.float() if bias is not None and bias.dtype is torch.bfloat16 else bias


def _rounded(y):
    return *ALL("npu_dynamic_quant")(y), y.dtype


def _product_of_integers(entered, codes: Codes, bias):
    rounded, of_tokens, dtype = entered
    y = ALL("npu_quant_matmul")(
        rounded, codes.weight.t(), codes.scales.reshape(-1).float(), pertoken_scale=of_tokens, output_dtype=dtype
    )
    return y if bias is None else y + bias


def _around_declines(x, **rest) -> str | None:
    return _gelu_problem(**rest)


LOW_BIT = LowBitLayers(AROUND, lambda y: y.contiguous(), _low_bit_product)
INTEGERS = LowBitLayers(AROUND, _rounded, _product_of_integers)


def _low_bit_row(
    name: str, op: str, operators: tuple[str, ...], condition: str, function, problem, saves: str, **rest
) -> VendorRow:
    return VendorRow(
        f"ascend::{name}", op, "library", needing(*operators, "npu_rms_norm"), f"{condition}; f16 and bf16", function,
        declines_of(op, problem, _around_declines), devices=("ascend",), graph_safe=True, saves=saves, **rest,
    )  # fmt: skip


_ANY = "f32, f16 and bf16, all operands of one dtype; a norm or an activation before"
_OF_CODES, _OF_INTEGERS = ("npu_weight_quant_batchmatmul",), ("npu_dynamic_quant", "npu_quant_matmul")
ROWS = (
    VendorRow(
        "ascend::linear", "linear", "library", needing("npu_rms_norm"), _ANY + ", an activation or a residual after",
        _linear, _declines, devices=("ascend",), graph_safe=True, launches=2,
        saves="bias, or residual, in the product's launch; one launch a norm or activation",
    ),
    VendorRow(
        "ascend::qkv_linear", "qkv_linear", "library", needing("npu_rms_norm"), _ANY, _qkv, _declines,
        devices=("ascend",), graph_safe=True, launches=4,
        saves="the norm is done once for three products; biases in their launches",
    ),
    VendorRow(
        "ascend::gated_ffn", "gated_ffn", "library", needing("npu_rms_norm", "npu_swiglu"),
        f"silu; {_ANY}, a residual after",
        _gated_ffn, _declines, fixed={"activation": ("silu",)}, devices=("ascend",), graph_safe=True, launches=5,
        saves="activation and product in one launch (3 of 5 passes over the intermediate); the residual in the last "
        "product's",
    ),
    VendorRow(
        "ascend::gated_ffn_plain", "gated_ffn", "library", needing("npu_rms_norm"), f"{_ANY}, a residual after",
        _gated_ffn_plain, _declines, devices=("ascend",), graph_safe=True, launches=6,
        saves="the residual in the last product's launch",
    ),
    VendorRow(
        "ascend::lm_head_argmax", "lm_head_argmax", "library", needing("npu_rms_norm"),
        "f32 and f16, all operands of one dtype; a norm or an activation before", _lm_head_argmax,
        _argmax_declines, devices=("ascend",), graph_safe=True, launches=3, saves="nothing: norm, product and argmax",
    ),
    _low_bit_row(
        "linear_w8a8", "linear", _OF_INTEGERS, "i8 weights of a scale an output, inputs rounded to i8",
        INTEGERS.linear, _w8a8_problem, "products of integers; half the bytes of a 16-bit weight", fixed=ROUNDED,
        launches=3,
    ),
    _low_bit_row(
        "linear_w8", "linear", _OF_CODES, "i8 weights of a scale an output, or of groups of a multiple of 32",
        LOW_BIT.linear, _w8_problem, "half the bytes of a 16-bit weight, never expanded in memory", fixed=AS_THEY_ARE,
        launches=2,
    ),
    _low_bit_row(
        "linear_w4", "linear", _OF_CODES, "int4 weights of a scale an output, or of groups of a multiple of 32",
        LOW_BIT.linear, _w4_problem, "a quarter of the bytes of a 16-bit weight, never expanded in memory",
        fixed=AS_THEY_ARE, launches=2,
    ),
    _low_bit_row(
        "qkv_linear_w8a8", "qkv_linear", _OF_INTEGERS, "i8 weights of a scale an output, inputs rounded to i8",
        INTEGERS.qkv_linear, _w8a8_problem,
        "the norm and the rounding are done once for three products, of integers; half the bytes of 16-bit weights",
        fixed=ROUNDED, launches=5,
    ),
    _low_bit_row(
        "qkv_linear_low_bit", "qkv_linear", _OF_CODES,
        "i8 and int4 weights of a scale an output, or of groups of a multiple of 32", LOW_BIT.qkv_linear,
        _low_bit_problem, "the norm is done once for three products; half or a quarter of the bytes of 16-bit weights",
        fixed=AS_THEY_ARE, launches=4,
    ),
    _low_bit_row(
        "gated_ffn_w8a8", "gated_ffn", _OF_INTEGERS, "i8 weights of a scale an output, inputs rounded to i8",
        INTEGERS.gated_ffn, _w8a8_problem,
        "the norm and the rounding are done once for two products, of integers; half the bytes of 16-bit weights",
        fixed=ROUNDED, launches=8,
    ),
    _low_bit_row(
        "gated_ffn_low_bit", "gated_ffn", _OF_CODES,
        "i8 and int4 weights of a scale an output, or of groups of a multiple of 32", LOW_BIT.gated_ffn,
        _low_bit_problem, "the norm is done once for two products; half or a quarter of the bytes of 16-bit weights",
        fixed=AS_THEY_ARE, launches=6,
    ),
)  # fmt: skip
