"""The error of every op against float64, next to PyTorch's own at the same dtype: at most 1.5 times as large.

docs/numerics.md says what arithmetic lies behind. Errors are in units of the roundoff of the result: of each element
where it is a function of few, else of its row's largest (what is summed to nearly nothing has no digits to speak of).
What is compared is the root mean square of them, which hardly varies with the data; the single largest varies by half
from one seed to the next, of PyTorch's too, and may be twice PyTorch's.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from sagellm_kernel_fusion import ops

torch = pytest.importorskip("torch")
functional = torch.nn.functional

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ROUNDOFF = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
SMALLEST = {"f32": 2.0**-149, "f16": 2.0**-24, "bf16": 2.0**-133}
RATIO, RATIO_OF_LARGEST = 1.5, 2.0
# What rounding an exact result once leaves, in roundoffs: at most one, evenly spread. Always allowed.
ROUNDED_ONCE, ROUNDED_ONCE_RMS = 1.0, 3**-0.5


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture
def g():
    return torch.Generator().manual_seed(12)


def randn(g, dtype, *shape, scale=1.0):
    return (torch.randn(*shape, generator=g) * scale).to(DTYPES[dtype])


def elementwise_error(got, exact, dtype):
    """Errors in roundoffs of the element; denormals in their spacing."""
    unit = torch.maximum(exact.abs() * ROUNDOFF[dtype], torch.tensor(SMALLEST[dtype] / 2, dtype=torch.float64))
    return (got.double() - exact).abs() / unit


def row_error(got, exact, dtype):
    """Errors in roundoffs of the largest element of the row."""
    unit = exact.abs().amax(-1, keepdim=True).clamp_min(1e-30) * ROUNDOFF[dtype]
    return (got.double() - exact).abs() / unit


def of_magnitudes(magnitudes):
    """Errors in roundoffs of the sum of magnitudes, which is what the order of a sum can be held to.

    Of 16-bit results, in their own roundoffs of the row's largest."""

    def error(got, exact, dtype):
        if dtype != "f32":
            return row_error(got, exact, dtype)
        return (got.double() - exact).abs() / (magnitudes * ROUNDOFF["f32"] + 1e-300)

    return error


def compare(ours, theirs, rounded_once=True):
    ours, theirs = ours.flatten(), theirs.flatten()
    for name, ratio, figure, least in [
        ("root mean square", RATIO, lambda e: float(e.square().mean().sqrt()), ROUNDED_ONCE_RMS),
        ("largest", RATIO_OF_LARGEST, lambda e: float(e.max()), ROUNDED_ONCE),
    ]:
        a, b = figure(ours), figure(theirs)
        assert a <= max(ratio * b, least if rounded_once else 0), f"{name} {a:.4g} roundoffs, PyTorch's {b:.4g}"


def no_worse(error, got, pytorch, exact, dtype):
    compare(error(got, exact, dtype), error(pytorch, exact, dtype))


def sum_no_worse(magnitudes, got, pytorch, exact, dtype):
    """Without the rounding of the result in f32: next to the magnitudes it is nothing."""
    error = of_magnitudes(magnitudes)
    compare(error(got, exact, dtype), error(pytorch, exact, dtype), rounded_once=dtype != "f32")


def rows_of(n):
    """So many that the errors of a few rows do not decide."""
    return max(16, 20000 // n)


# Functions of an element


def activation64(kind, x):
    x = x.double()
    if kind == "silu":
        return x / (1 + torch.exp(-x))
    if kind == "gelu":  # by erfc, which keeps its digits in the tail
        return x / 2 * torch.special.erfc(-x / math.sqrt(2))
    if kind == "gelu_tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return x / (1 + torch.exp(-2 * inner))
    return torch.relu(x)


PYTORCH_ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}


def spread(dtype):
    """Magnitudes from the denormals to where an activation is 0 or x, of both signs, and dense where it bends."""
    wide = torch.logspace(-20, 4.8, 4001, dtype=torch.float64)
    near = torch.linspace(0, 6, 20001, dtype=torch.float64)
    return torch.cat([wide, -wide, near, -near]).to(DTYPES[dtype])


