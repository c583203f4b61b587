"""Calls with something wrong in them: a result, or an error of ours that leaves every array as it was."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
from drawing import FUZZ
from hypothesis import given
from hypothesis import strategies as st

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import ops

SCALARS = [
    0, -1, 1, 3, 16, 2**31, 2**40, -(2**62), 2**63, 2**70, 1.5, math.nan, -math.inf, None, True, "x", [1], {}, b"q",
]  # fmt: skip
DTYPES = [
    np.float64, np.float16, np.int8, np.int32, np.int64, np.uint8, np.bool_, ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
]  # fmt: skip


def weight(rng, kind: str, rows: int, columns: int):
    w = rng.standard_normal((rows, columns), np.float32)
    if kind == "float":
        return w
    if kind in ("2:4", "unstructured"):
        return kf.sparsify(w, kind, sparsity=0.7 * (kind == "unstructured"), dtype="int8")
    return kf.quantize(w, kind, group_size=32)


def attention(rng, form: str, low_bit: bool) -> dict:
    f = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    i32 = lambda *values: np.array(values, np.int32)  # noqa: E731
    if form == "dense":
        fields = {"q": f(2, 5, 4, 16), "k": f(2, 9, 2, 16), "v": f(2, 9, 2, 16), "lse": f(2, 4, 5)}
        fields |= {"attn_mask": f(1, 1, 5, 9), "block_layout": np.ones((1, 1, 2, 3), bool)}
    else:
        fields = {"q": f(7, 4, 16), "lse": f(4, 7), "cu_seqlens_q": i32(0, 3, 7), "attn_mask": f(1, 7, 12)}
        fields["block_layout"] = np.array([[[[0, 2, -1]], [[1, -1, -1]]]], np.int32)
    if form == "packed":
        fields |= {"k": f(17, 2, 16), "v": f(17, 2, 16), "cu_seqlens_k": i32(0, 5, 17)}
    if form == "paged":
        fields |= {"k": f(6, 2, 4, 16), "v": f(6, 2, 4, 16), "context_lens": i32(5, 12)}
        fields["block_tables"] = np.array([[0, 2, -1], [1, 4, 5]], np.int32)
    if low_bit:
        axis = 1 if form == "paged" else -2
        fields |= {name: kf.quantize_kv(fields[name], "int4", heads_axis=axis) for name in "kv"}
    fields |= {"block_size_q": 4 if form == "dense" else 0, "block_size_k": 4, "alibi_slopes": f(4), "sinks": f(4)}
    return fields | {"out": np.zeros_like(fields["q"]), "window_left": 3, "causal": False, "softcap": 5.0}


@st.composite
def good_calls(draw) -> tuple[str, dict]:
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    f = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    t = draw(st.sampled_from([1, 3, 20]))
    kind = draw(st.sampled_from(["float", "int4", "int8", "fp8", "2:4", "unstructured"]))
    norm = {"norm": "rms", "norm_weight": f(64), "eps": 1e-5}
    positions = {"positions": np.arange(t, dtype=np.int32), "cos": f(20, 8), "sin": f(20, 8)}
    cache = [kf.quantized_cache((8, 2, 4, 16), "int8") if kind == "int8" else f(8, 2, 4, 16) for _ in "kv"]
    slots = {"slot_mapping": rng.permutation(32)[:t], "k_cache": cache[0], "v_cache": cache[1], "kv_layout": "HND"}
    lora = {"lora_a": f(3, 4, 64), "lora_b": f(3, 32, 4), "lora_index": np.full(t, 1, np.int32)}
    calls = {
        "linear": norm | lora | {"x": f(t, 64), "weight": weight(rng, kind, 32, 64), "bias": f(32), "out": f(t, 32)},
        "gated_ffn": norm | {"x": f(t, 64), "residual": f(t, 32), "out": f(t, 32), "input_quantization": "none"}
        | {n: weight(rng, kind, 32, 64) for n in ("gate_weight", "up_weight")} | {"down_weight": f(32, 32)},
        "qkv_linear": norm | {"x": f(t, 64), "q": f(t, 16), "k": f(t, 16), "v": f(t, 16)}
        | {f"{n}_weight": weight(rng, kind, 16, 64) for n in "qkv"},
        "lm_head_argmax": {"x": f(t, 64), "weight": weight(rng, kind, 32, 64), "max": f(t)}
        | {"ids": np.zeros(t, np.int32)},
        "rms_norm": {"x": f(t, 64), "weight": f(64), "residual": f(t, 64), "out": f(t, 64), "residual_out": f(t, 64)},
        "layer_norm": {"x": f(t, 64), "weight": f(64), "out": np.zeros((t, 64), np.int8), "out_scales": f(t)}
        | {"out_dtype": "i8", "eps": 1e-5},
        "softmax": {"x": f(t, 64), "out": f(t, 64), "lse": f(t), "mask": f(t, 64), "scale": 0.5},
        "gated_activation": {"gate": f(t, 64), "up": f(t, 64), "out": f(t, 64), "kind": "gelu"},
        "attention": attention(rng, draw(st.sampled_from(["dense", "packed", "paged"])), kind == "int4"),
        "attention_scores": {"q": f(2, 5, 4, 16), "k": f(2, 9, 2, 16), "seqlen_k_max": 9, "softcap": 2.0},
        "merge_attention": {n: f(2, 5, 4, 16) for n in ("out_a", "out_b", "out")}
        | {n: f(2, 4, 5) for n in ("lse_a", "lse_b", "lse")},
        "rope": positions | {"x": f(t, 4, 16), "out": f(t, 4, 16), "interleaved": False, "norm_eps": 1e-5},
        "rope_append": positions | slots | {"q": f(t, 4, 16), "k": f(t, 2, 16), "v": f(t, 2, 16), "q_out": f(t, 4, 16)},
        "embedding": {"ids": np.arange(t, dtype=np.int32) % 9, "table": f(9, 64), "out": f(t, 64)},
        "sample": {"logits": f(t, 64), "ids": np.zeros(t, np.int32), "temperature": 0.7, "top_k": 4, "top_p": 0.9},
    }  # fmt: skip
    op = draw(st.sampled_from(list(calls)))
    fields = {}
    for name, value in calls[op].items():  # scales and masks as operands of their own, so that they are changed, too
        parts = value.fields(name) if hasattr(value, "fields") and draw(st.booleans()) else {name: value}
        fields |= {n: part for n, part in parts.items() if part is not None}
    return op, fields


def shifted(a, by: int):
    """The same values at an address that is no multiple of the elements' size."""
    memory = np.zeros(a.nbytes + 8, np.uint8)
    moved = memory[by : by + a.nbytes].view(a.dtype).reshape(a.shape)
    moved[...] = a
    return moved


