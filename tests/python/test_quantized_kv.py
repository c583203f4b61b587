"""Attention over quantized keys and values against NumPy in float64 over what their codes mean."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import ops

F8 = {"fp8": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}


def meaning(x: kf.QuantizedTensor) -> np.ndarray:
    """(code - zero) * scale, written from the description."""
    if x.dtype == "int4":
        nibbles = np.stack([x.data & 15, x.data >> 4], -1).reshape(x.shape).astype(np.int16)
        codes = np.where(nibbles > 7, nibbles - 16, nibbles)
    else:
        codes = np.asarray(x.data)
    groups = x.scales.shape[-1]
    codes = codes.astype(np.float64).reshape(*x.shape[:-1], groups, -1)
    zeros = 0 if x.zeros is None else x.zeros.astype(np.float64)[..., None]
    return ((codes - zeros) * np.asarray(x.scales, np.float64)[..., None]).reshape(x.shape)


def attention(q, k, v):
    """Causal, bottom-right, in float64."""
    group = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, group, 2), np.repeat(v, group, 2)
    scores = np.einsum("bihd,bjhd->bhij", q.astype(np.float64), k) / np.sqrt(q.shape[-1])
    i, j = np.ogrid[: q.shape[1], : k.shape[1]]
    scores = np.where(j <= i + k.shape[1] - q.shape[1], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhij,bjhd->bihd", weights / weights.sum(-1, keepdims=True), v)


def tensors(rng, seqlen_q=5, seqlen_k=70, head_dim=64):
    make = rng.standard_normal
    return (
        make((2, seqlen_q, 6, head_dim), np.float32),
        make((2, seqlen_k, 2, head_dim), np.float32),
        make((2, seqlen_k, 2, head_dim), np.float32),
    )


@pytest.mark.parametrize("per", ["row", "token", "head", "tensor"])
@pytest.mark.parametrize("dtype", ["int4", "int8", "fp8", "fp8_e5m2"])
def test_every_dtype_and_sharing(rng, dtype, per):
    for symmetric in (True, False) if dtype.startswith("int") else (True,):
        for group_size, scales_dtype in ((0, "f32"), (32, "f16")):
            q, k, v = tensors(rng)
            options = {"per": per, "group_size": group_size, "symmetric": symmetric, "scales_dtype": scales_dtype}
            k, v = kf.quantize_kv(k, dtype, **options), kf.quantize_kv(v, dtype, **options)
            np.testing.assert_allclose(k.dequantize(), meaning(k), rtol=1e-6, atol=1e-30)
            expected = attention(q, meaning(k), meaning(v))
            for selection in (kf.REFERENCE, kf.FUSED, kf.VANILLA):
                np.testing.assert_allclose(ops.attention(q, k, v, selection=selection), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype,bound", [("int4", 0.08), ("int8", 0.005), ("fp8", 0.04), ("fp8_e5m2", 0.08)])
def test_rounding_is_as_good_as_the_codes(rng, dtype, bound):
    _, k, _ = tensors(rng)
    for per, slack in (("row", 1), ("tensor", 2)):
        got = kf.quantize_kv(k, dtype, per=per).dequantize()
        assert np.abs(got - k).max() <= bound * slack * np.abs(k).max()
    exact = np.clip(np.round(k), -7, 7)
    exact[..., 0] = 7 if dtype == "int4" else 127  # the largest magnitude makes the scale 1
    if dtype in ("int4", "int8"):
        np.testing.assert_array_equal(kf.quantize_kv(exact, dtype).dequantize(), exact)
    assert kf.quantize_kv(k, dtype).nbytes < k.nbytes / 3


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_pages(rng, layout):
    q, k, v = tensors(rng, seqlen_q=1, seqlen_k=64)
    tables = np.array([[3, 0, 5, 2], [1, 7, 4, 6]], np.int32)
    lens = np.array([64, 64], np.int32)

    def pool(x):  # [2, 64, heads, d] to pages of 16
        pages = np.zeros((8, 16, 2, 64), np.float32)
        pages[tables.reshape(-1)] = x.reshape(8, 16, 2, 64)
        return pages.transpose(0, 2, 1, 3).copy() if layout == "HND" else pages

    axis = 1 if layout == "HND" else 2
    for per in ("row", "head"):
        quantized = [kf.quantize_kv(pool(x), "int4", per=per, heads_axis=axis, symmetric=False) for x in (k, v)]
        plain = [x.dequantize() for x in quantized]
        options = {"block_tables": tables, "context_lens": lens, "kv_layout": layout}
        got = ops.attention(q.reshape(2, 6, 64), *quantized, **options)
        expected = ops.attention(q.reshape(2, 6, 64), *plain, **options, selection=kf.REFERENCE)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def turned(x, positions):
    """Half-split pairs, theta 10000, in float64, and the tables."""
    half = x.shape[-1] // 2
    angles = np.arange(100)[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    c, s = cos[positions][:, None], sin[positions][:, None]
    a, b = np.split(x.astype(np.float64), 2, -1)
    return np.concatenate([a * c - b * s, b * c + a * s], -1), cos.astype(np.float32), sin.astype(np.float32)


@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("dtype", ["int4", "int8", "fp8", "fp8_e5m2"])
def test_rope_quantize_and_append(rng, dtype, layout):
    """One call appends, attention reads; against float64 over values that are off by half a code."""
    tokens, heads, dim = 24, 2, 64
    q, k, v = (rng.standard_normal((tokens, n, dim), np.float32) for n in (6, heads, heads))
    positions = np.arange(tokens, dtype=np.int32)
    k_turned, cos, sin = turned(k, positions)
    slots = rng.permutation(40)[:tokens].astype(np.int64)
    page, row = np.divmod(slots, 8)
    shape = (5, heads, 8, dim) if layout == "HND" else (5, 8, heads, dim)
    step = {"int4": 1 / 14, "int8": 1 / 254, "fp8": 1 / 16, "fp8_e5m2": 1 / 8}[dtype]
    for options in ({}, {"per": "token", "scales_dtype": "f16"}, {"group_size": 32, "symmetric": "fp8" in dtype}):
        caches = [kf.quantized_cache(shape, dtype, kv_layout=layout, **options) for _ in range(2)]
        ops.rope_append(q, k, v, positions, cos, sin, slots, *caches, kv_layout=layout)
        for cache, expected in zip(caches, (k_turned, v), strict=True):
            got = cache.dequantize()
            got = got[page, :, row] if layout == "HND" else got[page, row]
            assert np.abs(got - expected).max() <= 1.1 * step * np.abs(expected).max()
        plain = [kf.quantized_cache(shape, dtype, kv_layout=layout, **options) for _ in range(2)]
        ops.append_kv(k_turned.astype(np.float32), v, slots, *plain, kv_layout=layout, selection=kf.REFERENCE)
        np.testing.assert_array_equal(plain[1].dequantize(), caches[1].dequantize())
        np.testing.assert_allclose(
            plain[0].dequantize(), caches[0].dequantize(), rtol=0, atol=2.2 * step * np.abs(k_turned).max()
        )


def test_given_scales_are_read(rng):
    k, v = (rng.standard_normal((5, 2, 32), np.float32) for _ in range(2))
    k_cache, v_cache = (kf.quantized_cache((2, 2, 4, 32), "int8", per="head") for _ in range(2))
    k_cache.scales[:] = 0.01
    ops.append_kv(k, v, np.arange(5, dtype=np.int32), k_cache, v_cache)
    assert (k_cache.scales == np.float32(0.01)).all() and (v_cache.scales == 1).all()
    expected = np.clip(np.rint(k / np.float32(0.01)), -128, 127)
    got = np.asarray(k_cache.data).transpose(0, 2, 1, 3).reshape(8, 2, 32)
    np.testing.assert_array_equal(got[:5], expected)
    read_only = np.asarray(k_cache.data).copy()
    read_only.flags.writeable = False
    with pytest.raises(kf.InvalidArgumentError, match="read-only"):
        ops.append_kv(k, v, np.arange(5), kf.QuantizedTensor(read_only, k_cache.scales, dtype="int8"), v_cache)
    with pytest.raises(kf.InvalidArgumentError, match="k_cache_scales: expected 2 and 4"):
        half = kf.QuantizedTensor(k_cache.data, np.ones((2, 2, 1, 1), np.float32), dtype="int8")
        ops.append_kv(k, v, np.arange(5), half, v_cache)


@pytest.mark.parametrize("dtype", ["int4", "int8", "fp8"])
def test_the_manager_takes_them(rng, dtype):
    q, k, v = tensors(rng)
    k8, v8 = kf.quantize_kv(k, dtype, group_size=32), kf.quantize_kv(v, dtype, per="head")
    expected = attention(q, meaning(k8), meaning(v8))
    manager = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_quant=True))
    np.testing.assert_allclose(manager.fuse_attention(q, k8, v8), expected, rtol=0, atol=2e-5)
    got = manager.fuse_attention(q, k8.data, v8.data, k_scales=k8.scales, v_scales=v8.scales)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)
    with pytest.raises(kf.InvalidArgumentError, match="k_scales: expected none beside"):
        manager.fuse_attention(q, k8, v8, k_scales=k8.scales)
    with pytest.raises(kf.InvalidArgumentError, match="k: expected int8, uint8"):
        manager.fuse_attention(q, k, v8, k_scales=k8.scales)
    plain = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_quant=False))
    np.testing.assert_allclose(plain.fuse_attention(q, k8, v8), expected, rtol=0, atol=0.02)

    caches = [kf.quantized_cache((5, 2, 16, 64), dtype) for _ in range(2)]
    manager.append_kv(k[0], v[0], *caches, np.arange(70))
    assert np.abs(caches[1].dequantize().transpose(0, 2, 1, 3).reshape(80, 2, 64)[:70] - v[0]).max() < 0.3


def test_what_does_not_fit_is_refused(rng):
    q, k, v = tensors(rng)
    good = kf.quantize_kv(k, "int8"), kf.quantize_kv(v, "int8")
    for change, message in [
        ({"scales": None}, "k_scales: expected scales, since k is i8"),
        ({"group_size": 32}, r"k_scales: expected shape \[2 or 1, 70 or 1, 2 or 1, 2\]"),
        ({"group_size": 24}, "k_group_size: expected 0"),
        ({"scales": good[0].scales[:, :69]}, "k_scales: expected shape"),
        ({"zeros": np.zeros((2, 70, 2, 1), np.float32)}, "k_zeros: expected i8"),
    ]:
        parts = {"data": good[0].data, "scales": good[0].scales, "dtype": "int8"} | change
        with pytest.raises(kf.InvalidArgumentError, match=message):
            ops.attention(q, kf.QuantizedTensor(**parts), good[1])
    with pytest.raises(kf.InvalidArgumentError, match="k_scales: expected scales"):
        ops.attention(q, good[0].data, good[1].data)
    with pytest.raises(kf.InvalidArgumentError, match="3 or 4 dimensions"):
        kf.quantize_kv(k[0, 0], "int8")
    with pytest.raises(kf.InvalidArgumentError, match="per: expected one of tensor, head"):
        kf.quantize_kv(k, "int8", per="channel")
    with pytest.raises(kf.InvalidArgumentError, match="group_size"):
        kf.quantize_kv(k, "int8", group_size=24)
