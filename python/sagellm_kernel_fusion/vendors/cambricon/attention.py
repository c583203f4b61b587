"""Attention over dense, packed and paged keys, and what writes the cache. Its paged cache is HND."""

from __future__ import annotations

from ...adapters.conditions import blind_rows_are_zeros, dtypes, head_dims, longest, not_empty
from ..layouts import eight_bits, hnd_pages, is_contiguous
from ..row import VendorRow
from .operators import ALL, bf16_problem, needing

_F16 = ("f16", "bf16")
_BY_TOKEN = 1  # quant_mode: a scale for each token and head


def _common(q, k, v) -> str | None:
    return (
        dtypes({"q": q, "k": k, "v": v}, _F16)
        or bf16_problem(q)
        or not_empty({"q": q, "k": k, "v": v})
        or head_dims(q, v, multiple=8, at_most=256)
    )


def _flash(q, k, v, out, of_q, of_k, max_q, max_k, softmax_scale, causal, window_left, window_right, tables=None):
    """Packed, causal from the bottom right as in FlashAttention; `out` is not q."""
    import torch

    ALL("flash_attention")(
        q.contiguous(), k, v, out, of_q, of_k, None, None, max_q, max_k, softmax_scale or q.shape[-1] ** -0.5, causal,
        window_left, 0 if causal else window_right, torch.float, False, tables,
    )  # fmt: skip


def _starts(batch: int, seqlen: int, like):
    import torch

    return torch.arange(0, (batch + 1) * seqlen, seqlen, dtype=torch.int32, device=like.device)


# Dense and packed


def _dense_declines(
    q,
    k,
    v,
    causal=True,
    window_left=-1,
    window_right=-1,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    block_tables=None,
    **rest,
) -> str | None:
    if cu_seqlens_q is not None or cu_seqlens_k is not None or block_tables is not None:
        return "packed or paged: this kernel takes dense operands"
    if q.shape[1] > k.shape[1] and (causal or window_right >= 0):
        return (
            f"{q.shape[1]} queries over {k.shape[1]} keys: the first see none, which this kernel promises no zeros for"
        )
    if window_left >= 0 and q.shape[1] + window_left < k.shape[1] and not causal and window_right < 0:
        return "a window to the left alone without causal: this kernel takes causal windows"
    return _common(q, k, v)


def _dense(q, k, v, out, softmax_scale=0.0, causal=True, window_left=-1, window_right=-1):
    (batch, queries), keys = q.shape[:2], k.shape[1]
    _flash(
        q.reshape(-1, *q.shape[2:]), k.reshape(-1, *k.shape[2:]), v.reshape(-1, *v.shape[2:]), out.view(-1,
        *out.shape[2:]), _starts(batch, queries, q), _starts(batch, keys, q), queries, keys, softmax_scale, causal,
        window_left, window_right,
    )  # fmt: skip


def _packed_declines(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, **rest) -> str | None:
    if cu_seqlens_q is None or cu_seqlens_k is None or block_tables is not None:
        return "dense or paged: this kernel takes packed sequences, with cu_seqlens_q and cu_seqlens_k"
    return _window_problem(**rest) or _common(q, k, v)


def _window_problem(causal=True, window_left=-1, window_right=-1, **rest) -> str | None:
    """Of sequences of several lengths: what a window that is not causal leaves of them may be nothing."""
    if not causal and (window_left >= 0 or window_right >= 0):
        return f"a window ({window_left}, {window_right}) without causal: this kernel takes causal windows"
    return None


def _packed(
    q, k, v, out, cu_seqlens_q=None, cu_seqlens_k=None, softmax_scale=0.0, causal=True, window_left=-1, window_right=-1
):
    lengths = longest(cu_seqlens_q), longest(cu_seqlens_k)
    _flash(
        q, k.contiguous(), v.contiguous(), out, cu_seqlens_q, cu_seqlens_k, *lengths, softmax_scale, causal,
        window_left, -1,
    )  # fmt: skip
    keys = cu_seqlens_k[1:] - cu_seqlens_k[:-1]
    blind_rows_are_zeros(out, cu_seqlens_q, keys, causal)


