"""Prefill and decode of one GGUF model by several engines, interleaved in one run.

    python bench/peers/model_peers.py [--model FILE] [--engines NAME ...] [--lengths N ...] [--out FILE]

In every round each engine does the same work on the same random tokens, one after the other, so that drift of
the machine hits all alike; a row gives the median of the rounds. Decode feeds every engine the same tokens.
Every row carries how far its logits are from the first engine's in this same run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial
from pathlib import Path

import engines
import numpy as np
import report
from gguf_llama import ordinary_tokens

ROOT = Path(__file__).resolve().parents[2]
SETTLE_S = 0.05  # lets the previous engine's OpenMP threads stop spinning


def timed(call, *args) -> tuple[float, np.ndarray]:
    """Milliseconds of one call, and its result."""
    start = time.perf_counter()
    result = call(*args)
    return (time.perf_counter() - start) * 1e3, result


def run_prefill(prompt: np.ndarray, engine) -> tuple[float, np.ndarray]:
    return timed(engine.prefill, prompt)


def run_decode(prompt: np.ndarray, following: np.ndarray, engine) -> tuple[float, np.ndarray]:
    """Mean milliseconds a token over `following`, after an untimed prefill and one untimed token."""
    engine.prefill(prompt)
    engine.decode(int(following[0]))
    start = time.perf_counter()
    for token in following[1:]:
        logits = engine.decode(int(token))
    return (time.perf_counter() - start) * 1e3 / (len(following) - 1), logits


def compare(peers, work, rounds: int) -> list[dict]:
    """Rounds of `work(engine)` over all engines: one row an engine, with the median and its check."""
    times, logits = {p.name: [] for p in peers}, {}
    for turn in range(rounds + 1):  # the first round warms up
        for peer in peers:
            time.sleep(SETTLE_S)
            ms, logits[peer.name] = work(peer)
            if turn:
                times[peer.name].append(ms)
    expected = logits[peers[0].name]
    rows = []
    for peer in peers:
        got = logits[peer.name]
        rows.append({
            "peer": peer.name,
            "version": report.version(peer.package),
            "precision": peer.precision,
            "ms": round(statistics.median(times[peer.name]), 3),
            "ms_min": round(min(times[peer.name]), 3),
            "ms_max": round(max(times[peer.name]), 3),
            "relative_error": float(f"{np.linalg.norm(got - expected) / np.linalg.norm(expected):.2e}"),
            "same_top_token": bool(got.argmax() == expected.argmax()),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=engines.NAMES,
        metavar="NAME",
        default=["transformers-sdpa", "transformers-eager", "llama.cpp"],
        help=f"the first one is what the others are checked against: {', '.join(engines.NAMES)}",
    )
    parser.add_argument("--what", nargs="+", choices=["prefill", "decode"], default=["prefill", "decode"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048], help="prompts of the prefill")
    parser.add_argument("--decode-after", type=int, default=512, help="prompt before the decode")
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count()))
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/model_peers.json")
    args = parser.parse_args()  # fmt: skip

    ordinary = ordinary_tokens(args.model)
    rng = np.random.default_rng(0)
    draw = lambda n: rng.choice(np.array(ordinary, np.int32), n)  # noqa: E731
    peers = engines.make(args.engines, args.model, args.threads, args.context)

    rows, watch = [], report.Watch()

    def measure(what: str, seq: int, tokens: int, work) -> None:
        for row in compare(peers, work, args.rounds):
            rate = tokens / row["ms"] * 1e3
            rows.append({"what": what, "seq": seq, "threads": args.threads, "tokens_per_s": round(rate, 1), **row})
            print(f"{what:8}{seq:6}  {row['peer']:24}{row['precision']:10}{row['ms']:10.2f} ms "
                  f"{rate:8.1f} tokens/s  error {row['relative_error']:.1e}", flush=True)  # fmt: skip

    if "prefill" in args.what:
        for seq in args.lengths:
            measure("prefill", seq, seq, partial(run_prefill, draw(seq)))
    if "decode" in args.what:
        work = partial(run_decode, draw(args.decode_after), draw(args.decode_tokens + 1))
        measure("decode", args.decode_after, 1, work)

    report.write(args.out, "model_peers", rows, watch, model=args.model.name, rounds=args.rounds, context=args.context,
                 decode_tokens=args.decode_tokens)  # fmt: skip


if __name__ == "__main__":
    main()
