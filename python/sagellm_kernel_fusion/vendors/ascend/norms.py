"""RMSNorm, LayerNorm and the sums before them."""

from __future__ import annotations

from ...adapters.conditions import dtypes, not_empty
from ..compositions import shifted
from ..row import VendorRow
from .operators import ALL, needing

FLOATS = ("f32", "f16", "bf16")


def _declines(x, weight, bias=None, residual=None, residual_out=None, **rest) -> str | None:
    given = {"x": x, "weight": weight} | ({} if residual is None else {"residual": residual})
    return dtypes(given if bias is None else given | {"bias": bias}, FLOATS) or not_empty({"x": x})


def _alone(x, weight, residual=None, **rest) -> str | None:
    return "residual is given: this kernel takes none" if residual is not None else _declines(x, weight, **rest)


def _with_residual(x, weight, residual=None, **rest) -> str | None:
    return "no residual: this kernel adds one" if residual is None else _declines(x, weight, residual=residual, **rest)


def rms_norm(x, weight, eps=1e-6, weight_offset=0.0):
    return ALL("npu_rms_norm")(x, shifted(weight, weight_offset), epsilon=eps)[0]


def _add_rms_norm(x, weight, residual=None, residual_out=None, eps=1e-6, weight_offset=0.0):
    out, _, total = ALL("npu_add_rms_norm")(x, residual, shifted(weight, weight_offset), epsilon=eps)
    if residual_out is not None:
        residual_out.copy_(total)
    return out


def layer_norm(x, weight, bias=None, eps=1e-5):
    import torch

    return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def _add_layer_norm(x, weight, bias=None, residual=None, residual_out=None, eps=1e-5):
    beta = weight.new_zeros(weight.shape) if bias is None else bias
    keep = residual_out is not None
    out, _, _, total = ALL("npu_add_layer_norm")(x, residual, weight, beta, eps, keep)
    if keep:
        residual_out.copy_(total)
    return out


ROWS = (
    VendorRow(
        "ascend::add_rms_norm", "rms_norm", "library", needing("npu_add_rms_norm"), "with a residual; f32, f16 and "
        "bf16",
        _add_rms_norm, _with_residual, devices=("ascend",), graph_safe=True,
        saves="one launch for the sum and the norm; the sum is not read again",
    ),
    VendorRow(
        "ascend::rms_norm", "rms_norm", "library", needing("npu_rms_norm"), "f32, f16 and bf16", rms_norm, _alone,
        devices=("ascend",), graph_safe=True, saves="one launch for the square, mean, root and two products",
    ),
    VendorRow(
        "ascend::add_layer_norm", "layer_norm", "library", needing("npu_add_layer_norm"),
        "with a residual; f32, f16 and bf16", _add_layer_norm, _with_residual, devices=("ascend",), graph_safe=True,
        saves="one launch for the sum and the norm; the sum is not read again",
    ),
    VendorRow(
        "ascend::layer_norm", "layer_norm", "library", needing(), "f32, f16 and bf16", layer_norm, _alone,
        devices=("ascend",), graph_safe=True, saves="PyTorch's own operator: one launch",
    ),
)  # fmt: skip
