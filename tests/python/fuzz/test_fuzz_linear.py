"""The linear family against float64: weights of every form, norms and activations before, what is added after."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from drawing import FUZZ, ROUNDOFF, array, dtypes, generator, seeds  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import sagellm_kernel_fusion as kf  # noqa: E402
from sagellm_kernel_fusion import ops  # noqa: E402

functional = torch.nn.functional
ACTIVATIONS = {
    "none": lambda x: x,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}
# The error of a sum's terms, by the dtype of x. Matrix units leave out parts of f16's products below 2^-18, and take
# what is computed between two layers of bf16 in bf16, as PyTorch does (docs/numerics.md).
TERMS = {torch.float32: 6e-6, torch.float16: 2.0**-15, torch.bfloat16: 2.0**-7}
BATCH_INVARIANT = kf.Selection(batch_invariant=True)

tokens = st.one_of(st.sampled_from([0, 1, 2, 4, 5, 7, 12, 13, 16, 17, 64, 65]), st.integers(0, 130))
widths = st.one_of(st.sampled_from([32, 64, 256, 512, 576]), st.integers(1, 300))
outputs = st.sampled_from([1, 2, 7, 16, 33, 100, 251])
activations = st.sampled_from(list(ACTIVATIONS))


def weight(draw, g, rows: int, columns: int):
    """(operand, its values in float64): floats of any layout, low-bit, sparse, or both."""
    w = torch.randn(rows, columns, generator=g)
    kinds = ["float", "transposed", "int8", "fp8", "fp8_e5m2", "sparse"] + ["int4"] * (columns % 2 == 0)
    kind = draw(st.sampled_from(kinds))
    if kind == "float":
        w = w.to(draw(dtypes))
        return w, w.double()
    if kind == "transposed":
        return w.t().contiguous().t(), w.double()
    groups = draw(st.sampled_from([0, 32, 64, 128]))
    zeros = {"symmetric": draw(st.booleans())} if kind.startswith("int") else {}
    if kind != "sparse":
        q = kf.quantize(w, kind, group_size=groups, scales_dtype=draw(st.sampled_from(["f32", "f16", "bf16"])), **zeros)
        return q, torch.from_numpy(q.dequantize()).double()
    patterns = [p for p in ("2:4", "1:4", "4:8", "7:16") if columns % int(p.split(":")[1]) == 0]
    pattern = draw(st.sampled_from([*patterns, "unstructured"]))
    share = {"sparsity": draw(st.sampled_from([0.3, 0.7, 0.95, 1.0]))} if pattern == "unstructured" else {}
    s = kf.sparsify(w, pattern, dtype=draw(st.sampled_from([None, "int8", "fp8"])), group_size=groups, **share)
    return s, torch.from_numpy(s.densify()).double()


def before(draw, g, x):
    """(options, y in float64): what stands in front of the layer."""
    n = x.shape[1]
    kind = draw(st.sampled_from(["none", "rms", "layer", "activation"]))
    if kind == "none":
        return {}, x.double()
    if kind == "activation":
        name = draw(activations)
        return {"pre_activation": name}, ACTIVATIONS[name](x.double())
    w, b = (1 + 0.2 * torch.randn(n, generator=g) for _ in range(2))
    options = {"norm": kind, "norm_weight": w, "eps": 1e-2}  # rows of few elements are not ill-conditioned
    if kind == "rms":
        options["norm_weight_offset"] = offset = draw(st.sampled_from([0.0, 1.0]))
        return options, functional.rms_norm(x.double(), (n,), w.double() + offset, 1e-2)
    return options | {"norm_bias": b}, functional.layer_norm(x.double(), (n,), w.double(), b.double(), 1e-2)


def sizes(y):
    """What the error of a sum over y goes by: an activation's own error is absolute where its result is small."""
    return y.abs() + 0.2


def assert_sums(got, exact, magnitudes):
    """|got - exact| <= the roundoff of the result, and of a sum in f32."""
    assert got.shape == exact.shape
    # Below the smallest normal number of f16 a roundoff is not relative.
    least = 2.0**-24 if got.dtype == torch.float16 else 1e-30
    bound = 2 * ROUNDOFF[got.dtype] * exact.abs() + TERMS[got.dtype] * magnitudes + least
    fits = exact.abs() < (6e4 if got.dtype == torch.float16 else 1e38)
    assert not ((got.double() - exact).abs() > bound)[fits].any(), ((got.double() - exact).abs() / bound).max()


