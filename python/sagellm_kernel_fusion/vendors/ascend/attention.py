"""Attention over dense, packed and paged keys, and what writes the cache.

Limits as Huawei documents them for npu_fused_infer_attention_score and npu_fusion_attention (op-plugin 0adf4501,
docs/context): causal attention is sparse_mode 3 (aligned bottom-right) with a 2048 x 2048 boolean mask, True above the
diagonal; without a mask every key is seen, whatever the window says. Its layout TND is not used: which heads, widths
and dtypes it takes, and whether over pages, differs from one CANN to the next."""

from __future__ import annotations

from functools import cache

from ...adapters.conditions import dtypes, head_dims, not_empty
from ..layouts import eight_bits, is_contiguous
from ..row import VendorRow
from . import cann
from .operators import ALL, needing

_MAX_HEADS, _MAX_GROUP, _MAX_HEAD_DIM, _MAX_BLOCK, _MAX_ROW = 256, 64, 512, 512, 65535
_F16 = ("f16", "bf16")


@cache
def _causal_mask(device):
    import torch

    return torch.ones(2048, 2048, dtype=torch.bool, device=device).triu(1)


def _heads(q, num_kv_heads: int) -> str | None:
    heads = q.shape[-2]
    if heads > _MAX_HEADS:
        return f"{heads} heads: this kernel takes at most {_MAX_HEADS}"
    if heads // max(num_kv_heads, 1) > _MAX_GROUP:
        return f"{heads // num_kv_heads} query heads a K/V head: this kernel takes at most {_MAX_GROUP}"
    return None


def _common(q, k, v, num_kv_heads: int) -> str | None:
    return (
        dtypes({"q": q, "k": k, "v": v}, _F16)
        or not_empty({"q": q, "k": k, "v": v})
        or head_dims(q, v, multiple=16, at_most=_MAX_HEAD_DIM)
        or _heads(q, num_kv_heads)
    )


def _options(q, num_kv_heads: int, softmax_scale: float, causal: bool, single: bool) -> dict:
    """What all calls have. One query a sequence sees every key, causal or not."""
    options = {
        "num_heads": q.shape[-2],
        "num_key_value_heads": num_kv_heads,
        "scale": softmax_scale or q.shape[-1] ** -0.5,
    }
    if causal and not single:
        options |= {"sparse_mode": 3, "atten_mask": _causal_mask(q.device)}
    return options


# Dense


def _dense_declines(
    q, k, v, causal=True, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, attn_mask=None, lse=None, **rest
) -> str | None:
    if cu_seqlens_q is not None or cu_seqlens_k is not None or block_tables is not None:
        return "packed or paged: this kernel takes dense operands"
    if causal and q.shape[1] > k.shape[1]:
        return (
            f"{q.shape[1]} causal queries over {k.shape[1]} keys: the first see none, which this kernel does not "
            f"promise zeros for"
        )
    if attn_mask is not None:
        if attn_mask.dtype != "boolean" or causal:
            return (
                f"attn_mask of {attn_mask.dtype}{', causal' if causal else ''}: this kernel takes a boolean one alone"
            )
        if attn_mask.shape[1] != 1:
            return f"attn_mask of {attn_mask.shape[1]} heads: this kernel takes one for all heads"
        if lse is not None:
            return "lse with attn_mask: this kernel gives none for rows that see no key"
    return _common(q, k, v, k.shape[2])


def _dense(q, k, v, lse=None, softmax_scale=0.0, causal=True, attn_mask=None):
    options = _options(q, k.shape[2], softmax_scale, causal, q.shape[1] == 1)
    visible = None
    if attn_mask is not None:
        mask = attn_mask.expand(q.shape[0], 1, q.shape[1], k.shape[1])
        options |= {"sparse_mode": 1, "atten_mask": (~mask).contiguous()}
        visible = mask.any(-1)  # [batch, 1, seqlen_q]
    out, got = ALL("npu_fused_infer_attention_score")(
        q.contiguous(), k.contiguous(), v.contiguous(), input_layout="BSND", softmax_lse_flag=lse is not None, **options
    )
    if lse is not None:
        lse.copy_(got.squeeze(-1))
    return out if visible is None else out.masked_fill(~visible.transpose(1, 2).unsqueeze(-1), 0)


# Packed


def _packed_declines(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, **rest) -> str | None:
    if cu_seqlens_q is None or cu_seqlens_k is None or block_tables is not None:
        return "dense or paged: this kernel takes packed sequences, with cu_seqlens_q and cu_seqlens_k"
    return _common(q, k, v, k.shape[1])


