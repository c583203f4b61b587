"""Sparse weights against NumPy, and with quantized values."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import ops


def close_to_product(got, x, weight):
    expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    terms = np.abs(np.asarray(x, np.float64)) @ np.abs(np.asarray(weight, np.float64)).T
    assert (np.abs(got - expected) <= 2.0**-20 * (terms + 1)).all()


def numpy_n_of_m(x, n, m):
    groups = np.abs(x.reshape(x.shape[0], -1, m))
    order = np.argsort(-groups, axis=-1, kind="stable")[..., :n]
    keep = np.zeros(groups.shape, bool)
    np.put_along_axis(keep, order, True, -1)
    return np.where(keep.reshape(x.shape), x, 0)


def numpy_largest(x, share):
    kept = x.size - int(share * x.size)
    order = np.argsort(-np.abs(x.reshape(-1)), kind="stable")[:kept]
    out = np.zeros(x.size, x.dtype)
    out[order] = x.reshape(-1)[order]
    return out.reshape(x.shape)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "7:16", "unstructured"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
def test_every_kernel_against_numpy(rng, pattern, dtype):
    w = rng.standard_normal((45, 208)).astype(dtype)
    if pattern == "unstructured":
        expected, sparse = numpy_largest(w.astype(np.float32), 0.75), kf.sparsify(w, pattern, sparsity=0.75)
    else:
        n, m = map(int, pattern.split(":"))
        expected, sparse = numpy_n_of_m(w.astype(np.float32), n, m), kf.sparsify(w, pattern)
    np.testing.assert_array_equal(kf.densify(sparse), expected)
    assert (sparse.pattern, sparse.shape) == (pattern, (45, 208))
    np.testing.assert_allclose(sparse.sparsity, np.mean(expected == 0), atol=1e-12)
    assert sparse.nbytes < w.nbytes
    for tokens in (1, 5, 40):
        x = rng.standard_normal((tokens, 208), np.float32)
        for selection in (kf.REFERENCE, kf.FUSED, kf.VANILLA):
            close_to_product(ops.linear(x, sparse, selection=selection), x, expected)


def test_what_is_zero_already_stays_so(rng):
    dense = numpy_n_of_m(rng.standard_normal((8, 64)).astype(np.float32), 2, 4)
    np.testing.assert_array_equal(kf.sparsify(dense, "n:m", prune=False).densify(), dense)
    np.testing.assert_array_equal(kf.sparsify(dense, "unstructured").densify(), dense)
    assert kf.sparsify(dense, "n:m", n=1, m=4).pattern == "1:4"
    dense[3, :4] = 1
    with pytest.raises(kf.InvalidArgumentError, match="at most 2 values that are not 0 in every 4"):
        kf.sparsify(dense, prune=False)


class TensorSemiStructured:
    """Stands in for torch.sparse.SparseSemiStructuredTensor, which torch makes on a GPU only."""

    def __init__(self, dense):
        self.dense = dense

    def to_dense(self):
        return self.dense


def test_torch_tensors(rng):
    import torch

    dense = torch.tensor(numpy_n_of_m(rng.standard_normal((16, 64)).astype(np.float32), 2, 4))
    x = torch.randn(3, 64)
    for given in (dense, TensorSemiStructured(dense)):
        got = ops.linear(x, kf.sparsify(given, "2:4", prune=False))
        assert isinstance(got, torch.Tensor)
        torch.testing.assert_close(got, x @ dense.T, rtol=1e-5, atol=1e-5)
    half = kf.sparsify(dense.bfloat16(), "2:4", prune=False)
    np.testing.assert_array_equal(half.densify(), dense.bfloat16().float().numpy())


def test_semi_structured_tensors_are_compressed_once(rng):
    import torch

    dense = torch.tensor(numpy_n_of_m(rng.standard_normal((16, 64)).astype(np.float32), 2, 4))
    given = TensorSemiStructured(dense)
    made = []
    given.to_dense = lambda: made.append(1) or given.packed
    given.packed, given.meta = dense, torch.zeros(16, 4, dtype=torch.int16)  # torch's names
    m = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_sparse=True))
    x = torch.randn(3, 64)
    for changed in (False, False, True):
        if changed:
            dense *= 2
        expected = torch.nn.functional.silu(x) @ dense.T
        torch.testing.assert_close(m.fuse_silu_linear(x, given), expected, rtol=1e-5, atol=1e-4)
    assert len(made) == 2


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
@pytest.mark.parametrize(
    ("dtype", "group_size", "symmetric"),
    [("int4", 32, True), ("int4", 64, False), ("int8", 0, True), ("int8", 128, False), ("fp8", 0, True)],
)
def test_quantized_values(rng, pattern, dtype, group_size, symmetric):
    w = rng.standard_normal((33, 192)).astype(np.float32)
    plain = kf.sparsify(w, pattern, sparsity=0.7)
    sparse = kf.sparsify(w, pattern, sparsity=0.7, dtype=dtype, group_size=group_size, symmetric=symmetric)
    codes = kf.quantize(plain.densify(), dtype, group_size=group_size, symmetric=symmetric)
    expected = np.where(plain.densify() != 0, codes.dequantize(), 0)
    np.testing.assert_array_equal(sparse.densify(), expected)
    assert sparse.nbytes < codes.nbytes + sparse.mask.nbytes + 8 * 34
    for tokens in (1, 5, 40):
        x = rng.standard_normal((tokens, 192), np.float32)
        for selection in (kf.REFERENCE, kf.FUSED, kf.VANILLA):
            close_to_product(ops.linear(x, sparse, selection=selection), x, expected)


def test_the_other_ops(rng):
    x = rng.standard_normal((3, 64), np.float32)
    weights = [rng.standard_normal((n, 64)).astype(np.float32) for n in (32, 16, 16)]
    q, k, v = kf.sparsify(weights[0], "2:4"), kf.sparsify(weights[1], "unstructured", sparsity=0.8), weights[2]
    for got, weight in zip(ops.qkv_linear(x, q, k, v), (q.densify(), k.densify(), v), strict=True):
        close_to_product(got, x, weight)
    gate, up = (kf.sparsify(rng.standard_normal((96, 64)).astype(np.float32), "4:8") for _ in range(2))
    down = kf.sparsify(rng.standard_normal((64, 96)).astype(np.float32), "unstructured", sparsity=0.7, dtype="int8")
    plain = ops.gated_ffn(x, gate.densify(), up.densify(), down.densify())
    np.testing.assert_allclose(ops.gated_ffn(x, gate, up, down), plain, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(ops.gated_ffn(x, gate, up, down, selection=kf.VANILLA), plain, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(ops.lm_head_argmax(x, gate), np.argmax(ops.linear(x, gate), 1))
    norm = rng.standard_normal(64).astype(np.float32)
    np.testing.assert_allclose(
        ops.linear(x, gate, norm="rms", norm_weight=norm),
        ops.linear(ops.rms_norm(x, norm, eps=1e-5), gate),
        rtol=1e-4,
        atol=1e-4,
    )
    row = next(r for r in kf.explain("linear", x=x, weight=gate) if r["selected"])
    assert row["kernel"] == "cpu::linear_gemv"


def test_the_manager_goes_by_its_configuration(rng):
    x = rng.standard_normal((3, 64), np.float32)
    gate, up = (kf.sparsify(rng.standard_normal((96, 64)).astype(np.float32), "2:4") for _ in range(2))
    down = kf.sparsify(rng.standard_normal((64, 96)).astype(np.float32), "2:4", dtype="int8")
    expected = ops.gated_ffn(x, gate.densify(), up.densify(), down.densify())
    for config in (
        kf.KernelFusionConfig(fuse_with_sparse=True, sparse_pattern="n:m"),
        kf.KernelFusionConfig(fuse_with_sparse=False, enable_fp16=False),  # expanded first
    ):
        got = kf.KernelFusionManager(config).fuse_ffn(x, gate, up, down)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)
    strict = kf.KernelFusionConfig(fuse_with_sparse=True, sparse_pattern="unstructured")
    with pytest.raises(kf.InvalidArgumentError, match="configured as unstructured, got 2:4"):
        kf.KernelFusionManager(strict).fuse_ffn(x, gate, up, down)
    quantized = kf.KernelFusionConfig(fuse_with_sparse=True, fuse_with_quant=True, quant_dtype="int4")
    with pytest.raises(kf.InvalidArgumentError, match="configured as int4, got i8"):
        kf.KernelFusionManager(quantized).fuse_ffn(x, gate, up, down)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_dense_weights_under_a_pattern_are_masked_so(rng, library, pattern):
    make = {"numpy": np.asarray, "torch": lambda a: pytest.importorskip("torch").tensor(a)}.get(library)
    make = make or pytest.importorskip("jax.numpy").asarray
    m = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_sparse=True, sparse_pattern="n:m"))
    x, dense = rng.standard_normal((3, 64), np.float32), rng.standard_normal((32, 64), np.float32)
    masked = kf.sparsify(dense, pattern).densify()
    expected = (x / (1 + np.exp(-x))) @ masked.T
    for weight, weight_layout in ((masked, "out_in"), (np.ascontiguousarray(masked.T), "in_out")):
        given = make(weight)
        for _ in range(2):
            got = m.fuse_silu_linear(make(x), given, weight_layout=weight_layout)
            np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-4, atol=1e-4)
    for weight, weight_layout in ((dense, "out_in"), (dense.T.copy(), "in_out"), (masked.T.copy(), "out_in")):
        with pytest.raises(
            kf.InvalidArgumentError, match=r"linear: weight: .*n:m: expected at most 2 .* every 4.*sparsify"
        ):
            m.fuse_silu_linear(
                make(x[:, : weight.shape[weight_layout == "out_in"]]), make(weight), weight_layout=weight_layout
            )
    with pytest.raises(kf.InvalidArgumentError, match=r"gated_ffn: up_weight: .*n:m"):
        m.fuse_ffn(make(x), make(masked), make(dense), make(masked.T.copy()), weight_layout="out_in")
    for loose in ({"sparse_pattern": None}, {"fuse_with_sparse": False}):
        m.fuse_silu_linear(make(x), make(dense), dataclasses.replace(m.config, **loose), weight_layout="out_in")


def test_what_does_not_fit_is_refused(rng):
    w = rng.standard_normal((8, 64)).astype(np.float32)
    good, loose = kf.sparsify(w, "2:4"), kf.sparsify(w, "unstructured", sparsity=0.5)
    parts = {"data": good.data, "mask": good.mask, "shape": (8, 64), "n": 2, "m": 4}
    wrong_mask, wrong_offsets = good.mask.copy(), loose.offsets.copy()
    wrong_mask[2, 1] = 0xFF
    wrong_offsets[3] -= 1
    for change, message in [
        ({"mask": wrong_mask}, "2 bits for every 4 columns, so from column 8 on, in row 2, got 4"),
        ({"mask": good.mask[:, :7]}, r"shape \[out, 8\]"),
        ({"mask": good.mask[:7]}, r"a row for each of a matrix \[8, 64\]"),
        ({"n": 1}, r"shape \[8, 16\]"),
        ({"n": 3, "m": 3}, "n of m neighbours"),
        ({"data": good.data.astype(np.float16), "dtype": "f32"}, "expected"),
        ({"dtype": "int8"}, "expected"),
        ({"scales": np.ones((8, 1), np.float32)}, "expected none for f32"),
        ({"data": loose.data, "mask": loose.mask, "n": 0, "m": 0}, "offsets of the rows"),
        ({"data": loose.data, "mask": loose.mask, "offsets": wrong_offsets, "n": 0, "m": 0}, "bits, as offsets say"),
        ({"data": loose.data[1:], "mask": loose.mask, "offsets": loose.offsets, "n": 0, "m": 0}, "ascend from 0"),
    ]:
        with pytest.raises(kf.InvalidArgumentError, match=message):
            kf.SparseTensor(**(parts | change))
    for pattern, message in [("2-4", "pattern"), ("3:3", "n of m"), ("1:128", "n of m"), ("2:4:1", "pattern")]:
        with pytest.raises(kf.InvalidArgumentError, match=message):
            kf.sparsify(w, pattern)
    with pytest.raises(kf.InvalidArgumentError, match="a multiple of m, 4"):
        kf.sparsify(w[:, :62], "2:4")
    with pytest.raises(kf.InvalidArgumentError, match="share of 0 to 1"):
        kf.sparsify(w, "unstructured", sparsity=1.5)
    with pytest.raises(kf.InvalidArgumentError, match="x: expected an array, got none"):
        kf.sparsify(None)
    with pytest.raises(kf.InvalidArgumentError, match="expected a matrix"):
        kf.sparsify(w[0], "2:4")
    with pytest.raises(kf.InvalidArgumentError, match="columns"):
        ops.linear(rng.standard_normal((1, 32), np.float32), good)


def test_torchs_sparse_tensors(rng):
    import torch

    dense = torch.tensor(rng.standard_normal((8, 16)).astype(np.float32)).relu()
    for sparse in (dense.to_sparse(), dense.to_sparse_csr()):
        np.testing.assert_array_equal(kf.sparsify(sparse, "unstructured").densify(), dense.numpy())
        with pytest.raises(kf.InvalidArgumentError, match=r"sparsify\(weight.t\(\), \"unstructured\"\)"):
            kf.KernelFusionManager().fuse_silu_linear(torch.ones(2, 8), sparse)
    assert kf.sparsify(dense, "unstructured", sparsity=np.float32(0.75)).sparsity >= 0.7
