"""Every op against float64 NumPy and against PyTorch, over shapes and element types."""

from __future__ import annotations

import inspect
import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import _kf, ops

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def normal(rng, shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(np.float32).astype(dtype)


def assert_close(got, expected, dtype, terms: int = 1):
    """Rounding of the result to `dtype`, and of `terms` float32 additions of about the result's size."""
    expected = np.asarray(expected, np.float64)
    scale = np.abs(expected).max(initial=1.0)
    tolerance = 2 * ROUNDOFF[np.dtype(dtype).name] + (8 + terms) * ROUNDOFF["float32"]
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=0, atol=tolerance * scale)


def softmax64(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu64(x):
    return x / (1 + np.exp(-x))


def f64(x):
    return np.asarray(x, np.float64)


def test_every_op_has_a_function_with_its_fields():
    for name, description in _kf.ops().items():
        parameters = inspect.signature(getattr(ops, name)).parameters
        fields = {f["name"]: f for f in description["fields"]}
        assert set(parameters) - {"selection"} == set(fields), name
        for field in fields.values():
            default = parameters[field["name"]].default
            if field["kind"] == "tensor":
                required = field["role"] != "out" and not field["optional"]
                assert (default is inspect.Parameter.empty) == required, (name, field["name"])
            elif field["kind"] == "float":
                assert default == pytest.approx(field["default"], rel=1e-6), (name, field["name"])
            else:
                assert default == field["default"], (name, field["name"])


def test_an_op_without_a_function_gets_the_one_of_its_reflection(rng, monkeypatch):
    x, weight, written = normal(rng, (3, 40)), normal(rng, 40), ops.rms_norm
    monkeypatch.delattr(ops, "rms_norm")
    made = ops.rms_norm
    assert made is not written and "sqrt" in made.__doc__
    assert set(inspect.signature(made).parameters) == set(inspect.signature(written).parameters)
    assert (made(x, weight, eps=1e-3) == written(x, weight, eps=1e-3)).all()
    with pytest.raises(TypeError, match="weight"):
        made(x)
    with pytest.raises(AttributeError, match="conv"):
        ops.conv  # noqa: B018


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 64), (4, 576), (0, 8)], ids=str)
def test_rms_norm(rng, shape, dtype):
    x, residual = normal(rng, shape, dtype), normal(rng, shape, dtype)
    weight = normal(rng, shape[-1:], dtype)
    expected_h = f64(x) + f64(residual)
    normal_h = expected_h / np.sqrt((expected_h**2).mean(-1, keepdims=True) + 1e-5)
    for offset in (0.0, 1.0):
        out, h = ops.rms_norm(x, weight, residual, residual_out=True, eps=1e-5, weight_offset=offset)
        assert out.dtype == dtype and out.shape == shape
        assert_close(h, expected_h, dtype)
        assert_close(out, normal_h * (offset + f64(weight)), dtype, terms=4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_norm(rng, dtype):
    x, weight, bias = normal(rng, (5, 67), dtype), normal(rng, 67, dtype), normal(rng, 67, dtype)
    mean, var = f64(x).mean(-1, keepdims=True), f64(x).var(-1, keepdims=True)
    expected = (f64(x) - mean) / np.sqrt(var + 1e-5) * f64(weight) + f64(bias)
    assert_close(ops.layer_norm(x, weight, bias), expected, dtype, terms=8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elementwise(rng, dtype):
    a, b = normal(rng, (3, 65), dtype), normal(rng, (3, 65), dtype)
    assert_close(ops.binary(a, b), f64(a) + f64(b), dtype)
    assert_close(ops.binary(a, b, kind="mul"), f64(a) * f64(b), dtype)
    assert_close(ops.activation(a), silu64(f64(a)), dtype)
    assert_close(ops.activation(a, kind="relu"), np.maximum(f64(a), 0), dtype)
    assert_close(ops.gated_activation(a, b), silu64(f64(a)) * f64(b), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax(rng, dtype):
    x = normal(rng, (3, 4, 33), dtype)
    out, lse = ops.softmax(x, lse=True, scale=0.5)
    scaled = 0.5 * f64(x)
    assert_close(out, softmax64(scaled), dtype)
    assert_close(lse, np.log(np.exp(scaled).sum(-1)), np.float32, terms=4)


def test_softmax_of_a_row_without_anything_is_zero():
    out, lse = ops.softmax(np.full((1, 4), -np.inf, np.float32), lse=True)
    assert (out == 0).all() and lse[0] == -np.inf


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_linear_with_all_around_it(rng, tokens, dtype):
    x, weight = normal(rng, (tokens, 48), dtype), normal(rng, (40, 48), dtype)
    bias, residual = normal(rng, 40, dtype), normal(rng, (tokens, 40), dtype)
    norm_weight = normal(rng, 48, dtype)
    out = ops.linear(
        x, weight, bias, residual, norm="rms", norm_weight=norm_weight, eps=1e-5, activation="silu"
    )  # fmt: skip
    y = f64(x) / np.sqrt((f64(x) ** 2).mean(-1, keepdims=True) + 1e-5) * f64(norm_weight)
    expected = silu64(y @ f64(weight).T + f64(bias)) + f64(residual)
    assert_close(out, expected, dtype, terms=48)


def test_linear_takes_a_transposed_weight_as_it_is(rng):
    x, weight = normal(rng, (5, 24)), normal(rng, (24, 16))
    assert_close(ops.linear(x, weight.T), f64(x) @ f64(weight), np.float32, terms=24)


def test_qkv_linear_and_gated_ffn(rng):
    x = normal(rng, (7, 64))
    weights = [normal(rng, (n, 64)) for n in (64, 32, 32)]
    for got, weight in zip(ops.qkv_linear(x, *weights), weights, strict=True):
        assert_close(got, f64(x) @ f64(weight).T, np.float32, terms=64)
    gate, up, down = normal(rng, (96, 64)), normal(rng, (96, 64)), normal(rng, (64, 96))
    hidden = silu64(f64(x) @ f64(gate).T) * (f64(x) @ f64(up).T)
    assert_close(ops.gated_ffn(x, gate, up, down, x), hidden @ f64(down).T + f64(x), np.float32, terms=160)


def attention64(q, k, v, causal=True):
    """[seqlen, heads, head_dim] in float64, causal aligned bottom-right."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
    if causal:
        rows, columns = np.arange(len(q))[:, None], np.arange(len(k))[None, :]
        scores = np.where(columns <= rows + len(k) - len(q), scores, -np.inf)
    return np.einsum("hqk,khd->qhd", softmax64(scores), v)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(1, 1), (1, 37), (13, 13), (5, 64)])
def test_attention_dense(rng, seqlen_q, seqlen_k, causal, dtype):
    q = normal(rng, (2, seqlen_q, 6, 40), dtype)
    k, v = normal(rng, (2, seqlen_k, 2, 40), dtype), normal(rng, (2, seqlen_k, 2, 40), dtype)
    out = ops.attention(q, k, v, causal=causal)
    for b in range(2):
        assert_close(out[b], attention64(f64(q[b]), f64(k[b]), f64(v[b]), causal), dtype, terms=seqlen_k)


def test_attention_packed_with_lse(rng):
    lengths = [3, 0, 17, 1]
    cu = np.cumsum([0, *lengths]).astype(np.int32)
    q, k, v = (normal(rng, (sum(lengths), heads, 32)) for heads in (4, 2, 2))
    out, lse = ops.attention(q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu, lse=True)
    assert lse.shape == (4, sum(lengths))
    for a, b in itertools.pairwise(cu):
        if a < b:
            assert_close(out[a:b], attention64(f64(q[a:b]), f64(k[a:b]), f64(v[a:b])), np.float32, terms=20)


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_append_then_attend_over_pages(rng, layout):
    page_size, heads, head_dim = 4, 2, 32
    lengths, tables = [6, 9], np.array([[5, 0, -1], [2, 3, 1]], np.int32)
    order = (6, heads, page_size, head_dim) if layout == "HND" else (6, page_size, heads, head_dim)
    k_cache, v_cache = np.zeros(order, np.float32), np.zeros(order, np.float32)
    k, v = normal(rng, (sum(lengths), heads, head_dim)), normal(rng, (sum(lengths), heads, head_dim))
    slots = [tables[b, i // page_size] * page_size + i % page_size for b in (0, 1) for i in range(lengths[b])]
    assert ops.append_kv(k, v, np.array(slots, np.int64), k_cache, v_cache, kv_layout=layout) is None
    q = normal(rng, (2, 4, head_dim))
    out = ops.attention(
        q, k_cache, v_cache, block_tables=tables, context_lens=np.array(lengths, np.int32), kv_layout=layout
    )  # fmt: skip
    for b, (start, stop) in enumerate([(0, 6), (6, 15)]):
        expected = attention64(f64(q[b : b + 1]), f64(k[start:stop]), f64(v[start:stop]))
        assert_close(out[b : b + 1], expected, np.float32, terms=10)


def blocks64(layout, block_q, block_k, seqlen_q, seqlen_k):
    """A layout [heads, query blocks, key blocks] as what each token may see, [heads, seqlen_q, seqlen_k]."""
    rows = np.repeat(layout, block_q, 1)[:, :seqlen_q] if block_q else np.repeat(layout, seqlen_q, 1)
    return np.repeat(rows, block_k, 2)[:, :, :seqlen_k]


def masked_attention64(q, k, v, seen):
    """[seqlen, heads, head_dim] in float64 of what `seen`, [heads, seqlen_q, seqlen_k], lets a row see; else zeros."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(f64(k), group, 1), np.repeat(f64(v), group, 1)
    scores = np.where(seen, np.einsum("qhd,khd->hqk", f64(q), k) / np.sqrt(q.shape[-1]), -np.inf)
    weights = np.exp(scores - np.where(seen.any(-1, keepdims=True), scores.max(-1, keepdims=True), 0))
    total = weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", np.divide(weights, total, out=np.zeros_like(weights), where=total > 0), v)


@pytest.mark.parametrize("selection", [kf.FUSED, kf.VANILLA, kf.REFERENCE], ids=lambda s: s.families[0])
@pytest.mark.parametrize("layout_heads", [1, 2, 6])
@pytest.mark.parametrize(("seqlen_q", "block_q"), [(45, 16), (1, 0)])
def test_block_sparse_attention(rng, seqlen_q, block_q, layout_heads, selection):
    q, k, v = (normal(rng, (2, n, heads, 32)) for n, heads in ((seqlen_q, 6), (70, 2), (70, 2)))
    layout = rng.random((2, layout_heads, -(-seqlen_q // block_q) if block_q else 1, 9)) < 0.4
    out = ops.attention(q, k, v, block_layout=layout, block_size_q=block_q, block_size_k=8, selection=selection)
    causal = np.arange(70)[None] <= np.arange(seqlen_q)[:, None] + 70 - seqlen_q
    for b in range(2):
        seen = blocks64(np.repeat(layout[b], 6 // layout_heads, 0), block_q, 8, seqlen_q, 70) & causal
        assert_close(out[b], masked_attention64(q[b], k[b], v[b], seen), np.float32, terms=70)


@pytest.mark.parametrize("selection", [kf.FUSED, kf.VANILLA, kf.REFERENCE], ids=lambda s: s.families[0])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8)])
def test_the_largest_of_every_group_are_kept(rng, n, m, selection):
    # Eighths, of which sums are exact: everyone chooses the same, ties too.
    q, k = (np.round(8 * normal(rng, (1, 33, heads, 16))) / 8 for heads in (4, 2))
    v = normal(rng, (1, 33, 2, 16))
    out = ops.attention(q, k, v, keep_n=n, keep_m=m, selection=selection)
    scores = np.einsum("qhd,khd->hqk", q[0], np.repeat(k[0], 2, 1))
    seen = np.broadcast_to(np.tri(33, dtype=bool), scores.shape)
    groups = np.pad(np.where(seen, scores, -np.inf), [(0, 0), (0, 0), (0, -33 % m)], constant_values=-np.inf)
    groups = groups.reshape(4, 33, -1, m)
    order = np.argsort(-groups, -1, kind="stable")  # of equal ones the first
    kept = np.zeros(groups.shape, bool)
    np.put_along_axis(kept, order[..., :n], True, -1)
    kept = kept.reshape(4, 33, -1)[..., :33] & seen
    assert_close(out[0], masked_attention64(q[0], k[0], v[0], kept), np.float32, terms=33)


def test_a_list_of_pages_a_head(rng):
    q = normal(rng, (1, 4, 32))
    pools = [normal(rng, (7, 2, 8, 32)) for _ in "kv"]
    tables, pages = np.array([[6, 2, 4, 0, 5]], np.int32), np.array([[[[0, 4, -1]], [[1, 2, 3]]]], np.int32)
    out = ops.attention(
        q, *pools, block_tables=tables, context_lens=np.array([37], np.int32), block_layout=pages, block_size_k=8
    )
    k, v = (pool[tables[0]].transpose(0, 2, 1, 3).reshape(40, 2, 32)[:37] for pool in pools)
    listed = np.isin(np.arange(5), pages[0, 0, 0]), np.isin(np.arange(5), pages[0, 1, 0])
    seen = blocks64(np.repeat(np.stack(listed), 2, 0)[:, None], 0, 8, 1, 37)
    assert_close(out, masked_attention64(q, k, v, seen), np.float32, terms=37)
    options = {"block_tables": tables, "context_lens": np.array([37], np.int32), "block_size_k": 8}
    with pytest.raises(kf.InvalidArgumentError, match="ascending"):
        ops.attention(q, *pools, **options, block_layout=pages[..., ::-1].copy())


def test_the_three_primitives_make_attention(rng):
    q, k, v = normal(rng, (1, 5, 4, 32)), normal(rng, (1, 9, 2, 32)), normal(rng, (1, 9, 2, 32))
    vanilla = kf.VANILLA
    scores = ops.attention_scores(q, k, selection=vanilla)
    probs = ops.softmax(ops.attention_mask(scores, seqlen_k=9, selection=vanilla), selection=vanilla)
    got = ops.attention_values(probs, v, selection=vanilla)
    assert_close(got, ops.attention(q, k, v), np.float32, terms=9)


@pytest.mark.parametrize("array", [np.asarray, pytest.param("torch", id="torch")])
def test_sizes_that_attributes_name_are_checked_before_memory_is_made(rng, array):
    if array == "torch":
        array = pytest.importorskip("torch").from_numpy
    q, k = array(normal(rng, (1, 5, 4, 32))), array(normal(rng, (1, 9, 2, 32)))
    with pytest.raises(kf.InvalidArgumentError, match="seqlen_k_max: expected at least 9"):
        ops.attention_scores(q, k, seqlen_k_max=-1)
    tables = {"block_tables": array(np.zeros((5, 1), np.int32)), "context_lens": array(np.zeros(5, np.int32))}
    with pytest.raises(kf.InvalidArgumentError, match="scores: expected dimensions of 0 or more"):
        ops.attention_scores(q[0], array(normal(rng, (1, 2, 4, 32))), seqlen_k_max=-1, **tables)
    with pytest.raises(kf.InvalidArgumentError, match="expected less than 2\\^63 bytes"):
        ops.attention_scores(q, k, seqlen_k_max=2**62)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(rng, interleaved):
    x, positions = normal(rng, (5, 3, 16)), np.array([0, 3, 1, 7, 2], np.int32)
    angle = np.outer(np.arange(8), 10000.0 ** (-np.arange(8) / 8))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, 8), slice(8, 16))
    c, s = np.cos(angle)[positions][:, None], np.sin(angle)[positions][:, None]
    expected = f64(x).copy()
    expected[..., first] = f64(x)[..., first] * c - f64(x)[..., second] * s
    expected[..., second] = f64(x)[..., second] * c + f64(x)[..., first] * s
    assert_close(ops.rope(x, positions, cos, sin, interleaved=interleaved), expected, np.float32)


def test_rope_append_is_rope_and_append(rng):
    q, k, v = normal(rng, (3, 4, 16)), normal(rng, (3, 2, 16)), normal(rng, (3, 2, 16))
    positions, slots = np.arange(3, dtype=np.int32), np.array([4, -1, 2], np.int64)
    table = normal(rng, (8, 8))
    caches = [np.zeros((2, 2, 4, 16), np.float32) for _ in range(4)]
    q_out = ops.rope_append(q, k, v, positions, table, table, slots, *caches[:2])
    ops.append_kv(ops.rope(k, positions, table, table), v, slots, *caches[2:])
    np.testing.assert_allclose(q_out, ops.rope(q, positions, table, table), rtol=1e-6, atol=1e-6)
    for got, expected in zip(caches[:2], caches[2:], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_tokens_in_and_out(rng):
    table = normal(rng, (50, 24))
    ids = np.array([0, 49, 7], np.int32)
    np.testing.assert_array_equal(ops.embedding(ids, table), table[ids])
    x = normal(rng, (3, 24))
    logits = f64(x) @ f64(table).T
    best, top = ops.lm_head_argmax(x, table, max=True)
    np.testing.assert_array_equal(best, logits.argmax(-1))
    assert_close(top, logits.max(-1), np.float32, terms=24)
    np.testing.assert_array_equal(ops.argmax(logits.astype(np.float32)), logits.argmax(-1))
    np.testing.assert_array_equal(ops.sample(logits.astype(np.float32), temperature=0.0), logits.argmax(-1))


def test_sampling_follows_the_probabilities(rng):
    probabilities = np.array([0.5, 0.25, 0.125, 0.125])
    logits = np.tile(np.log(probabilities).astype(np.float32), (4096, 1))
    share = np.bincount(ops.sample(logits, seed=3), minlength=4) / 4096
    np.testing.assert_allclose(share, probabilities, atol=4 * np.sqrt(0.25 / 4096))
    assert set(ops.sample(logits, seed=3, top_k=2)) == {0, 1}
    np.testing.assert_array_equal(ops.sample(logits, seed=3), ops.sample(logits, seed=3))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_linear_of_any_size_and_row_stride(tokens, features, pad, seed):
    rng = np.random.default_rng(seed)
    wide = np.full((tokens, features + pad), np.nan, np.float32)
    wide[:, :features] = rng.standard_normal((tokens, features))
    x, weight = wide[:, :features], normal(rng, (11, features))
    assert_close(ops.linear(x, weight), f64(x) @ f64(weight).T, np.float32, terms=features)


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q8_0"])
def test_low_bit_weights(rng, kind):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    quantization = GGMLQuantizationType[kind.upper()]
    data = quantize(normal(rng, (40, 64)), quantization)
    exact = f64(dequantize(data, quantization))
    weight = kf.GgufTensor(data, kind, (40, 64))
    np.testing.assert_allclose(ops.dequantize(weight), exact, rtol=1e-6, atol=1e-7)
    for tokens in (1, 9):
        x = normal(rng, (tokens, 64))
        for selection in (kf.REFERENCE, kf.FUSED):
            assert_close(ops.linear(x, weight, selection=selection), f64(x) @ exact.T, np.float32, terms=64)


# The reference itself against PyTorch, so that it does not certify itself.


def test_reference_attention_against_pytorch(rng):
    torch = pytest.importorskip("torch")
    q, k, v = (torch.from_numpy(normal(rng, (2, 19, h, 64))) for h in (6, 2, 2))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    for selection in (kf.REFERENCE, kf.FUSED, kf.VANILLA):
        torch.testing.assert_close(ops.attention(q, k, v, selection=selection), expected, rtol=1e-4, atol=1e-5)


def window_of(torch, seqlen_q, seqlen_k, left, right):
    """True where FlashAttention's window lets row i see key j."""
    distance = torch.arange(seqlen_k)[None, :] - (torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q)
    return (distance >= (-left if left >= 0 else -seqlen_k)) & (distance <= (right if right >= 0 else seqlen_k))


@pytest.mark.parametrize("seqlen_q", [1, 19, 50])
@pytest.mark.parametrize("feature", ["window", "causal-window", "alibi", "boolean", "additive", "value-dim", "all"])
def test_masked_attention_against_pytorch(rng, feature, seqlen_q):
    torch = pytest.importorskip("torch")
    seqlen_k, every = 50, feature == "all"
    q = torch.from_numpy(normal(rng, (2, seqlen_q, 6, 64)))
    k = torch.from_numpy(normal(rng, (2, seqlen_k, 2, 64)))
    v = torch.from_numpy(normal(rng, (2, seqlen_k, 2, 40 if every or feature == "value-dim" else 64)))
    options, bias = {"causal": False}, torch.zeros(2, 6, seqlen_q, seqlen_k)
    left, right = {"window": (9, 4), "causal-window": (20, 0), "all": (30, 2)}.get(feature, (-1, -1))
    options |= {"window_left": left} | ({"causal": True} if right == 0 else {"window_right": right})
    if every or feature == "alibi":
        options["alibi_slopes"] = torch.rand(2, 6)
        own = torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q
        bias -= options["alibi_slopes"][..., None, None] * (own - torch.arange(seqlen_k)).abs()
    if feature == "boolean":
        options["attn_mask"] = torch.rand(2, 1, seqlen_q, seqlen_k) < 0.7
        bias = bias.masked_fill(~options["attn_mask"], -torch.inf)
    if every or feature == "additive":
        options["attn_mask"] = torch.randn(1, 6, seqlen_q, seqlen_k)
        bias = bias + options["attn_mask"]
    bias = bias.masked_fill(~window_of(torch, seqlen_q, seqlen_k, left, right), -torch.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), attn_mask=bias, enable_gqa=True
    ).transpose(1, 2)
    for selection in (kf.REFERENCE, kf.FUSED, kf.VANILLA):
        got = ops.attention(q, k, v, selection=selection, **options)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seqlen_q", [1, 23])
def test_softcap_and_sinks_against_pytorch(rng, seqlen_q):
    """As Gemma 2 and GPT-OSS write them."""
    torch = pytest.importorskip("torch")
    q = torch.from_numpy(normal(rng, (2, seqlen_q, 4, 32)))
    k, v = (torch.from_numpy(normal(rng, (2, 31, 2, 32))) for _ in "kv")
    sinks = torch.randn(4)
    keys, values = (t.repeat_interleave(2, dim=2) for t in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, keys) / 32**0.5
    capped = 1.5 * torch.tanh(scores / 1.5)
    causal = window_of(torch, seqlen_q, 31, -1, 0)
    for softcap, with_sinks in [(True, False), (False, True), (True, True)]:
        logits = (capped if softcap else scores).masked_fill(~causal, -torch.inf)
        if with_sinks:
            logits = torch.cat([logits, sinks[None, :, None, None].expand(2, -1, seqlen_q, 1)], -1)
        expected = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1)[..., :31], values)
        options = {"softcap": 1.5 if softcap else 0.0, "sinks": sinks if with_sinks else None}
        for selection in (kf.REFERENCE, kf.FUSED) if with_sinks else (kf.REFERENCE, kf.FUSED, kf.VANILLA):
            got, lse = ops.attention(q, k, v, lse=True, selection=selection, **options)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(lse, logits.logsumexp(-1), rtol=1e-4, atol=1e-5)


def test_packed_mask_against_pytorch(rng):
    torch = pytest.importorskip("torch")
    lengths = [(3, 9), (14, 14), (1, 30)]
    cu_q, cu_k = (np.cumsum([0, *column]).astype(np.int32) for column in zip(*lengths, strict=True))
    q, k, v = (torch.from_numpy(normal(rng, (n, h, 32))) for n, h in [(18, 4), (53, 2), (53, 2)])
    mask = torch.rand(4, 18, 30) < 0.6
    got = ops.attention(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, attn_mask=mask)
    for b, (seqlen_q, seqlen_k) in enumerate(lengths):
        rows, columns = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        allowed = mask[:, rows, :seqlen_k] & window_of(torch, seqlen_q, seqlen_k, -1, 0)
        expected = torch.nn.functional.scaled_dot_product_attention(
            q[rows].transpose(0, 1), *(t[columns].transpose(0, 1) for t in (k, v)), attn_mask=allowed, enable_gqa=True
        ).transpose(0, 1)
        attends = allowed.any(-1).T[..., None]  # PyTorch gives NaN for a row without keys
        expected = torch.where(attends, expected, torch.zeros(()))
        torch.testing.assert_close(got[rows], expected, rtol=1e-4, atol=1e-5)


def test_merged_attention_is_attention_over_all_keys(rng):
    q, k, v = normal(rng, (2, 5, 4, 32)), normal(rng, (2, 40, 2, 32)), normal(rng, (2, 40, 2, 32))
    parts = [
        ops.attention(q, k[:, s], v[:, s], lse=True, causal=causal)
        for s, causal in ((slice(0, 25), False), (slice(25, 40), True))
    ]
    whole, whole_lse = ops.attention(q, k, v, lse=True)
    for selection in (kf.REFERENCE, kf.FUSED):
        out, lse = ops.merge_attention(*parts[0], *parts[1], lse=True, selection=selection)
        np.testing.assert_allclose(out, whole, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(lse, whole_lse, rtol=1e-5, atol=1e-5)


def test_adapters(rng):
    x, w = normal(rng, (5, 48)), normal(rng, (20, 48))
    a, b = normal(rng, (3, 4, 48)), normal(rng, (3, 20, 4))
    index = np.array([2, -1, 0, 2, 1], np.int32)
    expected = f64(x) @ f64(w).T
    one = expected + 0.5 * f64(x) @ f64(a[1]).T @ f64(b[1]).T
    for t, adapter in enumerate(index):
        if adapter >= 0:
            expected[t] += 0.5 * f64(x[t]) @ f64(a[adapter]).T @ f64(b[adapter]).T
    for selection in (kf.REFERENCE, kf.FUSED):
        got = ops.linear(x, w, lora_a=a[1], lora_b=b[1], lora_scale=0.5, selection=selection)
        np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-4)
        got = ops.linear(x, w, lora_a=a, lora_b=b, lora_index=index, lora_scale=0.5, selection=selection)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    got = ops.linear(x, w, lora_a=a[1], lora_b=b[1] / 2, selection=kf.VANILLA)
    np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-4)
    with pytest.raises(kf.InvalidArgumentError, match="lora_index"):
        ops.linear(x, w, lora_a=a, lora_b=b, lora_index=index + 1)


