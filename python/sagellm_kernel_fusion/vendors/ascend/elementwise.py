"""Activations, their products, softmax, sums, rotary embeddings and the like."""

from __future__ import annotations

from ...adapters.conditions import dtypes, not_empty
from ..compositions import argmax, binary, embedding, floats_of_table, softmax
from ..row import VendorRow
from .norms import FLOATS, rms_norm
from .operators import ALL, needing

_GELU = {"gelu": "none", "gelu_tanh": "tanh"}


def activate(x, kind: str):
    """silu is PyTorch's (npu_silu is deprecated); npu_fast_gelu is x sigmoid(1.702 x), and no GELU."""
    import torch

    if kind in _GELU:
        return ALL("npu_gelu")(x, approximate=_GELU[kind])
    return {"silu": torch.nn.functional.silu, "relu": torch.relu, "none": torch.clone}[kind](x)


def _activation(x, kind="silu"):
    return activate(x, kind)


def _declines_gelu(x, kind="silu", **rest) -> str | None:
    return f"kind {kind}: this kernel serves gelu and gelu_tanh" if kind not in _GELU else _floats(x)


def _declines_plain(x, kind="silu", **rest) -> str | None:
    return f"kind {kind}: this kernel serves silu, relu and none" if kind in _GELU else _floats(x)


def _floats(x, **rest) -> str | None:
    return dtypes({"x": x}, FLOATS) or not_empty({"x": x})


# act(gate) * up


def _gated(gate, up, kind="silu"):
    return activate(gate, kind) * up


def _gated_declines(gate, up, kind="silu", **rest) -> str | None:
    if kind in _GELU and (reason := needing("npu_gelu").problem):
        return reason
    return dtypes({"gate": gate, "up": up}, FLOATS) or not_empty({"gate": gate})


# Rotary embedding


def _rope_declines(x, positions, cos, sin, norm_weight=None, interleaved=False, **rest) -> str | None:
    if interleaved:
        return "interleaved: this kernel rotates halves"
    if 2 * cos.shape[-1] != x.shape[-1]:
        return f"rotary_dim {2 * cos.shape[-1]} of head_dim {x.shape[-1]}: this kernel rotates whole heads"
    if x.shape[-1] % 2 or x.shape[-1] > 896:
        return f"head_dim {x.shape[-1]}: this kernel takes even ones up to 896"
    if norm_weight is not None and norm_weight.dtype != x.dtype:
        return f"norm_weight is {norm_weight.dtype}, x {x.dtype}: this kernel takes one dtype"
    return _floats(x)


def _rope(x, positions, cos, sin, norm_weight=None, norm_eps=1e-6, norm_weight_offset=0.0):
    """x [tokens, heads, head_dim], in f32 with the tables: the operator takes one dtype, and a 16-bit table would turn
    large positions by wrong angles."""
    import torch

    dtype = x.dtype
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, norm_eps, norm_weight_offset)
    rows = positions.long()
    tables = [torch.cat((t[rows], t[rows]), -1)[None, :, None].float() for t in (cos, sin)]
    return ALL("npu_rotary_mul")(x.float().contiguous()[None], *tables)[0].to(dtype)


def _quantize(x, out_scales=None, out_dtype="i8"):
    rows = x.reshape(-1, x.shape[-1])
    codes, scales = ALL("npu_dynamic_quant")(rows)
    out_scales.copy_(scales.view(out_scales.shape))
    return codes.view(x.shape)


def _quantize_declines(x, out_dtype="i8", out_scales=None, **rest) -> str | None:
    if out_dtype != "i8" or out_scales is None:
        return f"out_dtype {out_dtype}: this kernel makes i8 with a scale a row"
    return dtypes({"x": x}, ("f16", "bf16")) or not_empty({"x": x})


ROWS = (
    VendorRow(
        "ascend::gelu", "activation", "library", needing("npu_gelu"), "gelu and gelu_tanh; f32, f16 and bf16",
        _activation, _declines_gelu, devices=("ascend",), graph_safe=True, saves="one launch",
    ),
    VendorRow(
        "ascend::activation", "activation", "library", needing(), "silu and relu; f32, f16 and bf16", _activation,
        _declines_plain, devices=("ascend",), graph_safe=True, saves="PyTorch's own operator: one launch",
    ),
    VendorRow(
        "ascend::gated_activation", "gated_activation", "library", needing(), "f32, f16 and bf16", _gated,
        _gated_declines, devices=("ascend",), graph_safe=True, launches=2,
        saves="nothing: npu_swiglu takes one tensor, and joining two costs what it saves",
    ),
    VendorRow(
        "ascend::softmax", "softmax", "library", needing(), "f32, f16 and bf16; masks", softmax, _floats,
        devices=("ascend",), graph_safe=True, launches=5,
        saves="nothing: it is PyTorch's operator, and zeros for rows of -inf",
    ),
    VendorRow(
        "ascend::rope", "rope", "library", needing("npu_rotary_mul", "npu_rms_norm"),
        "halves, of whole heads; a norm before it; f32, f16 and bf16", _rope, _rope_declines, devices=("ascend",),
        graph_safe=True, launches=7, saves="one launch for the halves, products and sum; tables are gathered apart",
    ),
    VendorRow(
        "ascend::binary", "binary", "library", needing(), "always", binary, devices=("ascend",), graph_safe=True,
        saves="PyTorch's own operator: one launch",
    ),
    VendorRow(
        "ascend::dynamic_quant", "quantize", "library", needing("npu_dynamic_quant"), "i8, a scale a row; f16 and bf16",
        _quantize, _quantize_declines, devices=("ascend",), graph_safe=True,
        saves="one launch for largest, scale and codes",
    ),
    VendorRow(
        "ascend::embedding", "embedding", "library", needing(), "f32, f16 and bf16; a scale", embedding,
        floats_of_table, devices=("ascend",), graph_safe=True, saves="PyTorch's own operator: one launch",
    ),
    VendorRow(
        "ascend::argmax", "argmax", "library", needing(), "always", argmax, devices=("ascend",), graph_safe=True,
        saves="PyTorch's own operator: one launch",
    ),
)  # fmt: skip