@pytest.mark.parametrize("kind", PYTORCH_ACTIVATIONS)
def test_activations(kind, dtype):
    x = spread(dtype)
    exact, got, pytorch = activation64(kind, x), ops.activation(x, kind=kind), PYTORCH_ACTIVATIONS[kind](x)
    # Of the largest: PyTorch's tails lose their digits as well.
    unit = ROUNDOFF[dtype] * torch.maximum(exact.abs(), x.double().abs().clamp_max(1) * 2.0**-2) + SMALLEST[dtype]
    compare((got.double() - exact).abs() / unit, (pytorch.double() - exact).abs() / unit)


@pytest.mark.parametrize("kind", PYTORCH_ACTIVATIONS)
def test_gated_activations(kind, dtype, g):
    gate, up = randn(g, dtype, 64, 1021, scale=3), randn(g, dtype, 64, 1021)
    exact = activation64(kind, gate) * up.double()
    no_worse(row_error, ops.gated_activation(gate, up, kind=kind), PYTORCH_ACTIVATIONS[kind](gate) * up, exact, dtype)


def test_binary(dtype, g):
    a, b = randn(g, dtype, 64, 1021), randn(g, dtype, 64, 1021, scale=100)
    no_worse(elementwise_error, ops.binary(a, b), a + b, a.double() + b.double(), dtype)
    no_worse(elementwise_error, ops.binary(a, b, kind="mul"), a * b, a.double() * b.double(), dtype)


# Rows


@pytest.mark.parametrize("n", [1, 7, 1021, 4096, 50021])
def test_softmax(n, dtype, g):
    x = randn(g, dtype, rows_of(n), n, scale=4)
    no_worse(row_error, ops.softmax(x), torch.softmax(x, -1), torch.softmax(x.double(), -1), dtype)
    _, lse = ops.softmax(x, lse=True, scale=0.3)
    exact = torch.logsumexp(x.double() * 0.3, -1)
    pytorch = torch.logsumexp(x * 0.3, -1)
    no_worse(row_error, lse[None], pytorch[None], exact[None], "f32")


def test_masked_softmax(dtype, g):
    x, mask = randn(g, dtype, 2, 3, 33, 129, scale=4), torch.rand(2, 1, 33, 129, generator=g) < 0.7
    exact = torch.softmax(x.double().masked_fill(~mask, -math.inf), -1)
    pytorch = torch.softmax(x.masked_fill(~mask, -math.inf), -1)
    no_worse(row_error, ops.softmax(x, mask=mask), pytorch, exact, dtype)
    bias = randn(g, dtype, 33, 129)
    exact, pytorch = torch.softmax(x.double() + bias.double(), -1), torch.softmax(x + bias, -1)
    no_worse(row_error, ops.softmax(x, mask=bias), pytorch, exact, dtype)


@pytest.mark.parametrize("mean", [0, 30])
@pytest.mark.parametrize("n", [7, 576, 4096, 50021])
def test_norms(n, mean, dtype, g):
    x = (torch.randn(rows_of(n), n, generator=g) + mean).to(DTYPES[dtype])
    weight, bias = (torch.randn(n, generator=g).to(DTYPES[dtype]) for _ in range(2))
    exact = functional.rms_norm(x.double(), (n,), weight.double(), 1e-5)
    no_worse(row_error, ops.rms_norm(x, weight, eps=1e-5), functional.rms_norm(x, (n,), weight, 1e-5), exact, dtype)
    exact = functional.layer_norm(x.double(), (n,), weight.double(), bias.double())
    no_worse(row_error, ops.layer_norm(x, weight, bias), functional.layer_norm(x, (n,), weight, bias), exact, dtype)


# Sums of products


@pytest.mark.parametrize("tokens", [1, 5, 64])
@pytest.mark.parametrize("inner", [64, 1021, 4096, 11008])
def test_linear(tokens, inner, dtype, g):
    out = 96 if tokens == 64 else 1000
    x, weight, bias = randn(g, dtype, tokens, inner), randn(g, dtype, out, inner), randn(g, dtype, out)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    magnitudes = functional.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
    sum_no_worse(magnitudes, ops.linear(x, weight, bias), functional.linear(x, weight, bias), exact, dtype)