def in_8_bits(y):
    scale = (np.abs(y).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float32)
    return f64(np.rint(y / scale)) * f64(scale)


@pytest.mark.parametrize("dtype, group_size", [("int8", 0), ("int4", 32)])
def test_input_quantization(rng, dtype, group_size):
    x = normal(rng, (5, 64))
    gate, up, down = (
        kf.quantize(normal(rng, shape), dtype, group_size=group_size) for shape in [(96, 64)] * 2 + [(64, 96)]
    )
    w = [f64(t.dequantize()) for t in (gate, up, down)]
    expected = in_8_bits(x) @ w[0].T
    for selection in (kf.REFERENCE, kf.FUSED, kf.VANILLA):
        got = ops.linear(x, gate, input_quantization="int8", selection=selection)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    g = in_8_bits(x) @ w[0].T
    hidden = (g / (1 + np.exp(-g)) * (in_8_bits(x) @ w[1].T)).astype(np.float32)
    expected = in_8_bits(hidden) @ w[2].T
    one_code = np.abs(hidden).max() / 127 * np.abs(w[2]).max()  # a hidden value may fall to the other side of a tie
    for selection in (kf.REFERENCE, kf.FUSED, kf.VANILLA):
        got = ops.gated_ffn(x, gate, up, down, input_quantization="int8", selection=selection)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3 + one_code)
    with pytest.raises(kf.KernelFusionError, match="i8, int4, q8_0, q4_0 and q4_1"):
        ops.linear(x, normal(rng, (8, 64)), input_quantization="int8")
    with pytest.raises(kf.InvalidArgumentError, match="input_quantization"):
        ops.linear(x, gate, input_quantization="int7")


