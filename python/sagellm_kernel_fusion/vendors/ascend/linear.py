"""Linear layers with what comes before and after them, and the gated FFN.

Weights lie as [out, in]. The products are PyTorch's, with the bias in the same launch; what a prologue or an epilogue
adds is an operator of its own."""

from __future__ import annotations

from ...adapters.conditions import dtypes, not_empty
from ..compositions import argmax, rounded_logits
from ..layouts import is_contiguous, prologue_and_epilogue, scales_problem
from ..row import VendorRow
from .elementwise import activate
from .norms import layer_norm, rms_norm
from .operators import ALL, needing

FLOATS = ("f32", "f16", "bf16")


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


def _before(x, norm, norm_weight, norm_bias, eps, pre_activation):
    if norm == "rms":
        x = rms_norm(x, norm_weight, eps)
    elif norm == "layer":
        x = layer_norm(x, norm_weight, norm_bias, eps)
    return x if pre_activation == "none" else activate(x, pre_activation)


def product(x, weight, bias, out):
    """x @ weight^T + bias into out (None: a new tensor), one launch; bias may be a matrix."""
    import torch

    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def _linear(
    x, weight, out, bias=None, residual=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
    pre_activation="none", activation="none",
):  # fmt: skip
    import torch

    y = _before(x, norm, norm_weight, norm_bias, eps, pre_activation)
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
    norm_bias=None, eps=1e-5, pre_activation="none",
):  # fmt: skip
    y = _before(x, norm, norm_weight, norm_bias, eps, pre_activation)
    for weight, bias, out in ((q_weight, q_bias, q), (k_weight, k_bias, k), (v_weight, v_bias, v)):
        product(y, weight, bias, out)


def _gated_ffn(
    x, gate_weight, up_weight, down_weight, out, residual=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
    pre_activation="none", activation="silu",
):  # fmt: skip
    """Gate and up go to the two halves of one tensor, which npu_swiglu takes along its first dimension."""
    import torch

    y = _before(x, norm, norm_weight, norm_bias, eps, pre_activation)
    both = y.new_empty(2 * y.shape[0], gate_weight.shape[0])
    torch.mm(y, gate_weight.t(), out=both[: y.shape[0]])
    torch.mm(y, up_weight.t(), out=both[y.shape[0] :])
    product(ALL("npu_swiglu")(both, dim=0), down_weight, residual, out)


def _gated_ffn_plain(
    x, gate_weight, up_weight, down_weight, out, residual=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
    pre_activation="none", activation="silu",
):  # fmt: skip
    y = _before(x, norm, norm_weight, norm_bias, eps, pre_activation)
    product(activate(y @ gate_weight.t(), activation) * (y @ up_weight.t()), down_weight, residual, out)


def _argmax_declines(x, **rest) -> str | None:
    return rounded_logits(x) or _declines(x, **rest)


def _lm_head_argmax(
    x, weight, max=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5, pre_activation="none"
):
    return argmax(_before(x, norm, norm_weight, norm_bias, eps, pre_activation) @ weight.t(), max)


# Low-bit weights

_MAX_SIZE = 65535  # of a weight, each way


def _codes_problem(weight, weight_scales, dtype: str) -> str | None:
    """Why this is no weight of codes that the operators take: whole, so that it is given as one that is transposed."""
    if weight_scales is None:
        return f"weight has no scales: this kernel takes {dtype} with scales"
    if weight.dtype != dtype:
        return f"weight is {weight.dtype}: this kernel takes {dtype} with scales"
    if max(weight.shape) > _MAX_SIZE:
        return f"weight has shape {list(weight.shape)}: this kernel takes at most {_MAX_SIZE} inputs and outputs"
    return None if is_contiguous(weight) else "weight is not contiguous: this kernel takes whole ones"


def _groups_problem(x, weight, weight_scales, weight_group_size=0, **rest) -> str | None:
    wide = weight.shape[-1]
    if weight_group_size and weight_group_size != wide and (weight_group_size % 32 or weight_group_size > wide - 1):
        return f"groups of {weight_group_size}: this kernel takes whole rows, or multiples of 32 within them"
    if weight_scales.shape[0] != weight.shape[0]:
        return f"scales {list(weight_scales.shape)}: this kernel takes a row of them for each output"
    if reason := scales_problem(x, weight_scales):
        return reason
    return dtypes({"x": x}, ("f16", "bf16")) or _prologue_dtypes(x, **rest)


def _w8_declines(x, weight, weight_scales=None, weight_zeros=None, **rest) -> str | None:
    return _codes_problem(weight, weight_scales, "i8") or _groups_problem(x, weight, weight_scales, **rest)


