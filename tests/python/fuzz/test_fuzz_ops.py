"""Ops of rows against float64 PyTorch: any shape, dtype, stride and value, every family of kernels."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from drawing import FUZZ, ROUNDOFF, array, assert_near, dtypes, generator, seeds, sizes  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import sagellm_kernel_fusion as kf  # noqa: E402
from sagellm_kernel_fusion import ops  # noqa: E402

functional = torch.nn.functional
selections = st.sampled_from([kf.FUSED, kf.VANILLA, kf.REFERENCE])


@FUZZ
@given(st.data(), seeds, dtypes, st.integers(0, 9), sizes, selections)
def test_rms_norm(data, seed, dtype, rows, n, selection):
    g = generator(seed)
    x = array(data.draw, g, dtype, rows, n, hostile=False)
    weight = array(data.draw, g, data.draw(dtypes), n, hostile=False)
    residual = array(data.draw, g, dtype, rows, n, hostile=False) if data.draw(st.booleans()) else None
    h = x.double() + (residual.double() if residual is not None else 0)
    exact = functional.rms_norm(h, (n,), weight.double(), 1e-5) if n else h
    out = ops.rms_norm(x, weight, residual, eps=1e-5, selection=selection)
    # The result is rounded once; unfused, the sum is as well, by up to half a roundoff of twice its largest.
    assert_near(out, exact, 8 * ROUNDOFF[dtype] + 2e-6)


@FUZZ
@given(st.data(), seeds, dtypes, st.integers(0, 9), sizes, selections)
def test_softmax(data, seed, dtype, rows, n, selection):
    g = generator(seed)
    x = array(data.draw, g, dtype, 2, rows, n, scale=4)
    mask = None
    z = x.double() * 0.5
    if n and data.draw(st.booleans()):
        shape = data.draw(st.sampled_from([(n,), (rows, n), (2, 1, n), (2, rows, 1), (1, 1)]))
        mask = torch.rand(shape, generator=g) < 0.6
        if data.draw(st.booleans()):
            mask = torch.where(mask, torch.randn(shape, generator=g), -math.inf)
            z = z + mask.double()
        else:
            z = z.masked_fill(~mask, -math.inf)
    out, lse = ops.softmax(x, mask=mask, scale=0.5, lse=True, selection=selection)
    if n == 0:
        return
    exact = torch.softmax(z, -1)
    hidden = (z == -math.inf).all(-1)
    assert not out[hidden].any() and (lse[hidden] == -math.inf).all()
    # Of large scores the rounding of their sum with the mask, to float32, is an error of the exponent.
    rounding = 2.0**-23 * z.amax(-1, keepdim=True).abs().nan_to_num(0, 0, 0)
    assert_near(out[~hidden], exact[~hidden], 2 * ROUNDOFF[dtype] + 1e-4 + rounding[~hidden], 1e-7)
    moderate = ~hidden & (z.abs().nan_to_num(1e9).masked_fill(z == -math.inf, 0).amax(-1) < 1e6)
    assert_near(lse[moderate][None], torch.logsumexp(z, -1)[moderate][None], 1e-5, 1e-5)


@FUZZ
@given(
    st.data(),
    seeds,
    dtypes,
    st.integers(0, 9),
    sizes,
    selections,
    st.sampled_from(["silu", "gelu_tanh", "gelu", "relu"]),
)
def test_activations(data, seed, dtype, rows, n, selection, kind):
    g = generator(seed)
    x = array(data.draw, g, dtype, rows, n, scale=3)
    exact = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "relu": functional.relu,
    }[kind](x.double())
    moderate = x.double().abs().nan_to_num(1e9) < 1e4  # beyond, an infinity of the dtype may stand for a number
    got = ops.activation(x, kind=kind, selection=selection)
    difference = (got.double() - exact).abs()[moderate]
    assert (difference <= (2 * ROUNDOFF[dtype] + 2e-6) * exact.abs()[moderate] + 2e-6).all()
    assert got[x.isnan()].isnan().all()


@FUZZ
@given(st.data(), seeds, dtypes, st.integers(0, 5), sizes, selections, st.sampled_from(["i8", "fp8_e4m3", "fp8_e5m2"]))
def test_quantized_outputs(data, seed, dtype, rows, n, selection, codes):
    """What the codes and scales stand for is within half a step of what was quantized."""
    g = generator(seed)
    x = array(data.draw, g, dtype, rows, n, scale=data.draw(st.sampled_from([1e-6, 1.0, 1e3])))
    out, scales = ops.quantize(x, out_dtype=codes, selection=selection)
    largest = {"i8": 127, "fp8_e4m3": 448, "fp8_e5m2": 57344}[codes]
    finite = x.float().where(x.isfinite(), torch.zeros(()))
    amax = finite.abs().amax(-1) if n else torch.zeros(rows)
    np.testing.assert_allclose(scales, amax / largest, rtol=1e-6, atol=1e-45)
    value = out.to(torch.float64) * scales.double()[:, None]
    relative = {"i8": 0.0, "fp8_e4m3": 2.0**-4, "fp8_e5m2": 2.0**-3}[codes]
    smallest = {"i8": 0.5, "fp8_e4m3": 2.0**-10, "fp8_e5m2": 2.0**-17}[codes]
    bound = relative * finite.double().abs() + (smallest * scales.double()[:, None]) * 1.001 + 1e-44
    usable = x.isfinite() & (scales > 1e-37)[:, None]
    assert ((value - finite.double()).abs() <= bound * 1.001)[usable].all()


FORMATS = {"f32": None, "q4_0": 32, "q4_1": 32, "q5_0": 32, "q8_0": 32, "q4_k": 256, "q6_k": 256}


@FUZZ
@given(st.data(), seeds, st.integers(0, 40), st.integers(1, 3), st.integers(1, 70), st.sampled_from(list(FORMATS)))
def test_linear(data, seed, tokens, blocks, out_features, kind):
    """Random bytes are a weight too: of any scales, also where they are NaN or infinite."""
    g = generator(seed)
    if FORMATS[kind] is None:
        inner = data.draw(sizes)
        weight = array(data.draw, g, torch.float32, out_features, inner, hostile=False)
        dense = weight.double()
    else:
        inner = FORMATS[kind] * blocks
        rng = np.random.default_rng(seed)
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
        data_bytes = rng.integers(0, 256, (out_features, inner // elements * size), np.uint8)
        weight = kf.GgufTensor(data_bytes, kind, (out_features, inner))
        with np.errstate(all="ignore"):
            dense = torch.from_numpy(dequantize(data_bytes, GGMLQuantizationType[kind.upper()])).double()
    x = array(data.draw, g, torch.float32, tokens, inner, hostile=False)
    got = ops.linear(x, weight).double()
    magnitudes = x.double().abs() @ dense.abs().T
    exact = x.double() @ dense.T
    # Sums in f32: the error of each addition is that of the magnitudes. What comes near the largest f32 may overflow.
    usable = magnitudes.isfinite() & (magnitudes < 1e37)
    assert ((got - exact).abs() <= 1e-5 * magnitudes + 1e-30)[usable].all()
    assert got.isnan()[:, dense.isnan().any(-1)].all() or inner == 0 or tokens == 0