def _lengths(cu_seqlens) -> list[int]:
    """Cumulative lengths without the leading 0, on the host: waits for the device."""
    return cu_seqlens.tolist()[1:]


def _packed(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, lse=None, softmax_scale=0.0, causal=True):
    """One dense call a sequence; queries that see no key get zeros."""
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    if lse is not None:
        lse.fill_(-float("inf"))
    q0 = k0 = 0
    for q1, k1 in zip(_lengths(cu_seqlens_q), _lengths(cu_seqlens_k), strict=True):
        blind = max(q1 - q0 - (k1 - k0), 0) if causal else 0  # queries before the first key
        rows = slice(q0 + blind, q1)
        if rows.start < q1 and k1 > k0:
            got = None if lse is None else lse.new_empty(1, q.shape[1], q1 - rows.start)
            out[rows] = _dense(q[None, rows], k[None, k0:k1], v[None, k0:k1], got, softmax_scale, causal)[0]
            if lse is not None:
                lse[:, rows] = got[0]
        q0, k0 = q1, k1
    return out


# Paged


def _paged_declines(
    q, k, v, cu_seqlens_q=None, block_tables=None, context_lens=None, kv_layout="HND", **rest
) -> str | None:
    several = cu_seqlens_q is not None
    queries = "several queries a sequence" if several else "one query a sequence"
    problem = _pool_problem(q, k, v, block_tables, kv_layout, 128 if several else 16, queries)
    return problem or _common(q, k, v, k.shape[2])


def _pool_problem(q, k, v, block_tables, kv_layout: str, multiple: int, queries: str) -> str | None:
    """Why these are no paged cache in NHD, whole, with pages that such queries take."""
    if block_tables is None:
        return "not paged: this kernel takes block_tables"
    if kv_layout != "NHD":
        return f"kv_layout {kv_layout}: this kernel takes NHD; make the cache so (make_kv_cache(kv_layout='NHD'))"
    if k.shape[1] % multiple or k.shape[1] > _MAX_BLOCK:
        return f"page size {k.shape[1]}: for {queries} this kernel takes multiples of {multiple} up to {_MAX_BLOCK}"
    if k.shape[2] * k.shape[3] > _MAX_ROW:
        return f"{k.shape[2]} K/V heads of {k.shape[3]}: this kernel takes rows of at most {_MAX_ROW}"
    if not is_contiguous(k) or not is_contiguous(v):
        return "a cache that is not contiguous: this kernel takes whole pools"
    return None


def _paged(
    q, k, v, cu_seqlens_q=None, block_tables=None, context_lens=None, kv_layout="HND", lse=None, softmax_scale=0.0,
    causal=True,
):  # fmt: skip
    return _over_pages(q, k, v, cu_seqlens_q, block_tables, context_lens, lse, softmax_scale, causal)


def _over_pages(q, k, v, cu_seqlens_q, block_tables, context_lens, lse, softmax_scale, causal, **codes):
    """One call for one query a sequence, else one a sequence; queries that see no key get zeros. codes: what the
    operator is told of keys and values that are no floats."""
    lengths = context_lens.tolist()
    tables = block_tables.clamp_min(0)  # what pads a row is never read
    one_each = list(range(1, len(lengths) + 1))
    of_q = one_each if cu_seqlens_q is None else _lengths(cu_seqlens_q)
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    if lse is not None:
        lse.fill_(-float("inf"))
    if of_q == one_each and all(lengths):
        _paged_call(q.unsqueeze(1), k, v, tables, lengths, out, lse, softmax_scale, causal, codes)
        return out
    begin = 0
    for i, (end, keys) in enumerate(zip(of_q, lengths, strict=True)):
        blind = max(end - begin - keys, 0) if causal else (end - begin) * (keys == 0)
        rows = slice(begin + blind, end)
        if rows.start < end:
            into = None if lse is None else lse[:, rows]
            _paged_call(q[None, rows], k, v, tables[i : i + 1], [keys], out[rows], into, softmax_scale, causal, codes)
        begin = end
    return out


