"""FlashInfer (https://github.com/flashinfer-ai/flashinfer): attention over one dense sequence or a paged cache in
either layout, and RMSNorm. Its log-sum-exp is of base 2, [tokens, heads]."""

from __future__ import annotations

import math
import threading

from .conditions import dtypes, head_dims, not_empty, one_token_each
from .library import Library
from .row import Row

_WORKSPACE_BYTES = 128 << 20  # what its documentation recommends
_KEPT = 4  # wrappers, and so workspaces
_HEAD_DIMS = (64, 128, 256, 512)
_PAGED = "BatchPrefillWithPagedKVCacheWrapper"
LIBRARY = Library(
    "flashinfer",
    "pip install flashinfer-python",
    "flashinfer 0.6.18 (flashinfer-ai/flashinfer fb28d724, flashinfer/prefill.py and norm)",
    {
        "single_prefill_with_kv_cache": (
            "q", "k", "v", "causal", "sm_scale", "window_left", "logits_soft_cap", "return_lse",
        ),
        _PAGED: ("float_workspace_buffer", "kv_layout"),
        f"{_PAGED}.plan": (
            "qo_indptr", "paged_kv_indptr", "paged_kv_indices", "paged_kv_last_page_len", "num_qo_heads",
            "num_kv_heads", "head_dim_qk", "page_size", "causal", "sm_scale", "window_left", "logits_soft_cap",
            "q_data_type",
        ),
        f"{_PAGED}.run": ("q", "paged_kv_cache", "out", "return_lse"),
        "rmsnorm": ("input", "weight", "eps", "out"),
    },
)  # fmt: skip


def _declines(
    q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, causal=True, window_right=-1, **rest
) -> str | None:
    if cu_seqlens_k is not None:
        return "cu_seqlens_k: this kernel takes one dense sequence or a paged cache"
    if block_tables is None and q.shape[0] != 1:
        return f"a batch of {q.shape[0]}: this kernel takes one dense sequence or a paged cache"
    if block_tables is None and causal and q.shape[1] > k.shape[1]:
        return f"{q.shape[1]} queries and {k.shape[1]} keys: this kernel takes no rows that see no key"
    if window_right >= 0 and not causal:
        return f"window_right {window_right}: this kernel takes windows to the left"
    return (
        dtypes({"q": q, "k": k, "v": v}, ("f16", "bf16"))
        or not_empty({"q": q, "k": k, "v": v})
        or head_dims(q, v, at_most=512, one_of=_HEAD_DIMS)
    )


def _attention(
    q, k, v, out, lse=None, cu_seqlens_q=None, block_tables=None, context_lens=None, kv_layout="HND",
    softmax_scale=0.0, causal=True, window_left=-1, window_right=-1, softcap=0.0,
):  # fmt: skip
    options = {
        "causal": causal,
        "sm_scale": softmax_scale or None,
        "window_left": window_left,
        "logits_soft_cap": softcap or None,
    }
    if block_tables is not None:
        got = _paged(q, k, v, out, cu_seqlens_q, block_tables, context_lens, kv_layout, lse is not None, options)
    else:
        result = LIBRARY("single_prefill_with_kv_cache")(q[0], k[0], v[0], return_lse=lse is not None, **options)
        result, got = result if lse is not None else (result, None)
        out[0].copy_(result)
        lse = None if lse is None else lse[0]
    if lse is not None:
        lse.copy_(got.t() * math.log(2))


class _Wrappers:
    """Its objects for paged caches, which hold workspaces and the plan of the next run: one for each device, layout and
    queue, used by one caller at a time. The last few are kept: queues come and go. A workspace that is let go returns
    to torch's allocator, which gives it to its queue's later work only."""

    def __init__(self):
        self._all: dict[tuple, object] = {}  # the one used last at the end
        self.lock = threading.Lock()

    def of(self, q, kv_layout: str):
        import torch

        queue = torch.cuda.current_stream(q.device).cuda_stream if q.is_cuda else 0
        key = q.device, kv_layout, queue
        wrapper = self._all.pop(key, None)
        if wrapper is None:
            while len(self._all) >= _KEPT:
                del self._all[next(iter(self._all))]
            workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
            wrapper = LIBRARY(_PAGED)(workspace, kv_layout)
        self._all[key] = wrapper
        return wrapper


_wrappers = _Wrappers()


def _paged(q, k, v, out, cu_seqlens_q, block_tables, context_lens, kv_layout, with_lse, options):
    import torch

    page_size, kv_heads = (k.shape[1], k.shape[2]) if kv_layout == "NHD" else (k.shape[2], k.shape[1])
    pages = (context_lens + (page_size - 1)) // page_size
    listed = torch.arange(block_tables.shape[1], device=q.device) < pages.unsqueeze(1)
    starts = torch.nn.functional.pad(pages.cumsum(0, dtype=torch.int32), (1, 0))
    last = (context_lens - 1) % page_size + 1
    if cu_seqlens_q is None:
        cu_seqlens_q = one_token_each(q.shape[0], q)
    with _wrappers.lock:
        wrapper = _wrappers.of(q, kv_layout)
        wrapper.plan(
            cu_seqlens_q, starts, block_tables[listed], last, q.shape[1], kv_heads, q.shape[2], page_size,
            q_data_type=q.dtype, **options,
        )  # fmt: skip
        result = wrapper.run(q, (k, v), out=out, return_lse=with_lse)
    return result[1] if with_lse else None


def _norm_declines(x, weight, **rest) -> str | None:
    if len(x.shape) != 2:
        return f"x has shape {list(x.shape)}: this kernel takes rows in two dimensions"
    return dtypes({"x": x, "weight": weight}, ("f16", "bf16")) or not_empty({"x": x})


def _rms_norm(x, weight, out, eps=1e-6):
    LIBRARY("rmsnorm")(x, weight, eps, out=out)


ROWS = (
    Row(
        "flashinfer::attention", "attention", "library", LIBRARY,
        f"f16 and bf16; head_dim {', '.join(map(str, _HEAD_DIMS))}; one dense sequence, or paged (HND or NHD); windows "
        "to the left, softcap",
        _attention, _declines,
    ),
    Row(
        "flashinfer::rms_norm", "rms_norm", "library", LIBRARY, "f16 and bf16, weight alike; x a matrix; no residual",
        _rms_norm, _norm_declines, graph_safe=True,
    ),
)  # fmt: skip
