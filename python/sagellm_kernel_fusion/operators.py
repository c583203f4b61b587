"""The manager's operators as calls of the library's ops: what its methods, `plan`, `explain` and custom kernels share.

Each function here takes a method's arguments and returns a Call. Weights are x @ W ("in_out") unless weight_layout says
"out_in", which is torch.nn.Linear's; one that says itself how it lies (QuantizedTensor, SparseTensor, GgufTensor) is
[out, in].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _kf
from .arrays import NUMPY_DTYPES, GgufTensor, allocate, as_kind_of, layout, to_numpy
from .config import KernelFusionConfig
from .errors import refusing
from .paged import tables_and_lengths
from .quantized import as_quantized, kv_of_codes
from .sparse import SparseTensor


class Call(NamedTuple):
    op: str
    fields: dict  # operands and attributes of the op, by name
    transposed: tuple[str, ...] = ()  # matrices that the op takes as their transposed view
    rows: bool = False  # x [..., n] is a matrix of rows to the op
    leading: tuple[int, ...] | None = None  # what the results' first dimension stands for; None: itself


# Attention


def attention(
    config, q, k, v, causal=True, softmax_scale=None, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    attn_mask=None, sinks=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
    block_tables=None, context_lens=None, kv_layout="HND", k_scales=None, v_scales=None, k_zeros=None, v_zeros=None,
    out=None, return_lse=False,
) -> Call:  # fmt: skip
    leading = None
    keys = _keys_or_values(config, "k", k, k_scales, k_zeros)
    values = _keys_or_values(config, "v", v, v_scales, v_zeros)
    if block_tables is not None:
        rank = len(k.shape)
        if rank != 4:
            raise refusing(f"attention: k: expected a page pool of 4 dimensions with block_tables, got {rank}")
        page_size = k.shape[1] if kv_layout == "NHD" else k.shape[2]
        block_tables, context_lens = tables_and_lengths(block_tables, context_lens, int(page_size))
        if len(q.shape) == 4 and cu_seqlens_q is None:  # [batch, seqlen_q, num_heads, head_dim]
            batch, seqlen_q, *rest = (int(n) for n in q.shape)
            leading = (batch, seqlen_q)
            cu_seqlens_q = np.arange(batch + 1, dtype=np.int32) * np.int32(seqlen_q)
            q = _reshaped(q, (batch * seqlen_q, *rest))
            out = None if out is None else _reshaped_out(out, (batch * seqlen_q, *rest))
    if max_seqlen_q is not None:
        _check_longest("max_seqlen_q", max_seqlen_q, cu_seqlens_q)
    if max_seqlen_k is not None:
        _check_longest("max_seqlen_k", max_seqlen_k, cu_seqlens_k)
    try:
        left, right = window_size
    except (TypeError, ValueError):
        raise refusing(f"attention: window_size: expected (left, right), got {window_size!r}") from None
    fields = {
        "q": q, **keys, **values, "out": out, "lse": return_lse or None, "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k": cu_seqlens_k, "block_tables": block_tables, "context_lens": context_lens,
        "kv_layout": kv_layout, "softmax_scale": softmax_scale, "causal": causal, "window_left": left,
        "window_right": right, "softcap": softcap, "alibi_slopes": alibi_slopes, "attn_mask": attn_mask, "sinks": sinks,
    }  # fmt: skip
    return Call("attention", fields, leading=leading)


def _keys_or_values(config: KernelFusionConfig, name: str, x, scales, zeros) -> dict:
    """The operands for K or V: as they are; a QuantizedTensor; or codes with scales beside them."""
    quantized = None if type(x).__module__ in ("torch", "numpy") else as_quantized(x)
    if quantized is None:
        if scales is None and zeros is None:
            return {name: x}
        quantized = kv_of_codes(f"attention: {name}", x, scales, zeros)
    elif scales is not None or zeros is not None:
        raise refusing(f"attention: {name}_scales: expected none beside a QuantizedTensor, which has its own")
    _check_quantized("attention", name, quantized.dtype, config)
    return quantized.fields(name) if config.fuse_with_quant else {name: _dequantized(quantized.dequantize(), config)}


def _check_longest(name: str, longest: int, offsets) -> None:
    if offsets is None:
        return
    lengths = np.diff(np.from_dlpack(offsets) if not isinstance(offsets, np.ndarray) else offsets)
    if lengths.size and lengths.max() > longest:
        raise refusing(f"attention: {name}: the longest sequence has {lengths.max()} tokens, got {longest}")


# FFN and linear layers


def ffn(config, x, gate_weight, up_weight, down_weight, activation="silu", weight_layout="in_out", out=None) -> Call:
    weights = {"gate_weight": gate_weight, "up_weight": up_weight, "down_weight": down_weight}
    return _linear_call("gated_ffn", config, x, weights, weight_layout, out, activation=activation)


def layernorm_linear(
    config, x, ln_weight, ln_bias, linear_weight, bias=None, eps=1e-5, weight_layout="in_out", out=None
) -> Call:
    return _linear_call(
        "linear", config, x, {"weight": linear_weight}, weight_layout, out,
        bias=bias, norm="layer", norm_weight=ln_weight, norm_bias=ln_bias, eps=eps,
    )  # fmt: skip


def rmsnorm_linear(
    config, x, norm_weight, linear_weight, bias=None, eps=1e-6, weight_layout="in_out", out=None
) -> Call:
    return _linear_call(
        "linear", config, x, {"weight": linear_weight}, weight_layout, out,
        bias=bias, norm="rms", norm_weight=norm_weight, eps=eps,
    )  # fmt: skip


def gelu_linear(config, x, weight, bias=None, approximate="tanh", weight_layout="in_out", out=None) -> Call:
    if approximate not in ("tanh", "none"):
        raise refusing(f"gelu_linear: approximate: expected tanh or none, got {approximate!r}")
    kind = "gelu_tanh" if approximate == "tanh" else "gelu"
    return _linear_call("linear", config, x, {"weight": weight}, weight_layout, out, bias=bias, pre_activation=kind)


def silu_linear(config, x, weight, bias=None, weight_layout="in_out", out=None) -> Call:
    return _linear_call("linear", config, x, {"weight": weight}, weight_layout, out, bias=bias, pre_activation="silu")


def _linear_call(op: str, config: KernelFusionConfig, x, weights: dict, weight_layout: str, out, **attributes) -> Call:
    if weight_layout not in ("in_out", "out_in"):
        raise refusing(f"{op}: weight_layout: expected in_out (x @ W) or out_in, got {weight_layout!r}")
    fields = {"x": x, "out": out, **weights, **attributes}
    transposed = tuple(weights) if weight_layout == "in_out" else ()
    for name, weight in weights.items():
        if type(weight).__module__ in ("torch", "numpy"):  # plain arrays need no look
            continue
        if isinstance(weight, SparseTensor):
            _check_sparse(op, name, weight, config)
            fields |= weight.fields(name) if config.fuse_with_sparse else {name: _densified(weight, config)}
        elif (low_bit := as_quantized(weight)) is not None:
            _check_quantized(op, name, low_bit.dtype, config)
            fields |= (
                low_bit.fields(name) if config.fuse_with_quant else {name: _dequantized(low_bit.dequantize(), config)}
            )
        elif isinstance(weight, GgufTensor):
            if not config.fuse_with_quant:
                fields[name] = _dequantized(to_numpy(weight), config)
        else:
            continue
        transposed = tuple(n for n in transposed if n != name)
    return Call(op, fields, transposed, True)


def _check_quantized(op: str, name: str, dtype: str, config: KernelFusionConfig) -> None:
    wanted = config.quant_dtype
    if wanted is not None and {"i8": "int8"}.get(dtype, dtype[:3] if dtype.startswith("fp8") else dtype) != wanted:
        raise refusing(f"{op}: {name}: quant_dtype is configured as {wanted}, got {dtype}")


def _check_sparse(op: str, name: str, weight: SparseTensor, config: KernelFusionConfig) -> None:
    wanted = config.sparse_pattern
    if wanted is not None and wanted != ("n:m" if weight.m else "unstructured"):
        raise refusing(f"{op}: {name}: sparse_pattern is configured as {wanted}, got {weight.pattern}")
    if weight.scales is not None:
        _check_quantized(op, name, weight.dtype, config)


def _densified(weight: SparseTensor, config: KernelFusionConfig) -> np.ndarray:
    if weight.scales is not None:
        return _dequantized(weight.densify(), config)
    return weight.densify().astype(NUMPY_DTYPES[weight.dtype])


def _dequantized(values: np.ndarray, config: KernelFusionConfig) -> np.ndarray:
    return values.astype(NUMPY_DTYPES[config.work_dtype()])


# Norms, softmax, activations


def rmsnorm(config, x, weight, residual=None, eps=1e-6, out=None) -> Call:
    fields = {"x": x, "weight": weight, "residual": residual, "out": out, "eps": eps}
    return Call("rms_norm", fields | {"residual_out": True} if residual is not None else fields)


def layernorm(config, x, weight, bias=None, residual=None, eps=1e-5, out=None) -> Call:
    fields = {"x": x, "weight": weight, "bias": bias, "residual": residual, "out": out, "eps": eps}
    return Call("layer_norm", fields | {"residual_out": True} if residual is not None else fields)


def softmax(config, x, scale=1.0, return_lse=False, out=None) -> Call:
    return Call("softmax", {"x": x, "out": out, "lse": return_lse or None, "scale": scale})


def activation(config, x, kind="silu", out=None) -> Call:
    return Call("activation", {"x": x, "out": out, "kind": kind})


# The K/V cache


def append_kv(
    config, k, v, k_cache, v_cache, slot_mapping, cos=None, sin=None, positions=None, q=None, interleaved=False,
    kv_layout="HND",
) -> Call:  # fmt: skip
    fields = {
        "k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache, "slot_mapping": slot_mapping, "kv_layout": kv_layout,
    }  # fmt: skip
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if (quantized := as_quantized(cache)) is not None:
            _check_quantized("append_kv", name, quantized.dtype, config)
            fields |= quantized.fields(name)
    if cos is None and sin is None and positions is None:
        if q is not None:
            raise refusing("append_kv: q: expected cos, sin and positions with it: they are what it is rotated by")
        return Call("append_kv", fields)
    for name, value in (("cos", cos), ("sin", sin), ("positions", positions)):
        if value is None:
            raise refusing(f"append_kv: {name}: expected cos, sin and positions together, got none")
    fields |= {"cos": cos, "sin": sin, "positions": positions, "interleaved": interleaved}
    # Without queries, none of no heads.
    return Call("rope_append", fields | {"q": k[:, :0] if q is None else q})


OPERATORS = {
    "attention": attention,
    "ffn": ffn,
    "layernorm_linear": layernorm_linear,
    "ln_linear": layernorm_linear,
    "rmsnorm_linear": rmsnorm_linear,
    "gelu_linear": gelu_linear,
    "silu_linear": silu_linear,
    "rmsnorm": rmsnorm,
    "layernorm": layernorm,
    "softmax": softmax,
    "activation": activation,
    "append_kv": append_kv,
}


def call_of(operator: str, config: KernelFusionConfig, operands: dict) -> Call:
    """The call of an operator of the manager's, or of an op of the library's under its own operands."""
    if make := OPERATORS.get(operator):
        try:
            return make(config, **operands)
        except TypeError as error:
            raise refusing(f"{operator}: {error}", op=operator) from error
    if operator in _kf.ops():
        return Call(operator, operands)
    raise refusing(
        f"op: expected one of {', '.join(OPERATORS)}, or an op of the library ({', '.join(_kf.ops())}); got {operator}"
    )


def _reshaped(array, shape: tuple[int, ...]):
    if isinstance(array, _kf.TypedArray):
        return layout(array.dtype, shape)
    return array.reshape(shape)


def _reshaped_out(out, shape: tuple[int, ...]):
    """A view of `out`: what is written to a copy would be lost."""
    try:
        view = out.view(shape) if hasattr(out, "data_ptr") else out.reshape(shape)
    except RuntimeError as error:  # torch, where no view has the shape
        raise refusing(f"out: expected memory whose rows are evenly apart: {error}") from error
    if isinstance(out, np.ndarray) and not np.shares_memory(view, out) and out.size:
        raise refusing(f"out: expected memory whose rows are evenly apart, got strides {out.strides}")
    return view


def with_leading(results, leading: tuple[int, ...]):
    """Results with their first dimension taken apart again; of attention's two the second is [num_heads, total_q]."""
    if not isinstance(results, tuple):
        return results.reshape(*leading, *results.shape[1:])
    out, lse = results
    return out.reshape(*leading, *out.shape[1:]), lse.reshape(lse.shape[0], *leading).swapaxes(0, 1)


def zeros(dtype: str, shape: tuple[int, ...], like):
    """A zeroed array of the kind of `like`."""
    array = allocate(dtype, shape, like)
    array[...] = 0
    return as_kind_of(array, like)
