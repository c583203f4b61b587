"""Attention against float64 PyTorch: dense, packed and paged, every feature together, low-bit keys and values, lengths
from 0, unused table entries."""

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


def largest_of_each_group(s, seen, n, m):
    """Of every m neighbours the n largest that are seen, the earlier of equals: [heads, sq, sk] booleans."""
    sk = s.shape[-1]
    s = torch.nn.functional.pad(s.masked_fill(~seen, -math.inf), (0, -sk % m), value=-math.inf)
    groups = s.unflatten(-1, (s.shape[-1] // m, m))
    places = torch.sort(groups, dim=-1, descending=True, stable=True).indices[..., :n]
    return torch.zeros(groups.shape, dtype=torch.bool).scatter_(-1, places, True).flatten(-2)[..., :sk]


def reference(q, k, v, features, mask, blocks, slopes):
    """One sequence: q [sq, heads, d], k and v [sk, kv_heads, d], blocks [heads, sq, sk]; out and lse in float64."""
    sq, sk, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(group, 1) for t in (k, v))
    s = torch.einsum("ihd,jhd->hij", q.double(), k) * features["softmax_scale"]
    if features["softcap"]:
        s = features["softcap"] * torch.tanh(s / features["softcap"])
    p, j = torch.arange(sq)[:, None] + sk - sq, torch.arange(sk)[None]
    if slopes is not None:
        s = s - slopes.double()[:, None, None] * (p - j).abs()
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
    if features["keep_m"] and sk:
        seen = seen & largest_of_each_group(s, seen.expand_as(s), features["keep_n"], features["keep_m"])
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
        "keep_n": 0,
        "keep_m": 0,
    }
    if draw(st.integers(0, 5)) == 0:  # scores that are exact: they tie in every kernel, or in none
        features |= {"softcap": 0.0, "softmax_scale": 0.25, "keep_m": draw(st.sampled_from([2, 4, 16]))}
        features["keep_n"] = draw(st.integers(1, features["keep_m"]))
    batch = draw(st.integers(1, 3))
    if form == "dense":
        pairs = [(draw(lengths), draw(lengths))] * batch
    else:
        pairs = [(draw(lengths), draw(lengths)) for _ in range(batch)]
    return form, kv_heads, group, d, features, pairs


@st.composite
def quantizations(draw, head_dim):
    """Arguments of quantize_kv."""
    dtype = draw(st.sampled_from(["int4", "int8", "fp8", "fp8_e5m2"]))
    return {
        "dtype": dtype,
        "per": draw(st.sampled_from(["row", "token", "head", "tensor"])),
        "group_size": draw(st.sampled_from([0, *(g for g in (16, 32) if head_dim % g == 0)])),
        "symmetric": dtype.startswith("fp8") or draw(st.booleans()),
        "scales_dtype": draw(st.sampled_from(["f32", "f16", "bf16"])),
    }


@FUZZ
@given(st.data(), seeds, calls(), dtypes, st.sampled_from([kf.FUSED, kf.VANILLA, kf.REFERENCE]))
def test_attention(data, seed, call, dtype, selection):
    draw, g = data.draw, generator(seed)
    form, kv_heads, group, d, features, pairs = call
    heads, batch = kv_heads * group, len(pairs)
    exact_scores = features["keep_m"] > 0
    slopes = None
    if draw(st.integers(0, 3)) == 0:
        slopes = torch.rand((batch, heads), generator=g)
        slopes = (8 * slopes).round() / 8 if exact_scores else slopes
        slopes = slopes if draw(st.booleans()) else slopes[:1].expand(batch, heads)
    # Only the fused kernel and the reference have sinks.
    sinks = selection is not kf.VANILLA and draw(st.integers(0, 3)) == 0
    features["sinks"] = torch.randn(heads, generator=g) if sinks else None
    total_q, longest = sum(sq for sq, _ in pairs), max(sk for _, sk in pairs)
    d_v = draw(st.sampled_from([d, d, 8, 40]))
    qs = [array(draw, g, dtype, sq, heads, d, hostile=False) for sq, _ in pairs]
    ks = [array(draw, g, dtype, sk, kv_heads, d, hostile=False) for _, sk in pairs]
    vs = [array(draw, g, dtype, sk, kv_heads, d_v, hostile=False) for _, sk in pairs]
    for t in (*qs, *ks) if exact_scores else ():
        t.mul_(4).round_().div_(4)
    low_bit = None
    if not exact_scores and draw(st.integers(0, 2)) == 0:
        low_bit = draw(quantizations(d)), draw(quantizations(d_v))
        low_bit[1]["dtype"] = low_bit[0]["dtype"]
        low_bit[1]["symmetric"] |= low_bit[0]["dtype"].startswith("fp8")
    masks = [None] * batch
    options = {k: v for k, v in features.items() if v is not None}
    if slopes is not None:
        options["alibi_slopes"] = slopes.contiguous()
    if draw(st.integers(0, 3)) == 0 and longest:
        mask_heads = draw(st.sampled_from([1, heads]))
        masks = [torch.rand(mask_heads, sq, sk, generator=g) for sq, sk in pairs]
        if draw(st.booleans()):
            masks = [m < 0.8 for m in masks]
        else:  # added; of any type, exactly
            added = draw(dtypes)
            masks = [torch.where(m < 0.1, -math.inf, (8 * m).round() / 4).to(added) for m in masks]
        wide = [torch.nn.functional.pad(m, (0, longest - m.shape[2])) for m in masks]
        options["attn_mask"] = torch.stack(wide) if form == "dense" else torch.cat(wide, 1)
    blocks = [None] * batch
    if draw(st.integers(0, 3)) == 0 and longest and total_q:
        block_q = draw(st.sampled_from([0, 1, 7, 16]))
        block_k = draw(st.sampled_from([16, 64] if exact_scores else [1, 5, 16, 64]))  # whole groups
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
        unused = 0 if low_bit else math.nan  # would be part of a scale
        pools = [torch.full((len(order), page, kv_heads, n), unused, dtype=dtype) for n in (d, d_v)]
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
    if low_bit:
        axis = 1 if options.get("kv_layout") == "HND" else -2
        k, v = (kf.quantize_kv(t, heads_axis=axis, **how) for t, how in zip((k, v), low_bit, strict=True))
        k_means, v_means = (torch.from_numpy(t.dequantize()) for t in (k, v))
        if options.get("kv_layout") == "HND":
            k_means, v_means = k_means.transpose(1, 2), v_means.transpose(1, 2)
        at = 0
        for b, (_, sk) in enumerate(pairs):
            for kept, means in ((ks, k_means), (vs, v_means)):
                if form == "packed":
                    kept[b] = means[at : at + sk]
                else:
                    kept[b] = (means[b] if form == "dense" else means[table[b, : used[b]].long()].flatten(0, 1))[:sk]
            at += sk
    out, lse = ops.attention(q, k, v, lse=True, selection=selection, **options)
    out = out.reshape(total_q, heads, d_v)
    at = 0
    for b, (sq, _) in enumerate(pairs):
        own_slopes = None if slopes is None else slopes[b]
        exact, exact_lse = reference(qs[b], ks[b], vs[b], features, masks[b], blocks[b], own_slopes)
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