def _paged_call(q, k, v, tables, lengths: list[int], out, lse, softmax_scale: float, causal: bool, codes: dict) -> None:
    """q [batch, seqlen_q, num_heads, head_dim] into out [batch * seqlen_q, ...] and lse [num_heads,
    batch * seqlen_q]."""
    batch, seqlen, heads, width = q.shape
    page = k.shape[1]
    got, sums = ALL("npu_fused_infer_attention_score")(
        q.reshape(batch, seqlen, heads * width), k.view(-1, page, k.shape[2] * width),
        v.view(-1, page, k.shape[2] * width), input_layout="BSH", block_table=tables, block_size=page,
        actual_seq_lengths_kv=lengths,
        softmax_lse_flag=lse is not None, **_options(q, k.shape[2], softmax_scale, causal, seqlen == 1), **codes,
    )  # fmt: skip
    out.copy_(got.view(out.shape))
    if lse is not None:  # [batch, num_heads, seqlen_q, 1]
        lse.copy_(sums.squeeze(-1).transpose(0, 1).reshape(lse.shape))


# Keys and values of i8 in pages, with scales beside them

_PER_TENSOR, _PER_HEAD, _PER_TOKEN, _PER_TOKEN_AND_HEAD = 0, 2, 4, 5  # key_antiquant_mode


def _mode(pool, scales) -> int | None:
    """How scales [pages, page size, heads, 1], each of full size or 1, are shared, as the operator counts it."""
    if scales is None or scales.shape[3] != 1:
        return None
    pages, page, heads = pool.shape[:3]
    modes = {(pages, page, 1): _PER_TOKEN, (pages, page, heads): _PER_TOKEN_AND_HEAD, (1, 1, heads): _PER_HEAD,
             (1, 1, 1): _PER_TENSOR}  # fmt: skip
    return modes.get(tuple(scales.shape[:3]))


def _scales_problem(mode: int | None, dtype: str, **scales) -> str | None:
    """dtype: of the queries, which scales of heads and of all have, too."""
    if mode is None:
        given = [None if s is None else list(s.shape) for s in scales.values()]
        return (
            f"{' and '.join(scales)} {' and '.join(map(str, given))}: this kernel takes one for each token, token and "
            "head, head, or all"
        )
    wanted = dtype if mode in (_PER_TENSOR, _PER_HEAD) else "f32"
    for name, s in scales.items():
        if s.dtype != wanted or not is_contiguous(s):
            return f"{name} is {s.dtype}: this kernel takes whole ones in {wanted}"
    return None


def _decode_i8_declines(
    q, k, v, cu_seqlens_q=None, block_tables=None, kv_layout="HND", k_scales=None, v_scales=None, **rest
) -> str | None:
    if reason := eight_bits(k=k, v=v) or cann.lacking("key_antiquant_mode"):
        return reason
    if cu_seqlens_q is not None:
        return "cu_seqlens_q with block_tables: this kernel takes one query token a sequence"
    queries = "one query a sequence over i8"
    return _pages_of_i8(q, k, v, block_tables, kv_layout, k_scales, v_scales, 32, queries)


def _several_i8_declines(
    q, k, v, cu_seqlens_q=None, block_tables=None, kv_layout="HND", k_scales=None, v_scales=None, **rest
) -> str | None:
    if reason := eight_bits(k=k, v=v):
        return reason
    if cu_seqlens_q is None:
        return "one query a sequence: this kernel takes several, with cu_seqlens_q"
    queries = "several queries a sequence over i8"
    return _pages_of_i8(q, k, v, block_tables, kv_layout, k_scales, v_scales, 16, queries)


def _pages_of_i8(q, k, v, block_tables, kv_layout, k_scales, v_scales, multiple: int, queries: str) -> str | None:
    if reason := _pool_problem(q, k, v, block_tables, kv_layout, multiple, queries):
        return reason
    mode = _mode(k, k_scales)
    if mode != _mode(v, v_scales):
        return "k_scales and v_scales are not alike: this kernel takes them so"
    return (
        _scales_problem(mode, q.dtype, k_scales=k_scales, v_scales=v_scales)
        or dtypes({"q": q}, _F16)
        or not_empty({"q": q, "k": k, "v": v})
        or head_dims(q, v, multiple=multiple, at_most=_MAX_HEAD_DIM)
        or _heads(q, k.shape[2])
    )


def _decode_i8(
    q, k, v, block_tables=None, context_lens=None, kv_layout="HND", lse=None, softmax_scale=0.0, causal=True,
    k_scales=None, v_scales=None, k_group_size=0, v_group_size=0,
):  # fmt: skip
    mode = _mode(k, k_scales)
    codes = {"key_antiquant_mode": mode, "value_antiquant_mode": mode}
    for name, scales in (("key", k_scales), ("value", v_scales)):
        codes[f"{name}_antiquant_scale"] = _as_the_operator_has(scales, mode)
    return _over_pages(q, k, v, None, block_tables, context_lens, lse, softmax_scale, causal, **codes)


