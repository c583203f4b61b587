"""The installed wheel, in the folder that is given: calls of each family against NumPy in f64, and where its libraries
come from."""

import platform
import sys
from importlib.metadata import version
from math import erf
from pathlib import Path

import ml_dtypes
import numpy as np

import sagellm_kernel_fusion as kf

ROUNDING = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float16): 2.0**-11, np.dtype(ml_dtypes.bfloat16): 2.0**-8}
rng = np.random.default_rng(11)
done = 0


def random(*shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def close(got, expected, terms=1):
    """Of the largest value the rounding of the result, and of f32 sums of so many terms, each of which may err as much
    as a term's magnitude, a few times larger than the sum."""
    global done
    bound = 4 * (ROUNDING[got.dtype] + terms * 2.0**-24) * np.abs(expected).max()
    error = np.abs(got.astype(np.float64) - expected).max()
    assert got.shape == expected.shape and error <= bound, (error, bound)
    done += 1


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q, k, v, causal):
    """[batch, tokens, heads, head_dim]."""
    k, v = (np.repeat(x, q.shape[2] // k.shape[2], 2) for x in (k, v))
    z = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    if causal:
        z += np.triu(np.full(z.shape[-2:], -np.inf), z.shape[-1] - z.shape[-2] + 1)
    return np.einsum("bhqk,bkhd->bqhd", softmax(z), v)


def silu(z):
    return z / (1 + np.exp(-z))


for dtype in ROUNDING:
    x, weight, bias = random(5, 96, dtype=dtype), random(96, dtype=dtype), random(96, dtype=dtype)
    x64, w64, b64 = (a.astype(np.float64) for a in (x, weight, bias))
    close(kf.ops.rms_norm(x=x, weight=weight), x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-6) * w64, 96)
    normed = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-5)
    close(kf.ops.layer_norm(x=x, weight=weight, bias=bias), normed * w64 + b64, 96)
    close(kf.ops.softmax(x=x), softmax(x64), 96)
    close(kf.ops.activation(x=x, kind="gelu"), x64 * (1 + np.vectorize(erf)(x64 / 2**0.5)) / 2)
    matrix = random(64, 96, dtype=dtype)
    product = x64 @ matrix.astype(np.float64).T
    close(kf.ops.linear(x=x, weight=matrix, bias=bias[:64]), product + b64[:64], 96)
    q, k, v = random(2, 7, 6, 32, dtype=dtype), random(2, 9, 2, 32, dtype=dtype), random(2, 9, 2, 32, dtype=dtype)
    expected = attend(*(a.astype(np.float64) for a in (q, k, v)), causal=True)
    close(kf.ops.attention(q=q, k=k, v=v), expected, 64)
    close(kf.ops.gated_activation(gate=x, up=x[::-1].copy()), silu(x64) * x64[::-1])

x, gate, up, down = random(3, 64), random(160, 64) / 8, random(160, 64) / 8, random(64, 160) / 12
hidden = silu(x.astype(np.float64) @ gate.T) * (x.astype(np.float64) @ up.T)
close(kf.ops.gated_ffn(x=x, gate_weight=gate, up_weight=up, down_weight=down), hidden @ down.T, 160)
for form in ("int8", "int4", "fp8"):
    weight = kf.quantize(random(64, 128), form)
    x = random(4, 128)
    close(kf.ops.linear(x=x, weight=weight), x.astype(np.float64) @ weight.dequantize().astype(np.float64).T, 128)

# A page pool: two sequences of 5 and 19 keys, whose last query attends.
pool = np.zeros((5, 2, 16, 32), np.float32), np.zeros((5, 2, 16, 32), np.float32)
tables, lengths = np.array([[3, 0], [1, 4]], np.int32), np.array([5, 19], np.int32)
k, v, q = random(24, 2, 32), random(24, 2, 32), random(2, 4, 32)
places = [(i, t) for i, n in enumerate(lengths) for t in range(n)]
slots = np.array([tables[i, t // 16] * 16 + t % 16 for i, t in places], np.int64)
kf.ops.append_kv(k=k, v=v, k_cache=pool[0], v_cache=pool[1], slot_mapping=slots)
out = kf.ops.attention(q=q, k=pool[0], v=pool[1], block_tables=tables, context_lens=lengths, kv_layout="HND")
ends = np.cumsum(lengths)
for i, (begin, end) in enumerate(zip(ends - lengths, ends, strict=True)):
    keys, values = (a[None, begin:end].astype(np.float64) for a in (k, v))
    close(out[i], attend(q[None, None, i].astype(np.float64), keys, values, causal=False)[0, 0], 64)

assert kf.__version__ == version("sagellm-kernel-fusion")
mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
for name in ("libdnnl", "libhwy", "libgomp"):
    paths = {p for p in mapped if Path(p).name.startswith(name)}
    assert paths and all(p.startswith(sys.argv[1]) for p in paths), (name, paths)
print(f"sagellm_kernel_fusion of the wheel on {platform.machine()}: {done} calls agree with NumPy")
