"""transformers' generate() on the CPU with eager and sdpa attention and with fuse_model: time to the first token, time
a token after it, and peak memory.

    .venv/bin/python bench/fuse_model.py [--prompt N] [--tokens N] [--rounds N] [--threads N] [--json FILE]

One model's weights serve all three. They generate in turns, and the tokens of every run are compared; a figure is the
median of the rounds. Memory is that of a process of each one's own: resident after loading and after preparing, and the
peak of generating.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers.generation.streamers import BaseStreamer

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion.bench.environment import environment

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench/peers"))
from gguf_llama import load_model  # noqa: E402
from report import version  # noqa: E402

FORMS = ("eager", "sdpa", "fused")


class Clock(BaseStreamer):
    """When each token came; the prompt comes first."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None: ...


def prepared(model, form: str, threads: int):
    """A model of this form over the same parameters."""
    shared = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    if form == "fused":
        done = kf.fuse_model(shared, kf.KernelFusionConfig(num_threads=threads))
        assert not done.refused, done
    else:
        shared.set_attn_implementation(form)
    assert all(a is b for a, b in zip(model.parameters(), shared.parameters(), strict=True)), "weights were copied"
    return shared


def generate(model, prompt, tokens: int) -> tuple[list[int], float, float]:
    """The tokens, seconds to the first, and seconds a token after it."""
    clock, start = Clock(), time.perf_counter()
    out = model.generate(
        prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, streamer=clock, pad_token_id=0
    )
    first, last = clock.times[1], clock.times[-1]
    return out[0, prompt.shape[1] :].tolist(), first - start, (last - first) / (tokens - 1)


def resident_mb(field: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def memory_of(form: str, args, prompt) -> dict:
    """In this process, which does nothing else."""
    model = load_model(args.model, attention="eager" if form == "eager" else "sdpa")
    loaded = resident_mb("VmRSS")
    if form == "fused":
        kf.fuse_model(model, kf.KernelFusionConfig(num_threads=args.threads))
    ready = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    generate(model, prompt, args.tokens)
    return {"loaded_mb": loaded, "prepared_mb": ready, "peak_mb": resident_mb("VmHWM")}


def memory_in_a_process(form: str) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", form]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompt = torch.randint(100, 40000, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of, args, prompt)))
        return

    model = load_model(args.model)
    models = {form: prepared(model, form, args.threads) for form in FORMS}
    runs: dict[str, list] = {form: [] for form in FORMS}
    for turn in range(args.rounds + 1):  # the first warms up
        results = {form: generate(models[form], prompt, args.tokens) for form in FORMS}
        tokens = {form: result[0] for form, result in results.items()}
        assert tokens["fused"] == tokens["sdpa"] == tokens["eager"], tokens
        if turn:
            for form in FORMS:
                runs[form].append(results[form][1:])
    rows = {
        form: {
            "first_token_ms": 1e3 * statistics.median(first for first, _ in runs[form]),
            "token_ms": 1e3 * statistics.median(each for _, each in runs[form]),
            "first_token_ms_all": [round(1e3 * first, 2) for first, _ in runs[form]],
            "token_ms_all": [round(1e3 * each, 3) for _, each in runs[form]],
        }
        | memory_in_a_process(form)
        for form in FORMS
    }
    print(f"prompt of {args.prompt}, {args.tokens} tokens, the same of all; {args.threads} threads, f32")
    print("         first token    a token    resident   prepared       peak")
    for form, row in rows.items():
        print(
            f"{form:6} {row['first_token_ms']:10.1f} ms {row['token_ms']:7.2f} ms {row['loaded_mb']:8.0f} MB "
            f"{row['prepared_mb']:7.0f} MB {row['peak_mb']:7.0f} MB"
        )
    for form in ("eager", "sdpa"):
        gains = (rows[form][name] / rows["fused"][name] for name in ("first_token_ms", "token_ms"))
        print("fused against {}: {:.2f}x to the first token, {:.2f}x a token".format(form, *gains))
    if args.json:
        versions = {name: version(name) for name in ("torch", "transformers")}
        values = {"environment": environment() | {"packages": versions}, "model": args.model.name, "rows": rows}
        values |= {"prompt": args.prompt, "tokens": args.tokens, "rounds": args.rounds, "threads": args.threads}
        args.json.write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