def test_gated_ffn(dtype, g):
    x = randn(g, dtype, 9, 256)
    gate, up, down = (
        randn(g, dtype, 640, 256, scale=0.06),
        randn(g, dtype, 640, 256, scale=0.06),
        randn(g, dtype, 256, 640),
    )

    def ffn(x, gate, up, down):
        return functional.linear(functional.silu(functional.linear(x, gate)) * functional.linear(x, up), down)

    exact = ffn(*(t.double() for t in (x, gate, up, down)))
    no_worse(row_error, ops.gated_ffn(x, gate, up, down), ffn(x, gate, up, down), exact, dtype)


@pytest.mark.parametrize("scale", [1, 5])
@pytest.mark.parametrize("lengths", [(1, 1), (1, 3001), (5, 700), (40, 64), (130, 130), (300, 500)], ids=str)
def test_attention(lengths, scale, dtype, g):
    sq, sk = lengths
    batch = 8 if sq < 100 else 2
    q = randn(g, dtype, batch, sq, 4, 64, scale=scale)
    k, v = randn(g, dtype, batch, sk, 4, 64), randn(g, dtype, batch, sk, 4, 64)

    def sdpa(*qkv):
        return functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in qkv)).transpose(1, 2)

    exact = sdpa(*(t.double() for t in (q, k, v)))
    magnitudes = sdpa(q.double(), k.double(), v.double().abs())
    sum_no_worse(magnitudes, ops.attention(q, k, v, causal=False), sdpa(q, k, v), exact, dtype)


def test_rope(dtype, g):
    x, positions = randn(g, dtype, 33, 4, 64), torch.arange(33, dtype=torch.int32)
    angles = positions[:, None] / 10000.0 ** (torch.arange(32) / 32)
    cos, sin = torch.cos(angles).float(), torch.sin(angles).float()

    def rotate(x, cos, sin):
        a, b = x.chunk(2, -1)
        c, s = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
        return torch.cat([a * c - b * s, b * c + a * s], -1)

    exact = rotate(x.double(), cos.double(), sin.double())
    no_worse(row_error, ops.rope(x, positions, cos, sin), rotate(x, cos, sin), exact, dtype)


# Values that have tripped an implementation somewhere

HOSTILE = [
    0.0,
    -0.0,
    1e-40,
    -1e-40,
    2.0**-24,
    65504.0,
    -65504.0,
    3e38,
    -3e38,
    math.inf,
    -math.inf,
    math.nan,
    88.8,
    -104.0,
]


def hostile(dtype):
    return torch.tensor(HOSTILE, dtype=torch.float64).to(DTYPES[dtype])


def same_specials(got, pytorch):
    """NaN and infinities where PyTorch has them, and the same signs of zero."""
    assert torch.equal(got.isnan(), pytorch.isnan()), (got, pytorch)
    assert torch.equal(got.isinf(), pytorch.isinf()) and torch.equal(got[got.isinf()], pytorch[pytorch.isinf()])
    both = (got == 0) & (pytorch == 0)
    assert torch.equal(torch.signbit(got[both]), torch.signbit(pytorch[both])), (got, pytorch)


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "relu"])
def test_hostile_values_of_activations(kind, dtype):
    x = hostile(dtype)
    got, pytorch = ops.activation(x, kind=kind), PYTORCH_ACTIVATIONS[kind](x)
    finite = x.isfinite()  # at -inf PyTorch's silu and gelu are NaN or -0 by the path that the CPU takes
    assert torch.equal(got[finite].isnan(), pytorch[finite].isnan())
    assert got[x.isnan()].isnan().all() and (got[x == math.inf] == math.inf).all()


@pytest.mark.parametrize("kind", ["add", "mul"])
def test_hostile_values_of_binary(kind, dtype):
    x = hostile(dtype)
    a, b = (t.reshape(len(x), len(x)).contiguous() for t in torch.broadcast_tensors(x[:, None], x[None]))
    got, pytorch = ops.binary(a, b, kind=kind), a + b if kind == "add" else a * b
    same_specials(got, pytorch)
    finite = pytorch.isfinite()
    assert torch.equal(got[finite], pytorch[finite])  # one rounding: bit for bit


