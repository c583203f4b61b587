"""Kernels of the user's: taken where they accept, checked before use, named everywhere; wrong ones refused."""

from __future__ import annotations

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion.custom.served import served
from sagellm_kernel_fusion.custom.sizes import sizes_of


@pytest.fixture
def m():
    return kf.KernelFusionManager()


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def selected(rows):
    return next(r["kernel"] for r in rows if r["selected"])


def test_a_function_serves_an_operator(m, rng):
    calls = []

    def mine(x, weight, bias=None):
        calls.append(x.shape)
        out = gelu_tanh(x) @ weight
        return out if bias is None else out + bias

    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((3, 8), (8, 5), 5))
    expected = m.fuse_gelu_linear(x, w, bias=b)
    m.register_custom_kernel("gelu_linear", mine)
    np.testing.assert_allclose(m.fuse_gelu_linear(x, w, bias=b), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        m.fuse_gelu_linear(x, w.T, weight_layout="out_in"), gelu_tanh(x) @ w, rtol=1e-4, atol=1e-5
    )
    assert len(calls) == 4  # each layout once before it is served, on generated data
    assert "custom::gelu_linear" in m.get_stats()["ops"]["linear"]["kernels"]
    [row] = [k for k in m.kernels() if k["name"] == "custom::gelu_linear"]
    assert row["families"] == "custom" and "gelu_linear" in row["condition"] and not row["graph_safe"]
    assert selected(m.explain("gelu_linear", x=x, weight=w)) == "custom::gelu_linear"


def test_weights_of_four_bits_come_as_bytes_of_two(m, rng):
    w = kf.quantize(rng.standard_normal((5, 64)).astype(np.float32), "int4", group_size=32)
    seen = []

    def mine(x, weight, pre_activation, weight_scales=None, weight_group_size=0):
        seen.append((weight.dtype, weight.shape))
        codes = np.stack((weight & 15, weight >> 4), -1).astype(np.int8).reshape(weight.shape[0], -1)
        values = np.where(codes > 7, codes - 16, codes) * np.repeat(weight_scales, weight_group_size, 1)
        return x / (1 + np.exp(-x)) @ values.T

    m.register_custom_kernel("mine", mine, op="linear")
    x = rng.standard_normal((3, 64)).astype(np.float32)
    config = kf.KernelFusionConfig(fuse_with_quant=True)
    got = m.fuse_silu_linear(x, w, config=config, weight_layout="out_in")
    np.testing.assert_allclose(got, kf.ops.linear(x, w, pre_activation="silu"), rtol=1e-4, atol=1e-5)
    assert seen[-1] == (np.uint8, (5, 32))
    assert "custom::mine" in m.get_stats()["ops"]["linear"]["kernels"]


def test_what_it_does_not_name_goes_to_the_next_kernel(m, rng):
    m.register_custom_kernel("mine", lambda x, weight: gelu_tanh(x) @ weight, op="gelu_linear")
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((3, 8), (8, 5), 5))
    for operands, reason in (
        ({"bias": b}, "bias is given, which no parameter of mine names"),
        ({"approximate": "none"}, "pre_activation gelu: no parameter of mine names it"),
    ):
        rows = m.explain("gelu_linear", x=x, weight=w, **operands)
        assert rows[0]["kernel"] == "custom::mine" and rows[0]["reason"] == reason
        assert selected(rows) != "custom::mine"
        m.fuse_gelu_linear(x, w, **operands)
    rows = m.explain("silu_linear", x=x, weight=w)
    assert rows[0]["reason"] == "pre_activation silu: this kernel serves one of gelu_tanh, gelu"
    m.fuse_layernorm_linear(x, x[0], None, w)
    assert "custom::mine" not in m.get_stats()["ops"]["linear"]["kernels"]


def test_arrays_come_in_the_callers_kind(m, rng):
    torch = pytest.importorskip("torch")
    kinds = []

    def mine(x, **rest):
        kinds.append((type(x), x.dtype))
        return x * torch.sigmoid(x) if isinstance(x, torch.Tensor) else x / (1 + np.exp(-x.astype(np.float32)))

    m.register_custom_kernel("swish", mine, op="activation")
    x = torch.randn(4, 8).to(torch.bfloat16)
    got = m.fuse_activation(x)
    assert isinstance(got, torch.Tensor) and got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), torch.nn.functional.silu(x.float()), rtol=1e-2, atol=1e-2)
    m.fuse_activation(x.float().numpy().astype(ml_dtypes.bfloat16))
    assert set(kinds) == {(torch.Tensor, torch.bfloat16), (np.ndarray, np.dtype(ml_dtypes.bfloat16))}


