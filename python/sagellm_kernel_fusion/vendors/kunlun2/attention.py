"""Attention over dense, packed and paged keys, and what writes the cache, of Paddle's plain operators: on Kunlun 2 its
attention operators ask for another runtime (flash_attn_unpadded: -DWITH_XPU_XRE5=ON) or Kunlun 3.

Query heads of a group are rows of one matrix, so that keys and values are read once a group and never repeated. Scores
are f32. The paged cache is HND: pages of a head are rows of one table, so that one gather gives keys as they are
multiplied."""

from __future__ import annotations

import itertools

from ...adapters.conditions import dtypes, not_empty
from ..layouts import hnd_pages, is_contiguous
from .layers import FLOATS, log_sum_exp, row
from .operators import ALL, F


def _common(q, k, v) -> str | None:
    operands = {"q": q, "k": k, "v": v}
    return dtypes(operands, FLOATS) or not_empty(operands)


def attend(q, k, v, scale: float, hidden=None, lse=None):
    """q [batch, heads, queries, D], k and v [batch, kv_heads, keys, D], where `hidden` does not hide them, which
    broadcasts to [batch, heads, queries, keys]; a query that sees no key gets zeros. In f32. lse [batch, heads,
    queries] is written."""
    import paddle

    batch, heads, queries, width = q.shape
    kv_heads, keys = k.shape[1:3]
    rows = [batch, kv_heads, heads // kv_heads * queries]
    q = (q.astype("float32") * (scale or width**-0.5)).reshape([*rows, width])
    scores = ALL("matmul")(x=q, y=k.astype("float32"), transpose_y=True).reshape([batch, heads, queries, keys])
    if hidden is not None:
        scores = ALL("where")(hidden, paddle.full([1], -float("inf")), scores)
    if lse is not None:
        lse.copy_(log_sum_exp(scores), False)
    p = ALL(F + "softmax")(x=scores, axis=-1)
    if hidden is not None:  # nothing exactly, in a row of nothing else too
        p = ALL("where")(hidden, paddle.zeros([1]), p)
    out = ALL("matmul")(x=p.reshape([*rows, keys]), y=v.astype("float32"))
    return out.reshape([batch, heads, queries, v.shape[-1]])


def _later(queries: int, keys: int):
    """Keys that come after a query, counted from the bottom right: [queries, keys]."""
    import paddle

    return paddle.arange(keys) > paddle.arange(keys - queries, keys).unsqueeze(-1)


def _heads_first(x):
    return x.transpose([0, 2, 1, 3])


# Dense and packed


def _dense_declines(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, **rest) -> str | None:
    if cu_seqlens_q is not None or cu_seqlens_k is not None or block_tables is not None:
        return "packed or paged: this kernel takes dense operands"
    return _common(q, k, v)


def _dense(q, k, v, lse=None, softmax_scale=0.0, causal=True):
    hidden = _later(q.shape[1], k.shape[1]) if causal else None
    return _heads_first(attend(*map(_heads_first, (q, k, v)), softmax_scale, hidden, lse))


def _packed_declines(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, **rest) -> str | None:
    if cu_seqlens_q is None or cu_seqlens_k is None or block_tables is not None:
        return "dense or paged: this kernel takes packed sequences, with cu_seqlens_q and cu_seqlens_k"
    return _common(q, k, v)


def _packed(q, k, v, out, lse=None, cu_seqlens_q=None, cu_seqlens_k=None, softmax_scale=0.0, causal=True):
    """One sequence after another, by their lengths on the host."""
    of_q, of_k = (itertools.pairwise(x.tolist()) for x in (cu_seqlens_q, cu_seqlens_k))
    for (q0, q1), (k0, k1) in zip(of_q, of_k, strict=True):
        keys = [_heads_first(x[k0:k1].unsqueeze(0)) for x in (k, v)] if k1 > k0 else None
        _sequence(q, keys, out, lse, q0, q1, softmax_scale, causal)


def _sequence(q, keys, out, lse, begin: int, end: int, scale: float, causal: bool) -> None:
    """The queries from begin to end, of all sequences' [total, heads, D], over their own keys and values, and what of
    out and lse [heads, total] is theirs; without keys (None) zeros and -inf."""
    import paddle

    if begin == end:
        return
    seen, sums = out[begin:end], None if lse is None else lse[:, begin:end]
    if keys is None:
        seen.copy_(paddle.zeros_like(seen), False)
        if sums is not None:
            sums.copy_(paddle.full_like(sums, -float("inf")), False)
        return
    hidden = _later(end - begin, keys[0].shape[2]) if causal else None
    queries = _heads_first(q[begin:end].unsqueeze(0))
    got = attend(queries, *keys, scale, hidden, None if sums is None else sums.unsqueeze(0))
    seen.copy_(_heads_first(got)[0].astype(out.dtype), False)


# Paged


def pages(pool, tables):
    """[batch, kv_heads, pages * page_size, D] of a pool [num_pages, kv_heads, page_size, D]; what a table has for pages
    that are not there is some page, which the lengths hide."""
    import paddle

    pages, heads, size, width = pool.shape
    batch, count = tables.shape
    first = ALL("clip")(x=tables, min=0, max=pages - 1) * heads
    ids = first.unsqueeze(1) + paddle.arange(heads, dtype=tables.dtype).unsqueeze(-1)
    rows = ALL("gather")(x=pool.reshape([pages * heads, size * width]), index=ids.flatten())
    return rows.reshape([batch, heads, count * size, width])


def _paged_declines(q, k, v, block_tables=None, kv_layout="HND", **rest) -> str | None:
    return hnd_pages(k, v, block_tables, kv_layout, multiple=1) or _common(q, k, v)


def _decode_declines(q, k, v, cu_seqlens_q=None, **rest) -> str | None:
    if cu_seqlens_q is not None:
        return "cu_seqlens_q with block_tables: this kernel takes one query token a sequence"
    return _paged_declines(q, k, v, **rest)


def _decode(q, k, v, lse=None, block_tables=None, context_lens=None, kv_layout="HND", softmax_scale=0.0, causal=True):
    """One query sees every key of its context, causal or not. Values beyond it are zeros: they may be anything, and
    nothing times infinity is not nothing."""
    import paddle

    keys, values = pages(k, block_tables), pages(v, block_tables)
    beyond = paddle.arange(keys.shape[2]) >= context_lens.astype("int64").unsqueeze(-1)
    hidden = beyond.unsqueeze([1, 2])
    values = ALL("where")(hidden.transpose([0, 1, 3, 2]), paddle.zeros([1]), values.astype("float32"))
    sums = None if lse is None else lse.transpose([1, 0]).unsqueeze(2)
    return attend(q.unsqueeze(2), keys, values, softmax_scale, hidden, sums).squeeze(2)


def _several_declines(q, k, v, cu_seqlens_q=None, **rest) -> str | None:
    if cu_seqlens_q is None:
        return "one query token a sequence: this kernel takes several, with cu_seqlens_q"
    return _paged_declines(q, k, v, **rest)


def _several(
    q, k, v, out, lse=None, cu_seqlens_q=None, block_tables=None, context_lens=None, kv_layout="HND", softmax_scale=0.0,
    causal=True,
):  # fmt: skip
    """One sequence after another, by their lengths on the host, over the pages that each has."""
    size = k.shape[2]
    of_q = itertools.pairwise(cu_seqlens_q.tolist())
    for i, ((q0, q1), n) in enumerate(zip(of_q, context_lens.tolist(), strict=True)):
        table = block_tables[i : i + 1, : -(-n // size)]
        keys = [pages(x, table)[:, :, :n] for x in (k, v)] if n else None
        _sequence(q, keys, out, lse, q0, q1, softmax_scale, causal)


# The cache


def append_declines(k, v, k_cache, v_cache, slot_mapping, kv_layout="HND", **rest) -> str | None:
    if kv_layout != "HND":
        return f"kv_layout {kv_layout}: this kernel takes HND; make the cache so (make_kv_cache(kv_layout='HND'))"
    if not is_contiguous(k_cache) or not is_contiguous(v_cache):
        return "a cache that is not contiguous: this kernel takes whole pools"
    if k.dtype == "f16" and (k.shape[-1] % 2 or v.shape[-1] % 2):
        return f"head_dim {k.shape[-1]} of k and {v.shape[-1]} of v: this kernel takes even ones of f16"
    return dtypes({"k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache}, FLOATS)


def append(k, v, k_cache, v_cache, slot_mapping, kv_layout="HND"):
    """Slots are read back: those below 0 are left out. Kunlun 2 scatters nothing of 16 bits: pairs go as int32."""
    import numpy as np
    import paddle

    slots = slot_mapping.numpy().astype(np.int64)
    kept = np.flatnonzero(slots >= 0)
    if not kept.size:
        return
    heads, size = k_cache.shape[1:3]
    page, within = np.divmod(slots[kept], size)
    to = (page[:, None] * heads + np.arange(heads)) * size + within[:, None]
    source = kept[:, None] * heads + np.arange(heads)
    place = k_cache.place
    to, source = (paddle.to_tensor(x.reshape(-1), place=place) for x in (to, source))
    for new, cache in ((k, k_cache), (v, v_cache)):
        rows = ALL("gather")(x=new.reshape([-1, new.shape[-1]]), index=source)
        pool = cache.reshape([-1, cache.shape[-1]])
        if cache.dtype == paddle.float16:
            rows, pool = rows.view("int32"), pool.view("int32")
        ALL("scatter_")(pool, to, rows)


_F = "f32 and f16"
_NEEDS = ("matmul", F + "softmax", "where", "multiply", "max", "exp", "sum", "log")
_ONCE = "keys and values are read once a group of query heads, not repeated for each; the scale is in the queries"
ROWS = (
    row(
        "attention", "attention", _NEEDS, f"dense; {_F}", _dense, _dense_declines, graph_safe=True, launches=12,
        saves=_ONCE,
    ),
    row(
        "attention_packed", "attention", _NEEDS, f"packed; {_F}; sequence by sequence", _packed, _packed_declines,
        launches=12, saves=_ONCE,
    ),
    row(
        "attention_decode", "attention", ("gather", "clip", *_NEEDS),
        f"paged, HND, one query token a sequence; {_F}", _decode, _decode_declines,
        graph_safe=True, launches=16,
        saves=f"one gather a cache for all sequences and heads, as it is multiplied; {_ONCE}",
    ),
    row(
        "attention_paged", "attention", ("gather", "clip", *_NEEDS),
        f"paged, HND, several query tokens a sequence; {_F}; sequence by sequence", _several,
        _several_declines, launches=14, saves=_ONCE,
    ),
    row(
        "append_kv", "append_kv", ("gather", "scatter_"), f"HND; {_F}", append, append_declines, launches=6,
        saves="one scatter a cache for all tokens and heads, for one a token",
    ),
)  # fmt: skip
