"""Operators in PyTorch against ours, interleaved in one run and checked against float64 in the same run.

    python bench/peers/op_peers.py [--only WORD ...] [--ours] [--reuse-memory] [--out FILE]

A round times every implementation of a case once, for long enough to be measured; a row gives the median of the
rounds. GB/s counts each input read and each output written once; GFLOP/s counts unmasked arithmetic only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import report
import torch
import torch.nn.functional as F
from op_cases import CASES, Case

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative to the norm of the float64 answer


def kf_callable(case: Case, inputs: dict[str, torch.Tensor], threads: int) -> dict[str, Callable]:
    """Our implementations of a case, by name: the one place where our library is called."""
    os.environ["KF_NUM_THREADS"] = str(threads)  # read when the library is loaded
    from sagellm_kernel_fusion import ops

    t = inputs
    calls = {
        "attention": lambda out=None: ops.attention(t["q"], t["k"], t["v"], out, causal=True),
        "rms_norm": lambda out=None: ops.rms_norm(t["x"], t["weight"], None, out, eps=1e-6),
        "layer_norm": lambda out=None: ops.layer_norm(t["x"], t["weight"], t["bias"], None, out, eps=1e-5),
        "softmax": lambda out=None: ops.softmax(t["x"], out),
        "gelu": lambda out=None: ops.activation(t["x"], out, kind="gelu_tanh"),
        "silu_mul": lambda out=None: ops.gated_activation(t["x"], t["up"], out),
        "linear": lambda out=None: ops.linear(t["x"], t["weight"], None, None, out),
        "ffn": lambda out=None: ops.gated_ffn(t["x"], t["gate"], t["up"], t["down"], None, out),
    }
    if case.op not in calls:
        return {}
    call = calls[case.op]
    memory = torch.empty_like(call())

    def into_memory():
        call(memory)
        return memory

    return {"kf-eager": call, "kf-out": into_memory}


def exact(case: Case, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The float64 answer, by the first peer's formula on widened inputs."""
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    x, shape = wide.get("x"), wide["x"].shape[-1:] if "x" in wide else None
    if case.op == "attention":
        q, k, v = (wide[name].transpose(1, 2) for name in "qkv")
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(k.shape[2] - q.shape[2] + 1)
        return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(1, 2)
    return {
        "read": lambda: x.sum(),
        "copy": lambda: x,
        "rms_norm": lambda: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * wide["weight"],
        "layer_norm": lambda: F.layer_norm(x, shape, wide["weight"], wide["bias"], 1e-5),
        "softmax": lambda: x.softmax(-1),
        "gelu": lambda: F.gelu(x, approximate="tanh"),
        "silu_mul": lambda: x * x.sigmoid() * wide["up"],
        "linear": lambda: x @ wide["weight"].T,
        "ffn": lambda: (F.silu(x @ wide["gate"].T) * (x @ wide["up"].T)) @ wide["down"].T,
    }[case.op]()


def reuse_memory() -> None:
    """Let glibc keep freed memory, for every library in the process: no page faults on each large output.

    By default PyTorch's outputs above 32 MB come from fresh pages in each call, which costs more than most row-wise
    ops do. A serving process that reuses its buffers does not pay that, so measure both ways.
    """
    libc, m_trim_threshold, m_mmap_max = ctypes.CDLL(None), -1, -4
    if not (libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, 2**31 - 1)):
        raise RuntimeError("mallopt refused")


def sample(call: Callable, seconds: float) -> float:
    """Milliseconds a call, over as many calls as fill `seconds` (one at least)."""
    start, count = time.perf_counter(), 0
    while True:
        call()
        count += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return elapsed * 1e3 / count


def compare(case: Case, rounds: int, seconds: float, threads: int, ours: bool) -> list[dict]:
    torch.manual_seed(0)
    inputs = case.inputs(case)
    calls = {f"torch-{name}": call for name, call in case.peers(case, inputs).items()}
    if ours:
        calls |= kf_callable(case, inputs, threads)
    expected = exact(case, inputs)
    errors = {name: float((call() - expected).norm() / expected.norm()) for name, call in calls.items()}
    del expected
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(0.005)  # lets the other side's OpenMP threads stop spinning
            call()
            times[name].append(sample(call, seconds))
    rows = []
    for name in calls:
        checked = errors[name] <= TOLERANCE[case.dtype]
        ms = statistics.median(times[name]) if checked else None  # no time for a wrong answer
        rows.append({
            "case": case.name, "op": case.op, **case.shape, "precision": case.precision, "threads": threads,
            "peer": name, "version": report.version("torch" if name.startswith("torch") else "sagellm-kernel-fusion"),
            "ms": ms and round(ms, 4),
            "ms_min": round(min(times[name]), 4), "ms_max": round(max(times[name]), 4),
            "gflops": ms and round(case.flops / ms / 1e6, 1),
            "gb_per_s": ms and round(case.bytes / ms / 1e6, 2),
            "relative_error": float(f"{errors[name]:.2e}"), "checked": checked,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="WORD", help="cases whose name contains one of these words")
    parser.add_argument("--ours", action="store_true", help="time our library too")
    parser.add_argument("--reuse-memory", action="store_true", help="keep freed memory in the process")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.05, help="at least this long a sample")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count()))
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/op_peers.json")
    args = parser.parse_args()

    if args.reuse_memory:
        reuse_memory()
    torch.set_num_threads(args.threads)
    rows, watch = [], report.Watch()
    with torch.inference_mode():
        for case in CASES:
            if args.only and not any(word in case.name for word in args.only):
                continue
            for row in compare(case, args.rounds, args.seconds, args.threads, args.ours):
                rows.append(row)
                print(f"{row['case']:50}{row['peer']:26}"
                      + (f"{row['ms']:10.3f} ms {row['gflops']:8.1f} GFLOP/s {row['gb_per_s']:7.2f} GB/s"
                         if row["checked"] else f"{'WRONG':>10}")
                      + f"  error {row['relative_error']:.0e}", flush=True)  # fmt: skip
    report.write(args.out, "op_peers", rows, watch, rounds=args.rounds, reuse_memory=args.reuse_memory)


if __name__ == "__main__":
    main()
