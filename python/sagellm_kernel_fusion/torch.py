"""Fused operators in torch's own words: functions with the signatures of torch.nn.functional, and the custom operators
(`torch.ops.kernel_fusion`) that they call, which torch.compile, torch.export and fake tensors take as they are.

    import sagellm_kernel_fusion.torch as kft

    y = kft.rms_norm(x, (n,), weight, eps=1e-6)
    o = kft.scaled_dot_product_attention(q, k, v, is_causal=True)
    step = torch.compile(model, fullgraph=True)                        # a model that calls these

For inference on the CPU or a CUDA device, in f32, f16 or bf16: there is no backward, which torch says when one is asked
for. Each call is one kernel of the library, chosen as `ops` chooses, on torch's current stream. Products of f32
on CUDA may be TF32 where torch's own may (torch.backends.cuda.matmul.allow_tf32).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .call import Selection, call
from .checks import flag
from .errors import refusing
from .torch_precision import allows_tf32

__all__ = ["layer_norm", "rms_norm", "scaled_dot_product_attention", "swiglu"]


_EPS, _SMALLEST = torch.finfo(torch.float32).eps, torch.finfo(torch.float32).tiny


def rms_norm(input: Tensor, normalized_shape, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """torch.nn.functional.rms_norm over one dimension. eps None: f32's, which torch computes 16-bit types in, too."""
    weight = _norm_weight("rms_norm", input, normalized_shape, weight)
    return torch.ops.kernel_fusion.rms_norm(input, weight, _EPS if eps is None else _number("rms_norm: eps", eps))


