"""Attention against float64 PyTorch: dense, packed and paged, every feature, lengths from 0, unused table entries."""

from __future__ import annotations

import itertools
import math

import pytest

torch = pytest.importorskip("torch")

from drawing import FUZZ, ROUNDOFF, array, dtypes, generator, seeds  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import sagellm_kernel_fusion as kf  # noqa: E402
from sagellm_kernel_fusion import ops  # noqa: E402

lengths = st.one_of(st.sampled_from([0, 1, 2, 15, 16, 17, 127, 128, 129, 255, 257]), st.integers(0, 300))


def reference(q, k, v, features, mask, blocks):
    """One sequence: q [sq, heads, d], k and v [sk, kv_heads, d], blocks [heads, sq, sk]; out and lse in float64."""
    sq, sk, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(group, 1) for t in (k, v))
    s = torch.einsum("ihd,jhd->hij", q.double(), k) * features["softmax_scale"]
    if features["softcap"]:
        s = features["softcap"] * torch.tanh(s / features["softcap"])
    p, j = torch.arange(sq)[:, None] + sk - sq, torch.arange(sk)[None]
    if features["alibi_slopes"] is not None:
        s = s - features["alibi_slopes"].double()[:, None, None] * (p - j).abs()
    if mask is not None:
        s = s.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else s + mask.double()
    seen = torch.ones(sq, sk, dtype=torch.bool)
    if features["window_left"] >= 0:
        seen &= j >= p - features["window_left"]
    right = 0 if features["causal"] else features["window_right"]
    if right >= 0:
        seen &= j <= p + right
    if blocks is not None:
        seen = seen & blocks
    s = s.masked_fill(~seen, -math.inf)
    joined = s
    if features["sinks"] is not None:
        joined = torch.cat([s, features["sinks"].double()[:, None, None].expand(-1, sq, 1)], -1)
    lse = torch.logsumexp(joined, -1) if joined.shape[-1] else torch.full((q.shape[1], sq), -math.inf).double()
    weights = torch.exp(s - lse[..., None]).nan_to_num(0.0)
    return torch.einsum("hij,jhd->ihd", weights, v), lse


@st.composite
def calls(draw):
    form = draw(st.sampled_from(["dense", "packed", "paged"]))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    d = 8 * draw(st.integers(1, 9))
    features = {
        "causal": draw(st.booleans()),
        "window_left": draw(st.sampled_from([-1, -1, 0, 3, 64, 200])),
        "window_right": draw(st.sampled_from([-1, -1, 0, 5, 100])),
        "softcap": draw(st.sampled_from([0.0, 0.0, 20.0])),
        "softmax_scale": draw(st.sampled_from([d**-0.5, 0.01, -0.3])),
    }
    batch = draw(st.integers(1, 3))
    if form == "dense":
        pairs = [(draw(lengths), draw(lengths))] * batch
    else:
        pairs = [(draw(lengths), draw(lengths)) for _ in range(batch)]
    return form, kv_heads, group, d, features, pairs


