"""The manager's operators as calls of the library's ops: what its methods, `plan`, `explain` and custom kernels share.

Each function here takes a method's arguments and returns the fields of a Call as a plain tuple, without operands and
attributes that have their defaults: both cost less. Weights are x @ W ("in_out") unless weight_layout says "out_in",
which is torch.nn.Linear's; one that says itself how it lies (QuantizedTensor, SparseTensor, GgufTensor) is [out, in].
"""

from __future__ import annotations

import operator
from typing import NamedTuple

import numpy as np

from . import _kf
from .arrays import NUMPY_DTYPES, GgufTensor, allocate, as_kind_of, layout, to_numpy
from .checks import flag, one_of, shape_of, sizes
from .config import KernelFusionConfig
from .errors import ResourceExhaustedError, refusing
from .packed_once import made_once
from .paged import tables_and_lengths
from .quantized import as_quantized, kv_of_codes
from .sparse import SparseTensor, check_masked, sparsify


class Call(NamedTuple):
    """A call of an op, by names."""

    op: str
    fields: dict  # operands and attributes of the op, by name
    transposed: tuple[str, ...] = ()  # matrices that the op takes as their transposed view
    rows: bool = False  # x [..., n] is a matrix of rows to the op
    leading: tuple[int, ...] | None = None  # what the results' first dimension stands for; None: itself


# Types whose arrays are operands as they are, which need no further look. Those of torch and NumPy are put here as they
# come: membership is the cheapest question, and a call asks it of most of its operands.
_plain_types: set[type] = {np.ndarray}


def _is_plain(x) -> bool:
    if type(x).__module__ not in ("torch", "numpy"):
        return False
    _plain_types.add(type(x))
    return True


# Attention

# Defaults, which calls that leave them are known by, without a comparison.
EVERY_KEY = (-1, -1)
NO_BLOCKS = (0, 0)
HND = "HND"


def attention(
    config, q, k, v, causal=True, softmax_scale=None, window_size=EVERY_KEY, softcap=0.0, alibi_slopes=None,
    attn_mask=None, sinks=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
    block_tables=None, context_lens=None, kv_layout=HND, k_scales=None, v_scales=None, k_zeros=None, v_zeros=None,
    out=None, return_lse=False, block_layout=None, block_size=NO_BLOCKS, keep=None,
) -> tuple:  # fmt: skip
    leading = None
    fields = {"causal": causal, "k": k, "v": v}
    if k_scales is not None or k_zeros is not None or not (type(k) in _plain_types or _is_plain(k)):
        _set_keys_or_values(fields, config, "k", k, k_scales, k_zeros)
    if v_scales is not None or v_zeros is not None or not (type(v) in _plain_types or _is_plain(v)):
        _set_keys_or_values(fields, config, "v", v, v_scales, v_zeros)
    if block_tables is not None:
        if not (type(block_tables) in _plain_types and type(context_lens) in _plain_types):
            block_tables, context_lens = tables_and_lengths(
                block_tables, context_lens, k, 1 if isinstance(kv_layout, str) and kv_layout == "NHD" else 2
            )
        fields["block_tables"], fields["context_lens"] = block_tables, context_lens
        if cu_seqlens_q is None and _rank(q) == 4:  # [batch, seqlen_q, num_heads, head_dim]
            batch, seqlen_q, *rest = (int(n) for n in q.shape)
            leading = (batch, seqlen_q)
            cu_seqlens_q = np.arange(batch + 1, dtype=np.int32) * np.int32(seqlen_q)
            q = _reshaped(q, (batch * seqlen_q, *rest))
            out = None if out is None else _reshaped_out(out, (batch * seqlen_q, *rest))
    elif context_lens is not None:
        fields["context_lens"] = context_lens
    if max_seqlen_q is not None:
        _check_longest("max_seqlen_q", max_seqlen_q, cu_seqlens_q)
    if max_seqlen_k is not None:
        _check_longest("max_seqlen_k", max_seqlen_k, cu_seqlens_k)
    if window_size is not EVERY_KEY:
        try:
            fields["window_left"], fields["window_right"] = window_size
        except (TypeError, ValueError):
            raise refusing(f"attention: window_size: expected (left, right), got {window_size!r}") from None
    if block_layout is not None or (block_size is not NO_BLOCKS and block_size != NO_BLOCKS):
        fields["block_layout"] = block_layout
        fields["block_size_q"], fields["block_size_k"] = _pair("block_size", "(query tokens, keys)", block_size)
    if keep is not None:
        fields["keep_n"], fields["keep_m"] = _pair("keep", "(n, m)", keep)
    fields["q"] = q
    if out is not None:
        fields["out"] = out
    if return_lse is not False and flag("attention: return_lse", return_lse):
        fields["lse"] = True
    if cu_seqlens_q is not None:
        fields["cu_seqlens_q"] = cu_seqlens_q
    if cu_seqlens_k is not None:
        fields["cu_seqlens_k"] = cu_seqlens_k
    if kv_layout is not HND:
        fields["kv_layout"] = kv_layout
    if softmax_scale is not None:
        fields["softmax_scale"] = softmax_scale
    if type(softcap) is not float or softcap != 0.0:
        fields["softcap"] = softcap
    if alibi_slopes is not None:
        fields["alibi_slopes"] = alibi_slopes
    if attn_mask is not None:
        fields["attn_mask"] = attn_mask
    if sinks is not None:
        fields["sinks"] = sinks
    return "attention", fields, (), False, leading


