"""Low-bit weights: GGUF's K formats against the gguf library, scales beside weights against NumPy, AWQ's and GPTQ's
files against a packing written from their descriptions."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import ops
from sagellm_kernel_fusion.quantized import as_quantized, from_awq, from_codes, from_gptq, pack_int4

F8 = {"fp8_e4m3": (ml_dtypes.float8_e4m3fn, 448), "fp8_e5m2": (ml_dtypes.float8_e5m2, 57344)}


def close_to_product(got, x, weight):
    expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    terms = np.abs(np.asarray(x, np.float64)) @ np.abs(np.asarray(weight, np.float64)).T
    assert (np.abs(got - expected) <= 2.0**-20 * (terms + 1)).all()


def blocks(rng, kind, rows, count):
    """Blocks of any bits, but for their f16 fields, which are small numbers."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    data = rng.integers(0, 256, (rows, count, size), np.uint8)
    fields = {"q5_0": [0], "q4_k": [0, 2], "q6_k": [208]}[kind]
    for at in fields:
        data[..., at : at + 2] = (rng.standard_normal((rows, count, 1)) / 16).astype(np.float16).view(np.uint8)
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", ["q5_0", "q4_k", "q6_k"])
def test_formats_of_any_bits_are_those_of_the_gguf_library(rng, kind):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    data = blocks(rng, kind, 9, 3)
    expected = dequantize(data, GGMLQuantizationType[kind.upper()])
    weight = kf.GgufTensor(data, kind, expected.shape)
    np.testing.assert_array_equal(ops.dequantize(weight, selection=kf.REFERENCE), expected)
    np.testing.assert_allclose(ops.dequantize(weight), expected, rtol=1e-6, atol=1e-6)
    ids = np.array([3, 0, 8], np.int32)
    np.testing.assert_allclose(ops.embedding(ids, weight), expected[ids], rtol=1e-6, atol=1e-6)
    for tokens in (1, 3, 20):
        x = rng.standard_normal((tokens, expected.shape[1]), np.float32)
        for selection in (kf.REFERENCE, kf.FUSED, kf.VANILLA):
            close_to_product(ops.linear(x, weight, selection=selection), x, expected)


