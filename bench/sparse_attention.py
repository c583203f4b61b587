"""Attention under block layouts of several densities, in turns with dense attention within one run.

    python bench/sparse_attention.py [--seqlens 1024,2048,4096,8192] [--rounds 5] [--out FILE]

Prefill: blocks of 64 x 64, random, each query block with its own key block. Decode: one query over a paged cache, lists
of pages of 16 for each K/V head; the check has NaN in all pages that a head does not list. Each result
is checked first, against the library's reference (of prompts up to 1024 tokens).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np

import sagellm_kernel_fusion as kf

HEADS, KV_HEADS, HEAD_DIM, BLOCK, PAGE = 8, 2, 128, 64, 16
DENSITIES = (1.0, 0.5, 0.25, 0.1)


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def prefill(rng, seqlen: int):
    """Calls by name, and the share of query-key pairs that each attends."""
    q, k, v = normal(rng, 1, seqlen, HEADS, HEAD_DIM), *(normal(rng, 1, seqlen, KV_HEADS, HEAD_DIM) for _ in "kv")
    blocks, out = seqlen // BLOCK, np.empty_like(q)
    calls = {"dense": (lambda: kf.ops.attention(q, k, v, out), 1.0)}
    for density in DENSITIES:
        layout = np.tril(rng.random((1, HEADS, blocks, blocks)) < density)
        layout[..., range(blocks), range(blocks)] = True
        options = {"block_layout": layout, "block_size_q": BLOCK, "block_size_k": BLOCK}
        if seqlen <= 1024:
            expected = kf.ops.attention(q, k, v, **options, selection=kf.REFERENCE)
            np.testing.assert_allclose(kf.ops.attention(q, k, v, **options), expected, atol=2e-5)
        attended = layout.sum() / (HEADS * blocks * (blocks + 1) / 2)
        calls[f"density {density}"] = (lambda options=options: kf.ops.attention(q, k, v, out, **options), attended)
    return calls


def decode(rng, seqlen: int):
    pages = seqlen // PAGE
    q, out = normal(rng, 1, HEADS, HEAD_DIM), np.empty((1, HEADS, HEAD_DIM), np.float32)
    tables, lens = rng.permutation(pages).astype(np.int32)[None], np.array([seqlen], np.int32)
    paged = {"block_tables": tables, "context_lens": lens}
    pools = [normal(rng, pages, KV_HEADS, PAGE, HEAD_DIM) for _ in "kv"]
    calls = {"dense": (lambda: kf.ops.attention(q, *pools, out, **paged), 1.0)}
    for density in DENSITIES:
        count = max(1, round(pages * density))
        lists = np.sort(np.stack([rng.permutation(pages)[:count] for _ in range(KV_HEADS)])).astype(np.int32)
        options = {**paged, "block_layout": lists[None, :, None], "block_size_k": PAGE}
        poisoned = [np.full_like(pool, np.nan) for pool in pools]
        for head in range(KV_HEADS):
            for mine, pool in zip(poisoned, pools, strict=True):
                mine[tables[0, lists[head]], head] = pool[tables[0, lists[head]], head]
        expected = kf.ops.attention(q, *pools, **options, selection=kf.REFERENCE)
        np.testing.assert_allclose(kf.ops.attention(q, *poisoned, **options), expected, atol=2e-5)
        calls[f"density {density}"] = (
            lambda options=options: kf.ops.attention(q, *pools, out, **options),
            count / pages,
        )
    return calls


def measure(calls, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round, in which every call has its turn, for 30 ms at least."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, _) in calls.items():
            call()
            start, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - start < 0.03:
                call()
                count += 1
            times[name].append((time.perf_counter() - start) / count * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seqlens", default="1024,2048,4096,8192")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for seqlen in map(int, options.seqlens.split(",")):
        for stage, make in (("prefill", prefill), ("decode", decode)):
            calls = make(np.random.default_rng(seqlen), seqlen)
            ms = measure(calls, options.rounds)
            for name, (_, attended) in calls.items():
                least, of_dense = min(ms[name]), min(ms["dense"])
                rows.append(
                    {
                        "stage": stage, "seqlen": seqlen, "call": name, "attended": round(float(attended), 4),
                        "least_ms": round(least, 4), "median_ms": round(statistics.median(ms[name]), 4),
                        "share_of_dense": round(least / of_dense, 4),
                    }
                )  # fmt: skip
                print(f"{stage:8} {seqlen:5} {name:13} {attended:6.3f}  {least:9.3f} ms  {least / of_dense:.3f}")
    if options.out:
        head = {
            "op": "attention", "num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "dtype": "f32",
            "block": BLOCK, "page": PAGE, "threads": int(os.environ.get("KF_NUM_THREADS", os.cpu_count() or 1)),
            "rounds": options.rounds, "kf": kf.__version__,
        }  # fmt: skip
        text = json.dumps(head)[:-1] + ', "rows": [\n' + ",\n".join("  " + json.dumps(row) for row in rows) + "\n]}\n"
        options.out.write_text(text)


if __name__ == "__main__":
    main()
