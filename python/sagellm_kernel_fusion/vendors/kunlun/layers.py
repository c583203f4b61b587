"""Norms, linear layers with what comes before and after them, the gated FFN, rotary embeddings and activations, by
kunlun_ops where it has them and else by PyTorch's own operators."""

from __future__ import annotations

from ...adapters.conditions import dtypes, not_empty
from ..compositions import activate, argmax, binary, embedding, floats_of_table, rounded_logits, shifted, softmax
from ..layers import Layers, operands_of_layer
from ..layouts import whole_heads
from ..low_bit import ROUNDED, Codes, LowBitLayers, a_scale_an_output, are_codes, declines_of
from ..row import VendorRow
from .operators import ALL, needing

FLOATS = ("f32", "f16", "bf16")
_INT8_MAX = 127.0


# Norms


def _norm_declines(x, weight, bias=None, residual=None, **rest) -> str | None:
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    return dtypes({n: v for n, v in given.items() if v is not None}, FLOATS) or not_empty({"x": x})


def _alone(x, weight, residual=None, **rest) -> str | None:
    return "residual is given: this kernel takes none" if residual is not None else _norm_declines(x, weight, **rest)


def _with_residual(x, weight, residual=None, **rest) -> str | None:
    if residual is None:
        return "no residual: this kernel adds one"
    return _norm_declines(x, weight, residual=residual)


def rms_norm(x, weight, eps=1e-6, weight_offset=0.0):
    import torch

    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = torch.empty_like(rows)
    ALL("rmsnorm")(rows, shifted(weight, weight_offset), out, eps)
    return out.view(x.shape)


def _add_rms_norm(x, weight, residual=None, residual_out=None, eps=1e-6, weight_offset=0.0):
    """The callers give the residual's memory for the sum; here that stays as it is."""
    import torch

    rows, beside = (t.reshape(-1, x.shape[-1]).contiguous() for t in (x, residual))
    out, total = torch.empty_like(rows), torch.empty_like(rows)
    gamma = shifted(weight, weight_offset)
    ALL("add_rmsnorm")(rows, beside, residual_output=total, weight=gamma, eps=eps, output=out)
    if residual_out is not None:
        residual_out.copy_(total.view(x.shape))
    return out.view(x.shape)


def layer_norm(x, weight, bias=None, eps=1e-5):
    import torch

    return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


# Activations


def _activation(x, kind="silu"):
    return activate(x, kind)


def _floats(x, **rest) -> str | None:
    return dtypes({"x": x}, FLOATS) or not_empty({"x": x})


def _gated(gate, up, kind="silu"):
    return activate(gate, kind) * up


def _gated_declines(gate, up, **rest) -> str | None:
    return dtypes({"gate": gate, "up": up}, FLOATS) or not_empty({"gate": gate})


# Rotary embedding


def _rope_declines(x, positions, cos, sin, norm_weight=None, **rest) -> str | None:
    return whole_heads(x, cos, norm_weight) or _floats(x)


def _rope(x, positions, cos, sin, norm_weight=None, norm_eps=1e-6, norm_weight_offset=0.0, interleaved=False):
    """x [tokens, heads, head_dim], turned in place as the query of a call whose key is one head of zeros. In f32 with
    the tables: the function takes one dtype, and 16-bit tables would turn large positions by wrong angles."""
    import torch

    dtype, (tokens, _, width) = x.dtype, x.shape
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, norm_eps, norm_weight_offset)
    query = torch.empty(tokens, x.shape[1] * width, dtype=torch.float32, device=x.device)
    query.view(x.shape).copy_(x)
    tables = torch.cat((cos, sin), -1).float()
    ALL("rotary_embedding")(
        positions=positions.long(), query=query, key=query.new_zeros(tokens, width), head_size=width,
        cos_sin_cache=tables, is_neox=not interleaved,
    )  # fmt: skip
    return query.view(x.shape).to(dtype)


