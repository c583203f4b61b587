"""Attention over dense, packed and paged keys, and what writes the cache, by kunlun_ops. Its paged cache is HND.

prefill_attention divides the scores by sqrt(head_dim) itself: alpha is what is left of the scale. Its callers give it
lengths twice, on the host and on the device, so that rows read them back and wait."""

from __future__ import annotations

import itertools

from ...adapters.conditions import dtypes, head_dims, not_empty
from ..layouts import hnd_pages, is_contiguous
from ..row import VendorRow
from .operators import ALL, needing

_F16 = ("f16", "bf16")
_HEAD_DIMS = (32, 64, 80, 96, 112, 120, 128, 192, 256, 512)  # of vLLM-Kunlun's PagedAttention
_PAGE = 64


def _common(q, k, v, sinks=None) -> str | None:
    return (
        dtypes({"q": q, "k": k, "v": v}, _F16)
        or not_empty({"q": q, "k": k, "v": v})
        or head_dims(q, v, one_of=_HEAD_DIMS)
        or (None if sinks is None else dtypes({"sinks": sinks}, ("f32", *_F16)))
    )


def _offsets(lengths, like):
    """Cumulative lengths from 0, on the host and on the device."""
    import torch

    host = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return host, host.to(like.device)


def _prefill(q, k, v, out, queries, softmax_scale, causal, sinks, keys=None, tables=None):
    """Packed queries over packed keys of the same lengths, or over pages with `tables` (keys: their lengths)."""
    width = q.shape[-1]
    of_q = _offsets(queries, q)
    cache = {}
    if tables is not None:
        of_k = _offsets(keys, q)
        cache = {"is_prefix_cache": True, "block_table": tables, "context_kvlen_lod_cpu": of_k[0],
                 "context_kvlen_lod_xpu": of_k[1]}  # fmt: skip
    ALL("prefill_attention")(
        q=q.contiguous(), k=k, v=v, out=out, is_causal=causal, alpha=(softmax_scale or width**-0.5) * width**0.5,
        context_qlen_lod_cpu=of_q[0], context_qlen_lod_xpu=of_q[1], alibi_slopes=None, softmax_lse=None, swa_left=-1,
        swa_right=-1, sink=None if sinks is None else sinks.float(), **cache,
    )  # fmt: skip


# Dense


def _dense_declines(
    q, k, v, causal=True, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, sinks=None, **rest
) -> str | None:
    if cu_seqlens_q is not None or cu_seqlens_k is not None or block_tables is not None:
        return "packed or paged: this kernel takes dense operands"
    if q.shape[1] != k.shape[1]:
        return f"{q.shape[1]} queries over {k.shape[1]} keys: this kernel takes as many of both"
    return _common(q, k, v, sinks)


def _dense(q, k, v, out, softmax_scale=0.0, causal=True, sinks=None):
    packed = (x.reshape(-1, *x.shape[2:]).contiguous() for x in (q, k, v))
    queries = [q.shape[1]] * q.shape[0]
    _prefill(*packed, out.view(-1, *out.shape[2:]), queries, softmax_scale, causal, sinks)


# Packed, and dense with other lengths of keys: what is not as long is copied into pages


def _packed_declines(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, sinks=None, **rest):
    if cu_seqlens_q is None or cu_seqlens_k is None or block_tables is not None:
        return "dense or paged: this kernel takes packed sequences, with cu_seqlens_q and cu_seqlens_k"
    return _common(q, k, v, sinks)


def _packed(q, k, v, out, cu_seqlens_q=None, cu_seqlens_k=None, softmax_scale=0.0, causal=True, sinks=None):
    queries, keys = (_lengths(x) for x in (cu_seqlens_q, cu_seqlens_k))
    if queries == keys and min(queries) > 0:
        _prefill(q, k.contiguous(), v.contiguous(), out, queries, softmax_scale, causal, sinks)
        return
    k, v, tables = _in_pages(k, v, keys)
    _over_pages(q, k, v, out, queries, keys, tables, softmax_scale, causal, sinks)