@FUZZ
@given(st.data(), seeds, calls(), dtypes, st.sampled_from([kf.FUSED, kf.VANILLA, kf.REFERENCE]))
def test_attention(data, seed, call, dtype, selection):
    draw, g = data.draw, generator(seed)
    form, kv_heads, group, d, features, pairs = call
    heads, batch = kv_heads * group, len(pairs)
    features["alibi_slopes"] = torch.rand(heads, generator=g) if draw(st.integers(0, 3)) == 0 else None
    # Only the fused kernel and the reference have sinks.
    sinks = selection is not kf.VANILLA and draw(st.integers(0, 3)) == 0
    features["sinks"] = torch.randn(heads, generator=g) if sinks else None
    total_q, longest = sum(sq for sq, _ in pairs), max(sk for _, sk in pairs)
    qs = [array(draw, g, dtype, sq, heads, d, hostile=False) for sq, _ in pairs]
    ks, vs = ([array(draw, g, dtype, sk, kv_heads, d, hostile=False) for _, sk in pairs] for _ in range(2))
    masks = [None] * batch
    options = {k: v for k, v in features.items() if v is not None}
    if draw(st.integers(0, 3)) == 0 and longest:
        masks = [torch.rand(sq, sk, generator=g) < 0.8 for sq, sk in pairs]
        wide = [torch.nn.functional.pad(m, (0, longest - m.shape[1])) for m in masks]
        options["attn_mask"] = torch.stack(wide)[:, None] if form == "dense" else torch.cat(wide)[None]
    blocks = [None] * batch
    if draw(st.integers(0, 3)) == 0 and longest and total_q:
        block_q, block_k = draw(st.sampled_from([0, 1, 7, 16])), draw(st.sampled_from([1, 5, 16, 64]))
        layout_heads = draw(st.sampled_from([1, kv_heads, heads]))
        rows = -(-max(sq for sq, _ in pairs) // block_q) if block_q else 1
        layout = torch.rand(batch, layout_heads, rows, -(-longest // block_k), generator=g) < 0.5
        for b, (sq, sk) in enumerate(pairs):
            seen = layout[b].repeat_interleave(heads // layout_heads, 0).repeat_interleave(block_q or max(sq, 1), 1)
            blocks[b] = seen[:, :sq].repeat_interleave(block_k, 2)[..., :sk]
        if draw(st.booleans()):  # as lists
            numbers = torch.arange(layout.shape[-1], dtype=torch.int32).expand_as(layout)
            in_front = torch.where(layout, numbers, layout.shape[-1]).sort(-1).values
            layout = in_front.masked_fill(in_front == layout.shape[-1], -1).to(torch.int32)
        options |= {"block_layout": layout, "block_size_q": block_q, "block_size_k": block_k}
    if form == "dense":
        q, k, v = torch.stack(qs), torch.stack(ks), torch.stack(vs)
    else:
        q = torch.cat(qs)
        options["cu_seqlens_q"] = torch.tensor([0, *itertools.accumulate(sq for sq, _ in pairs)], dtype=torch.int32)
    if form == "packed":
        k, v = torch.cat(ks), torch.cat(vs)
        options["cu_seqlens_k"] = torch.tensor([0, *itertools.accumulate(sk for _, sk in pairs)], dtype=torch.int32)
    if form == "paged":
        page, layout = draw(st.sampled_from([1, 3, 16, 64])), draw(st.sampled_from(["HND", "NHD"]))
        width = -(-longest // page) + draw(st.integers(0, 2))
        used = [-(-sk // page) for _, sk in pairs]
        order = torch.randperm(sum(used) + 1, generator=g)
        pools = [torch.full((len(order), page, kv_heads, d), math.nan, dtype=dtype) for _ in range(2)]
        # What a sequence does not use holds what padding, a stranger's page or nothing would.
        table = torch.full((batch, width), draw(st.sampled_from([-1, 0, len(order) - 1])), dtype=torch.int32)
        at = 0
        for b, n in enumerate(used):
            for i in range(n):
                table[b, i] = order[at]
                for pool, t in zip(pools, (ks[b], vs[b]), strict=True):
                    part = t[i * page : (i + 1) * page]
                    pool[order[at], : len(part)] = part
                at += 1
        k, v = (p if layout == "NHD" else p.transpose(1, 2).contiguous() for p in pools)
        options |= {"kv_layout": layout, "block_tables": table}
        options["context_lens"] = torch.tensor([sk for _, sk in pairs], dtype=torch.int32)
    out, lse = ops.attention(q, k, v, lse=True, selection=selection, **options)
    out = out.reshape(total_q, heads, d)
    at = 0
    for b, (sq, _) in enumerate(pairs):
        exact, exact_lse = reference(qs[b], ks[b], vs[b], features, masks[b], blocks[b])
        got = out[at : at + sq]
        own_lse = lse[b] if form == "dense" else lse[:, at : at + sq]
        at += sq
        assert torch.isfinite(got).all(), (pairs, got)
        # Weights sum to one: the error is that of the scores, and of rounding values up to 6.
        bound = 6 * (4 * ROUNDOFF[dtype] + 2e-4)
        assert not ((got.double() - exact).abs() > bound).any(), (pairs, (got.double() - exact).abs().max())
        empty = exact_lse == -math.inf
        assert (own_lse[empty] == -math.inf).all()
        assert not ((own_lse.double() - exact_lse)[~empty].abs() > 1e-3 + 1e-4 * exact_lse[~empty].abs()).any()