def test_results_may_be_written_where_the_call_wants_them(m, rng):
    def mine(x, out, lse=None, scale=1.0):
        e = np.exp(scale * x.astype(np.float64))
        out[...] = e / e.sum(-1, keepdims=True)
        if lse is not None:
            lse[...] = np.log(e.sum(-1))

    m.register_custom_kernel("softmax", mine)
    x, out = rng.standard_normal((3, 8)).astype(np.float32), np.empty((3, 8), np.float32)
    got, lse = m.fuse_softmax(x, scale=0.5, return_lse=True, out=out)
    assert got is out and selected(m.explain("softmax", x=x)) == "custom::softmax"
    np.testing.assert_allclose(out, kf.ops.softmax(x, scale=0.5), rtol=1e-6)
    np.testing.assert_allclose(lse, kf.ops.softmax(x, scale=0.5, lse=True)[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (lambda x: x, r"results differ from cpu::\w+ by"),
        (lambda x: x[:1], r"expected shape \[.*\], got \[1, 8\]"),
        (lambda x: None, "expected a result for out, got none"),
        (lambda x: (x, x), "expected 1 results, got 2"),
        (lambda x: np.full_like(x, np.nan), "differ from .* by inf"),
        (lambda x: 1 / 0, "custom kernel wrong: raised ZeroDivisionError"),
        (lambda x: "silu", "got str"),
    ],
)
def test_a_wrong_kernel_is_refused_before_it_touches_data(m, rng, kernel, words):
    m.register_custom_kernel("wrong", kernel, op="activation")
    x, out = rng.standard_normal((3, 8)).astype(np.float32), np.full((3, 8), 7, np.float32)
    with pytest.raises(kf.InvalidArgumentError, match=words) as caught:
        m.fuse_activation(x, out=out)
    assert caught.value.context["kernel"].endswith("wrong") and isinstance(caught.value, ValueError)
    assert (out == 7).all()


def test_kernels_are_checked_ahead_for_given_layouts(m):
    seen = []

    def narrow(x):
        """Right up to a width of 8."""
        seen.append(x.shape)
        return x / (1 + np.exp(-x)) if x.shape[-1] <= 8 else x

    m.register_custom_kernel("narrow", narrow, op="activation")
    assert m.warm_up([("activation", {"x": kf.layout("f32", (3, 8))})])[0]["kernel"] == "custom::narrow"
    for ahead in (lambda x: m.warm_up([("activation", {"x": x})]), lambda x: m.plan("activation", x=x)):
        with pytest.raises(kf.InvalidArgumentError, match=r"custom::narrow: its results differ .*x=f32\[5, 16\]"):
            ahead(kf.layout("f32", (5, 16)))
    assert seen == [(3, 8), (5, 16), (5, 16)] and m.get_stats()["ops"] == {}


def test_a_kernel_that_writes_outside_its_result_is_refused(m):
    def mine(x, out):
        out[...] = x / (1 + np.exp(-x))
        np.lib.stride_tricks.as_strided(out, (out.size + 4,), (4,))[-4:] = 0

    m.register_custom_kernel("wild", mine, op="activation")
    with pytest.raises(kf.InvalidArgumentError, match="custom::wild: it writes outside out"):
        m.fuse_activation(np.ones((3, 8), np.float32))


def test_a_reference_of_its_own(m, rng):
    x = rng.standard_normal((3, 8)).astype(np.float32)
    m.register_custom_kernel("doubled", lambda x: 2 * x, op="activation", reference=lambda x: x + x)
    np.testing.assert_array_equal(m.fuse_activation(x), 2 * x)
    [row] = [r for r in m.explain("activation", x=x) if r["kernel"] == "custom::doubled::reference"]
    assert not row["supported"] and row["reason"] == "serves only to check its kernel"
    m.register_custom_kernel("tripled", lambda x: 3 * x, op="activation", reference=lambda x: x + x)
    with pytest.raises(kf.InvalidArgumentError, match="differ from custom::tripled::reference"):
        m.fuse_activation(x)


