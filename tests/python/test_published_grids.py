"""The shape and feature grids that FlashAttention, FlashInfer, vLLM, PyTorch and xFormers test attention with, asked of
ours.

The grids are theirs, the calls and the float64 reference are ours; each is sampled, so that all take some seconds.
docs/verification.md says where each grid comes from, and what differs and why.
"""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import ops

torch = pytest.importorskip("torch")

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def sampled(seed: str, count: int, **axes):
    """`count` points of the product of the axes, so that every value of every axis comes up."""
    rng = random.Random(seed)
    columns = []
    for values in axes.values():
        repeated = [v for _ in range(-(-count // len(values))) for v in rng.sample(list(values), len(values))]
        columns.append(repeated[:count])
    points = [dict(zip(axes, point, strict=True)) for point in zip(*columns, strict=True)]
    return [pytest.param(p, id="-".join(str(v).replace(" ", "") for v in p.values())) for p in points]


def randn(generator, *shape, dtype=torch.float32, scale=1.0):
    return (torch.randn(*shape, generator=generator) * scale).to(dtype)


def visible(seqlen_q, seqlen_k, causal=False, window=(-1, -1)):
    """[seqlen_q, seqlen_k]: which keys a row sees, rows aligned with the last key."""
    p = torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q
    j = torch.arange(seqlen_k)[None]
    seen = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool)
    if causal:
        seen &= j <= p
    if window[0] >= 0:
        seen &= j >= p - window[0]
    if window[1] >= 0:
        seen &= j <= p + window[1]
    return seen


def eager(q, k, v, *, seen=None, bias=None, scale=None, softcap=0.0, kind=torch.float64):
    """softmax(cap(scale q k^T) + bias) v with scores of `kind`; q [b, sq, h, d], k and v [b, sk, kv_heads, d].

    Returns out and lse; a row that sees nothing is zeros and -inf."""
    group = q.shape[2] // k.shape[2]
    qh, kh, vh = (t.transpose(1, 2).to(kind) for t in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    s = (qh * (scale if scale is not None else q.shape[-1] ** -0.5)) @ kh.transpose(-1, -2)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    if bias is not None:
        s = s + bias.to(kind)
    if seen is not None:
        s = s.masked_fill(~seen, float("-inf"))
    lse = torch.logsumexp(s.double(), -1)
    p = torch.softmax(s, -1).masked_fill((lse == float("-inf"))[..., None], 0.0)
    return (p @ vh).transpose(1, 2), lse


def alibi(slopes, seqlen_q, seqlen_k):
    p = torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q
    return -slopes.double()[:, None, None] * (p - torch.arange(seqlen_k)[None]).abs()


def padded(*tensors):
    """Heads filled up with zeros to a multiple of 8, which our kernel asks for and FlashAttention does by itself."""
    return [torch.nn.functional.pad(t, (0, -t.shape[-1] % 8)) for t in tensors]


def attend(q, k, v, scale=None, **options):
    head_dim, head_dim_v = q.shape[-1], v.shape[-1]
    out = ops.attention(*padded(q, k, v), softmax_scale=head_dim**-0.5 if scale is None else scale, **options)
    return tuple(out) if options.get("lse") else out[..., :head_dim_v]


def no_worse_than_eager(got, exact, plain, factor=2.0):
    """FlashAttention's own criterion: the error is at most twice that of plain PyTorch in the same dtype."""
    error, own = (got.double() - exact).abs().max(), (plain.double() - exact).abs().max()
    assert error <= factor * own + 1e-5, f"error {error:.3g}, PyTorch's own {own:.3g}"


# FlashAttention: tests/test_flash_attn.py

FLASH_HEAD_DIMS = [32, 40, 59, 64, 96, 111, 128, 160, 192, 224, 256]
FLASH_LENGTHS = [
    (113, 203),
    (128, 217),
    (113, 211),
    (108, 256),
    (256, 512),
    (512, 256),
    (1024, 1024),
    (1023, 1024),
    (1024, 1023),
]
HEADS = {"mha": (4, 4), "mqa": (4, 1), "gqa": (6, 2)}


@pytest.mark.parametrize(
    "point",
    sampled(
        "flash-dense",
        33,
        d=FLASH_HEAD_DIMS,
        lengths=FLASH_LENGTHS,
        dtype=["f16", "bf16"],
        heads=list(HEADS),
        causal=[False, True],
        local=[False, True],
        alibi=[False, True],
        softcap=[0.0, 50.0],
    ),
)
def test_flash_attention_dense(point):
    g, dtype = torch.Generator().manual_seed(1), DTYPES[point["dtype"]]
    (sq, sk), (heads, kv_heads), d = point["lengths"], HEADS[point["heads"]], point["d"]
    q = randn(g, 1, sq, heads, d, dtype=dtype, scale=point["softcap"] or 1.0)
    k, v = (randn(g, 1, sk, kv_heads, d, dtype=dtype) for _ in range(2))
    window = (int(torch.randint(0, sk, (1,), generator=g)), int(torch.randint(0, sk, (1,), generator=g)))
    window = window if point["local"] else (-1, -1)
    slopes = torch.rand(heads, generator=g) * 0.3 if point["alibi"] else None
    seen = visible(sq, sk, point["causal"], window)
    bias = alibi(slopes, sq, sk) if point["alibi"] else None
    exact, exact_lse = eager(q, k, v, seen=seen, bias=bias, softcap=point["softcap"])
    plain, _ = eager(q, k, v, seen=seen, bias=bias, softcap=point["softcap"], kind=dtype)
    out, lse = attend(
        q,
        k,
        v,
        lse=True,
        causal=point["causal"],
        window_left=window[0],
        window_right=window[1],
        alibi_slopes=slopes,
        softcap=point["softcap"],
    )
    no_worse_than_eager(out[..., :d], exact, plain)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize(
    "point",
    sampled(
        "flash-packed",
        12,
        d=[32, 59, 64, 80, 128, 256],
        longest=[(1, 147), (113, 203), (128, 217), (256, 512)],
        dtype=["f16", "bf16"],
        heads=list(HEADS),
        causal=[False, True],
        local=[False, True],
    ),
)
def test_flash_attention_packed(point):
    """Sequences of random lengths, some of them without queries or without keys."""
    g, dtype = torch.Generator().manual_seed(2), DTYPES[point["dtype"]]
    (heads, kv_heads), d = HEADS[point["heads"]], point["d"]
    lengths_q = [0, *torch.randint(1, point["longest"][0] + 1, (3,), generator=g).tolist()]
    lengths_k = [*torch.randint(1, point["longest"][1] + 1, (3,), generator=g).tolist(), 0]
    q = randn(g, sum(lengths_q), heads, d, dtype=dtype)
    k, v = (randn(g, sum(lengths_k), kv_heads, d, dtype=dtype) for _ in range(2))
    window = (37, 12) if point["local"] else (-1, -1)
    cu_q, cu_k = (torch.tensor([0, *itertools.accumulate(n)], dtype=torch.int32) for n in (lengths_q, lengths_k))
    out = attend(
        q,
        k,
        v,
        cu_seqlens_q=cu_q,
        cu_seqlens_k=cu_k,
        causal=point["causal"],
        window_left=window[0],
        window_right=window[1],
    )
    for i, (sq, sk) in enumerate(zip(lengths_q, lengths_k, strict=True)):
        rows, keys = slice(int(cu_q[i]), int(cu_q[i + 1])), slice(int(cu_k[i]), int(cu_k[i + 1]))
        if sq == 0:
            continue
        if sk == 0:
            assert not out[rows].any()
            continue
        one = (q[None, rows], k[None, keys], v[None, keys])
        seen = visible(sq, sk, point["causal"], window)
        exact, plain = eager(*one, seen=seen)[0], eager(*one, seen=seen, kind=dtype)[0]
        no_worse_than_eager(out[None, rows], exact, plain)


def paged(k, page_size, layout, rng, spare=3):
    """k [batch, sk, heads, d] in pages at random places of a pool; what no sequence has is NaN."""
    batch, sk, heads, d = k.shape
    per_sequence = -(-sk // page_size)
    order = torch.from_numpy(rng.permutation(batch * per_sequence + spare)).int()
    pool = torch.full((len(order), page_size, heads, d), float("nan"), dtype=k.dtype)
    table = order[: batch * per_sequence].reshape(batch, per_sequence).contiguous()
    for b, p in itertools.product(range(batch), range(per_sequence)):
        part = k[b, p * page_size : (p + 1) * page_size]
        pool[table[b, p], : len(part)] = part
    return (pool if layout == "NHD" else pool.transpose(1, 2).contiguous()), table


@pytest.mark.parametrize(
    "point",
    sampled(
        "flash-cache",
        20,
        lengths=[
            (1, 128),
            (1, 339),
            (3, 1024),
            (64, 800),
            (64, 256),
            (3, 799),
            (64, 2048),
            (16, 20000),
            (128, 128),
            (1, 128 * 1024),
        ],
        d=[32, 64, 80, 128, 256],
        page_size=[None, 1, 16, 256],
        heads=list(HEADS),
        causal=[False, True],
        local=[False, True],
        dtype=["f16", "bf16"],
    ),
)
def test_flash_attention_cache(point):
    """Decode and chunked prefill over a cache, paged or not, whose sequences have lengths of their own."""
    g, dtype, rng = torch.Generator().manual_seed(3), DTYPES[point["dtype"]], np.random.default_rng(3)
    (sq, sk), (heads, kv_heads), d = point["lengths"], HEADS[point["heads"]], point["d"]
    if sk > 10000:  # 128k keys are for the cutting of keys, not for the heads
        heads, kv_heads, d = 2, 1, 32
    batch = 2 if sk < 2000 else 1
    lengths = [sk - int(torch.randint(0, min(sk - sq, 40) + 1, (1,), generator=g)) for _ in range(batch)]
    q = randn(g, batch, sq, heads, d, dtype=dtype)
    k, v = (randn(g, batch, sk, kv_heads, d, dtype=dtype) for _ in range(2))
    window = (300, 0) if point["local"] else (-1, -1)
    page_size = point["page_size"] or sk
    options = {"causal": point["causal"], "window_left": window[0], "window_right": window[1]}
    k_pool, table = paged(k, page_size, "NHD", np.random.default_rng(3))
    v_pool, _ = paged(v, page_size, "NHD", rng)
    out = attend(
        q.reshape(batch * sq, heads, d),
        k_pool,
        v_pool,
        block_tables=table,
        kv_layout="NHD",
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        cu_seqlens_q=torch.arange(0, batch * sq + 1, sq, dtype=torch.int32),
        **options,
    )
    for b, length in enumerate(lengths):
        one = (q[b : b + 1], k[b : b + 1, :length], v[b : b + 1, :length])
        seen = visible(sq, length, point["causal"], window)
        exact, plain = eager(*one, seen=seen)[0], eager(*one, seen=seen, kind=dtype)[0]
        no_worse_than_eager(out.reshape(batch, sq, heads, d)[b : b + 1], exact, plain)


# FlashInfer: tests/attention/test_batch_decode_kernels.py, test_batch_prefill_kernels.py


@pytest.mark.parametrize(
    "point",
    sampled(
        "infer-decode",
        15,
        batch=[12, 17, 128],
        kv_len=[54, 97, 512, 2048, 16384],
        page_size=[1, 8, 16],
        heads=[(4, 4), (32, 4)],
        d=[128, 256],
        layout=["NHD", "HND"],
        softcap=[0.0, 30.0],
    ),
)
def test_flashinfer_decode(point):
    g = torch.Generator().manual_seed(4)
    (heads, kv_heads), d, kv_len = point["heads"], point["d"], point["kv_len"]
    batch = max(2, min(point["batch"], 30000 // kv_len))  # the longest lengths with fewer sequences
    if kv_len > 2000:
        heads, kv_heads, d = heads // 4, 1, 128
    q = randn(g, batch, heads, d, dtype=torch.float16)
    k, v = (randn(g, batch, kv_len, kv_heads, d, dtype=torch.float16) for _ in range(2))
    k_pool, table = paged(k, point["page_size"], point["layout"], np.random.default_rng(4))
    v_pool, _ = paged(v, point["page_size"], point["layout"], np.random.default_rng(4))
    out, lse = attend(
        q,
        k_pool,
        v_pool,
        block_tables=table,
        context_lens=torch.full((batch,), kv_len, dtype=torch.int32),
        kv_layout=point["layout"],
        softcap=point["softcap"],
        lse=True,
    )
    for b in range(0, batch, max(1, batch // 3)):
        exact, exact_lse = eager(q[b : b + 1, None], k[b : b + 1], v[b : b + 1], softcap=point["softcap"])
        torch.testing.assert_close(out[b].double(), exact[0, 0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(lse[:, b].double(), exact_lse[0, :, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "point",
    sampled(
        "infer-prefill",
        12,
        batch=[12, 17, 128],
        kv_len=[54, 97, 512, 2048],
        qo_len=[37, 17, 127, 577],
        page_size=[1, 5, 16],
        heads=[(4, 4), (32, 4)],
        d=[128, 256],
        causal=[False, True],
        layout=["NHD", "HND"],
    ),
)
def test_flashinfer_prefill(point):
    g = torch.Generator().manual_seed(5)
    (heads, kv_heads), d, sq, sk = point["heads"], point["d"], point["qo_len"], point["kv_len"]
    batch = max(1, min(point["batch"], 2000 // max(sq, sk)))
    if heads == 32:
        heads, kv_heads = 8, 1  # the same group
    q = randn(g, batch, sq, heads, d, dtype=torch.float16)
    k, v = (randn(g, batch, sk, kv_heads, d, dtype=torch.float16) for _ in range(2))
    k_pool, table = paged(k, point["page_size"], point["layout"], np.random.default_rng(5))
    v_pool, _ = paged(v, point["page_size"], point["layout"], np.random.default_rng(5))
    out = attend(
        q.reshape(batch * sq, heads, d),
        k_pool,
        v_pool,
        block_tables=table,
        causal=point["causal"],
        context_lens=torch.full((batch,), sk, dtype=torch.int32),
        kv_layout=point["layout"],
        cu_seqlens_q=torch.arange(0, batch * sq + 1, sq, dtype=torch.int32),
    )
    exact, _ = eager(q[:1], k[:1], v[:1], seen=visible(sq, sk, point["causal"]))
    torch.testing.assert_close(out[:sq][None].double(), exact, rtol=1e-3, atol=1e-3)


# vLLM: tests/kernels/attention/test_attention.py, test_flash_attn.py


def keys_of(pool, table, length, layout):
    """What a sequence sees of a pool: its pages one after another, [1, length, kv_heads, d]."""
    pages = pool[table.long()] if layout == "NHD" else pool[table.long()].transpose(1, 2)
    return pages.flatten(0, 1)[None, :length]


@pytest.mark.parametrize(
    "point",
    sampled(
        "vllm-decode",
        18,
        heads=[(32, 8), (40, 40), (64, 8)],
        d=[32, 64, 80, 96, 128, 192, 256],
        page_size=[16, 32],
        alibi=[False, True],
        dtype=["f16", "bf16"],
        cache=["auto", "fp8"],
    ),
)
def test_vllm_paged_attention(point):
    """Pages drawn at random, so that sequences share them and one may be there twice; NaN where no sequence reaches."""
    g, rng = torch.Generator().manual_seed(7), np.random.default_rng(7)
    (heads, kv_heads), d, page_size, dtype = point["heads"], point["d"], point["page_size"], DTYPES[point["dtype"]]
    lengths = [*rng.integers(1, 1000, 6).tolist(), 1000]
    table = torch.tensor(rng.integers(0, 97, (7, -(-1000 // page_size))), dtype=torch.int32)
    pools = randn(g, 2, 97, kv_heads, page_size, d, dtype=dtype)
    reached = torch.zeros(97, page_size, dtype=torch.bool)
    for row, length in zip(table, lengths, strict=True):
        for page, begin in zip(row.tolist(), range(0, length, page_size), strict=False):
            reached[page, : length - begin] = True
    scales = {"k": 0.5, "v": 0.25} if point["cache"] == "fp8" else {"k": 1.0, "v": 1.0}
    options = {"alibi_slopes": torch.randn(heads, generator=g)} if point["alibi"] else {}
    if point["cache"] == "fp8":
        given = [(pool / scale).to(torch.float8_e4m3fn) for pool, scale in zip(pools, scales.values(), strict=True)]
        options |= {f"{name}_scales": torch.full((1, 1, 1, 1), scale) for name, scale in scales.items()}
    else:
        given = list(pools)
    exact_pools = [(x.double() * scale) for x, scale in zip(given, scales.values(), strict=True)]
    for x in given:
        x.view(torch.uint8 if x.element_size() == 1 else x.dtype).transpose(1, 2)[~reached] = (
            0x7F if x.element_size() == 1 else float("nan")
        )
    q = (torch.rand(7, heads, d, generator=g) * 2 - 1).mul(d**-0.5).to(dtype)
    m = kf.KernelFusionManager(kf.KernelFusionConfig(attention_backend="paged", fuse_with_quant=True))
    lens = torch.tensor(lengths, dtype=torch.int32)
    out = m.fuse_attention(q, *given, block_tables=table, context_lens=lens, **options)
    for i, length in enumerate(lengths):
        k, v = (keys_of(pool, table[i], length, "HND") for pool in exact_pools)
        bias = alibi(options["alibi_slopes"], 1, length) if point["alibi"] else None
        exact = eager(q[i][None, None], k, v, bias=bias)[0]
        plain = eager(q[i][None, None], k.to(dtype), v.to(dtype), bias=bias, kind=dtype)[0]
        no_worse_than_eager(out[i][None, None], exact, plain)


@pytest.mark.parametrize(
    "point",
    sampled(
        "vllm-varlen",
        15,
        lengths=[[(1, 1328), (5, 18), (129, 463)], [(1, 523), (1, 37), (1, 2011)]],
        heads=[(4, 4), (8, 2)],
        d=[40, 72, 80, 128, 256],
        window=[None, 256],
        softcap=[0.0, 50.0],
        use_out=[False, True],
    ),
)
def test_vllm_varlen_with_paged_keys(point):
    g, rng = torch.Generator().manual_seed(8), np.random.default_rng(8)
    (heads, kv_heads), d, dtype = point["heads"], point["d"], torch.bfloat16
    rows, lengths = zip(*point["lengths"], strict=True)
    q = randn(g, sum(rows), heads, d, dtype=dtype)
    k_pool, v_pool = randn(g, 2, 512, 16, kv_heads, d, dtype=dtype)
    table = torch.tensor(rng.integers(0, 512, (3, -(-max(lengths) // 16))), dtype=torch.int32)
    ends = torch.tensor([0, *itertools.accumulate(rows)], dtype=torch.int32)
    window = (-1, -1) if point["window"] is None else (point["window"] - 1, 0)
    given = torch.empty_like(q) if point["use_out"] else None
    out = kf.KernelFusionManager().fuse_attention(
        q,
        k_pool,
        v_pool,
        block_tables=table,
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        cu_seqlens_q=ends,
        max_seqlen_q=max(rows),
        kv_layout="NHD",
        window_size=window,
        softcap=point["softcap"],
        out=given,
    )
    assert given is None or out is given
    for i, (sq, sk) in enumerate(point["lengths"]):
        one = q[None, ends[i] : ends[i + 1]]
        k, v = (keys_of(pool, table[i], sk, "NHD") for pool in (k_pool, v_pool))
        seen = visible(sq, sk, True, window)
        exact = eager(one, k, v, seen=seen, softcap=point["softcap"])[0]
        plain = eager(one, k, v, seen=seen, softcap=point["softcap"], kind=dtype)[0]
        no_worse_than_eager(out[None, ends[i] : ends[i + 1]], exact, plain)


# PyTorch: test/test_transformers.py, the CPU's fused scaled_dot_product_attention

SDPA_TOLERANCE = {"f32": (1e-5, 5e-6), "bf16": (5e-2, 5e-2), "f16": (1e-2, 1e-2)}


@pytest.mark.parametrize(
    "point",
    sampled(
        "sdpa",
        24,
        dtype=list(DTYPES),
        batch=[2, 12],
        sq=[11, 514, 1030],
        sk=[17, 514],
        heads=[1, 3],
        d=[8, 16],
        mask=["none", "2d", "2d_rows", "2d_keys", "4d", "4d_batch", "4d_heads"],
        boolean=[False, True],
        causal=[False, True],
    ),
)
def test_pytorch_sdpa(point):
    g, dtype = torch.Generator().manual_seed(6), DTYPES[point["dtype"]]
    batch, heads, d, sq, sk = (point[name] for name in ("batch", "heads", "d", "sq", "sk"))
    causal = point["causal"] and point["mask"] == "none"
    if causal:
        sk = sq  # PyTorch aligns its triangle with the first key, ours with the last: square, they are one
    q = randn(g, batch, sq, heads, d, dtype=dtype)
    k, v = (randn(g, batch, sk, heads, d, dtype=dtype) for _ in range(2))
    shape = {
        "2d": (1, 1, sq, sk),
        "2d_rows": (1, 1, sq, 1),
        "2d_keys": (1, 1, 1, sk),
        "4d": (batch, heads, sq, sk),
        "4d_batch": (batch, 1, 1, sk),
        "4d_heads": (1, heads, sq, sk),
    }.get(point["mask"])
    mask = None
    if shape:
        mask = torch.rand(shape, generator=g) < 0.8 if point["boolean"] else randn(g, *shape, dtype=dtype)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2).double(),
        k.transpose(1, 2).double(),
        v.transpose(1, 2).double(),
        attn_mask=mask if mask is None or mask.dtype == torch.bool else mask.double(),
        is_causal=causal,
    ).transpose(1, 2)
    # A mask of one column is spread by its caller: ours has a column for every key.
    given = None if mask is None else mask.expand(*mask.shape[:3], sk).contiguous()
    out = attend(q, k, v, attn_mask=given, causal=causal)
    rows = ~expected.isnan()  # a row that is masked whole is NaN there, zeros here
    assert not out[~rows].any()
    atol, rtol = SDPA_TOLERANCE[point["dtype"]]
    torch.testing.assert_close(out.double()[rows], expected[rows], atol=atol, rtol=rtol)


def test_pytorch_sdpa_negative_scale():
    g = torch.Generator().manual_seed(7)
    x = randn(g, 1, 3, 4, 8, scale=0.01)
    expected, _ = eager(x, x, x, scale=1 / -0.0001)
    torch.testing.assert_close(
        attend(x, x, x, scale=1 / -0.0001, causal=False).double(), expected, atol=1e-3, rtol=1e-3
    )


def test_pytorch_sdpa_empty_and_single():
    for sq, sk in [(0, 5), (1, 1), (5, 0)]:
        q, k = torch.ones(2, sq, 3, 8), torch.ones(2, sk, 3, 8)
        out = attend(q, k, k, causal=False)
        assert out.shape == q.shape and (sk == 0 or (out == 1).all())


# xFormers: xformers/ops/fmha/attn_bias.py, and the shapes of tests/test_mem_eff_attention.py


def dense_bias(kind, g, sq, sk, heads):
    """(options of ours, what the bias class lets a row see, what it adds)"""
    i, j = torch.arange(sq)[:, None], torch.arange(sk)[None]
    if kind == "LowerTriangularMask":  # from the top left
        seen = (j <= i).expand(sq, sk)
        return {"attn_mask": seen[None, None].contiguous(), "causal": False}, seen, None
    if kind == "LowerTriangularMaskWithTensorBias":
        seen, bias = j <= i, randn(g, 1, heads, sq, sk)
        return {"attn_mask": bias.masked_fill(~seen, float("-inf")), "causal": False}, seen, bias
    if kind == "LowerTriangularFromBottomRightMask":
        return {"causal": True}, visible(sq, sk, True), None
    if kind == "LowerTriangularFromBottomRightLocalAttentionMask":  # a window of so many keys, its own among them
        return {"causal": True, "window_left": 6}, visible(sq, sk, True, (6, -1)), None
    if kind == "LocalAttentionFromBottomRightMask":
        return {"causal": False, "window_left": 5, "window_right": 9}, visible(sq, sk, False, (5, 9)), None
    bias = randn(g, 1, 1, 1, sk, scale=3.0)
    return {"attn_mask": bias.expand(1, 1, sq, sk), "causal": False}, None, bias


DENSE_BIASES = [
    "LowerTriangularMask",
    "LowerTriangularMaskWithTensorBias",
    "LowerTriangularFromBottomRightMask",
    "LowerTriangularFromBottomRightLocalAttentionMask",
    "LocalAttentionFromBottomRightMask",
    "Tensor",
]


@pytest.mark.parametrize(
    "point",
    sampled(
        "xformers-dense",
        36,
        bias=DENSE_BIASES,
        lengths=[
            (32, 32),
            (256, 64),
            (2, 128),
            (3, 128),
            (15, 128),
            (31, 128),
            (68, 128),
            (256, 2),
            (256, 136),
            (16, 1024),
            (1024, 16),
            (132, 90),
        ],
        d=[(32, 32), (1, 1), (2, 2), (3, 3), (31, 31), (34, 34), (64, 64), (32, 64), (64, 32), (36, 32), (256, 256)],
        heads=[1, 3, 5, 12],
        dtype=list(DTYPES),
    ),
)
def test_xformers_dense_biases(point):
    g, dtype = torch.Generator().manual_seed(8), DTYPES[point["dtype"]]
    (sq, sk), (d, dv), heads = point["lengths"], point["d"], point["heads"]
    q, k = (randn(g, 1, n, heads, d, dtype=dtype) for n in (sq, sk))
    v = randn(g, 1, sk, heads, dv, dtype=dtype)
    options, seen, bias = dense_bias(point["bias"], g, sq, sk, heads)
    exact, _ = eager(q, k, v, seen=seen, bias=bias)
    plain, _ = eager(q, k, v, seen=seen, bias=bias, kind=dtype)
    no_worse_than_eager(attend(q, k, v, **options), exact, plain)


def cu(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


@pytest.mark.parametrize(
    "kind",
    [
        "BlockDiagonalMask",
        "BlockDiagonalCausalMask",
        "BlockDiagonalCausalFromBottomRightMask",
        "BlockDiagonalCausalLocalAttentionMask",
        "BlockDiagonalCausalLocalAttentionFromBottomRightMask",
    ],
)
def test_xformers_block_diagonal(kind):
    g = torch.Generator().manual_seed(9)
    lengths_q = [1, 17, 33, 5]
    lengths_k = (
        lengths_q if kind in ("BlockDiagonalCausalMask", "BlockDiagonalCausalLocalAttentionMask") else [3, 17, 90, 5]
    )
    causal, window = "Causal" in kind, (3, -1) if "Local" in kind else (-1, -1)
    q = randn(g, sum(lengths_q), 3, 32)
    k, v = (randn(g, sum(lengths_k), 3, 32) for _ in range(2))
    out = attend(q, k, v, cu_seqlens_q=cu(lengths_q), cu_seqlens_k=cu(lengths_k), causal=causal, window_left=window[0])
    for rows, keys in zip(split(lengths_q), split(lengths_k), strict=True):
        seen = visible(rows.stop - rows.start, keys.stop - keys.start, causal, window)
        exact, _ = eager(q[None, rows], k[None, keys], v[None, keys], seen=seen)
        torch.testing.assert_close(out[None, rows].double(), exact, rtol=1e-5, atol=1e-5)


def split(lengths):
    ends = list(itertools.accumulate(lengths))
    return [slice(end - n, end) for n, end in zip(lengths, ends, strict=True)]


@pytest.mark.parametrize("causal", [False, True], ids=["BlockDiagonal", "BlockDiagonalCausalWithOffset"])
@pytest.mark.parametrize("kind", ["PaddedKeysMask", "GappyKeysMask", "PagedPaddedKeysMask"])
def test_xformers_padded_gappy_and_paged_keys(kind, causal):
    """A sequence's keys are a part of a longer stretch: that part is a page, or pages of one key, or of a pool."""
    g = torch.Generator().manual_seed(10)
    padding, lengths_q, lengths_k = 64, [1, 4, 2], [9, 64, 33]
    q = randn(g, sum(lengths_q), 6, 32)
    k, v = (randn(g, 3 * padding, 2, 32) for _ in range(2))
    starts = [0, 64, 128] if kind != "GappyKeysMask" else [5, 64, 140]
    options = {"context_lens": torch.tensor(lengths_k, dtype=torch.int32), "cu_seqlens_q": cu(lengths_q)}
    if kind == "PaddedKeysMask":
        pools = [t.view(3, padding, 2, 32) for t in (k, v)]
        table = torch.arange(3, dtype=torch.int32)[:, None].contiguous()
    elif kind == "GappyKeysMask":
        pools = [t.view(3 * padding, 1, 2, 32) for t in (k, v)]
        table = torch.full((3, padding), -1, dtype=torch.int32)
        for b, (start, n) in enumerate(zip(starts, lengths_k, strict=True)):
            table[b, :n] = torch.arange(start, start + n)
    else:
        pools = [t.view(12, 16, 2, 32) for t in (k, v)]
        table = torch.arange(12, dtype=torch.int32).view(3, 4)
    out = attend(q, *pools, block_tables=table, kv_layout="NHD", causal=causal, **options)
    for rows, start, n in zip(split(lengths_q), starts, lengths_k, strict=True):
        keys = slice(start, start + n)
        exact, _ = eager(q[None, rows], k[None, keys], v[None, keys], seen=visible(rows.stop - rows.start, n, causal))
        torch.testing.assert_close(out[None, rows].double(), exact, rtol=1e-5, atol=1e-5)


def test_xformers_all_ones():
    for sq, sk, d in [(128, 128, 32), (512, 128, 5), (128, 512, 6)]:
        q, k = torch.ones(4, sq, 1, d), torch.ones(4, sk, 1, d)
        v = randn(torch.Generator().manual_seed(11), 4, sk, 1, d, scale=3.0)
        torch.testing.assert_close(
            attend(q, k, v, causal=False), v.mean(1, keepdim=True).expand(4, sq, 1, d), atol=1e-5, rtol=1e-5
        )


def test_what_the_kernel_does_not_take_is_said():
    """head_dims that are no multiple of 8, or above 256, are the caller's to pad or the reference's to serve."""
    for d, reason in [(59, "multiples of 8"), (264, "up to 256")]:
        q = torch.ones(1, 2, 1, d)
        with pytest.raises(NotImplementedError, match=reason):
            ops.attention(q, q, q)
        torch.testing.assert_close(ops.attention(q, q, q, selection=kf.REFERENCE), q)