def layer_norm(
    input: Tensor, normalized_shape, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """torch.nn.functional.layer_norm over one dimension."""
    weight = _norm_weight("layer_norm", input, normalized_shape, weight)
    if bias is not None:
        _check_tensor("layer_norm: bias", bias)
    return torch.ops.kernel_fusion.layer_norm(input, weight, bias, _number("layer_norm: eps", eps))


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.scaled_dot_product_attention. query [batch, num_heads, seqlen_q, head_dim], key and value
    [batch, num_heads, seqlen_k, head_dim], or fewer heads with enable_gqa; without heads, [batch, seqlen, head_dim].

    Batches of one are broadcast. is_causal counts from the first key, as torch does (ops.attention counts from the
    last)."""
    for name, tensor in (("query", query), ("key", key), ("value", value), ("attn_mask", attn_mask)):
        if tensor is not None or name != "attn_mask":
            _check_tensor(f"scaled_dot_product_attention: {name}", tensor)
    is_causal = flag("scaled_dot_product_attention: is_causal", is_causal)
    enable_gqa = flag("scaled_dot_product_attention: enable_gqa", enable_gqa)
    if scale is not None:
        scale = _number("scaled_dot_product_attention: scale", scale)
    if _number("scaled_dot_product_attention: dropout_p", dropout_p) > 0:
        raise refusing(f"scaled_dot_product_attention: dropout_p: expected 0, got {dropout_p}: it is for inference")
    if attn_mask is not None and is_causal:
        raise refusing("scaled_dot_product_attention: is_causal: expected False with attn_mask, got both")
    if query.dim() == 3:
        mask = attn_mask if attn_mask is None or attn_mask.dim() < 3 else attn_mask.unsqueeze(1)
        heads = [t.unsqueeze(1) for t in (query, key, value)]
        return scaled_dot_product_attention(*heads, mask, is_causal=is_causal, scale=scale).squeeze(1)
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        shapes = [list(t.shape) for t in (query, key, value)]
        raise refusing(f"scaled_dot_product_attention: expected 3 or 4 dimensions, got {shapes}")
    if not enable_gqa and key.shape[1] != query.shape[1]:
        raise refusing(
            f"scaled_dot_product_attention: key: expected {query.shape[1]} heads, as query has, got {key.shape[1]}: "
            "pass enable_gqa=True"
        )
    seqlen_q, seqlen_k = query.shape[2], key.shape[2]
    if is_causal and seqlen_q != seqlen_k:
        attn_mask = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool, device=query.device).tril()
        is_causal = False
    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.dim())]
    batch = max(len(t) for t in (query, key, value)) if all(map(len, (query, key, value))) else 0
    heads_last = [(t if len(t) == batch else t.expand(batch, -1, -1, -1)).transpose(1, 2) for t in (query, key, value)]
    scale = _SMALLEST if scale == 0 else scale  # an op's 0 is its default
    return torch.ops.kernel_fusion.attention(*heads_last, attn_mask, is_causal, scale).transpose(1, 2)


def swiglu(x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor) -> Tensor:
    """(silu(x @ gate_weight^T) * (x @ up_weight^T)) @ down_weight^T: the gated FFN, weights as torch.nn.Linear's.

    x [..., hidden], gate_weight and up_weight [intermediate, hidden], down_weight [hidden_out, intermediate]."""
    _check_tensor("swiglu: x", x)
    if x.dim() < 1:
        raise refusing("swiglu: x: expected 1 dimension or more, got a single number")
    for name, weight in (("gate", gate_weight), ("up", up_weight), ("down", down_weight)):
        _check_tensor(f"swiglu: {name}_weight", weight)
    return torch.ops.kernel_fusion.gated_ffn(x, gate_weight, up_weight, down_weight)


def _check_tensor(what: str, x) -> None:
    if not isinstance(x, Tensor):
        raise refusing(f"{what}: expected a torch tensor, got {type(x).__name__}")
    if x.layout != torch.strided or x.is_nested or x.is_quantized:
        kind = "nested" if x.is_nested else "quantized" if x.is_quantized else x.layout
        raise refusing(f"{what}: expected a plain tensor, got a {kind} one")


def _number(what: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise refusing(f"{what}: expected a number, got {type(value).__name__}")
    return float(value)


def _norm_weight(name: str, input: Tensor, normalized_shape, weight: Tensor | None) -> Tensor:
    _check_tensor(f"{name}: input", input)
    if weight is not None:
        _check_tensor(f"{name}: weight", weight)
    if input.dim() < 1:
        raise refusing(f"{name}: input: expected 1 dimension or more, got a single number")
    if not isinstance(normalized_shape, (tuple, list)) or tuple(normalized_shape) != (input.shape[-1],):
        raise refusing(
            f"{name}: normalized_shape: expected the last dimension, ({input.shape[-1]},), got {normalized_shape!r}"
        )
    return input.new_ones(input.shape[-1:]) if weight is None else weight


# The custom operators. Each has a fake kernel, which says what comes out without computing it.


_DEVICES = ("cpu", "cuda")
_TF32 = Selection(tf32=True)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op("kernel_fusion::rms_norm", mutates_args=(), device_types=_DEVICES)
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return call("rms_norm", {"x": _rows(x), "weight": weight, "eps": eps})


@torch.library.custom_op("kernel_fusion::layer_norm", mutates_args=(), device_types=_DEVICES)
def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return call("layer_norm", {"x": _rows(x), "weight": weight, "bias": bias, "eps": eps})


@torch.library.custom_op("kernel_fusion::attention", mutates_args=(), device_types=_DEVICES)
def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, causal: bool, softmax_scale: float | None
) -> Tensor:
    """q [batch, seqlen_q, num_heads, head_dim], k and v alike; the result too."""
    fields = {"q": _rows(q), "k": _rows(k), "v": _rows(v), "attn_mask": attn_mask, "causal": causal}
    return call("attention", fields if softmax_scale is None else fields | {"softmax_scale": softmax_scale})


@torch.library.custom_op("kernel_fusion::gated_ffn", mutates_args=(), device_types=_DEVICES)
def _gated_ffn(x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor) -> Tensor:
    fields = {"x": _rows(x).reshape(-1, x.shape[-1]), "gate_weight": gate_weight, "up_weight": up_weight}
    may_round = x.is_cuda and x.dtype == torch.float32 and allows_tf32()
    selection = _TF32 if may_round else None
    out = call("gated_ffn", fields | {"down_weight": down_weight, "selection": selection})
    return out.view(*x.shape[:-1], down_weight.shape[0])


@_rms_norm.register_fake
def _(x, weight, eps):
    return x.new_empty(x.shape)


@_layer_norm.register_fake
def _(x, weight, bias, eps):
    return x.new_empty(x.shape)


@_attention.register_fake
def _(q, k, v, attn_mask, causal, softmax_scale):
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


@_gated_ffn.register_fake
def _(x, gate_weight, up_weight, down_weight):
    return x.new_empty((*x.shape[:-1], down_weight.shape[0]))