def _several_i8(
    q, k, v, cu_seqlens_q=None, block_tables=None, context_lens=None, kv_layout="HND", lse=None, softmax_scale=0.0,
    causal=True, k_scales=None, v_scales=None, k_group_size=0, v_group_size=0,
):  # fmt: skip
    """The operator takes no pages of i8 for several queries: what a sequence sees is made 16 bits wide, and dense."""
    import torch

    lengths, page = context_lens.tolist(), k.shape[1]
    parts: list[list] = [[], []]
    for i, n in enumerate(lengths):
        pages = block_tables[i, : -(-n // page)].long()
        for found, pool, scales in zip(parts, (k, v), (k_scales, v_scales), strict=True):
            of_pages = scales.index_select(0, pages) if scales.shape[0] > 1 else scales  # one may be for all
            wide = pool.index_select(0, pages).float() * of_pages.float()
            found.append(wide.to(q.dtype).flatten(0, 1)[:n])
    of_k = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0)
    return _packed(q, *map(torch.cat, parts), cu_seqlens_q, of_k, lse, softmax_scale, causal)


def _as_the_operator_has(scales, mode: int):
    """[pages, page size] of tokens, of tokens and heads [pages, heads, page size], which is a copy."""
    if mode == _PER_TOKEN_AND_HEAD:
        return scales.squeeze(-1).transpose(1, 2).contiguous()
    return scales.reshape(scales.shape[:2] if mode == _PER_TOKEN else -1)


# CANN 7.0 has npu_fusion_attention alone, which is for training.


def _fusion_declines(q, k, v, causal=True, attn_mask=None, **rest) -> str | None:
    if attn_mask is not None:
        return "attn_mask is given: this kernel takes none"
    if q.shape[2] != k.shape[2] and (installed := cann.version()) and not cann.at_least(installed, "7.1.0"):
        return (
            f"{q.shape[2]} heads over {k.shape[2]} K/V heads: grouped heads came with CANN 7.1, installed is "
            f"{installed}"
        )
    return _dense_declines(q, k, v, causal, **rest)


def _fusion(q, k, v, lse=None, softmax_scale=0.0, causal=True, attn_mask=None):
    options = {"sparse_mode": 3, "atten_mask": _causal_mask(q.device)} if causal else {}
    out, largest, total, *_ = ALL("npu_fusion_attention")(
        q.contiguous(), k.contiguous(), v.contiguous(), q.shape[2], "BSND",
        scale=softmax_scale or q.shape[-1] ** -0.5, **options,
    )  # fmt: skip
    if lse is not None:  # [batch, heads, seqlen_q, 8], eight times the same
        lse.copy_(largest[..., 0] + total[..., 0].log())
    return out


# The cache


def _whole_pools(k_cache, v_cache, kv_layout: str) -> str | None:
    if kv_layout != "NHD":
        return f"kv_layout {kv_layout}: this kernel takes NHD; make the cache so (make_kv_cache(kv_layout='NHD'))"
    if not is_contiguous(k_cache) or not is_contiguous(v_cache):
        return "a cache that is not contiguous: this kernel takes whole pools"
    return None


def _append_declines(k, v, k_cache, v_cache, slot_mapping, kv_layout="HND", **rest) -> str | None:
    operands = {"k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache}
    return _whole_pools(k_cache, v_cache, kv_layout) or dtypes(operands, ("f16", "bf16", "f32"))


def _append(k, v, k_cache, v_cache, slot_mapping, kv_layout="HND"):
    """Slots below 0 are left out, which waits for the device."""
    kept = slot_mapping >= 0
    slots = slot_mapping[kept].long().unsqueeze(1)
    for new, cache_ in ((k, k_cache), (v, v_cache)):
        _put(cache_, slots, new[kept])


def _put(pool, slots, rows) -> None:
    """rows [tokens, heads, ...] into a pool [pages, page size, heads, ...]."""
    if rows.shape[0]:
        rows = rows.flatten(1)
        ALL("npu_scatter_nd_update_")(pool.view(-1, rows.shape[1]), slots, rows)


def _append_i8_declines(
    k, v, k_cache, v_cache, kv_layout="HND", k_cache_scales=None, v_cache_scales=None, **rest
) -> str | None:
    if reason := eight_bits(k_cache=k_cache, v_cache=v_cache) or _whole_pools(k_cache, v_cache, kv_layout):
        return reason
    for name, pool, scales in (("k", k_cache, k_cache_scales), ("v", v_cache, v_cache_scales)):
        mode = _mode(pool, scales)
        if mode not in (_PER_TOKEN, _PER_TOKEN_AND_HEAD):
            return f"{name}_cache_scales: this kernel takes one for each token, or for each token and head"
        if reason := _scales_problem(mode, "f32", **{f"{name}_cache_scales": scales}):
            return reason
    return dtypes({"k": k, "v": v}, _F16) or not_empty({"k": k, "v": v})


def _append_i8(
    k, v, k_cache, v_cache, slot_mapping, kv_layout="HND", k_cache_scales=None, v_cache_scales=None,
    k_cache_group_size=0, v_cache_group_size=0,
):  # fmt: skip
    """The operator makes a scale of each row that it is given: a head's, or of all heads'."""
    kept = slot_mapping >= 0
    slots = slot_mapping[kept].long().unsqueeze(1)
    if not slots.shape[0]:
        return
    for new, pool, scales in ((k, k_cache, k_cache_scales), (v, v_cache, v_cache_scales)):
        rows = new[kept]
        codes, of_rows = ALL("npu_dynamic_quant")(rows if scales.shape[2] > 1 else rows.flatten(1))
        _put(pool, slots, codes.view(rows.shape))
        _put(scales, slots, of_rows.view(rows.shape[0], -1))


_INFER = needing("npu_fused_infer_attention_score")
_ANY = "f16 and bf16; head_dim a multiple of 16 up to 512; up to 256 heads, 64 a K/V head"
_ONE = "one operator for the scores, mask, softmax and sums: no scores in memory"
ROWS = (
    VendorRow(
        "ascend::attention", "attention", "library", _INFER, f"dense; {_ANY}; a boolean mask; strided operands are "
        f"copied",
        _dense, _dense_declines, devices=("ascend",), graph_safe=True, saves=_ONE,
    ),
    VendorRow(
        "ascend::attention_by_sequence", "attention", "library", _INFER, f"packed, one call a sequence; {_ANY}",
        _packed, _packed_declines, devices=("ascend",), saves=_ONE + ", a launch a sequence",
    ),
    VendorRow(
        "ascend::attention_paged", "attention", "library", _INFER,
        f"paged, NHD; {_ANY}; one query a sequence over pages of a multiple of 16 up to 512, or several (a call a "
        f"sequence) "
        "over pages of a multiple of 128",
        _paged, _paged_declines, devices=("ascend",), saves=_ONE,
    ),
    VendorRow(
        "ascend::attention_fusion", "attention", "library", needing("npu_fusion_attention"),
        f"dense; {_ANY}; for a CANN before 8.0", _fusion, _fusion_declines, devices=("ascend",), graph_safe=True,
        saves=_ONE,
    ),
    VendorRow(
        "ascend::attention_decode_i8", "attention", "library",
        needing(
            "npu_fused_infer_attention_score",
            npu_fused_infer_attention_score=(
                "key_antiquant_scale", "value_antiquant_scale", "key_antiquant_mode", "value_antiquant_mode",
            ),
        ),
        "paged, NHD, one query a sequence, keys and values of i8 with a scale a token, token and head, head or tensor; "
        "f16 and bf16; head_dim a multiple of 32 up to 512; up to 256 heads, 64 a K/V head; pages of a multiple of 32 "
        "up to 512",
        _decode_i8, _decode_i8_declines, devices=("ascend",), launches=3,
        saves=_ONE + "; half the bytes of a 16-bit cache",
    ),
    VendorRow(
        "ascend::attention_paged_i8", "attention", "library", _INFER,
        "paged, NHD, several queries a sequence (a call a sequence), keys and values of i8 with a scale a token, token "
        f"and head, head or tensor; {_ANY}; pages of a multiple of 16 up to 512",
        _several_i8, _several_i8_declines, devices=("ascend",), launches=8,
        saves=_ONE + "; keys and values are read in 8 bits, and once more in 16",
    ),
    VendorRow(
        "ascend::append_kv_i8", "append_kv", "library", needing("npu_dynamic_quant", "npu_scatter_nd_update_"),
        "NHD, into i8 with a scale a token, or token and head; f16 and bf16", _append_i8, _append_i8_declines,
        devices=("ascend",), launches=6,
        saves="one launch each for scales and codes, which are put in place by one more each",
    ),
    VendorRow(
        "ascend::append_kv", "append_kv", "library", needing("npu_scatter_nd_update_"), "NHD; f32, f16 and bf16",
        _append, _append_declines, devices=("ascend",), launches=2,
        saves="in place, one launch each for keys and values",
    ),
)  # fmt: skip
