"""Sparse attention: n:m along the keys, a block layout, and a list of pages for each head of a paged cache."""

import numpy as np

import sagellm_kernel_fusion as kf

rng = np.random.default_rng(0)
q = rng.standard_normal((1, 512, 8, 64), dtype=np.float32)  # [batch, seqlen, num_heads, head_dim]
k = rng.standard_normal((1, 512, 2, 64), dtype=np.float32)
v = rng.standard_normal((1, 512, 2, 64), dtype=np.float32)
dense = kf.ops.attention(q, k, v)

# Of every four keys the two with the largest scores.
kept = kf.FusedSparseAttention("n:m", n=2, m=4)(q, k, v)

# Blocks of 64 tokens: each attends itself, its neighbour and the first. What is left out is not read.
near = np.tri(8, dtype=bool) & ~np.tri(8, k=-2, dtype=bool)
near[:, 0] = True
blocks = kf.FusedSparseAttention("block", block_layout=near, block_size=64)(q, k, v)

# One more token of a sequence whose 512 keys lie on 32 pages: each K/V head attends the eight that suit it best.
k_pool, v_pool = (x.reshape(32, 16, 2, 64).transpose(0, 2, 1, 3).copy() for x in (k[0], v[0]))
token = q[0, -1:]  # [tokens, num_heads, head_dim]
means = k_pool.mean(2)  # [pages, K/V heads, head_dim]
suits = np.einsum("hd,phd->hp", token[0].reshape(2, 4, 64).sum(1), means)
pages = kf.FusedSparseAttention("pages")(
    token, k_pool, v_pool, page_lists=np.argsort(-suits)[None, :, :8],
    block_tables=np.arange(32, dtype=np.int32)[None], context_lens=np.array([512], np.int32),
)  # fmt: skip

for name, out, exact in (("n:m", kept, dense), ("block", blocks, dense), ("pages", pages, dense[0, -1:])):
    off = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    print(f"{name}: {out.shape}, {off:.2f} from attention to all keys")