@pytest.mark.parametrize("selection", [kf.REFERENCE, kf.FUSED, kf.VANILLA], ids=["reference", "fused", "vanilla"])
def test_against_pytorch(rng, selection):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, weight, bias = (torch.from_numpy(normal(rng, shape)) for shape in [(6, 40), (24, 40), (24,)])
    gain, shift = torch.from_numpy(normal(rng, 40)), torch.from_numpy(normal(rng, 40))

    def close(got, expected):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

    close(ops.linear(x, weight, bias, selection=selection), functional.linear(x, weight, bias))
    close(ops.rms_norm(x, gain, eps=1e-5, selection=selection), functional.rms_norm(x, (40,), gain, 1e-5))
    close(ops.layer_norm(x, gain, shift, selection=selection), functional.layer_norm(x, (40,), gain, shift))
    close(ops.softmax(x, selection=selection), torch.softmax(x, -1))
    close(ops.activation(x, kind="gelu", selection=selection), functional.gelu(x))
    close(ops.activation(x, kind="gelu_tanh", selection=selection), functional.gelu(x, approximate="tanh"))
    close(ops.activation(x, selection=selection), functional.silu(x))


def test_special_values_pass_as_in_pytorch():
    torch = pytest.importorskip("torch")
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 65504.0, 1e-40, -0.0, 2.0, -3.0]])
    torch.testing.assert_close(ops.activation(x, kind="relu"), torch.relu(x), equal_nan=True)
    torch.testing.assert_close(ops.softmax(x), torch.softmax(x, -1), equal_nan=True)
    torch.testing.assert_close(ops.binary(x, x), x + x, equal_nan=True)


