"""The ops that fusions are made of, by Paddle's plain operators one after another (what ../plain.py is for PyTorch)."""

from __future__ import annotations

from ..compositions import shifted
from ..plain import declines_of, plain_row, sequences
from . import KUNLUN2, attention, layers
from .operators import ALL, F, needing

# What is one operator of Paddle's, or has no other form on Kunlun 2, is that of the table.


def _linear(x, weight, bias=None):
    return layers.product(x, weight, bias)


def _rms_norm(x, weight, eps=1e-6, weight_offset=0.0):
    h = x.astype("float32")
    scale = ALL("rsqrt")(x=ALL("mean")(x=h * h, axis=-1, keepdim=True) + eps)
    return (h * scale * shifted(weight.astype("float32"), weight_offset)).astype(x.dtype)


def _rope(x, positions, cos, sin, interleaved=False):
    return layers.rope(x, positions, cos, sin, interleaved=interleaved)


def _append_kv(k, v, k_cache, v_cache, slot_mapping, kv_layout="HND"):
    attention.append(k, v, k_cache, v_cache, slot_mapping)


# Attention: the scores, their mask and the sums, each a result in memory.


def _of_sequence(x, index: int, first: int, count: int, block_tables):
    """A sequence's keys or values, [kv_heads, count, D]."""
    if block_tables is None:
        return x[first : first + count].transpose([1, 0, 2])
    pages = -(-count // x.shape[2])
    return attention.pages(x, block_tables[index : index + 1, :pages])[0][:, :count]


def _repeated(x, heads: int):
    """[..., kv_heads, keys, D] as [..., heads, keys, D], a copy for each query head, in f32."""
    *first, kv_heads, keys, width = x.shape
    copies = ALL("tile")(
        x=x.astype("float32").unsqueeze(-3), repeat_times=[1] * len(first) + [1, heads // kv_heads, 1, 1]
    )
    return copies.reshape([*first, heads, keys, width])


def _products(q, k, scale: float, softcap: float):
    """q [..., heads, queries, D], k [..., kv_heads, keys, D]."""
    scale = scale or q.shape[-1] ** -0.5
    scores = ALL("matmul")(x=q.astype("float32"), y=_repeated(k, q.shape[-3]), transpose_y=True) * scale
    return ALL("tanh")(x=scores * (1 / softcap)) * softcap if softcap else scores


def _widened(part, width: int):
    """Columns of -inf up to this many."""
    import paddle

    if part.shape[-1] == width:
        return part
    more = paddle.full([*part.shape[:-1], width - part.shape[-1]], -float("inf"))
    return ALL("concat")(x=[part, more], axis=-1)


def _scores(
    q, k, scores, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None, kv_layout="HND",
    softmax_scale=0.0, softcap=0.0, seqlen_k_max=0,
):  # fmt: skip
    import paddle

    heads, width = scores.shape[-3], scores.shape[-1]
    if len(q.shape) == 4:
        seen = _products(*(x.transpose([0, 2, 1, 3]) for x in (q, k)), softmax_scale, softcap)
        if wider := width - k.shape[1]:
            seen = paddle.concat([seen, paddle.full([*seen.shape[:-1], wider], -float("inf"), seen.dtype)], -1)
        scores.copy_(seen, False)
        return
    parts = []
    for i, (q0, q1, k0, n) in enumerate(sequences(q.shape[0], cu_seqlens_q, cu_seqlens_k, context_lens)):
        if q1 == q0:
            continue
        if n:
            keys = _of_sequence(k, i, k0, n, block_tables)
            products = _products(q[q0:q1].transpose([1, 0, 2]), keys, softmax_scale, softcap)
            parts.append(_widened(products, width))
        else:
            parts.append(paddle.full([heads, q1 - q0, width], -float("inf")))
    scores.copy_(ALL("concat")(x=parts, axis=1), False)


def _hide(part, keys: int, causal: bool, left: int, right: int):
    """part [..., queries, keys]: positions count from the bottom right."""
    import paddle

    queries, width = part.shape[-2:]
    at, key = paddle.arange(keys - queries, keys).unsqueeze(-1), paddle.arange(width)
    right = 0 if causal else right
    hidden = [key >= keys]
    if right >= 0:
        hidden.append(key > at + right)
    if left >= 0:
        hidden.append(key < at - left)
    for where in hidden:
        part = ALL("where")(where, paddle.full([1], -float("inf")), part)
    return part


def _mask(
    scores, out, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None, kv_layout="HND",
    seqlen_k=0, causal=True, window_left=-1, window_right=-1,
):  # fmt: skip
    window = (causal, window_left, window_right)
    if len(scores.shape) == 4:
        out.copy_(_hide(scores, seqlen_k, *window), False)
        return
    each = sequences(scores.shape[1], cu_seqlens_q, cu_seqlens_k, context_lens)
    parts = [_hide(scores[:, q0:q1], n, *window) for q0, q1, _, n in each if q1 > q0]
    out.copy_(ALL("concat")(x=parts, axis=1), False)


def _values(
    probs, v, out, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None, kv_layout="HND",
    out_dtype="f32",
):  # fmt: skip
    import paddle

    heads = probs.shape[-3]
    if len(probs.shape) == 4:
        sums = ALL("matmul")(x=probs[..., : v.shape[1]], y=_repeated(v.transpose([0, 2, 1, 3]), heads))
        out.copy_(sums.transpose([0, 2, 1, 3]).astype(out.dtype), False)
        return
    parts = []
    for i, (q0, q1, k0, n) in enumerate(sequences(probs.shape[1], cu_seqlens_q, cu_seqlens_k, context_lens)):
        if q1 == q0:
            continue
        if n:
            values = _repeated(_of_sequence(v, i, k0, n, block_tables), heads)
            sums = ALL("matmul")(x=probs[:, q0:q1, :n], y=values)
        else:
            sums = paddle.zeros([heads, q1 - q0, v.shape[-1]])
        parts.append(sums.transpose([1, 0, 2]))
    out.copy_(ALL("concat")(x=parts, axis=0).astype(out.dtype), False)


def _not_hnd(block_tables=None, kv_layout="HND", **rest) -> str | None:
    return f"kv_layout {kv_layout}: this kernel takes HND" if block_tables is not None and kv_layout != "HND" else None


def _row(op: str, needs: tuple[str, ...], function, launches: int, also=None, waits: bool = False):
    declines = declines_of(op, layers.FLOATS, also or (lambda **fields: None))
    return plain_row(
        KUNLUN2, op, needing(*needs), "Paddle's", function, declines, waits, launches=launches, arrays="paddle"
    )


_VALUES = ("matmul", "tile", "multiply", "concat", "gather", "clip")
ROWS = (
    _row("linear", ("matmul", "add"), _linear, 2),
    _row("rms_norm", ("multiply", "mean", "rsqrt"), _rms_norm, 7),
    _row("layer_norm", (F + "layer_norm",), layers.layer_norm, 1),
    _row("binary", ("add", "multiply"), layers.binary, 1, layers.all_floats),
    _row("activation", layers.ACTIVATIONS, layers.activation, 1),
    _row("softmax", (F + "softmax", *layers.SOFTMAX), layers.softmax, 5, layers.floats),
    _row("rope", ("multiply", "add", "gather"), _rope, 11, layers.rope_declines),
    _row("append_kv", ("gather", "scatter_"), _append_kv, 6, attention.append_declines, waits=True),
    _row("attention_scores", (*_VALUES, "tanh"), _scores, 4, _not_hnd, waits=True),
    _row("attention_mask", ("where", "concat"), _mask, 4, waits=True),
    _row("attention_values", _VALUES, _values, 4, _not_hnd, waits=True),
    _row("argmax", ("max", "where"), layers.argmax, 12),
    _row("embedding", ("gather", "multiply"), layers.embedding, 1),
)