def test_hostile_values_of_rows(dtype):
    base = torch.linspace(-1, 1, len(HOSTILE) * 3).to(DTYPES[dtype])
    rows = base.repeat(len(HOSTILE), 1)
    rows[:, 5] = hostile(dtype)
    weight = torch.ones(rows.shape[1]).to(DTYPES[dtype])
    # In f32 the squares of 3e38 are infinite; PyTorch and ours give zeros and the sign of what is left.
    moderate = rows[:, 5].abs().nan_to_num(0, 0, 0) < 1e19
    for got, pytorch in [
        (ops.softmax(rows), torch.softmax(rows, -1)),
        (ops.rms_norm(rows, weight, eps=1e-5), functional.rms_norm(rows, rows.shape[1:], weight, 1e-5)),
        (ops.layer_norm(rows, weight), functional.layer_norm(rows, rows.shape[1:], weight)),
    ]:
        assert torch.equal(got[moderate].isnan(), pytorch[moderate].isnan())
        assert torch.equal(got[moderate].isinf(), pytorch[moderate].isinf())


def test_the_largest_values_of_a_product(g):
    """A finite product of the largest f32 is finite, whatever units multiply."""
    x, weight = torch.randn(64, 96, generator=g), torch.randn(40, 96, generator=g) * 1e-3
    x[3, 5], x[7, 9] = torch.finfo(torch.float32).max, -3.3962e38
    exact = x.double() @ weight.double().T
    assert ((ops.linear(x, weight).double() - exact).abs() <= 1e-6 * (x.double().abs() @ weight.double().abs().T)).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 7, 11, 13, 31, 61, 127, 251, 509])
def test_lengths_of_nothing_one_and_primes(n, dtype, g):
    rows = rows_of(n) if n else 3
    x, weight = randn(g, dtype, rows, n), randn(g, dtype, n)
    assert ops.rms_norm(x, weight).shape == ops.softmax(x).shape == ops.activation(x).shape == (rows, n)
    if n:
        exact = functional.rms_norm(x.double(), (n,), weight.double(), 1e-6)
        no_worse(row_error, ops.rms_norm(x, weight), functional.rms_norm(x, (n,), weight, 1e-6), exact, dtype)
        no_worse(row_error, ops.softmax(x), torch.softmax(x, -1), torch.softmax(x.double(), -1), dtype)
    x, w = x[:64], randn(g, dtype, 100, n)
    exact = functional.linear(x.double(), w.double())
    magnitudes = functional.linear(x.double().abs(), w.double().abs())
    sum_no_worse(magnitudes, ops.linear(x, w), functional.linear(x, w), exact, dtype)


def test_more_than_two_gigabytes():
    """Offsets are of 64 bits: the rows lie so far apart that the last is more than 2^31 bytes and 2^31 elements in.

    Memory that is never touched costs nothing: the pages between stay the system's zeros."""
    rows, n, stride = 3, 24, 2**30 + 8
    memory = np.empty(2 * stride + n, np.float16)  # 4 GiB of addresses
    x = np.lib.stride_tricks.as_strided(memory, (rows, n), (2 * stride, 2))
    x[:] = np.arange(rows * n, dtype=np.float16).reshape(rows, n) / 8
    weight = np.ones(n, np.float16)
    np.testing.assert_array_equal(ops.rms_norm(x, weight), ops.rms_norm(x.copy(), weight))
    np.testing.assert_array_equal(ops.softmax(x), ops.softmax(x.copy()))
    np.testing.assert_array_equal(ops.binary(x, x), x + x)
    w = x[:, :16]
    np.testing.assert_array_equal(ops.linear(weight[None, :16], w), ops.linear(weight[None, :16], w.copy()))
    k = np.lib.stride_tricks.as_strided(memory, (1, rows, 1, 24), (0, 2 * stride, 0, 2))
    q = np.ones((1, 1, 1, 24), np.float16)
    np.testing.assert_array_equal(ops.attention(q, k, k), ops.attention(q, k.copy(), k.copy()))
    del memory
