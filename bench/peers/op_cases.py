"""The operator cases and how PyTorch computes each of them.

A case is an op at one shape and dtype: `inputs` makes its tensors, `peers` are the ways PyTorch offers to compute it
(a dict of name -> callable without arguments, returning the output), `flops` and `bytes` count what any
implementation must do: arithmetic of the unmasked part only, every input read and every output written once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

ROWS, COLS = 8192, 4096  # of the row-wise ops


@dataclass(frozen=True)
class Case:
    op: str
    shape: dict[str, int]
    dtype: torch.dtype
    flops: float
    bytes: float
    inputs: Callable[[Case], dict[str, torch.Tensor]] = field(repr=False)
    peers: Callable[[Case, dict[str, torch.Tensor]], dict[str, Callable]] = field(repr=False)

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        return "-".join([self.op, *(f"{k}{v}" for k, v in self.shape.items()), self.precision])


def attention(
    heads: int, kv_heads: int, head_dim: int, seqlen_q: int, seqlen_k: int, dtype: torch.dtype = torch.float32
) -> Case:
    """Causal (bottom-right) attention over q, k, v [1, seqlen, heads, head_dim]; one query row sees every key."""
    seen = seqlen_q * (seqlen_k - seqlen_q) + seqlen_q * (seqlen_q + 1) / 2

    def inputs(case):
        draw = lambda seqlen, n: torch.randn(1, seqlen, n, head_dim, dtype=case.dtype)  # noqa: E731
        return {"q": draw(seqlen_q, heads), "k": draw(seqlen_k, kv_heads), "v": draw(seqlen_k, kv_heads)}

    def peers(case, x):
        q, k, v = (x[name].transpose(1, 2) for name in "qkv")  # the layout F.scaled_dot_product_attention takes
        decode, groups, scale = seqlen_q == 1, heads // kv_heads, head_dim**-0.5
        # Query heads of one K/V head folded into rows: GQA without repeating K/V, the best case for the unfused form.
        hidden = torch.full((seqlen_q, seqlen_k), float("-inf"), dtype=case.dtype)
        mask = hidden.triu(seqlen_k - seqlen_q + 1).repeat(groups, 1)
        k_wide, v_wide = (t.repeat_interleave(groups, 1) for t in (k, v))  # ahead of time: a present to the peer

        def fused():
            return F.scaled_dot_product_attention(q, k, v, is_causal=not decode, enable_gqa=True).transpose(1, 2)

        def fused_wide():
            return F.scaled_dot_product_attention(q, k_wide, v_wide, is_causal=not decode).transpose(1, 2)

        def fused_packed():
            rows = q.reshape(1, kv_heads, groups, head_dim)
            return F.scaled_dot_product_attention(rows, k, v).reshape(1, 1, heads, head_dim)

        def unfused():
            rows = q.reshape(1, kv_heads, groups * seqlen_q, head_dim)
            scores = torch.matmul(rows, k.transpose(2, 3)) * scale
            if not decode:
                scores = scores + mask
            out = torch.matmul(torch.softmax(scores, -1), v)
            return out.reshape(1, heads, seqlen_q, head_dim).transpose(1, 2)

        found = {"fused": fused, "fused-repeated-kv": fused_wide, "unfused": unfused}
        return found | ({"fused-packed": fused_packed} if decode else {})

    shape = {"heads": heads, "kv": kv_heads, "dim": head_dim, "q": seqlen_q, "k": seqlen_k}
    size = dtype.itemsize * head_dim * (2 * seqlen_q * heads + 2 * seqlen_k * kv_heads)
    return Case("attention", shape, dtype, 4 * heads * head_dim * seen, size, inputs, peers)


def rowwise(op: str, dtype: torch.dtype) -> Case:
    """An op over ROWS x COLS. "eager" allocates its output, as PyTorch does; "out" writes into one that exists."""
    touched = {"read": 1, "silu_mul": 3}.get(op, 2)  # how many ROWS x COLS tensors are read or written

    def inputs(case):
        # A sum of numbers of both signs cancels, and its error says nothing: "read" sums positive ones.
        made = {"x": (torch.rand if op == "read" else torch.randn)(ROWS, COLS, dtype=dtype)}
        if op in ("rms_norm", "layer_norm"):
            made["weight"] = torch.rand(COLS, dtype=dtype) + 0.5
        if op == "layer_norm":
            made["bias"] = torch.randn(COLS, dtype=dtype)
        if op == "silu_mul":
            made["up"] = torch.randn(ROWS, COLS, dtype=dtype)
        return made

    def peers(case, t):
        x, weight, bias, up, out = t["x"], t.get("weight"), t.get("bias"), t.get("up"), torch.empty_like(t["x"])
        aten = torch.ops.aten
        return {
            "read": {"eager": lambda: x.sum()},
            "copy": {"eager": lambda: x.clone(), "out": lambda: out.copy_(x)},
            "rms_norm": {"eager": lambda: F.rms_norm(x, (COLS,), weight, 1e-6)},
            "layer_norm": {"eager": lambda: F.layer_norm(x, (COLS,), weight, bias, 1e-5)},
            "softmax": {
                "eager": lambda: torch.softmax(x, -1),
                "out": lambda: aten._softmax.out(x, -1, False, out=out),
            },
            "gelu": {
                "eager": lambda: F.gelu(x, approximate="tanh"),
                "out": lambda: aten.gelu.out(x, approximate="tanh", out=out),
            },
            "silu_mul": {
                "eager": lambda: F.silu(x) * up,
                "out": lambda: aten.silu.out(x, out=out).mul_(up),
            },
        }[op]  # fmt: skip

    size = touched * ROWS * COLS * dtype.itemsize
    return Case(op, {"rows": ROWS, "cols": COLS}, dtype, 0, size, inputs, peers)


def linear(tokens: int, in_features: int, out_features: int, dtype: torch.dtype = torch.float32) -> Case:
    """x @ W.T with torch.nn.Linear's weight layout, without bias."""

    def inputs(case):
        x, weight = torch.randn(tokens, in_features), torch.randn(out_features, in_features) / 16
        return {"x": x.to(dtype), "weight": weight.to(dtype)}

    def peers(case, t):
        x, weight, out = t["x"], t["weight"], torch.empty(tokens, out_features, dtype=case.dtype)
        return {"eager": lambda: F.linear(x, weight), "out": lambda: torch.mm(x, weight.T, out=out)}

    size = dtype.itemsize * (tokens * in_features + in_features * out_features + tokens * out_features)
    shape = {"tokens": tokens, "in": in_features, "out": out_features}
    return Case("linear", shape, dtype, 2.0 * tokens * in_features * out_features, size, inputs, peers)