def test_scores_of_one_key_whatever_its_stride():
    """The stride of a dimension of one says nothing: NumPy's broadcast views have 0 there."""
    q = np.ones((1, 3, 1, 64), np.float32)
    k = np.broadcast_to(np.ones(64, np.float32), (1, 1, 1, 64))
    np.testing.assert_allclose(kf.ops.attention_scores(q, k), np.full((1, 1, 3, 1), 8.0), rtol=1e-6)


def test_more_keys_than_a_task_counts_are_refused():
    q = np.ones((1, 1, 1, 8), np.float32)
    k = np.broadcast_to(np.ones((1, 1, 1, 8), np.float32), (1, 2**32, 1, 8))
    with pytest.raises(NotImplementedError, match="4294967296 keys"):
        kf.ops.attention(q, k, k)


CODES = {
    "i8": (np.int8, 127.0),
    "fp8_e4m3": (ml_dtypes.float8_e4m3fn, 448.0),
    "fp8_e5m2": (ml_dtypes.float8_e5m2, 57344.0),
}


def quantized(y, codes, scale=None):
    """The codes and scales of y [..., n], by NumPy in float64."""
    kind, largest = CODES[codes]
    if scale is None:
        scale = (np.abs(y).max(-1, keepdims=True) / largest).astype(np.float32)
    exact = np.clip(f64(y) / np.where(scale == 0, 1, f64(scale)), -128 if codes == "i8" else -largest, largest)
    return (np.rint(exact) if codes == "i8" else exact).astype(kind), np.broadcast_to(scale, (*y.shape[:-1], 1))[..., 0]