# Layers: the products are PyTorch's, as vLLM-Kunlun's are


def _declines(x, **rest) -> str | None:
    operands = operands_of_layer(x, **rest)
    return dtypes(operands, FLOATS) or not_empty(operands)


def product(x, weight, bias=None, residual=None, activation="none"):
    """act(x @ weight^T + bias) + residual, the bias or a residual alone in the product's launch."""
    import torch

    joined = residual is not None and bias is None and activation == "none"
    added = residual if joined else bias
    y = x @ weight.t() if added is None else torch.addmm(added, x, weight.t())
    return LAYERS.after(y, None, None if joined else residual, activation)


def _hidden(y, gate_weight, up_weight, activation):
    """silu(gate) * up by swiglu, over both in one tensor: gate's half first."""
    import torch

    if activation != "silu":
        return activate(y @ gate_weight.t(), activation) * (y @ up_weight.t())
    wide = gate_weight.shape[0]
    both = y.new_empty(y.shape[0], 2 * wide)
    torch.mm(y, gate_weight.t(), out=both[:, :wide])
    torch.mm(y, up_weight.t(), out=both[:, wide:])
    hidden = y.new_empty(y.shape[0], wide)
    ALL("swiglu")(x=both, y=hidden)
    return hidden


LAYERS = Layers(activate, rms_norm, layer_norm, product, _hidden)


def _argmax_declines(x, **rest) -> str | None:
    return rounded_logits(x) or _declines(x, **rest)


# 8-bit weights, inputs rounded to 8 bits


def _w8a8_problem(x, codes: Codes) -> str | None:
    return are_codes(codes, "i8") or a_scale_an_output(codes)


def _rounded(y):
    """kunlun_ops has the largest value of a row where others have its scale: 127 times that."""
    import torch

    y = y.contiguous()
    rounded = torch.empty_like(y, dtype=torch.int8)
    largest = torch.empty(y.shape[0], 1, dtype=torch.float32, device=y.device)
    ALL("quant2d")(x=y, y=rounded, max=largest, force_sdnn=True)
    return rounded, largest, y.dtype


def _product_of_integers(entered, codes: Codes, bias):
    rounded, largest, dtype = entered
    out = rounded.new_empty(rounded.shape[0], codes.weight.shape[0], dtype=dtype)
    ALL("matmul")(
        x=rounded, w=codes.weight.contiguous(), out=out, x_trans=False, w_trans=True, alpha=1.0, beta=0.0,
        bias=None if bias is None else bias.float(), x_max=None, w_max=None, x_pc_max=largest,
        w_pc_max=codes.scales.reshape(-1, 1).float() * _INT8_MAX,
    )  # fmt: skip
    return out


INTEGERS = LowBitLayers(LAYERS, _rounded, _product_of_integers)


def _w8a8_row(op: str, function, saves: str, launches: int) -> VendorRow:
    return VendorRow(
        f"kunlun::{op}_w8a8", op, "library", needing("quant2d", "matmul", "rmsnorm"),
        "i8 weights of a scale an output, inputs rounded to i8; f16 and bf16", function, declines_of(op, _w8a8_problem),
        fixed=ROUNDED, devices=("kunlun",), graph_safe=True, launches=launches,
        saves=f"{saves}; half the bytes of a 16-bit weight",
    )  # fmt: skip