@st.composite
def changed(draw, a: np.ndarray, others: list):
    axis = draw(st.integers(0, a.ndim - 1))
    kind = draw(
        st.sampled_from(
            [
                "size",
                "rank",
                "dtype",
                "turned",
                "flipped",
                "repeated",
                "shifted",
                "read-only",
                "shared",
                "empty",
                "values",
                "scalar",
            ]
        )
    )
    if kind == "size":
        shape = list(a.shape)
        shape[axis] = max(0, shape[axis] + draw(st.sampled_from([-2, -1, 1, 5])))
        return np.resize(a, shape)
    if kind == "rank":
        return draw(st.sampled_from([a.reshape(-1), a[None], a[..., None]]))
    if kind == "dtype":
        with np.errstate(invalid="ignore"):
            return a.astype(draw(st.sampled_from(DTYPES)))
    if kind == "turned":
        return a.T
    if kind == "flipped":
        return np.flip(a, axis)
    if kind == "repeated":
        return np.broadcast_to(a.take([0], axis), a.shape) if a.shape[axis] else a
    if kind == "shifted":
        return shifted(a, draw(st.integers(1, 3))) if a.size else a
    if kind == "read-only":
        a = a.copy()
        a.flags.writeable = False
        return a
    if kind == "shared":
        other = draw(st.sampled_from(others))
        fits = other.nbytes >= a.nbytes and other.flags.c_contiguous and a.size
        return other.reshape(-1).view(np.uint8)[: a.nbytes].view(a.dtype).reshape(a.shape) if fits else a
    if kind == "empty":
        return a[(slice(None),) * axis + (slice(0, 0),)]
    if kind == "values" and a.size and a.dtype.kind in "if":
        a = a.copy()
        ends = [math.nan, math.inf]
        if a.dtype.kind == "i":
            ends = [np.iinfo(a.dtype).min, np.iinfo(a.dtype).max, -1, 9, 100]
        a.flat[draw(st.integers(0, a.size - 1))] = draw(st.sampled_from(ends))
        return a
    return draw(st.sampled_from(SCALARS))


def arrays_of(fields: dict) -> list[bytes]:
    found = []
    for value in fields.values():
        names = () if isinstance(value, np.ndarray) else ("data", "scales", "zeros", "mask", "offsets")
        parts = [value, *(getattr(value, name, None) for name in names)]
        found += [part.tobytes() for part in parts if isinstance(part, np.ndarray)]
    return found


@FUZZ
@given(
    st.data(),
    good_calls(),
    st.integers(1, 2),
    st.sampled_from([kf.FUSED, kf.VANILLA, kf.REFERENCE, kf.Selection(batch_invariant=True)]),
)
def test_a_call_with_something_wrong(data, call, changes, selection):
    op, fields = call
    for _ in range(changes):
        name = data.draw(st.sampled_from(list(fields)))
        others = [a for a in fields.values() if isinstance(a, np.ndarray)]
        if isinstance(fields[name], np.ndarray):
            fields[name] = data.draw(changed(fields[name], others)) if fields[name].ndim else 0
        else:
            fields[name] = data.draw(st.sampled_from(SCALARS))
    before = arrays_of(fields)
    try:
        getattr(ops, op)(**fields, selection=selection)
    except kf.KernelFusionError as error:
        assert str(error)
        assert arrays_of(fields) == before
    except MemoryError as error:
        assert op == "attention_scores", error  # whose result may be as wide as is asked for