def _w4_declines(x, weight, weight_scales=None, weight_zeros=None, **rest) -> str | None:
    if reason := _codes_problem(weight, weight_scales, "int4"):
        return reason
    if weight.shape[-1] % 8 or weight.shape[-1] < 16 or weight.shape[0] < 2:  # below, which way it lies is not told
        return (
            f"weight has shape {list(weight.shape)}: this kernel takes 2 outputs or more of a multiple of 8 inputs "
            "from 16"
        )
    return _groups_problem(x, weight, weight_scales, **rest)


def _prologue_dtypes(x, **rest) -> str | None:
    operands = {"x": x} | prologue_and_epilogue(**rest)
    return _gelu_problem(**rest) or dtypes(operands, FLOATS) or not_empty(operands)


def _linear_low_bit(
    x, weight, bias=None, residual=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
    pre_activation="none", activation="none", weight_scales=None, weight_zeros=None, weight_group_size=0,
):  # fmt: skip
    """(code - zero) * scale, as the operator has (code + offset) * scale; scales as [groups, out]. Of four bits it
    has eight codes in an int32, the first in the lowest: so kf's lie, two in a byte."""
    import torch

    codes = weight.view(torch.int32) if weight.dtype is torch.uint8 else weight
    y = _before(x, norm, norm_weight, norm_bias, eps, pre_activation)
    groups = weight_scales.shape[1] if weight_scales.dim() == 2 else 1
    scales = weight_scales.reshape(-1, groups).t().contiguous()
    offsets = None if weight_zeros is None else -weight_zeros.reshape(-1, groups).t().contiguous().to(x.dtype)
    if groups == 1:
        scales, offsets = scales[0], None if offsets is None else offsets[0]
    y = ALL("npu_weight_quant_batchmatmul")(
        y.contiguous(), codes.t(), scales, antiquant_offset=offsets, bias=_bias_of(bias),
        antiquant_group_size=0 if groups == 1 else weight_group_size,
    )  # fmt: skip
    if activation != "none":
        y = activate(y, activation)
    return y if residual is None else y + residual


def _bias_of(bias):
    """Float for bf16 inputs, as the operator has it."""
    import torch

    return bias.float() if bias is not None and bias.dtype is torch.bfloat16 else bias


def _w8a8_declines(x, weight, weight_scales=None, weight_zeros=None, **rest) -> str | None:
    if reason := _codes_problem(weight, weight_scales, "i8"):
        return reason
    if weight_zeros is not None or list(weight_scales.shape) not in ([weight.shape[0], 1], [weight.shape[0]]):
        return "weight has zeros or groups: this kernel takes a scale an output"
    return dtypes({"x": x}, ("f16", "bf16")) or _prologue_dtypes(x, **rest)


def _linear_w8a8(
    x, weight, residual=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5, pre_activation="none",
    activation="none", weight_scales=None, weight_group_size=0, input_quantization="int8", bias=None,
):  # fmt: skip
    y = _before(x, norm, norm_weight, norm_bias, eps, pre_activation)
    codes, of_tokens = ALL("npu_dynamic_quant")(y)
    y = ALL("npu_quant_matmul")(
        codes, weight.t(), weight_scales.reshape(-1).float(), pertoken_scale=of_tokens, output_dtype=x.dtype
    )
    if bias is not None:
        y = y + bias
    if activation != "none":
        y = activate(y, activation)
    return y if residual is None else y + residual


_ANY = "f32, f16 and bf16, all operands of one dtype; a norm or an activation before"
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
    VendorRow(
        "ascend::linear_w8a8", "linear", "library", needing("npu_dynamic_quant", "npu_quant_matmul", "npu_rms_norm"),
        "i8 weights of a scale an output, inputs rounded to i8; f16 and bf16", _linear_w8a8, _w8a8_declines,
        fixed={"input_quantization": ("int8",)}, devices=("ascend",), graph_safe=True, launches=3,
        saves="products of integers; half the bytes of a 16-bit weight",
    ),
    VendorRow(
        "ascend::linear_w8", "linear", "library", needing("npu_weight_quant_batchmatmul", "npu_rms_norm"),
        "i8 weights of a scale an output, or of groups of a multiple of 32; f16 and "
        "bf16", _linear_low_bit, _w8_declines,
        devices=("ascend",), graph_safe=True, launches=2,
        saves="half the bytes of a 16-bit weight, never expanded in memory",
    ),
    VendorRow(
        "ascend::linear_w4", "linear", "library", needing("npu_weight_quant_batchmatmul", "npu_rms_norm"),
        "int4 weights of a scale an output, or of groups of a multiple of 32; f16 and bf16", _linear_low_bit,
        _w4_declines,
        devices=("ascend",), graph_safe=True, launches=2,
        saves="a quarter of the bytes of a 16-bit weight, never expanded in memory",
    ),
)  # fmt: skip