def _rank(x) -> int:
    """Most arrays know it; torch makes a new object of every shape that is asked for."""
    try:
        return x.ndim
    except AttributeError:
        return len(shape_of("attention: q", x))


def _set_keys_or_values(fields: dict, config: KernelFusionConfig, name: str, x, scales, zeros) -> None:
    """Sets the operands for K or V that are a QuantizedTensor, or codes with scales beside them; others stay."""
    quantized = as_quantized(x)
    if quantized is None:
        if scales is None and zeros is None:
            return
        quantized = kv_of_codes(f"attention: {name}", x, scales, zeros)
    elif scales is not None or zeros is not None:
        raise refusing(f"attention: {name}_scales: expected none beside a QuantizedTensor, which has its own")
    _check_quantized("attention", name, quantized.dtype, config)
    fields |= quantized.fields(name) if config.fuse_with_quant else {name: _dequantized(quantized.dequantize(), config)}


def _pair(name: str, what: str, value) -> tuple[int, int]:
    try:
        first, second = value
        return operator.index(first), operator.index(second)
    except (TypeError, ValueError):
        raise refusing(f"attention: {name}: expected {what}, got {value!r}") from None


def _check_longest(name: str, longest: int, offsets) -> None:
    try:
        longest = operator.index(longest)  # an array of one element, as torch's max() gives it, has one
    except TypeError:
        raise refusing(f"attention: {name}: expected a number of tokens, got {longest!r}") from None
    try:
        offsets = offsets if isinstance(offsets, np.ndarray) else np.from_dlpack(offsets)
    except (AttributeError, TypeError, RuntimeError, BufferError):
        return  # on a device, which is not waited for; or no array, as the op says
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu":
        return  # as the op says
    lengths = np.diff(offsets)
    if lengths.size and lengths.max() > longest:
        raise refusing(f"attention: {name}: expected at least the longest sequence's {lengths.max()}, got {longest}")


# FFN and linear layers


def ffn(config, x, gate_weight, up_weight, down_weight, activation="silu", weight_layout="in_out", out=None) -> tuple:
    fields = {"x": x, "gate_weight": gate_weight, "up_weight": up_weight, "down_weight": down_weight}
    if type(activation) is not str or activation != "silu":
        fields["activation"] = activation
    return _linear_call("gated_ffn", config, fields, _FFN_WEIGHTS, weight_layout, out)


def layernorm_linear(
    config, x, ln_weight, ln_bias, linear_weight, bias=None, eps=1e-5, weight_layout="in_out", out=None
) -> tuple:
    fields = {"x": x, "weight": linear_weight, "norm": "layer", "norm_weight": ln_weight, "eps": eps}
    if ln_bias is not None:
        fields["norm_bias"] = ln_bias
    if bias is not None:
        fields["bias"] = bias
    return _linear_call("linear", config, fields, _WEIGHT, weight_layout, out)


def rmsnorm_linear(
    config, x, norm_weight, linear_weight, bias=None, eps=1e-6, weight_layout="in_out", out=None
) -> tuple:
    fields = {"x": x, "weight": linear_weight, "norm": "rms", "norm_weight": norm_weight, "eps": eps}
    if bias is not None:
        fields["bias"] = bias
    return _linear_call("linear", config, fields, _WEIGHT, weight_layout, out)


def gelu_linear(config, x, weight, bias=None, approximate="tanh", weight_layout="in_out", out=None) -> tuple:
    one_of("gelu_linear: approximate", approximate, ("tanh", "none"))
    fields = {"x": x, "weight": weight, "pre_activation": "gelu_tanh" if approximate == "tanh" else "gelu"}
    if bias is not None:
        fields["bias"] = bias
    return _linear_call("linear", config, fields, _WEIGHT, weight_layout, out)