def test_a_kernel_as_an_object(m, rng):
    class Swish(kf.FusedKernel):
        op = "activation"
        graph_safe = True

        def apply(self, input):
            return input / (1 + np.exp(-input))

        def supports(self, x, kind, **rest):
            return None if x.shape[-1] % 8 == 0 else f"width {x.shape[-1]}: this kernel takes multiples of 8"

    m.register_custom_kernel("swish", Swish())
    x = rng.standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_allclose(m.fuse_activation(x), kf.ops.activation(x), rtol=1e-6)
    assert selected(m.explain("activation", x=x)) == "custom::swish"
    row = m.explain("activation", x=x[:, :7].copy())[0]
    assert row["reason"] == "width 7: this kernel takes multiples of 8"
    assert next(k for k in m.kernels() if k["name"] == "custom::swish")["graph_safe"]


def test_kernels_of_a_configuration_and_graph_capture(rng):
    x = rng.standard_normal((3, 8)).astype(np.float32)
    config = kf.KernelFusionConfig(custom_kernels={"activation": lambda x: x / (1 + np.exp(-x))})
    m = kf.KernelFusionManager(config)
    assert selected(m.explain("activation", x=x)) == "custom::activation"
    config.use_cuda_graph = True
    rows = m.explain("activation", x=x)
    assert rows[0]["reason"] == "one whose launches may not be recorded into a graph"
    assert selected(rows) != "custom::activation"


def test_report_times_a_custom_kernel_beside_the_unfused_form(m, rng):
    m.register_custom_kernel("gelu_linear", lambda x, weight: gelu_tanh(x) @ weight)
    x = rng.standard_normal((16, 32)).astype(np.float32)
    m.fuse_gelu_linear(x, x.T.copy())
    report = m.report()
    assert report["e2e_speedup"] > 0 and report["kernel_calls_linear"] == 1


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("conv", len), {}, "op: expected one of attention, ffn"),
        (("", len), {"op": "softmax"}, "name: expected a name"),
        (("softmax", 7), {}, "expected a callable, a Triton kernel, .* got int"),
        (("softmax", lambda x, wieght: x), {}, "parameter wieght: expected a name among x, out, lse"),
        (("mine", lambda x: x), {"op": 3}, "op: expected one of"),
    ],
)
def test_what_cannot_be_a_kernel_is_refused(m, arguments, options, words):
    with pytest.raises(kf.InvalidArgumentError, match=words):
        m.register_custom_kernel(*arguments, **options)


def test_a_name_is_taken_once(m):
    m.register_custom_kernel("softmax", lambda x: x)
    with pytest.raises(kf.InvalidArgumentError, match=r"custom::softmax.*expected a name of its own"):
        m.register_custom_kernel("softmax", lambda x: x)