def steps_apart(a, b):
    """How many codes lie between each of a and of b."""
    order = (lambda c: c.astype(int)) if a.dtype == np.int8 else (
        lambda c: np.where(c.view(np.uint8) & 0x80, -1, 1) * (c.view(np.uint8) & 0x7F).astype(int)
    )  # fmt: skip
    return np.abs(order(a) - order(b)).max(initial=0)


@pytest.mark.parametrize("selection", [kf.REFERENCE, kf.FUSED, kf.VANILLA], ids=["reference", "fused", "vanilla"])
@pytest.mark.parametrize("codes", CODES)
def test_outputs_in_8_bits(rng, codes, selection):
    x, residual, gain = normal(rng, (2, 5, 129)), normal(rng, (2, 5, 129)), normal(rng, 129)
    h = f64(x) + f64(residual)
    normed = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * f64(gain)
    gated = f64(x) / (1 + np.exp(-f64(x))) * f64(residual)
    for static in (None, np.array([0.03], np.float32)):
        options = {"static_scale": static, "out_dtype": codes, "selection": selection}
        for y, results in [
            (f64(x), ops.quantize(x, **options)),
            (normed, ops.rms_norm(x, gain, residual, **options)),
            (gated, ops.gated_activation(x, residual, **options)),
            (np.maximum(f64(x), 0), ops.activation(x, kind="relu", **options)),
        ]:
            out, scales = results if static is None else (results, None)
            expected, expected_scales = quantized(y, codes, static)
            assert out.dtype == expected.dtype and steps_apart(out, expected) <= 1
            if scales is not None:
                np.testing.assert_allclose(scales, expected_scales, rtol=1e-5)