def silu_linear(config, x, weight, bias=None, weight_layout="in_out", out=None) -> tuple:
    fields = {"x": x, "weight": weight, "pre_activation": "silu"}
    if bias is not None:
        fields["bias"] = bias
    return _linear_call("linear", config, fields, _WEIGHT, weight_layout, out)


_FFN_WEIGHTS = ("gate_weight", "up_weight", "down_weight")
_WEIGHT = ("weight",)


def _linear_call(
    op: str, config: KernelFusionConfig, fields: dict, weights: tuple[str, ...], weight_layout: str, out
) -> tuple:
    if type(weight_layout) is not str or weight_layout not in ("in_out", "out_in"):
        raise refusing(f"{op}: weight_layout: expected in_out (x @ W) or out_in, got {weight_layout!r}")
    if out is not None:
        fields["out"] = out
    transposed = weights if weight_layout == "in_out" else ()
    masked = config.sparse_pattern == "n:m" and config.fuse_with_sparse
    for name in weights:
        weight = fields[name]
        if masked:
            check_masked(f"{op}: {name}", weight, int(weight_layout == "out_in"))
        if type(weight) in _plain_types or _is_plain(weight):
            continue
        if "SemiStructured" in type(weight).__name__:
            weight = _compressed(weight)
        if isinstance(weight, SparseTensor):
            _check_sparse(op, name, weight, config)
            fields |= weight.fields(name) if config.fuse_with_sparse else {name: _densified(weight, config)}
        elif (low_bit := as_quantized(weight, config.quant_dtype)) is not None:
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
    return op, fields, transposed, True, None


def _compressed(weight) -> SparseTensor:
    """torch's semi-structured tensor in our form."""
    parts = [getattr(weight, name, None) for name in ("packed", "meta")]
    if parts[0] is None:
        return sparsify(weight, prune=False)
    return made_once(weight, "sparse", parts, lambda: sparsify(weight, prune=False))


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


def rmsnorm(config, x, weight, residual=None, eps=1e-6, out=None) -> tuple:
    return _norm_call("rms_norm", {"x": x, "weight": weight, "eps": eps}, residual, out)


def layernorm(config, x, weight, bias=None, residual=None, eps=1e-5, out=None) -> tuple:
    return _norm_call("layer_norm", {"x": x, "weight": weight, "bias": bias, "eps": eps}, residual, out)


def _norm_call(op: str, fields: dict, residual, out) -> tuple:
    if residual is not None:
        fields["residual"], fields["residual_out"] = residual, True
    if out is not None:
        fields["out"] = out
    return op, fields, (), False, None


def softmax(config, x, scale=1.0, return_lse=False, out=None) -> tuple:
    return (
        "softmax",
        {"x": x, "out": out, "lse": flag("softmax: return_lse", return_lse) or None, "scale": scale},
        (),
        False,
        None,
    )


def activation(config, x, kind="silu", out=None) -> tuple:
    return "activation", {"x": x, "out": out, "kind": kind}, (), False, None


# The K/V cache


def append_kv(
    config, k, v, k_cache, v_cache, slot_mapping, cos=None, sin=None, positions=None, q=None, interleaved=False,
    kv_layout="HND",
) -> tuple:  # fmt: skip
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
        return "append_kv", fields, (), False, None
    for name, value in (("cos", cos), ("sin", sin), ("positions", positions)):
        if value is None:
            raise refusing(f"append_kv: {name}: expected cos, sin and positions together, got none")
    fields |= {"cos": cos, "sin": sin, "positions": positions, "interleaved": interleaved}
    shape_of("rope_append: k", k)
    # Without queries, none of no heads.
    return "rope_append", fields | {"q": k[:, :0] if q is None else q}, (), False, None


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
    if not isinstance(operator, str):
        raise refusing(f"op: expected the name of an operator, got {operator!r}")
    if make := OPERATORS.get(operator):
        try:
            return Call(*make(config, **operands))
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
    shape = sizes("make_kv_cache", shape)
    try:
        array = allocate(dtype, shape, like)
    except (MemoryError, ValueError, RuntimeError) as error:  # NumPy's for a size that no address reaches; torch's
        raise ResourceExhaustedError(f"make_kv_cache: no memory for {dtype}{list(shape)}: {error}") from error
    array[...] = 0
    return as_kind_of(array, like)