def _in_pages(k, v, keys: list[int]):
    """[total, heads, head_dim] as pages of whole sequences, with their table: one more pass over keys and values."""
    import torch

    counts = [-(-n // _PAGE) for n in keys]
    table = torch.zeros(len(keys), max(1, *counts), dtype=torch.int32)
    pools = [x.new_zeros(max(1, sum(counts)), k.shape[1], _PAGE, k.shape[2]) for x in (k, v)]
    page = row = 0
    for i, (n, count) in enumerate(zip(keys, counts, strict=True)):
        table[i, :count] = torch.arange(page, page + count)
        for pool, x in zip(pools, (k, v), strict=True):
            for at in range(0, n, _PAGE):
                part = x[row + at : row + min(at + _PAGE, n)]
                pool[page + at // _PAGE, :, : part.shape[0]] = part.transpose(0, 1)
        page, row = page + count, row + n
    return *pools, table.to(k.device)


def _lengths(cu_seqlens) -> list[int]:
    """On the host: waits for the device."""
    ends = cu_seqlens.tolist()
    return [b - a for a, b in itertools.pairwise(ends)]


def _over_pages(q, k, v, out, queries, keys, tables, softmax_scale, causal, sinks):
    """Queries that see no key are left out of the call, and get zeros."""
    import torch

    blind = [max(n - m, 0) if causal else n * (m == 0) for n, m in zip(queries, keys, strict=True)]
    seeing = [n - b for n, b in zip(queries, blind, strict=True)]
    if seeing == queries and min(queries) > 0:
        _prefill(q, k, v, out, queries, softmax_scale, causal, sinks, keys, tables)
        return
    out.zero_()
    kept = [i for i, n in enumerate(seeing) if n > 0]
    if not kept:
        return
    ends = list(_offsets(queries, q)[0])
    rows = torch.cat([torch.arange(int(ends[i]) + blind[i], int(ends[i + 1])) for i in kept]).to(q.device)
    part = out.new_empty(rows.shape[0], *out.shape[1:])
    which = torch.tensor(kept, device=q.device)
    lengths = ([seeing[i] for i in kept], [keys[i] for i in kept])
    _prefill(q[rows], k, v, part, lengths[0], softmax_scale, causal, sinks, lengths[1], tables[which].contiguous())
    out[rows] = part


# Paged


def _paged_declines(q, k, v, block_tables=None, kv_layout="HND", sinks=None, **rest) -> str | None:
    return hnd_pages(k, v, block_tables, kv_layout) or _common(q, k, v, sinks)


def _decode_declines(q, k, v, cu_seqlens_q=None, **rest) -> str | None:
    if cu_seqlens_q is not None:
        return "cu_seqlens_q with block_tables: this kernel takes one query token a sequence"
    return _paged_declines(q, k, v, **rest)


def _decode(
    q, k, v, out, block_tables=None, context_lens=None, kv_layout="HND", softmax_scale=0.0, causal=True, sinks=None
):
    """One query sees every key, causal or not. Without a key: one is read, and the result not taken."""
    lengths = context_lens.clamp_min(1)
    tables = block_tables.clamp_min(0)
    ALL("speculative_attention")(
        out=out, q=q.unsqueeze(0).contiguous(), k_cache=k, v_cache=v, context_lens_cpu=lengths.cpu(),
        context_lens_xpu=lengths, batch_num=q.shape[0], qlen=1, max_context_len=tables.shape[1] * k.shape[2],
        head_num=q.shape[1], head_dim=q.shape[2], scale=softmax_scale or q.shape[-1] ** -0.5, kv_head_num=k.shape[1],
        block_size=k.shape[2], max_num_blocks_per_seq=tables.shape[1], max_window_size=-1, block_tables=tables,
        sink=None if sinks is None else sinks.float(),
    )  # fmt: skip
    out.masked_fill_((context_lens == 0)[:, None, None], 0)


def _several_declines(q, k, v, cu_seqlens_q=None, **rest) -> str | None:
    if cu_seqlens_q is None:
        return "one query token a sequence: this kernel takes several, with cu_seqlens_q"
    return _paged_declines(q, k, v, **rest)


def _several(
    q, k, v, out, cu_seqlens_q=None, block_tables=None, context_lens=None, kv_layout="HND", softmax_scale=0.0,
    causal=True, sinks=None,
):  # fmt: skip
    queries, keys = _lengths(cu_seqlens_q), context_lens.tolist()
    _over_pages(q, k, v, out, queries, keys, block_tables.clamp_min(0), softmax_scale, causal, sinks)


# The cache


def _append_declines(k, v, k_cache, v_cache, slot_mapping, kv_layout="HND", **rest) -> str | None:
    if kv_layout != "HND":
        return f"kv_layout {kv_layout}: this kernel takes HND; make the cache so (make_kv_cache(kv_layout='HND'))"
    if not is_contiguous(k_cache) or not is_contiguous(v_cache):
        return "a cache that is not contiguous: this kernel takes whole pools"
    return dtypes({"k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache}, _F16)


def _append(k, v, k_cache, v_cache, slot_mapping, kv_layout="HND"):
    """What the function does with slots below 0 is not documented: they are left out, which waits for the device."""
    kept = slot_mapping >= 0
    k, v, slots = (x[kept].contiguous() for x in (k, v, slot_mapping))
    if slots.shape[0]:
        ALL("reshape_and_cache_flash")(k, v, k_cache, v_cache, slots, BLHD_LAYOUT=False)


_ANY = f"f16 and bf16; head_dim {', '.join(map(str, _HEAD_DIMS))}; sinks"
_ONE = "one operator for the scores, mask, softmax and sums: no scores in memory"
ROWS = (
    VendorRow(
        "kunlun::attention", "attention", "library", needing("prefill_attention"),
        f"dense, as many queries as keys; {_ANY}", _dense, _dense_declines, devices=("kunlun",), launches=3, saves=_ONE,
    ),
    VendorRow(
        "kunlun::attention_packed", "attention", "library", needing("prefill_attention"),
        f"packed; {_ANY}; keys of other lengths than the queries are copied into pages", _packed, _packed_declines,
        devices=("kunlun",), saves=_ONE,
    ),
    VendorRow(
        "kunlun::attention_decode", "attention", "library", needing("speculative_attention"),
        f"paged, HND, one query token a sequence; {_ANY}; pages of a multiple of 16", _decode, _decode_declines,
        devices=("kunlun",), launches=4, saves=_ONE,
    ),
    VendorRow(
        "kunlun::attention_paged", "attention", "library", needing("prefill_attention"),
        f"paged, HND, several query tokens a sequence; {_ANY}; pages of a multiple of 16", _several, _several_declines,
        devices=("kunlun",), launches=2, saves=_ONE,
    ),
    VendorRow(
        "kunlun::append_kv", "append_kv", "library", needing("reshape_and_cache_flash"), "HND; f16 and bf16", _append,
        _append_declines, devices=("kunlun",), launches=4, saves="one launch for keys and values",
    ),
)  # fmt: skip
