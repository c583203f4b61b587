"""Decoding with PyTorch on a CUDA device, for kf_bench_model's shapes: one token a sequence over a static cache,
launched as it is (eager), and replayed from a CUDA graph, eager and compiled. Random weights; times by CUDA events,
kernels of a step by PyTorch's profiler. With --ours, our model of that shape in the same process, in turns with these;
its time is that of a step as its caller sees it, until the ids are on the host, with up to 300 more keys in the cache.

    python bench/peers/llama_decode_torch.py [--shape llama-3.2-1b] [--batch 1] [--context 512] [--ours] [--json FILE]
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

# hidden, intermediate, layers, heads, kv heads, head_dim, vocabulary
SHAPES = {
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 64, 128256),
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128, 128256),
}


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Layer(torch.nn.Module):
    def __init__(self, hidden, intermediate, heads, kv_heads, dim, batch, context):
        super().__init__()

        def weight(rows, columns):
            return torch.nn.Parameter(torch.randn(rows, columns) * columns**-0.5, requires_grad=False)

        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        self.q, self.k, self.v = (weight(n * dim, hidden) for n in (heads, kv_heads, kv_heads))
        self.o = weight(hidden, heads * dim)
        self.gate, self.up = weight(intermediate, hidden), weight(intermediate, hidden)
        self.down = weight(hidden, intermediate)
        self.norms = torch.nn.Parameter(torch.ones(2, hidden), requires_grad=False)
        self.register_buffer("keys", torch.randn(batch, kv_heads, context, dim))
        self.register_buffer("values", torch.randn(batch, kv_heads, context, dim))

    def forward(self, x, cos, sin, position):
        batch = x.shape[0]
        h = F.rms_norm(x, (x.shape[-1],), self.norms[0], 1e-5)
        q = F.linear(h, self.q).view(batch, self.heads, 1, self.dim)
        k = F.linear(h, self.k).view(batch, self.kv_heads, 1, self.dim)
        v = F.linear(h, self.v).view(batch, self.kv_heads, 1, self.dim)
        self.keys.index_copy_(2, position, rotate(k, cos, sin))
        self.values.index_copy_(2, position, v)
        a = F.scaled_dot_product_attention(rotate(q, cos, sin), self.keys, self.values, enable_gqa=True)
        x = x + F.linear(a.view(batch, -1), self.o)
        h = F.rms_norm(x, (x.shape[-1],), self.norms[1], 1e-5)
        return x + F.linear(F.silu(F.linear(h, self.gate)) * F.linear(h, self.up), self.down)


class Model(torch.nn.Module):
    def __init__(self, shape, batch, context):
        super().__init__()
        hidden, intermediate, layers, heads, kv_heads, dim, vocabulary = shape
        self.embedding = torch.nn.Parameter(torch.randn(vocabulary, hidden) * hidden**-0.5, requires_grad=False)
        self.norm = torch.nn.Parameter(torch.ones(hidden), requires_grad=False)
        self.layers = torch.nn.ModuleList(
            Layer(hidden, intermediate, heads, kv_heads, dim, batch, context) for _ in range(layers)
        )
        angles = torch.outer(torch.arange(context), 5e5 ** (-torch.arange(0, dim, 2) / dim))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids, position):
        x = F.embedding(ids, self.embedding)
        cos, sin = self.cos[position], self.sin[position]
        for layer in self.layers:
            x = layer(x, cos, sin, position)
        return F.linear(F.rms_norm(x, (x.shape[-1],), self.norm, 1e-5), self.embedding).argmax(-1)


CALLS, ROUNDS = 50, 5


def milliseconds(run):
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(CALLS):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / CALLS


def host_milliseconds(run):
    start = time.perf_counter()
    for _ in range(CALLS):
        run()
    return (time.perf_counter() - start) * 1e3 / CALLS


def kernels(run):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(
        e.device_type == torch.autograd.DeviceType.CUDA and not e.name.startswith("Mem") for e in profile.events()
    )


def our_step(shape, batch, context):
    """A step of our engine, replayed; and the launches of the last."""
    import numpy as np

    import sagellm_kernel_fusion as kf
    from sagellm_kernel_fusion.weights import random_model

    longest = context + 2 * CALLS * (ROUNDS + 1)
    model = kf.load_model(
        random_model(shape), device="cuda", context=longest, max_batch_size=batch, max_step_tokens=512, fusion="all"
    )
    engine, rng = model.engine, np.random.default_rng(0)
    sequences = [engine.create_sequence() for _ in range(batch)]
    for sequence in sequences:
        engine.step([(sequence, rng.integers(0, 1000, context - 1).astype(np.int32), "none")])
    ids = rng.integers(0, 1000, batch).astype(np.int32)

    def step():
        ids[:] = engine.step([(s, ids[i : i + 1], "last") for i, s in enumerate(sequences)], "ids")

    for _ in range(6):
        step()
    return step, lambda: engine.last_step["launches"]


def captured(run):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--ours", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    results = []
    for batch in args.batch:
        with torch.device("cuda"):
            model = Model(SHAPES[args.shape], batch, args.context).to(torch.bfloat16)
            ids = torch.randint(1000, (batch,))
            position = torch.tensor([args.context - 1])

        def step(model=model, ids=ids, position=position):
            ids.copy_(model(ids, position))

        step()
        counts = {"eager": kernels(step)}
        runs = {"eager": step, "eager, CUDA graph": captured(step)}
        for layer in model.layers:
            layer.compile()
        runs["compiled, CUDA graph"] = captured(step)
        counts["compiled, CUDA graph"] = kernels(step)
        clocks = dict.fromkeys(runs, milliseconds)
        if args.ours:
            runs["ours"], launches = our_step(args.shape, batch, args.context)
            clocks["ours"] = host_milliseconds
        measured = {name: [] for name in runs}
        for turn in range(ROUNDS + 1):
            for name, run in runs.items():
                value = clocks[name](run)
                if turn:  # the first warms up
                    measured[name].append(value)
        if args.ours:
            counts["ours"] = launches()
        times = {name: statistics.median(values) for name, values in measured.items()}
        print(args.shape, "batch", batch, {k: round(v, 3) for k, v in times.items()}, "kernels", counts, flush=True)
        results.append(
            {"shape": args.shape, "batch": batch, "context": args.context, "ms_per_step": times, "kernels": counts}
        )
        runs.clear()
        del model, step
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "results": results}, file, indent=1
            )


main()
