"""Ours beside PyTorch on a CUDA device: rows (norms, softmax, activations, RoPE), attention of prompts and of single
tokens, the gated FFN, a norm or a GELU and the linear layer after it; and ours beside our own unfused form.

    python bench/peers/cuda_peers.py [--groups rows,prefill,decode,ffn,linear,vanilla] [--rounds 7] [--json FILE]

All of bf16, random data. Each contender is captured as a CUDA graph of calls over operands that take turns, so that
the second-level cache does not hold them; graphs are replayed in turns and timed by CUDA events, a figure is the median
of the rounds. What each gives is compared with PyTorch's f32 arithmetic over the same values in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import ops
from sagellm_kernel_fusion.call import Selection

BF16 = torch.bfloat16
CACHE = 60e6
AGREE = 1e-2  # relative, in the 2-norm
VANILLA = Selection(families=("vanilla",))


def random(*shape, scale=1.0, dtype=BF16):
    return (torch.randn(shape, device="cuda", dtype=torch.float32) * scale).to(dtype)


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def tensors_of(result):
    return result if isinstance(result, (tuple, list)) else [result]


def bytes_of(*operands) -> int:
    return sum(t.nbytes for t in operands if isinstance(t, torch.Tensor))


class Contender:
    """Calls over several sets of operands, captured."""

    def __init__(self, call, sets: list[dict]):
        self.calls, self.us, kept = len(sets), [], []
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.result = [t.clone() for t in tensors_of(call(**sets[0]))]
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for operands in sets:
                kept.append(call(**operands))  # results of their own, as operands
        self.kept = kept

    def time(self, replays: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(replays):
            self.graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / replays / self.calls


def race(make, contenders: dict, reference, rounds: int, copied_bytes: int = 0, apart: dict | None = None) -> dict:
    """us of each contender. `make` gives one set of operands, `reference` what is right, from f32."""
    first = make()
    expected = [t.float() for t in tensors_of(reference(**first))]
    size = max(bytes_of(*first.values()), 1)
    sets = [first] + [make() for _ in range(min(31, int(4 * CACHE // size)))]
    rows, running = {}, {}
    for name, call in contenders.items():
        try:
            running[name] = c = Contender(call, sets)
        except Exception as error:
            rows[name] = {"refused": str(error).splitlines()[0][:160]}
            continue
        difference = max(
            float((a.float().reshape(b.shape) - b).norm() / b.norm()) for a, b in zip(c.result, expected, strict=False)
        )
        assert difference <= AGREE, f"{name}: {difference}"
        rows[name] = {"error": difference}
    if copied_bytes:
        pairs = [
            {"a": torch.empty(copied_bytes // 4, dtype=BF16, device="cuda"), "b": random(copied_bytes // 4)}
            for _ in range(min(32, 1 + int(4 * CACHE // copied_bytes)))
        ]
        running["copy"] = Contender(lambda a, b: a.copy_(b), pairs)
        rows["copy"] = {"bytes": copied_bytes}
    replays = {}
    for name, c in running.items():
        replays[name] = max(1, int(2e4 / max(c.time(2), 0.1) / c.calls))
    for _ in range(rounds):
        for name, c in running.items():
            c.us.append(c.time(min(replays[name], 200)))
    for name, c in running.items():
        rows[name] |= {"us": statistics.median(c.us), "fastest_us": min(c.us), "slowest_us": max(c.us)}
    return rows


def f32(function):
    """The function over operands in f32."""

    def call(**operands):
        return function(**{
            n: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for n, x in operands.items()
        })  # fmt: skip

    return call


# Rows


def rotate(x, positions, cos, sin):
    a, b = x.chunk(2, -1)
    c, s = cos[positions][:, None].to(x.dtype), sin[positions][:, None].to(x.dtype)
    return torch.cat((a * c - b * s, b * c + a * s), -1)


def norm_cases(width):
    rms = (lambda x, w: ops.rms_norm(x, w, eps=1e-6)), (lambda x, w: F.rms_norm(x, (width,), w, 1e-6))
    layer = (
        lambda x, w, b: ops.layer_norm(x, w, b, eps=1e-5),
        lambda x, w, b: F.layer_norm(x, (width,), w, b, 1e-5),
    )

    def add_rms(x, r, w):
        h = x + r
        return F.rms_norm(h, (width,), w, 1e-6), h

    def add_layer(x, r, w, b):
        h = x + r
        return F.layer_norm(h, (width,), w, b, 1e-5), h

    return {
        "rms_norm": (*rms, "xw", 2),
        "layer_norm": (*layer, "xwb", 2),
        "add + rms_norm": (
            lambda x, r, w: ops.rms_norm(x, w, residual=r, residual_out=True, eps=1e-6), add_rms, "xrw", 4,
        ),
        "add + layer_norm": (
            lambda x, r, w, b: ops.layer_norm(x, w, b, residual=r, residual_out=True, eps=1e-5), add_layer, "xrwb", 4,
        ),
    }  # fmt: skip


def row_cases(width):
    return norm_cases(width) | {
        "softmax": (ops.softmax, lambda x: torch.softmax(x, -1), "x", 2),
        "gelu": (lambda x: ops.activation(x, kind="gelu"), F.gelu, "x", 2),
        "silu(gate) up": (lambda x, r: ops.gated_activation(x, r), lambda x, r: F.silu(x) * r, "xr", 3),
    }


def rows(rounds, say):
    for count, width in ((16384, 4096), (2048, 16384), (8192, 1024), (8192, 128), (1, 4096)):
        for name, (ours, theirs, operands, passes) in row_cases(width).items():
            shapes = {"x": (count, width), "r": (count, width), "w": (width,), "b": (width,)}

            def make(operands=operands, shapes=shapes):
                return {n: random(*shapes[n]) for n in operands}

            contenders = {"ours": ours, "PyTorch": theirs, "torch.compile": compiled(theirs)}
            say(f"{name}, {count}x{width}", race(make, contenders, f32(theirs), rounds, passes * count * width * 2))
    angles = torch.outer(torch.arange(4096.0), 5e5 ** (-torch.arange(0, 128, 2) / 128)).cuda()
    for tokens in (4096, 1):

        def make(tokens=tokens):
            positions = torch.arange(tokens, device="cuda", dtype=torch.int32)
            return {"x": random(tokens, 32, 128), "positions": positions, "cos": angles.cos(), "sin": angles.sin()}

        contenders = {"ours": ops.rope, "PyTorch": rotate, "torch.compile": compiled(rotate)}
        say(f"rope, {tokens} tokens, 32 heads of 128", race(make, contenders, f32(rotate), rounds, tokens * 16384))


# Attention


def attend(q, k, v, causal, backend=None):
    """PyTorch's, over [batch, tokens, heads, dim]; from f32 by the mathematics' own formula."""
    if backend is None:
        backend = SDPBackend.MATH
    with sdpa_kernel(backend):
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2)


def exact(q, k, v, causal):
    """The last 64 queries' in f32: all of a long prompt's scores would not fit."""
    n = min(64, q.shape[1])
    q, k, v = q[:, -n:].transpose(1, 2).float(), k.transpose(1, 2).float(), v.transpose(1, 2).float()
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(n, k.shape[2], dtype=torch.bool, device="cuda").triu(k.shape[2] - n + 1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def checked(call, queries):
    """Of the first result only the queries that `exact` has."""
    return lambda **operands: call(**operands)[:, -min(64, queries) :]


def manager(backend="flash2"):
    return kf.KernelFusionManager(kf.KernelFusionConfig(libraries=[], attention_backend=backend))


def fa3():
    try:
        import fa3_fwd_interface
    except ImportError:
        return None
    return fa3_fwd_interface


def prefill(rounds, say):
    flash2, flash3, peer = manager(), manager("flash3"), fa3()
    shapes = [(64, 32, 32, False), (64, 32, 32, True), (128, 16, 16, False), (128, 16, 16, True), (128, 32, 8, True),
              (256, 8, 8, True)]  # fmt: skip
    for dim, heads, kv_heads, causal in shapes:
        for tokens in (512, 1024, 2048, 4096, 8192, 16384):

            def make(batch=16384 // tokens, tokens=tokens, heads=heads, kv_heads=kv_heads, dim=dim):
                kv = (random(batch, tokens, kv_heads, dim) for _ in range(2))
                return dict(zip("qkv", (random(batch, tokens, heads, dim), *kv), strict=True))

            contenders = {
                "ours, flash2": partial(flash2.fuse_attention, causal=causal),
                "ours, cuDNN": partial(flash3.fuse_attention, causal=causal),
                "PyTorch, FlashAttention-2": partial(attend, causal=causal, backend=SDPBackend.FLASH_ATTENTION),
                "PyTorch, cuDNN": partial(attend, causal=causal, backend=SDPBackend.CUDNN_ATTENTION),
            }
            if peer is not None:
                contenders["FlashAttention-3"] = lambda q, k, v, causal=causal: tensors_of(
                    peer.flash_attn_func(q, k, v, causal=causal)
                )[0]
            contenders = {name: checked(call, tokens) for name, call in contenders.items()}
            found = race(make, contenders, partial(exact, causal=causal), rounds)
            flops = 4 * 16384 * tokens * heads * dim / (2 if causal else 1)
            for row in found.values():
                if "us" in row:
                    row["tflops"] = flops / row["us"] * 1e-6
            name = f"{16384 // tokens} x {tokens} tokens, {heads}/{kv_heads} heads of {dim}"
            say(name + (", causal" if causal else ""), found)


def decode(rounds, say):
    ours, peer = manager(), fa3()
    sizes = ((1, 4096), (1, 32768), (1, 131072), (8, 8192), (16, 4096), (64, 4096), (128, 2048), (256, 1024))
    for batch, length in sizes:
        pages = batch * length // 16

        def make(batch=batch, length=length, pages=pages):
            return {
                "q": random(batch, 1, 32, 128), "k": random(batch, length, 8, 128), "v": random(batch, length, 8, 128),
                "tables": torch.randperm(pages, device="cuda", dtype=torch.int32).view(batch, -1),
                "lengths": torch.full((batch,), length, dtype=torch.int32, device="cuda"),
            }  # fmt: skip

        def plain(call):
            return lambda q, k, v, tables, lengths: call(q, k, v)

        def paged(q, k, v, tables, lengths):
            """The same keys as pages, in the order of the tables."""
            return ours.fuse_attention(
                q[:, 0], k.view(-1, 16, 8, 128), v.view(-1, 16, 8, 128), kv_layout="NHD", block_tables=tables,
                context_lens=lengths,
            )  # fmt: skip

        def gathered(q, k, v, tables, lengths):
            k, v = (t.view(-1, 16, 8, 128)[tables].view(k.shape) for t in (k, v))
            return exact(q, k, v, False)[:, 0]

        contenders = {
            "ours": plain(ours.fuse_attention),
            "PyTorch, FlashAttention-2": plain(partial(attend, causal=False, backend=SDPBackend.FLASH_ATTENTION)),
            "PyTorch, cuDNN": plain(partial(attend, causal=False, backend=SDPBackend.CUDNN_ATTENTION)),
        }
        if peer is not None:
            contenders["FlashAttention-3"] = lambda q, k, v, tables, lengths: peer.flash_attn_with_kvcache(
                q, k, v, cache_seqlens=lengths
            )
        reference = plain(partial(exact, causal=False))
        found = race(make, contenders, reference, rounds)
        found |= race(make, {"ours, paged": paged}, gathered, rounds)
        for row in found.values():
            if "us" in row:
                row["tb_per_s"] = batch * length * 4096 / row["us"] * 1e-6
        say(f"{batch} x {length} keys, 32/8 heads of 128", found)


# Linear layers


def eager_ffn(x, gate, up, down):
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def two_products(x, gate_up, down):
    gate, up = F.linear(x, gate_up).chunk(2, -1)
    return F.linear(F.silu(gate) * up, down)


def products(x, gate_up, down):
    return F.linear(F.linear(x, gate_up)[:, : down.shape[1]], down)


def split(call):
    def halves(x, gate_up, down):
        gate, up = gate_up.chunk(2, 0)
        return call(x, gate, up, down)

    return halves


def ffn(rounds, say):
    for hidden, inner in ((4096, 14336), (2048, 8192)):
        for tokens in (1, 4, 16, 64, 1024, 4096):

            def make(tokens=tokens, hidden=hidden, inner=inner):
                return {
                    "x": random(tokens, hidden), "gate_up": random(2 * inner, hidden, scale=hidden**-0.5),
                    "down": random(hidden, inner, scale=inner**-0.5),
                }  # fmt: skip

            contenders = {
                "ours": split(ops.gated_ffn),
                "ours, unfused": split(partial(ops.gated_ffn, selection=VANILLA)),
                "PyTorch": split(eager_ffn),
                "PyTorch, two products": two_products,
                "torch.compile": compiled(split(eager_ffn)),
                "torch.compile, two products": compiled(two_products),
            }
            found = race(make, contenders, f32(two_products), rounds)
            # Without the activation it gives something else.
            found |= race(make, {"the products alone": products}, f32(products), rounds)
            say(f"gated FFN {hidden}x{inner}, {tokens} tokens", found)


def linear(rounds, say):
    def make():
        return {
            "x": random(4096, 4096), "w": random(4096, 4096, scale=1 / 64), "n": random(4096), "b": random(4096),
        }  # fmt: skip

    def layer_norm(x, w, n, b):
        return F.linear(F.layer_norm(x, (4096,), n, b, 1e-5), w)

    def rms_norm(x, w, n, b):
        return F.linear(F.rms_norm(x, (4096,), n, 1e-5), w)

    def gelu(x, w, n, b):
        return F.linear(F.gelu(x), w)

    cases = {
        "layer_norm, then linear": (
            lambda x, w, n, b: ops.linear(x, w, norm="layer", norm_weight=n, norm_bias=b, eps=1e-5), layer_norm,
        ),
        "rms_norm, then linear": (
            lambda x, w, n, b: ops.linear(x, w, norm="rms", norm_weight=n, eps=1e-5), rms_norm,
        ),
        "gelu, then linear": (lambda x, w, n, b: ops.linear(x, w, pre_activation="gelu"), gelu),
    }  # fmt: skip
    alone = {"the product alone": lambda x, w, n, b: F.linear(x, w)}
    for name, (ours, theirs) in cases.items():
        found = race(make, {"ours": ours, "PyTorch": theirs, "torch.compile": compiled(theirs)}, f32(theirs), rounds)
        found |= race(make, alone, f32(alone["the product alone"]), rounds)
        say(f"{name}, 4096x4096x4096", found)


# Our own unfused form


def vanilla(rounds, say):
    fused, unfused = manager(), manager("vanilla")
    for batch, queries, length in ((1, 1, 1024), (1, 1, 4096), (16, 1, 1024), (64, 1, 4096), (1, 1024, 1024),
                                   (4, 2048, 2048)):  # fmt: skip

        def make(batch=batch, queries=queries, length=length):
            kv = (random(batch, length, 8, 128) for _ in range(2))
            return dict(zip("qkv", (random(batch, queries, 32, 128), *kv), strict=True))

        contenders = {"ours": fused.fuse_attention, "ours, unfused": unfused.fuse_attention}
        contenders = {name: checked(call, queries) for name, call in contenders.items()}
        found = race(make, contenders, partial(exact, causal=True), rounds)
        operands = make()
        for name, m in (("ours", fused), ("ours, unfused", unfused)):
            found[name]["workspace_bytes"] = m.plan("attention", **operands)["workspace_bytes"]
            found[name]["kernel"] = m.plan("attention", **operands)["kernel"]
            found[name]["result_bytes"] = operands["q"].nbytes
        say(f"attention against unfused, {batch} x {queries} queries of {length} keys", found)


GROUPS = {f.__name__: f for f in (rows, prefill, decode, ffn, linear, vanilla)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    results = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
               "cudnn": torch.backends.cudnn.version(), "rounds": args.rounds, "results": {}}  # fmt: skip
    for group in args.groups.split(","):
        of_group = results["results"].setdefault(group, {})

        def say(name, found, of_group=of_group):
            of_group[name] = found
            times = (f"{n} {r['us']:.1f}" if "us" in r else f"{n} refused: {r['refused']}" for n, r in found.items())
            print(name, "; ".join(times), flush=True)
            torch.cuda.empty_cache()

        try:
            GROUPS[group](args.rounds, say)
        except Exception as error:  # the other groups' figures stand
            of_group["failed"] = repr(error)
            print(group, "failed:", repr(error), flush=True)
        if args.json:
            with open(args.json, "w") as file:
                json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
