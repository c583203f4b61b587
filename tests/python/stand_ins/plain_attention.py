"""Attention of one sequence in plain PyTorch, with the conventions that FlashAttention documents."""

import torch


def attend(q, k, v, scale, *, causal, left=-1, right=-1, softcap=0.0, slopes=None):
    """q [queries, heads, head_dim], k and v [keys, kv_heads, head_dim]; (out like q, lse f32 [heads, queries]). Rows
    that see no key: zeros and an lse of +infinity."""
    queries, heads, keys = len(q), q.shape[1], len(k)
    k, v = (x.repeat_interleave(heads // x.shape[1], 1).float() for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
    if slopes is not None:
        scores = scores - slopes[:, None, None] * distance.abs()
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        right = 0
    if left >= 0:
        seen &= distance <= left
    if right >= 0:
        seen &= -distance <= right
    lse = scores.masked_fill(~seen, -torch.inf).logsumexp(-1)
    empty = ~seen.any(-1)
    weights = torch.where(seen, (scores - lse[..., None]).exp(), 0.0)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype), lse.masked_fill(empty, torch.inf)


def of_pages(pool, table, length):
    """The first `length` rows of a sequence in a pool [pages, page_size, kv_heads, head_dim]."""
    used = -(-int(length) // pool.shape[1])
    pages = table[:used].long()
    assert ((pages >= 0) & (pages < len(pool))).all(), "block_table: a page that is not there"
    return pool[pages].flatten(0, 1)[: int(length)]


def check(condition, message):
    """As the TORCH_CHECK of the real ones."""
    if not condition:
        raise RuntimeError(message)