def test_a_gguf_file_keeps_its_k_formats(rng, tmp_path):
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

    from sagellm_kernel_fusion.weights.gguf_file import _array

    path = tmp_path / "k.gguf"
    writer = GGUFWriter(path, "llama")
    for kind in ("q5_0", "q4_k", "q6_k"):
        data = blocks(rng, kind, 4, 2)
        writer.add_tensor(kind, data, raw_shape=data.shape, raw_dtype=GGMLQuantizationType[kind.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    arrays = {tensor.name: _array(tensor) for tensor in GGUFReader(path).tensors}
    assert {name: array.dtype for name, array in arrays.items()} == {k: k for k in ("q5_0", "q4_k", "q6_k")}
    assert arrays["q6_k"].shape == (4, 512)


def numpy_quantize(x, kind, group_size, symmetric, rows_per_scale=1):
    """The same in NumPy: codes, scales, zeros, values."""
    rows, n = x.shape
    size = group_size or n
    scale_rows = rows_per_scale or rows
    codes, values = np.zeros(x.shape, np.float32), np.zeros(x.shape, np.float32)
    shape = (-(-rows // scale_rows), -(-n // size))
    scales, zeros = np.zeros(shape, np.float32), np.zeros(shape, np.int8)
    low, high, most = {"int4": (-8, 7, 7), "int8": (-128, 127, 127)}.get(kind, (0, 0, F8.get(kind, (0, 0))[1]))
    for r in range(shape[0]):
        for g in range(shape[1]):
            at = np.s_[r * scale_rows : (r + 1) * scale_rows, g * size : (g + 1) * size]
            part, zero = x[at], np.float32(0)
            if symmetric:
                scale = np.abs(part).max() / np.float32(most)
            else:
                scale = (max(part.max(), 0) - min(part.min(), 0)) / np.float32(high - low)
                zero = np.clip(np.round(low - min(part.min(), 0) / scale), low, high).astype(np.float32)
            q = part / scale
            q = q.astype(F8[kind][0]).astype(np.float32) if kind in F8 else np.clip(np.round(q) + zero, low, high)
            codes[at], scales[r, g], zeros[r, g], values[at] = q, scale, zero, (q - zero) * scale
    return codes, scales, zeros, values


FORMS = [
    ("int4", 32, True, 1), ("int4", 64, False, 1), ("int4", 128, True, 1), ("int4", 128, False, 1),
    ("int4", 0, True, 1),
    ("int8", 0, True, 1), ("int8", 0, False, 1), ("int8", 128, True, 1),
    ("fp8_e4m3", 0, True, 1), ("fp8_e4m3", 0, True, 0), ("fp8_e4m3", 128, True, 128), ("fp8_e5m2", 0, True, 1),
    ("fp8_e5m2", 128, True, 128),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "group_size", "symmetric", "rows"), FORMS)
def test_quantize_and_every_kernel_against_numpy(rng, kind, group_size, symmetric, rows):
    w = (rng.standard_normal((150, 328)) * 0.05).astype(np.float32)
    codes, scales, zeros, values = numpy_quantize(w, kind, group_size, symmetric, rows)
    got = kf.quantize(w, kind, group_size=group_size, symmetric=symmetric, rows_per_scale=rows)
    np.testing.assert_allclose(got.scales, scales, rtol=3e-7)
    if not symmetric:
        np.testing.assert_array_equal(got.zeros, zeros)
    # A scale's last bit may turn a value between two codes to the other one.
    assert np.mean(np.abs(got.dequantize() - values) > 1e-6) < 1e-3
    assert got.shape == (150, 328) and got.nbytes < w.nbytes / 3
    if kind == "int4":
        assert np.mean(got.data != pack_int4(codes.astype(np.int8))) < 1e-3
    exact = got.dequantize()
    for tokens in (1, 5, 40):
        x = rng.standard_normal((tokens, 328), np.float32)
        for selection in (kf.REFERENCE, kf.FUSED, kf.VANILLA):
            close_to_product(ops.linear(x, got, selection=selection), x, exact)


def test_quantized_weights_in_the_other_ops(rng):
    x = rng.standard_normal((3, 64), np.float32)
    q, k, v = (
        kf.quantize(rng.standard_normal((n, 64), np.float32), kind)
        for n, kind in ((32, "int4"), (16, "int8"), (16, "fp8"))
    )
    for got, weight in zip(ops.qkv_linear(x, q, k, v), (q, k, v), strict=True):
        close_to_product(got, x, weight.dequantize())
    gate, up = (kf.quantize(rng.standard_normal((96, 64), np.float32), "int4", group_size=32) for _ in range(2))
    down = kf.quantize(rng.standard_normal((64, 96), np.float32), "int8")
    plain = ops.gated_ffn(x, gate.dequantize(), up.dequantize(), down.dequantize())
    np.testing.assert_allclose(ops.gated_ffn(x, gate, up, down), plain, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(ops.lm_head_argmax(x, gate), np.argmax(ops.linear(x, gate), 1))
    weight = rng.standard_normal(64).astype(np.float32)
    np.testing.assert_allclose(
        ops.linear(x, gate, norm="rms", norm_weight=weight),
        ops.linear(ops.rms_norm(x, weight, eps=1e-5), gate),
        rtol=1e-4,
        atol=1e-4,
    )
    row = next(r for r in kf.explain("linear", x=x, weight=gate) if r["selected"])
    assert row["kernel"] == "cpu::linear_gemv"


# How AutoAWQ and AutoGPTQ pack: eight 4-bit codes a word, by shifts and ors.


def word(codes):
    value = 0
    for i, code in enumerate(codes):
        value |= int(code) << (4 * i)
    return value - (1 << 32) if value >= 1 << 31 else value


def packed_columns(codes, order):
    rows, columns = codes.shape
    words = [[word(row[c + o] for o in order) for c in range(0, columns, 8)] for row in codes]
    return np.array(words, np.int64).astype(np.int32).reshape(rows, columns // 8)


def packed_rows(codes):
    rows, columns = codes.shape
    words = [[word(codes[r + i, c] for i in range(8)) for c in range(columns)] for r in range(0, rows, 8)]
    return np.array(words, np.int64).astype(np.int32).reshape(rows // 8, columns)


def layer(rng, n=256, out=24, group=64):
    codes = rng.integers(0, 16, (n, out))
    zeros = rng.integers(0, 16, (n // group, out))
    scales = (rng.random((n // group, out)) * 0.1).astype(np.float16)
    values = (codes - np.repeat(zeros, group, 0)) * np.repeat(scales.astype(np.float32), group, 0)
    return codes, zeros, scales, values.T.astype(np.float32)


def test_awq(rng):
    codes, zeros, scales, values = layer(rng)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    weight = from_awq(packed_columns(codes, order), scales, packed_columns(zeros, order))
    np.testing.assert_array_equal(weight.dequantize(), values)
    x = rng.standard_normal((2, 256), np.float32)
    close_to_product(ops.linear(x, weight), x, values)


@pytest.mark.parametrize("less_one", [True, False])
def test_gptq(rng, less_one):
    codes, zeros, scales, values = layer(rng, group=128)
    if less_one:  # zeros 1 to 16
        zeros, values = zeros + 1, values - np.repeat(scales.astype(np.float32), 128, 0).T
    qzeros = packed_columns(zeros - int(less_one), range(8))
    g_idx = np.arange(256) // 128
    weight = from_gptq(packed_rows(codes), scales, qzeros, g_idx, zeros_less_one=less_one)
    np.testing.assert_allclose(weight.dequantize(), values, rtol=1e-6, atol=1e-7)
    with pytest.raises(kf.NotServedError, match="act-order"):
        from_gptq(packed_rows(codes), scales, qzeros, g_idx[::-1], zeros_less_one=less_one)


class Made:
    """As the quantization module has it."""

    def __init__(self, codes, scales, zeros=None, group_size=32):
        self.quantized_weight, self.scales, self.zeros, self.group_size = codes, scales, zeros, group_size


@pytest.mark.parametrize("kind", ["torch", "numpy", "inference"])
def test_weights_of_the_module_are_packed_once(rng, kind):
    import torch

    as_kind = np.asarray if kind == "numpy" else torch.tensor
    with torch.inference_mode(kind == "inference"):
        codes = as_kind(rng.integers(-8, 8, (6, 64)).astype(np.int8))
        weight = Made(codes, as_kind(rng.random((6, 2)).astype(np.float32)))
        first = as_quantized(weight)
        assert as_quantized(weight) is first
        assert as_quantized(weight, "int8") is not first and as_quantized(weight) is first

        def values():
            codes, scales = np.asarray(weight.quantized_weight), np.asarray(weight.scales)
            shift = 0 if weight.zeros is None else np.asarray(weight.zeros)
            return (codes - np.repeat(np.broadcast_to(shift, scales.shape), 32, 1)) * np.repeat(scales, 32, 1)

        def change_codes():
            weight.quantized_weight[2, 3:9] = 5

        def change_a_view():
            weight.quantized_weight[4:][1, 0] -= 1

        def change_scales():
            weight.scales[1, 1] *= 2

        def replace_codes():
            weight.quantized_weight = as_kind(rng.integers(-8, 8, (6, 64)).astype(np.int8))

        def give_zeros():
            weight.zeros = as_kind(np.ones((6, 2), np.int8))

        def write_uncounted():
            codes = weight.quantized_weight if kind == "numpy" else weight.quantized_weight.data.numpy()
            np.invert(codes, codes)

        changes = (change_codes, change_a_view, change_scales, replace_codes, write_uncounted, give_zeros)
        for change in changes:
            before = as_quantized(weight)
            change()
            np.testing.assert_allclose(as_quantized(weight).dequantize(), values(), rtol=1e-6, err_msg=change.__name__)
            assert as_quantized(weight) is not before


def test_packed_weights_go_with_their_owner(rng):
    from sagellm_kernel_fusion import packed_once

    kept = len(packed_once._made)
    weight = Made(rng.integers(-8, 8, (6, 64)).astype(np.int8), np.ones((6, 2), np.float32))
    as_quantized(weight)
    assert len(packed_once._made) == kept + 1
    del weight
    assert len(packed_once._made) == kept


def test_codes_one_an_element(rng):
    codes, scales = rng.integers(-8, 8, (6, 64)).astype(np.int8), rng.random((6, 2)).astype(np.float32)
    expected = codes * np.repeat(scales, 32, 1)
    np.testing.assert_array_equal(from_codes(codes, scales, None, 32).dequantize(), expected)
    np.testing.assert_array_equal(from_codes(codes + 8, scales, np.full((6, 2), 8), 32).dequantize(), expected)

    given = codes, scales, np.ones((6, 2))
    np.testing.assert_array_equal(as_quantized(Made(*given)).dequantize(), (codes - 1) * np.repeat(scales, 32, 1))
    x = rng.standard_normal((1, 64), np.float32)
    close_to_product(ops.linear(x, Made(*given)), x, (codes - 1) * np.repeat(scales, 32, 1))
    m = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_quant=True, quant_dtype="int8"))
    # int8 by the configuration, though int4 would do
    expected = m.plan("silu_linear", x=x, weight=Made(*given))["shapes"]
    assert "weight=i8[6, 64]" in expected

    for name, value, words in (
        ("quantized_weight", "codes", "quantized_weight: expected an array, got str"),
        ("quantized_weight", codes[0], r"quantized_weight: expected integers \[out, in\], got int8 of shape \[64\]"),
        ("quantized_weight", scales, "quantized_weight: expected integers"),
        ("scales", scales[:5], r"scales: expected \[out\] or \[out, groups\].* got \[5, 2\]"),
        ("scales", None, "scales: expected an array, got none"),
        ("zeros", np.ones((6, 3)), r"zeros like them, got \[6, 2\] and \[6, 3\]"),
    ):
        wrong = Made(*given)
        setattr(wrong, name, value)
        with pytest.raises(kf.InvalidArgumentError, match=words):
            m.fuse_silu_linear(x, wrong)
    with pytest.raises(kf.InvalidArgumentError, match="whole numbers"):
        from_codes(codes, scales, np.full((6, 2), 0.5), 32)
    with pytest.raises(kf.InvalidArgumentError, match="-8 to 7"):
        pack_int4(np.full((2, 2), 9))


def test_what_does_not_fit_is_refused(rng):
    x, w = rng.standard_normal((2, 64), np.float32), rng.standard_normal((8, 64)).astype(np.float32)
    good = kf.quantize(w, "int4", group_size=32)
    for change, message in [
        ({"scales": None}, "weight_scales: expected scales, since weight is int4"),
        ({"group_size": 64}, r"weight_scales: expected shape \[8, 1\]"),
        ({"group_size": 24}, "weight_group_size: expected 0"),
        ({"zeros": np.zeros((8, 1), np.int8)}, r"weight_zeros: expected shape \[8, 2\]"),
        ({"zeros": np.zeros((8, 2), np.float32)}, "weight_zeros: expected i8"),
    ]:
        parts = {"data": good.data, "scales": good.scales, "zeros": None, "group_size": 32, "dtype": "int4"} | change
        with pytest.raises(kf.InvalidArgumentError, match=message):
            ops.linear(x, kf.QuantizedTensor(**parts))
    with pytest.raises(kf.InvalidArgumentError, match="expected int4, int8"):
        kf.quantize(w, "int3")
    with pytest.raises(kf.InvalidArgumentError, match="x: expected an array, got list"):
        kf.quantize([[1.0]], "int8")
    with pytest.raises(kf.InvalidArgumentError, match="group_size: expected an integer, got '32'"):
        kf.quantize(w, "int8", group_size="32")
    with pytest.raises(kf.InvalidArgumentError, match="scales: expected an array, got none"):
        kf.QuantizedTensor(good.data, None).dequantize()
    with pytest.raises(kf.InvalidArgumentError, match="data: expected an array, got str"):
        kf.QuantizedTensor("data", good.scales)
    with pytest.raises(kf.InvalidArgumentError, match="even number"):
        kf.quantize(w[:, :63], "int4")
    with pytest.raises(kf.InvalidArgumentError, match="none, since data is fp8_e4m3"):
        kf.quantize(w, "fp8", symmetric=False)
    with pytest.raises(kf.InvalidArgumentError, match="group_size"):
        kf.quantize(w, "int8", group_size=48)


@pytest.mark.parametrize(
    ("dtype", "stored", "words"),
    [
        ("int4", np.int8, r"uint8 for int4 \(two a byte; `from_codes` packs .*\), got int8"),
        ("int4", np.float32, "uint8 for int4 .* got float32"),
        ("int8", np.uint8, "int8 for i8, got uint8"),
        ("fp8", np.float32, "float8_e4m3fn or uint8 or int8 for fp8_e4m3, got float32"),
    ],
)
def test_data_of_another_type_than_its_dtype_lies_in(dtype, stored, words):
    with pytest.raises(kf.InvalidArgumentError, match=f"QuantizedTensor: data: expected {words}"):
        kf.QuantizedTensor(np.ones((4, 32), stored), np.ones((4, 1), np.float32), dtype=dtype)