def test_quantized_outputs_are_of_the_callers_kind(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(normal(rng, (4, 64)))
    for codes, kind in [("i8", torch.int8), ("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)]:
        out, scales = ops.quantize(x, out_dtype=codes)
        assert out.dtype == kind and scales.shape == (4,)
        exact = (x / scales[:, None]).clamp(-127, 127).round() if codes == "i8" else x / scales[:, None]
        assert steps_apart(out.view(torch.uint8).numpy(), exact.to(kind).view(torch.uint8).numpy()) <= 1


def test_what_quantized_outputs_ask_for(rng):
    x, scale = normal(rng, (3, 8)), np.ones(1, np.float32)
    with pytest.raises(ValueError, match="static_scale: expected a finite number > 0, got 0"):
        ops.quantize(x, static_scale=np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="out_scales: expected none, since static_scale is given"):
        ops.quantize(x, static_scale=scale, out_scales=np.empty(3, np.float32))
    with pytest.raises(ValueError, match="static_scale: expected none, since out_dtype is none"):
        ops.activation(x, static_scale=scale)
    with pytest.raises(ValueError, match="out: expected i8, as out_dtype says, got f32"):
        ops.quantize(x, out=np.empty((3, 8), np.float32), static_scale=scale)
    with pytest.raises(ValueError, match="out_dtype: expected i8, fp8_e4m3 or fp8_e5m2, got none"):
        ops.quantize(x, out_dtype="none")
    with pytest.raises(ValueError, match=r"out_scales: expected 3 \(x\) in dimension 0"):
        ops.quantize(x, out_scales=np.empty(4, np.float32))