@FUZZ
@given(st.data(), seeds, dtypes, tokens, widths, outputs, st.sampled_from([kf.FUSED, BATCH_INVARIANT, kf.REFERENCE]))
def test_linear(data, seed, dtype, rows, n, out_features, selection):
    draw, g = data.draw, generator(seed)
    x = array(draw, g, dtype, rows, n, hostile=False)
    w, dense = weight(draw, g, out_features, n)
    options, y = before(draw, g, x)
    exact, magnitudes = y @ dense.T, sizes(y) @ dense.abs().T
    if draw(st.integers(0, 3)) == 0:
        rank = draw(st.sampled_from([1, 4, 17]))
        a, b = (torch.randn(3, *shape, generator=g) for shape in ((rank, n), (out_features, rank)))
        index = torch.randint(-1, 3, (rows,), generator=g, dtype=torch.int32)
        options |= {"lora_a": a, "lora_b": b, "lora_index": index, "lora_scale": 0.5}
        for t in range(rows):
            if (i := index[t]) >= 0:
                exact[t] += 0.5 * (b[i].double() @ (a[i].double() @ y[t]))
                magnitudes[t] += 0.5 * (b[i].double().abs() @ (a[i].double().abs() @ sizes(y[t])))
    if draw(st.booleans()):
        options["bias"] = torch.randn(out_features, generator=g).to(draw(dtypes))
        exact, magnitudes = exact + options["bias"].double(), magnitudes + options["bias"].double().abs()
    options["activation"] = draw(activations)
    exact = ACTIVATIONS[options["activation"]](exact)
    if draw(st.booleans()):
        options["residual"] = torch.randn(rows, out_features, generator=g).to(dtype)
        exact, magnitudes = exact + options["residual"].double(), magnitudes + options["residual"].double().abs()
    assert_sums(ops.linear(x, w, selection=selection, **options), exact, magnitudes)


@FUZZ
@given(st.data(), seeds, dtypes, tokens, widths, outputs, st.sampled_from([kf.FUSED, BATCH_INVARIANT, kf.REFERENCE]))
def test_qkv_linear(data, seed, dtype, rows, n, out_features, selection):
    draw, g = data.draw, generator(seed)
    x = array(draw, g, dtype, rows, n, hostile=False)
    weights = [weight(draw, g, size, n) for size in (out_features, 16, 17)]
    options, y = before(draw, g, x)
    results = ops.qkv_linear(x, *(w for w, _ in weights), selection=selection, **options)
    for got, (_, dense) in zip(results, weights, strict=True):
        assert_sums(got, y @ dense.T, sizes(y) @ dense.abs().T)


@FUZZ
@given(st.data(), seeds, dtypes, tokens, widths, widths, st.sampled_from([kf.FUSED, BATCH_INVARIANT, kf.REFERENCE]))
def test_gated_ffn(data, seed, dtype, rows, n, hidden, selection):
    draw, g = data.draw, generator(seed)
    x = 0.1 * array(draw, g, dtype, rows, n, hostile=False)
    (gate, gate_dense), (up, up_dense), (down, down_dense) = (
        weight(draw, g, *shape) for shape in ((hidden, n), (hidden, n), (33, hidden))
    )
    options, y = before(draw, g, x)
    activation = draw(activations)
    h = ACTIVATIONS[activation](y @ gate_dense.T) * (y @ up_dense.T)
    magnitudes = h.abs() + (sizes(y) @ gate_dense.abs().T) * (sizes(y) @ up_dense.abs().T)
    got = ops.gated_ffn(x, gate, up, down, activation=activation, selection=selection, **options)
    assert_sums(got, h @ down_dense.T, magnitudes @ down_dense.abs().T)


@FUZZ
@given(st.data(), seeds, dtypes, tokens, widths, outputs, st.sampled_from([kf.FUSED, BATCH_INVARIANT, kf.REFERENCE]))
def test_lm_head_argmax(data, seed, dtype, rows, n, vocab, selection):
    draw, g = data.draw, generator(seed)
    x = array(draw, g, dtype, rows, n, hostile=False)
    w, dense = weight(draw, g, vocab, n)
    options, y = before(draw, g, x)
    ids, largest = ops.lm_head_argmax(x, w, max=True, selection=selection, **options)
    logits, slack = y @ dense.T, TERMS[dtype] * (sizes(y) @ dense.abs().T).amax(-1)
    chosen = logits.gather(-1, ids.long()[:, None])[:, 0]
    assert (chosen >= logits.amax(-1) - 2 * slack).all()
    np.testing.assert_array_less((largest.double() - chosen).abs(), slack + 1e-30)


@FUZZ
@given(st.data(), seeds, tokens, widths, st.sampled_from(["int8", "int4"]), st.sampled_from([kf.FUSED, kf.REFERENCE]))
def test_inputs_in_8_bits(data, seed, rows, n, dtype, selection):
    """Against the same codes, rounded here."""
    draw, g = data.draw, generator(seed)
    n += n % 2
    x = array(draw, g, torch.float32, rows, n, hostile=False)
    w = kf.quantize(torch.randn(33, n, generator=g), dtype, group_size=draw(st.sampled_from([0, 32, 128])))
    dense = torch.from_numpy(w.dequantize()).double()
    scales = x.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(scales > 0, (x / scales).round(), 0.0)
    exact, magnitudes = (codes * scales).double() @ dense.T, x.double().abs() @ dense.abs().T
    assert_sums(ops.linear(x, w, input_quantization="int8", selection=selection), exact, magnitudes)