def ffn(tokens: int, hidden: int, intermediate: int, dtype: torch.dtype = torch.float32) -> Case:
    """(silu(x @ gate.T) * (x @ up.T)) @ down.T: three linear layers and what lies between them in PyTorch."""

    def inputs(case):
        draw = lambda *shape: (torch.randn(*shape) / shape[-1] ** 0.5).to(dtype)  # noqa: E731
        weights = {"gate": draw(intermediate, hidden), "up": draw(intermediate, hidden)}
        return {"x": torch.randn(tokens, hidden).to(dtype), **weights, "down": draw(hidden, intermediate)}

    def peers(case, t):
        x, gate, up, down = (t[name] for name in ("x", "gate", "up", "down"))
        return {"three-layers": lambda: F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)}

    size = dtype.itemsize * (2 * tokens * hidden + 3 * hidden * intermediate)
    shape = {"tokens": tokens, "hidden": hidden, "intermediate": intermediate}
    return Case("ffn", shape, dtype, 6.0 * tokens * hidden * intermediate, size, inputs, peers)


CASES = [
    attention(32, 8, 128, 512, 512),
    attention(32, 8, 128, 2048, 2048),
    attention(9, 3, 64, 512, 512),
    attention(9, 3, 64, 2048, 2048),
    attention(32, 8, 128, 1, 4096),
    attention(9, 3, 64, 1, 512),
    *(attention(*heads, n, n, torch.bfloat16) for heads in ((32, 8, 128), (9, 3, 64)) for n in (512, 2048)),
    rowwise("read", torch.float32),
    *(rowwise(op, dtype) for dtype in (torch.float32, torch.bfloat16)
      for op in ("copy", "rms_norm", "layer_norm", "softmax", "gelu", "silu_mul")),
    *(linear(*shape) for shape in ((2048, 2048, 2048), (512, 4096, 4096), (512, 576, 1536), (512, 1536, 576),
                                   (1, 4096, 4096), (1, 576, 49152))),
    *(linear(*shape, torch.bfloat16) for shape in ((2048, 2048, 2048), (512, 4096, 4096), (512, 576, 1536))),
    *(ffn(tokens, *sizes, dtype) for dtype in (torch.float32, torch.bfloat16)
      for sizes in ((256, 768), (576, 1536), (1024, 2816), (2048, 5632)) for tokens in (1, 2, 4, 8, 16, 512)),
]  # fmt: skip
