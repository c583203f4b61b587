"""Decoding over a paged K/V cache: two sequences of unlike length in one pool, a token at a time."""

import numpy as np

import sagellm_kernel_fusion as kf

HEADS, KV_HEADS, WIDTH, PAGE = 8, 2, 64, 16
rng = np.random.default_rng(0)
m = kf.KernelFusionManager(kf.KernelFusionConfig(attention_backend="paged", page_size=PAGE, enable_fp16=False))


def tokens(count, heads):
    return rng.standard_normal((count, heads, WIDTH), dtype=np.float32)


# A pool of pages, and which of them each sequence has: in any order, -1 after the last.
k_pool, v_pool = m.make_kv_cache(num_pages=12, num_kv_heads=KV_HEADS, head_dim=WIDTH)
pages = np.array([[7, 2, 9, -1], [4, 11, -1, -1]], np.int32)
lengths = [37, 20]

# The prompts' keys and values go to the slots of their tokens: page * page size + row.
history = []
for row, length in zip(pages, lengths, strict=True):
    k, v, at = tokens(length, KV_HEADS), tokens(length, KV_HEADS), np.arange(length)
    m.append_kv(k, v, k_pool, v_pool, row[at // PAGE] * PAGE + at % PAGE)
    history.append((k, v))

for step in range(3):
    q, k, v = tokens(2, HEADS), tokens(2, KV_HEADS), tokens(2, KV_HEADS)  # one new token of each sequence
    at = np.array(lengths)
    m.append_kv(k, v, k_pool, v_pool, pages[np.arange(2), at // PAGE] * PAGE + at % PAGE)
    lengths = [n + 1 for n in lengths]
    tables = kf.BlockTables(pages, np.array(lengths, np.int32))
    out = m.fuse_attention(q, k_pool, v_pool, block_tables=tables)

    # The same over each sequence's keys and values side by side.
    history = [tuple(np.concatenate([old, new[i : i + 1]]) for old, new in zip(past, (k, v), strict=True))
               for i, past in enumerate(history)]  # fmt: skip
    for i, (keys, values) in enumerate(history):
        alone = kf.ops.attention(q[None, i : i + 1], keys[None], values[None])
        np.testing.assert_allclose(out[i], alone[0, 0], rtol=1e-5, atol=1e-5)
    print(f"step {step}: lengths {lengths}, out {out.shape}")

print(f"{m.get_stats()['ops']['attention']['calls']} calls of attention")