# Paged


def _paged_declines(q, k, v, cu_seqlens_q=None, block_tables=None, kv_layout="HND", **rest) -> str | None:
    return hnd_pages(k, v, block_tables, kv_layout) or _common(q, k, v)


def _decode_declines(
    q, k, v, cu_seqlens_q=None, block_tables=None, kv_layout="HND", causal=True, window_left=-1, window_right=-1, **rest
) -> str | None:
    if cu_seqlens_q is not None:
        return "cu_seqlens_q with block_tables: this kernel takes one query token a sequence"
    if not causal and window_right >= 0:
        return f"window_right {window_right} without causal: this kernel takes windows to the left"
    if reason := _paged_declines(q, k, v, cu_seqlens_q, block_tables, kv_layout):
        return reason
    at_most = 256 if q.dtype == "bf16" else 128
    if (group := q.shape[1] // k.shape[1]) > at_most:
        return f"{group} query heads a K/V head: this kernel takes at most {at_most}"
    return None


def _decode(
    q, k, v, out, block_tables=None, context_lens=None, kv_layout="HND", softmax_scale=0.0, causal=True, window_left=-1,
    window_right=-1,
):  # fmt: skip
    """windows_size_right must be -1. The longest context is bounded by the tables, so that nothing waits."""
    longest_context = block_tables.shape[1] * k.shape[2]
    ALL("single_query_cached_kv_attn")(
        q.unsqueeze(1).contiguous(), k, v, out.unsqueeze(1), block_tables.clamp_min(0), context_lens, None, None, None,
        longest_context, window_left, -1, softmax_scale or q.shape[-1] ** -0.5,
    )  # fmt: skip
    out.masked_fill_((context_lens == 0)[:, None, None], 0)


# Keys and values of i8, a scale for each token and head


def _scales_problem(**scales) -> str | None:
    """Why these are no scales [pages, heads, page size, 1] in f32 of whole pools."""
    for name, s in scales.items():
        if s is None or s.dtype != "f32" or 1 in s.shape[:3] or s.shape[3] != 1 or not is_contiguous(s):
            given = "none" if s is None else f"{s.dtype} {list(s.shape)}"
            return f"{name}: {given}: this kernel takes a scale in f32 for each token and head"
    return None


def _decode_i8_declines(
    q, k, v, cu_seqlens_q=None, block_tables=None, kv_layout="HND", k_scales=None, v_scales=None, **rest
) -> str | None:
    if reason := eight_bits(k=k, v=v) or _scales_problem(k_scales=k_scales, v_scales=v_scales):
        return reason
    if cu_seqlens_q is not None:
        return "cu_seqlens_q with block_tables: this kernel takes one query token a sequence"
    if (group := q.shape[1] // k.shape[1]) > 128:
        return f"{group} query heads a K/V head: this kernel takes at most 128"
    if block_tables is not None and k.shape[2] not in (16, 32, 64):
        return f"page size {k.shape[2]}: this kernel takes 16, 32 and 64"
    return _pages_of_i8(q, k, v, block_tables, kv_layout)


def _pages_of_i8(q, k, v, block_tables, kv_layout: str) -> str | None:
    return (
        hnd_pages(k, v, block_tables, kv_layout)
        or dtypes({"q": q}, _F16)
        or bf16_problem(q)
        or not_empty({"q": q, "k": k, "v": v})
        or head_dims(q, v, multiple=8, at_most=256)
    )


def _decode_i8(
    q, k, v, out, block_tables=None, context_lens=None, kv_layout="HND", softmax_scale=0.0, causal=True, k_scales=None,
    v_scales=None, k_group_size=0, v_group_size=0,
):  # fmt: skip
    ALL("single_query_cached_kv_attn")(
        q.unsqueeze(1).contiguous(), k, v, out.unsqueeze(1), block_tables.clamp_min(0), context_lens,
        k_scales.squeeze(-1), v_scales.squeeze(-1), None, block_tables.shape[1] * k.shape[2], -1, -1,
        softmax_scale or q.shape[-1] ** -0.5, kv_cache_quant_bit_size=8,
    )  # fmt: skip
    out.masked_fill_((context_lens == 0)[:, None, None], 0)


def _ends(lengths):
    import torch

    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def _several_declines(q, k, v, cu_seqlens_q=None, **rest) -> str | None:
    if cu_seqlens_q is None:
        return "one query token a sequence: this kernel takes several, with cu_seqlens_q"
    return _window_problem(**rest) or _paged_declines(q, k, v, cu_seqlens_q, **rest)


def _several(
    q, k, v, out, cu_seqlens_q=None, block_tables=None, context_lens=None, kv_layout="HND", softmax_scale=0.0,
    causal=True, window_left=-1, window_right=-1,
):  # fmt: skip
    lengths = longest(cu_seqlens_q), int(context_lens.max())
    _flash(
        q, k, v, out, cu_seqlens_q, _ends(context_lens), *lengths, softmax_scale, causal, window_left, -1,
        block_tables.clamp_min(0),
    )  # fmt: skip
    blind_rows_are_zeros(out, cu_seqlens_q, context_lens, causal)


def _several_i8_declines(
    q, k, v, cu_seqlens_q=None, block_tables=None, kv_layout="HND", k_scales=None, v_scales=None, **rest
) -> str | None:
    if reason := eight_bits(k=k, v=v) or _scales_problem(k_scales=k_scales, v_scales=v_scales):
        return reason
    if cu_seqlens_q is None:
        return "one query token a sequence: this kernel takes several, with cu_seqlens_q"
    return _pages_of_i8(q, k, v, block_tables, kv_layout)


def _several_i8(
    q, k, v, out, cu_seqlens_q=None, block_tables=None, context_lens=None, kv_layout="HND", softmax_scale=0.0,
    causal=True, k_scales=None, v_scales=None, k_group_size=0, v_group_size=0,
):  # fmt: skip
    """Keys and values are made 16 bits wide, one sequence after another, and attended as packed ones."""
    lengths = context_lens.tolist()
    keys, values = (q.new_zeros(sum(lengths), x.shape[1], x.shape[3]) for x in (k, v))
    most = max(lengths)
    if most:
        ALL("dequant_from_paged_cache")(
            keys, values, k, v, k_scales.squeeze(-1), v_scales.squeeze(-1), context_lens, most, None,
            block_tables.clamp_min(0), _BY_TOKEN, 8,
        )  # fmt: skip
        of_k = _ends(context_lens)
        _flash(q, keys, values, out, cu_seqlens_q, of_k, longest(cu_seqlens_q), most, softmax_scale, causal, -1, -1)
    blind_rows_are_zeros(out, cu_seqlens_q, context_lens, causal)


# The cache


def _append_declines(k, v, k_cache, v_cache, kv_layout="HND", **rest) -> str | None:
    if kv_layout != "HND":
        return f"kv_layout {kv_layout}: this kernel takes HND; make the cache so (make_kv_cache(kv_layout='HND'))"
    if not is_contiguous(k_cache) or not is_contiguous(v_cache):
        return "a cache that is not contiguous: this kernel takes whole pools"
    operands = {"k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache}
    return dtypes(operands, ("f32", *_F16)) or bf16_problem(k)


def _append(k, v, k_cache, v_cache, slot_mapping, kv_layout="HND"):
    """Slots below 0 are left out by the operator."""
    import torch

    ALL("reshape_paged_cache")(k.contiguous(), v.contiguous(), k_cache, v_cache, slot_mapping.to(torch.int32))


def _append_i8_declines(
    k, v, k_cache, v_cache, kv_layout="HND", k_cache_scales=None, v_cache_scales=None, **rest
) -> str | None:
    if reason := eight_bits(k_cache=k_cache, v_cache=v_cache):
        return reason
    if kv_layout != "HND":
        return f"kv_layout {kv_layout}: this kernel takes HND; make the cache so (make_kv_cache(kv_layout='HND'))"
    if not is_contiguous(k_cache) or not is_contiguous(v_cache):
        return "a cache that is not contiguous: this kernel takes whole pools"
    return (
        _scales_problem(k_cache_scales=k_cache_scales, v_cache_scales=v_cache_scales)
        or dtypes({"k": k, "v": v}, ("f32", *_F16))
        or bf16_problem(k)
    )


def _append_i8(
    k, v, k_cache, v_cache, slot_mapping, kv_layout="HND", k_cache_scales=None, v_cache_scales=None,
    k_cache_group_size=0, v_cache_group_size=0,
):  # fmt: skip
    """The operator makes the scales, the largest of a token's head over 127; slots below 0 are left out."""
    import torch

    ALL("quant_to_paged_cache")(
        k.contiguous(), v.contiguous(), k_cache, v_cache, k_cache_scales.squeeze(-1), v_cache_scales.squeeze(-1),
        slot_mapping.to(torch.int32),
    )  # fmt: skip


_ANY = "f16 and bf16; head_dim a multiple of 8 up to 256"
_ONE = "one operator for the scores, mask, softmax and sums: no scores in memory"
ROWS = (
    VendorRow(
        "mlu::attention", "attention", "library", needing("flash_attention"), f"dense; {_ANY}; windows", _dense,
        _dense_declines, devices=("mlu",), graph_safe=True, launches=3, saves=_ONE,
    ),
    VendorRow(
        "mlu::attention_packed", "attention", "library", needing("flash_attention"), f"packed; {_ANY}; causal windows",
        _packed,
        _packed_declines, devices=("mlu",), saves=_ONE,
    ),
    VendorRow(
        "mlu::attention_decode", "attention", "library", needing("single_query_cached_kv_attn"),
        f"paged, HND, one query token a sequence; {_ANY}; pages of a multiple of 16; "
        f"windows", _decode, _decode_declines,
        devices=("mlu",), graph_safe=True, launches=3, saves=_ONE,
    ),
    VendorRow(
        "mlu::attention_paged", "attention", "library", needing("flash_attention"),
        f"paged, HND, several query tokens a sequence; {_ANY}; pages of a multiple of 16; causal windows", _several,
        _several_declines,
        devices=("mlu",), saves=_ONE,
    ),
    VendorRow(
        "mlu::attention_decode_i8", "attention", "library",
        needing("single_query_cached_kv_attn", single_query_cached_kv_attn=("kv_cache_quant_bit_size",)),
        "paged, HND, one query token a sequence, keys and values of i8 with a scale for each token and head; f16 and "
        "bf16; head_dim a multiple of 8 up to 256; pages of 16, 32 and 64",
        _decode_i8, _decode_i8_declines, devices=("mlu",), graph_safe=True, launches=3,
        saves=_ONE + "; half the bytes of a 16-bit cache",
    ),
    VendorRow(
        "mlu::attention_paged_i8", "attention", "library", needing("dequant_from_paged_cache", "flash_attention"),
        f"paged, HND, several query tokens a sequence, keys and values of i8 with a scale for each token and head; "
        f"{_ANY}; pages of a multiple of 16",
        _several_i8, _several_i8_declines, devices=("mlu",), launches=4,
        saves=_ONE + "; one launch makes keys and values 16 bits wide",
    ),
    VendorRow(
        "mlu::append_kv_i8", "append_kv", "library", needing("quant_to_paged_cache"),
        "HND, into i8 with a scale for each token and head; f32, f16 and bf16", _append_i8, _append_i8_declines,
        devices=("mlu",), graph_safe=True, saves="one launch for scales, codes, keys and values",
    ),
    VendorRow(
        "mlu::append_kv", "append_kv", "library", needing("reshape_paged_cache"), "HND; f32, f16 and bf16", _append,
        _append_declines, devices=("mlu",), graph_safe=True, saves="one launch for keys and values",
    ),
)  # fmt: skip