_ANY = "f32, f16 and bf16, all operands of one dtype; a norm or an activation before"
_ONE = "PyTorch's own operator: one launch"
ROWS = (
    VendorRow(
        "kunlun::add_rms_norm", "rms_norm", "library", needing("add_rmsnorm"), "with a residual; f32, f16 and bf16",
        _add_rms_norm, _with_residual, devices=("kunlun",), graph_safe=True,
        saves="one launch for the sum and the norm; the sum is not read again",
    ),
    VendorRow(
        "kunlun::rms_norm", "rms_norm", "library", needing("rmsnorm"), "f32, f16 and bf16", rms_norm, _alone,
        devices=("kunlun",), graph_safe=True, saves="one launch for the square, mean, root and two products",
    ),
    VendorRow(
        "kunlun::layer_norm", "layer_norm", "library", needing(), "f32, f16 and bf16", layer_norm, _alone,
        devices=("kunlun",), graph_safe=True, saves=_ONE,
    ),
    VendorRow(
        "kunlun::linear", "linear", "library", needing("rmsnorm"), _ANY + ", an activation or a residual after",
        LAYERS.linear, _declines, devices=("kunlun",), graph_safe=True, launches=2,
        saves="bias, or residual, in the product's launch; one launch a norm or activation",
    ),
    VendorRow(
        "kunlun::qkv_linear", "qkv_linear", "library", needing("rmsnorm"), _ANY, LAYERS.qkv_linear, _declines,
        devices=("kunlun",), graph_safe=True, launches=6,
        saves="the norm is done once for three products; biases in their launches",
    ),
    VendorRow(
        "kunlun::gated_ffn", "gated_ffn", "library", needing("rmsnorm", "swiglu"), _ANY + ", a residual after",
        LAYERS.gated_ffn, _declines, devices=("kunlun",), graph_safe=True, launches=5,
        saves="silu and product in one launch (3 of 5 passes over the intermediate); the residual in the last "
        "product's",
    ),
    VendorRow(
        "kunlun::lm_head_argmax", "lm_head_argmax", "library", needing("rmsnorm"),
        "f32 and f16, all operands of one dtype; a norm or an activation before", LAYERS.lm_head_argmax,
        _argmax_declines, devices=("kunlun",), graph_safe=True, launches=3, saves="nothing: norm, product and argmax",
    ),
    _w8a8_row("linear", INTEGERS.linear, "products of integers", 3),
    _w8a8_row(
        "qkv_linear", INTEGERS.qkv_linear,
        "the norm and the rounding are done once for three products, of integers", 5,
    ),
    _w8a8_row(
        "gated_ffn", INTEGERS.gated_ffn, "the norm and the rounding are done once for two products, of integers", 8
    ),
    VendorRow(
        "kunlun::rope", "rope", "library", needing("rotary_embedding", "rmsnorm"),
        "halves and interleaved, of whole heads; a norm before it; f32, f16 and bf16", _rope, _rope_declines,
        devices=("kunlun",), graph_safe=True, launches=6,
        saves="one launch for the gathered tables, halves, products and sum",
    ),
    VendorRow(
        "kunlun::activation", "activation", "library", needing(), "f32, f16 and bf16", _activation, _floats,
        devices=("kunlun",), graph_safe=True, saves=_ONE,
    ),
    VendorRow(
        "kunlun::gated_activation", "gated_activation", "library", needing(), "f32, f16 and bf16", _gated,
        _gated_declines, devices=("kunlun",), graph_safe=True, launches=2,
        saves="nothing: swiglu takes one tensor, and joining two costs what it saves",
    ),
    VendorRow(
        "kunlun::softmax", "softmax", "library", needing(), "f32, f16 and bf16; masks", softmax, _floats,
        devices=("kunlun",), graph_safe=True, launches=5,
        saves="nothing: it is PyTorch's operator, and zeros for rows of -inf",
    ),
    VendorRow(
        "kunlun::binary", "binary", "library", needing(), "always", binary, devices=("kunlun",), graph_safe=True,
        saves=_ONE,
    ),
    VendorRow(
        "kunlun::embedding", "embedding", "library", needing(), "f32, f16 and bf16; a scale", embedding,
        floats_of_table, devices=("kunlun",), graph_safe=True, saves=_ONE,
    ),
    VendorRow(
        "kunlun::argmax", "argmax", "library", needing(), "always", argmax, devices=("kunlun",), graph_safe=True,
        saves=_ONE,
    ),
)  # fmt: skip