TRITON = """
import torch
import triton
import triton.language as tl

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion.custom.served import served
from sagellm_kernel_fusion.custom.sizes import sizes_of


@triton.jit
def gelu_linear(x_ptr, w_ptr, b_ptr, out_ptr, N, D_in, D_out, BLOCK_SIZE: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    live = rows < N
    for column in range(D_out):
        total = tl.zeros((BLOCK_SIZE,), tl.float32) + tl.load(b_ptr + column)
        for i in range(D_in):
            x = tl.load(x_ptr + rows * D_in + i, mask=live, other=0.0)
            gelu = x * tl.sigmoid(1.5957691216 * (x + 0.044715 * x * x * x))
            total += gelu * tl.load(w_ptr + i * D_out + column)
        tl.store(out_ptr + rows * D_out + column, total, mask=live)


@triton.jit
def silu(source, target, N, D, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + i, mask=i < N * D)
    tl.store(target + i, x * tl.sigmoid(x), mask=i < N * D)


m = kf.KernelFusionManager(kf.KernelFusionConfig(use_triton=True, fuse_gelu_linear=True, backend="triton"))
m.register_custom_kernel("gelu_linear", gelu_linear)
x, w, b = torch.randn(5, 12), torch.randn(12, 7), torch.randn(7)
expected = torch.nn.functional.gelu(x, approximate="tanh") @ w
torch.testing.assert_close(m.fuse_gelu_linear(x, w), expected, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(m.fuse_gelu_linear(x, w, bias=b), expected + b, rtol=1e-4, atol=1e-4)
assert m.get_stats()["ops"]["linear"]["kernels"]["custom::gelu_linear"]["calls"] == 2
# What is not contiguous as [in, out] is declined.
rows = m.explain("gelu_linear", x=x, weight=w.T, weight_layout="out_in")
assert rows[0]["supported"], rows[0]
rows = m.explain("gelu_linear", x=x, weight=w.T.contiguous().T)
assert rows[0]["reason"] == "weight: this kernel takes contiguous operands, weights as [in, out]", rows[0]

launch = kf.TritonKernel(
    silu, grid=lambda a: (triton.cdiv(a["N"] * a["D"], 16),), args={"source": "x", "target": "out", "BLOCK": 16}
)
m.register_custom_kernel("swish", launch, op="activation")
torch.testing.assert_close(m.fuse_activation(x), torch.nn.functional.silu(x))
assert "custom::swish" in m.get_stats()["ops"]["activation"]["kernels"]
m.register_custom_kernel("half", kf.TritonKernel(silu, grid=(1,), args={"source": "x"}), op="softmax")
try:
    m.fuse_softmax(x)
except kf.InvalidArgumentError as error:
    assert "parameter target: expected an entry of args" in str(error), error
else:
    raise AssertionError("no error")
"""


def test_triton_kernels_run_through_the_interpreter(tmp_path):
    pytest.importorskip("triton")
    script = tmp_path / "kernels.py"  # Triton reads the source of its kernels from a file
    script.write_text(TRITON)
    subprocess.run([sys.executable, script], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)


def test_a_compiled_triton_kernel_declines_the_cpu(tmp_path):
    pytest.importorskip("triton")
    script = tmp_path / "kernels.py"
    script.write_text(
        TRITON.split("m = kf")[0]
        + """
m = kf.KernelFusionManager()
m.register_custom_kernel("gelu_linear", gelu_linear)
x = torch.randn(4, 4)
rows = m.explain("gelu_linear", x=x, weight=x)
assert rows[0]["reason"].startswith("a compiled Triton kernel, which CPUs do not run"), rows[0]
m.fuse_gelu_linear(x, x)
"""
    )
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, script], env=env, check=True)


@pytest.mark.parametrize(("op", "turned"), [("gated_ffn", False), ("ffn", True)])
def test_sizes_go_by_the_ops_own_layout_of_a_weight(op, turned):
    form = served(op)
    shapes = {"x": (5, 3), "gate_weight": (7, 3), "up_weight": (7, 3), "down_weight": (3, 7), "out": (5, 3)}
    operands = {n: np.empty(s[::-1] if turned and "weight" in n else s) for n, s in shapes.items()}
    assert sizes_of(operands, form.transposed) == {"N": 5, "D": 3, "D_in": 3, "D_out": 3, "H": 7}
    assert sizes_of({"q": np.empty((2, 4, 8, 64))}, ()) == {"N": 64, "D": 64, "D_in": 64}


def test_a_kernel_that_writes_to_its_operands_is_found():
    m = kf.KernelFusionManager()

    def in_place(x):
        x /= 1 + np.exp(-x)
        return x

    m.register_custom_kernel("in_place", in_place, op="activation")
    x = np.ones((3, 8), np.float32)
    with pytest.raises(kf.InvalidArgumentError, match="writes to x, which it may only read"):
        m.fuse_activation(x)
    assert (x == 1).all()


def test_a_reference_that_cannot_be_called():
    with pytest.raises(kf.InvalidArgumentError, match="mine: reference: expected a callable, got int"):
        kf.KernelFusionManager().register_custom_kernel("mine", lambda x: x, op="activation", reference=3)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_kernel_is_told_of_tf32(allowed):
    told = []

    def linear(x, weight, tf32):
        told.append(tf32)
        return x / (1 + np.exp(-x)) @ weight

    m = kf.KernelFusionManager(kf.KernelFusionConfig(enable_tf32=allowed))
    m.register_custom_kernel("silu_linear", linear)
    m.fuse_silu_linear(np.ones((2, 8), np.float32), np.ones((8, 4), np.float32))
    assert set(told) == {allowed}
