"""What a call costs over its kernel, at shapes so small that nothing else shows: microseconds, the least of batches,
which are spread over seconds, since a machine that is shared changes its clock within such times.

    .venv/bin/python bench/call_overhead.py [--numpy] [--json FILE]

The kernel's own time is that of its plan run from C++ on operands of the same layout (as report() measures it). And
what the import costs in a new process, in seconds, the process itself taken off: without PyTorch, which it does not
load, and with bytecode that is there already, as pip leaves it (`python -m compileall python`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion.bench.environment import environment

BATCH, ROUNDS, PASSES = 500, 15, 12


def per_call_us(call) -> float:
    """The least over batches: what disturbs a batch only adds to it."""
    call()
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(BATCH):
            call()
        rounds.append((time.perf_counter() - start) / BATCH)
    return 1e6 * min(rounds)


def calls(m: kf.KernelFusionManager, make) -> dict:
    x, w, q = make(1, 16), make(16), make(1, 1, 2, 16)
    x3, tokens = x.reshape(1, 1, 16), q.reshape(1, 2, 16)
    square, out = make(16, 16), make(1, 16)
    pool = make(2, 2, 16, 16)
    tables, lengths = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    paged = {"block_tables": tables, "context_lens": lengths}
    return {
        "fuse_softmax": lambda: m.fuse_softmax(x),
        "fuse_softmax, out given": lambda: m.fuse_softmax(x, out=out),
        "fuse_rmsnorm": lambda: m.fuse_rmsnorm(x, w),
        "fuse_silu_linear": lambda: m.fuse_silu_linear(x, square),
        "fuse_ffn": lambda: m.fuse_ffn(x, square, square, square),
        "fuse_ffn, x [1, 1, 16]": lambda: m.fuse_ffn(x3, square, square, square),
        "fuse_attention": lambda: m.fuse_attention(q, q, q),
        "fuse_attention, paged": lambda: m.fuse_attention(tokens, pool, pool, **paged),
    }


def measure(kind: str, make) -> list[dict]:
    m = kf.KernelFusionManager(kf.KernelFusionConfig(num_threads=1))
    all_calls = calls(m, make)
    total, kernel = dict.fromkeys(all_calls, float("inf")), dict.fromkeys(all_calls, float("inf"))
    for _ in range(PASSES):
        for name, call in all_calls.items():
            m.reset()
            call()
            [seen] = m._core.distinct()
            replayed = m._core.replay(seen["kernel"], seen["shapes"], 0.02)
            kernel[name] = min(kernel[name], 1e6 * replayed["seconds"])
            total[name] = min(total[name], per_call_us(call))
    print(f"{kind}: call, kernel, over the kernel (us)")
    rows = []
    for name in all_calls:
        over = total[name] - kernel[name]
        print(f"  {name:28s} {total[name]:7.2f} {kernel[name]:7.2f} {over:7.2f}", flush=True)
        rows.append({"arrays": kind, "call": name, "call_us": total[name], "kernel_us": kernel[name], "over_us": over})
    return rows


def import_seconds(rounds: int = 12) -> dict[str, float]:
    """Of the package, and of NumPy, which is a part of it: the least of processes in turns."""
    codes = {
        "none": "",
        "numpy": "import numpy",
        "package": "import sys, sagellm_kernel_fusion; assert 'torch' not in sys.modules",
    }
    least = dict.fromkeys(codes, float("inf"))
    for _ in range(rounds):
        for name, code in codes.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            least[name] = min(least[name], time.perf_counter() - start)
    return {name: least[name] - least["none"] for name in ("package", "numpy")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numpy", action="store_true", help="NumPy's arrays as well")
    parser.add_argument("--json", type=Path, help="where to write the figures and what they were measured on")
    options = parser.parse_args()
    imported = import_seconds()
    print("import: {package:.3f} s, of which NumPy's {numpy:.3f} s".format(**imported))
    torch.manual_seed(0)
    with torch.inference_mode():
        rows = measure("torch", torch.randn)
    if options.numpy:
        rows += measure("numpy", lambda *shape: np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    if options.json:
        found = {"environment": environment(), "torch": torch.__version__, "import_s": imported, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
