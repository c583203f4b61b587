"""xFormers' memory-efficient attention (https://github.com/facebookresearch/xformers): dense, GQA without copies of
keys and values ([batch, seqlen, groups, heads of a group, head_dim], the heads of a group being one in memory)."""

from __future__ import annotations

from .conditions import dtypes, head_dims, not_empty
from .library import Library
from .row import Row


def _lacking() -> str | None:
    """It imports without its compiled part, and then refuses every call."""
    from xformers import _cpp_lib

    if _cpp_lib._built_with_cuda:
        return None
    return "xformers could not load its kernels: it is built for another PyTorch or CUDA (python -m xformers.info)"


_BIAS = "fmha.attn_bias."
_PARAMETERS = ("query", "key", "value", "attn_bias", "scale")
LIBRARY = Library(
    "xformers.ops",
    "pip install xformers",
    "xformers 0.0.33.post2 (facebookresearch/xformers, xformers/ops/fmha/__init__.py)",
    {
        "memory_efficient_attention_forward": _PARAMETERS,
        "memory_efficient_attention_forward_requires_grad": _PARAMETERS,
        f"{_BIAS}LowerTriangularFromBottomRightMask": (),
        f"{_BIAS}LowerTriangularFromBottomRightLocalAttentionMask": ("_window_size",),
        f"{_BIAS}LocalAttentionFromBottomRightMask": ("window_left", "window_right"),
    },
    _lacking,
)


def _declines(q, k, v, causal=True, window_left=-1, **rest) -> str | None:
    if len(q.shape) != 4:
        return f"q has shape {list(q.shape)}: this kernel takes dense batches"
    if causal and q.shape[1] > k.shape[1]:
        return f"{q.shape[1]} queries and {k.shape[1]} keys: this kernel takes no rows that see no key"
    return dtypes({"q": q, "k": k, "v": v}, ("f16", "bf16")) or not_empty({"q": q, "k": k, "v": v}) or head_dims(q, v)


def _mask(queries: int, keys: int, causal: bool, left: int, right: int):
    if causal:
        name, window = "LowerTriangularFromBottomRightMask", {}
        if left >= 0:  # its window counts the row's own key
            name, window = "LowerTriangularFromBottomRightLocalAttentionMask", {"_window_size": left + 1}
    elif left < 0 and right < 0:
        return None
    else:
        name = "LocalAttentionFromBottomRightMask"
        window = {"window_left": left if left >= 0 else keys, "window_right": right if right >= 0 else keys + queries}
    return LIBRARY(_BIAS + name)(**window)


def _attention(q, k, v, lse=None, softmax_scale=0.0, causal=True, window_left=-1, window_right=-1):
    batch, queries, heads, width = q.shape
    keys, kv_heads = k.shape[1:3]
    if heads != kv_heads:
        q = q.unflatten(2, (kv_heads, heads // kv_heads))
        k, v = (x.unsqueeze(3).expand(*x.shape[:3], heads // kv_heads, width) for x in (k, v))
    options = {
        "attn_bias": _mask(queries, keys, causal, window_left, window_right),
        "scale": softmax_scale or None,
    }
    if lse is None:
        out = LIBRARY("memory_efficient_attention_forward")(q, k, v, **options)
    else:
        out, got = LIBRARY("memory_efficient_attention_forward_requires_grad")(q, k, v, **options)
        lse.copy_(got.reshape(batch, heads, -1)[..., :queries])  # may be padded
    return out.reshape(batch, queries, heads, width)


ROWS = (
    Row(
        "xformers::attention", "attention", "xformers", LIBRARY,
        "attention_backend xformers; f16 and bf16; head_dim a multiple of 8 up to 256; dense, where every row sees "
        "a key; windows",
        _attention, _declines,
    ),
)  # fmt: skip
