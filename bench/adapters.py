"""Kernels of other projects and ours in Triton beside the library's own, on a CUDA device: calls of a manager, one
after another on a stream, timed by CUDA events, the kernels in turns. Results are compared in the same run.

    python bench/adapters.py [--json FILE] [--rounds 7]

Of the projects, those that are installed (docs/adapters.md). A time is that of a call as it comes, with what its host
does, where that is longer than the device's work."""

from __future__ import annotations

import argparse
import json
import statistics

import torch

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import adapters

INSTALLED = {row.project for row in adapters.TABLE if row.library.missing() is None}
BACKENDS = {"flash_attn_3": "flash3", "fa3_fwd": "flash3", "xformers": "xformers", "cuDNN": "flash3"}
AGREE = 1e-2  # of bf16 results: the norm of the difference


def random(*shape, scale=1.0):
    return (torch.randn(shape, device="cuda") * scale).bfloat16()


def attention(batch, tokens, heads=32, kv_heads=8, dim=128):
    q, k = random(batch, tokens, heads, dim), random(batch, tokens, kv_heads, dim)
    return {"q": q, "k": k, "v": random(batch, tokens, kv_heads, dim)}


def decode(batch, length, page_size, heads=32, kv_heads=8, dim=128):
    pages = length // page_size
    return {
        "q": random(batch, heads, dim), "k": random(batch * pages, page_size, kv_heads, dim),
        "v": random(batch * pages, page_size, kv_heads, dim), "kv_layout": "NHD",
        "block_tables": torch.randperm(batch * pages, device="cuda", dtype=torch.int32).view(batch, pages),
        "context_lens": torch.full((batch,), length, dtype=torch.int32, device="cuda"),
    }  # fmt: skip


def weight(inputs, outputs):
    return random(outputs, inputs, scale=inputs**-0.5).t()


def rows(width=4096, count=16384, **more):
    return {"x": random(count, width)} | {name: random(width) for name in more}


CASES = [
    ("attention, causal, 4 x 2048 tokens, 32/8 heads of 128", "attention", lambda: attention(4, 2048)),
    ("attention, causal, 8192 tokens, 32/8 heads of 128", "attention", lambda: attention(1, 8192)),
    ("decode, 64 x 4096 tokens in pages of 16, 32/8 heads of 128", "attention", lambda: decode(64, 4096, 16)),
    ("decode, 64 x 4096 tokens in pages of 256, 32/8 heads of 128", "attention", lambda: decode(64, 4096, 256)),
    ("rms_norm, 16384x4096", "rmsnorm", lambda: rows(weight=True)),
    ("layer_norm, 16384x4096", "layernorm", lambda: rows(weight=True, bias=True)),
    ("softmax, 16384x4096", "softmax", rows),
    (
        "gated_activation, 8192x14336", "gated_activation",
        lambda: {"gate": random(8192, 14336), "up": random(8192, 14336)},
    ),
    (
        "gated FFN, 1024 tokens, 4096 to 14336", "ffn",
        lambda: {
            "x": random(1024, 4096), "gate_weight": weight(4096, 14336), "up_weight": weight(4096, 14336),
            "down_weight": weight(14336, 4096),
        },
    ),
    (
        "gelu, then linear, 4096x4096x4096", "gelu_linear",
        lambda: {"x": random(4096, 4096), "weight": weight(4096, 4096)},
    ),
    (
        "layer_norm, then linear, 4096x4096x4096", "layernorm_linear",
        lambda: {
            "x": random(4096, 4096), "ln_weight": random(4096), "ln_bias": random(4096),
            "linear_weight": weight(4096, 4096),
        },
    ),
]  # fmt: skip


def manager(project: str) -> kf.KernelFusionManager:
    libraries = [project] if project in adapters.LIBRARIES else []
    backend = BACKENDS.get(project, "flash2")
    return kf.KernelFusionManager(
        kf.KernelFusionConfig(libraries=libraries, use_triton=project == "triton", attention_backend=backend)
    )


def call_of(m: kf.KernelFusionManager, method: str, operands: dict):
    if hasattr(m, f"fuse_{method}"):
        function = getattr(m, f"fuse_{method}")
        return lambda: function(**operands)
    return lambda: m._core.call(method, operands, m.config.bound())


def microseconds(call, calls: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / calls


def measure(method: str, operands: dict, rounds: int) -> dict:
    """By kernel: us, and the difference from the library's own; for projects that decline, the reason."""
    known: dict[str, dict] = {}
    calls = {}
    expected = None
    for project in ["ours", "cuDNN", *sorted(INSTALLED)]:
        m = manager(project)
        if project == "cuDNN" and method != "attention":
            continue
        explained = m.explain(method, **operands)
        kernel = next((r["kernel"] for r in explained if r["selected"]), "none")
        if project not in ("ours", "cuDNN") and not kernel.startswith(f"{project}::"):
            if reasons := [r["reason"] for r in explained if r["kernel"].startswith(f"{project}::")]:
                known[f"{project}, declined"] = {"reason": reasons[0]}
            continue
        if kernel == "none" or kernel in known:
            continue
        call = call_of(m, method, operands)
        got = call().float()
        expected = got if expected is None else expected
        difference = float((got - expected).norm() / expected.norm())
        assert difference <= AGREE, f"{kernel}: {difference}"
        known[kernel] = {"difference": difference}
        calls[kernel] = call
    times = {kernel: [] for kernel in calls}
    number = max(3, int(1e4 / max(microseconds(c, 3) for c in calls.values())))
    for _ in range(rounds):
        for kernel, call in calls.items():
            times[kernel].append(microseconds(call, number))
    for kernel, measured in times.items():
        known[kernel]["us"] = statistics.median(measured)
    return known


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    results = {}
    for name, method, make in CASES:
        results[name] = measure(method, make(), args.rounds)
        print(name)
        for kernel, found in results[name].items():
            print(f"  {kernel:32}", f"{found['us']:9.1f} us" if "us" in found else found["reason"])
        torch.cuda.empty_cache()
    if args.json:
        device = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "installed": sorted(INSTALLED)}
        with open(args.json, "w") as file:
            json.dump(device | {"results": results}, file, indent=1)


if __name__ == "__main__":
    main()
