"""The rows of Kunlun 2 (R300) through PaddlePaddle's build for the CPU, over the cases: run in a process of its own by
test_vendors.py. Functions are Paddle's, but where its CPU build has no kernel or no f16 (vendor_stand_ins/kunlun2)."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
import xpu2
from on_device import benchmarks, covers, reports_gains, runs_gemma, runs_models, unfused_forms

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import _kf
from sagellm_kernel_fusion.bench.selfcheck import selfcheck
from sagellm_kernel_fusion.plugins import register_table
from sagellm_kernel_fusion.vendors import Vendor, name_device
from sagellm_kernel_fusion.vendors import paddle as vendors_paddle
from sagellm_kernel_fusion.vendors.kunlun2 import KUNLUN2, operators, table

xpu2.install({name: kernels for name, (_, kernels, _) in operators.FUNCTIONS.items()})
# The same rows over the host's memory; and without the plain ones, of whose unfused forms fewer cases are enough.
ROWS = tuple(replace(r, devices=("cpu",), library=replace(r.library, vendor=lambda: None)) for r in table.ROWS)
ALL = Vendor("kunlun2_all", "cpu", "paddle", "", "", table=lambda: ROWS, device_type="cpu")
FUSED = tuple(r for r in ROWS if r.family != "vanilla")
HOST = Vendor("kunlun2_host", "cpu", "paddle", "", "", table=lambda: FUSED, device_type="cpu")
register_table(ALL)
register_table(HOST)
RNG = np.random.default_rng(5)
# f16: the roundings of a product, a norm or an activation before what follows them, each 2^-11 of the value.
F16_ROUNDINGS = 4e-3


def random(*shape, dtype="float32"):
    return paddle.to_tensor(RNG.standard_normal(shape).astype(np.float32)).astype(dtype)


def check(pattern: str, every: int, *expected: str) -> None:
    """Of the cases of this name one in so many, on every row that takes it: the rows that served some are these."""
    names = [c["name"] for c in _kf.cases() if not c["bench"] and re.search(pattern, c["name"])][::every]
    served = set()
    for name in names:
        for result in _kf.check_case(name, HOST.name):
            if not result["supported"] or not result["kernel"].startswith("kunlun2::"):
                continue
            served.add(result["kernel"].removesuffix("+packed").removeprefix("kunlun2::"))
            within = "/f16" in name and 0 < result["relative_error"] < F16_ROUNDINGS
            assert result["ok"] or within, (name, result["kernel"], result["detail"])
    assert served == set(expected)


# The cases


def test_attention_dense_packed_and_paged():
    plain = r"^attention/(f32|f16)/(dense|packed|paged-hnd)[^/]*/[^/]*/h\d+-\d+-d\d+(-v\d+)?(-causal)?$"
    check(plain, 3, "attention", "attention_packed", "attention_decode", "attention_paged")


def test_append_kv_leaves_out_slots_below_0():
    check(r"^append_kv/(f32|f16)/[^/]*/(f32|f16)_HND", 1, "append_kv")


@pytest.mark.parametrize("op", ["linear", "qkv_linear", "gated_ffn"])
def test_linear_layers_with_what_surrounds_them(op):
    rows = ("linear", "linear_bias") if op == "linear" else (op,)
    check(rf"^{op}/(f32/(f32|f32-f32-f32)|f16/(f16|f16-f16-f16))/(?!.*lora)", 3, *rows)


def test_norms_softmax_activations_and_rope():
    check(r"^rms_norm/(f32|f16)/(?!2150|4300|530x)", 5, "rms_norm")
    check(r"^layer_norm/(f32|f16)/(?!2150|4300|530x)", 5, "layer_norm", "add_layer_norm")
    check(r"^softmax/(f32|f16)", 3, "softmax")
    check(r"^activation/[^/]*/(f32|f16)", 5, "activation")
    check(r"^gated_activation/[^/]*/(f32|f16)", 5, "gated_activation")
    check(r"^rope/(f32|f16)", 1, "rope", "rope_composed")
    check(r"^binary/[^/]*/(f32|f16)", 2, "binary")
    check(r"^embedding/(f32|f16)_", 1, "embedding")
    check(r"^argmax/(f32|f16)", 1, "argmax")


def test_unfused_forms_and_what_reports_hold_against_them():
    unfused_forms(ALL.name)
    reports_gains(kf.KernelFusionBackendRegistry.get(ALL.name), lambda x: paddle.to_tensor(x.float().numpy()))
    benchmarks(ALL.name, "kunlun2::")


def test_selfcheck_takes_paddles_rows():
    report = selfcheck(HOST.name, ("rope",), every=7)
    assert report["ok"] and {r["kernel"] for r in report["rows"] if r["served"]} >= {"kunlun2::rope"}


@pytest.mark.parametrize(
    ("case", "row", "function"),
    [
        ("rms_norm/f32/", "rms_norm", operators.FUSED_RMS_NORM),
        ("layer_norm/f32/.*residual", "add_layer_norm", operators.FUSED_LAYER_NORM),
        ("linear/f32/f32/.*/bias", "linear_bias", operators.FUSED_LINEAR),
        ("gated_ffn/f32/f32/[1-9].*/silu", "gated_ffn", "nn.functional.swiglu"),
        ("rope/f32/", "rope", operators.FUSED_ROPE),
    ],
)
def test_a_row_calls_paddles_fused_operator(case, row, function):
    for name in (c["name"] for c in _kf.cases() if re.match(case, c["name"])):
        xpu2.calls.clear()
        if any(r["kernel"] == f"kunlun2::{row}" and r["supported"] for r in _kf.check_case(name, HOST.name)):
            assert function in xpu2.calls
            return
    raise AssertionError("no case is served")


# Arrays


def test_a_managers_calls_take_and_give_paddles_tensors():
    m = kf.KernelFusionBackendRegistry.get(HOST.name)
    x, w = random(3, 64), random(64)
    got = m.fuse_rmsnorm(x, w)
    assert isinstance(got, paddle.Tensor) and list(got.shape) == [3, 64]
    np.testing.assert_allclose(got.numpy(), kf.ops.rms_norm(x.numpy(), w.numpy()), rtol=1e-5, atol=1e-6)
    q, k = random(1, 5, 4, 32), random(1, 5, 2, 32)
    expected = kf.ops.attention(q.numpy(), k.numpy(), k.numpy())
    np.testing.assert_allclose(m.fuse_attention(q, k, k).numpy(), expected, rtol=1e-5, atol=1e-5)
    rows = m.explain("attention", q=q, k=k, v=k)
    assert [r["kernel"] for r in rows if r["selected"]] == ["kunlun2::attention"]


def test_the_cpus_own_kernels_take_paddles_tensors():
    x, w = random(3, 8), random(8)
    out = paddle.empty([3, 8])
    kf.ops.rms_norm(x, w, out=out)
    np.testing.assert_array_equal(out.numpy(), kf.ops.rms_norm(x.numpy(), w.numpy()))


def test_bf16_is_refused():
    m = kf.KernelFusionManager(kf.KernelFusionConfig(backend=HOST.name))
    with pytest.raises(kf.NotServedError, match="x is bf16: this kernel takes f32, f16"):
        m.fuse_rmsnorm(random(3, 8, dtype="bfloat16"), random(8, dtype="bfloat16"))


def test_memory_is_paddles_and_copies_are_whole():
    memory = vendors_paddle.PaddleMemory(lambda index: paddle.CPUPlace())
    address = memory.allocate(0, 64, 0)
    source, back = np.arange(64, dtype=np.uint8), np.zeros(64, np.uint8)
    there = paddle.from_dlpack(memory._held[address])
    lend = lambda a: SimpleNamespace(dlpack=lambda: a)  # noqa: E731
    memory.copy(lend(there), lend(source), 0)
    memory.copy(lend(back), lend(there), 0)
    memory.free(0, address, 0)
    assert (back == source).all() and not memory._held


# Which device


@pytest.fixture
def xpu(monkeypatch):
    """Paddle's build for Kunlun, with these devices of this version and these kernels."""
    core = paddle.base.core
    versions = SimpleNamespace(XPU2="XPU2", XPU3="XPU3")

    def install(count=1, version="XPU2", kernels=xpu2.LIST):
        found = importlib.metadata.version
        version_of = lambda name: "3.3.1" if name == KUNLUN2.distribution else found(name)  # noqa: E731
        monkeypatch.setattr(importlib.metadata, "version", version_of)
        monkeypatch.setattr(core, "XPUVersion", versions, raising=False)
        monkeypatch.setattr(core, "get_xpu_device_count", lambda: count, raising=False)
        monkeypatch.setattr(core, "get_xpu_device_version", lambda index: version, raising=False)
        listed = lambda name, version: list(kernels.get(name, ()))  # noqa: E731
        monkeypatch.setattr(core, "get_xpu_device_op_support_types", listed, raising=False)

    return install


def test_a_device_of_kunlun_2_is_usable_and_its_rows_have_their_kernels(xpu):
    assert "paddlepaddle-xpu is not installed" in KUNLUN2.unusable()
    xpu()
    assert KUNLUN2.unusable() is None and KUNLUN2.is_shown()
    for row in table.ROWS:
        assert replace(row.library).problem is None, row.name


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ({"count": 0}, "paddlepaddle-xpu is there, but finds no device: look at xpu_smi"),
        ({"version": "XPU3"}, "xpu:0 is XPU3: this backend is for XPU2"),
    ],
)
def test_another_device_or_none_says_so(xpu, there, reason):
    xpu(**there)
    assert KUNLUN2.unusable() == reason


def test_a_paddle_whose_list_lacks_a_kernel_would_run_it_on_the_host(xpu):
    xpu(kernels=xpu2.LIST | {"rms_norm": (paddle.float32,), "fused_rotary_position_embedding": ()})
    rows = {row.name: replace(row.library).problem for row in table.ROWS}
    assert "no rms_norm or fused_rms_norm_quant of float16 for XPU2" in rows["kunlun2::rms_norm"]
    assert "no fused_rotary_position_embedding of float32 for XPU2" in rows["kunlun2::rope"]
    assert rows["kunlun2::attention"] is None


def test_its_tensors_are_the_backends_by_dlpacks_device_type(xpu, monkeypatch):
    named = []
    monkeypatch.setattr(_kf, "set_dlpack_device", lambda code, name: named.append((code, name)))
    name_device(vendors_paddle.ONE_API)
    assert not named
    xpu()
    name_device(vendors_paddle.ONE_API)
    assert named == [(14, "kunlun")]


def test_every_row_says_what_it_saves_and_how_far_it_was_checked():
    for row in table.ROWS:
        assert isinstance(row.saves, str) and row.saves and row.level == "contract", row.name
        assert row.devices == ("kunlun",) and row.arrays == "paddle", row.name


def test_every_specified_operator_has_a_row_or_a_reason():
    kinds = "weight_scales is given, which no parameter of kunlun2::linear names"
    refused = {"linear, i8": kinds, "linear, i8, inputs of 8 bits": kinds, "linear, int4": kinds,
               "append, i8": "k_cache_scales is wanted",
               "attention: paged decode, i8": "k_scales is given, which no parameter",
               "attention: paged prefill, i8": "k_scales is given, which no parameter"}  # fmt: skip
    covers(kf.KernelFusionBackendRegistry.get(HOST.name), "HND", 64, refused, lambda t: paddle.to_tensor(t.numpy()))


# Whole models


@pytest.fixture
def simulated(xpu, monkeypatch):
    """A device of Kunlun 2 whose memory is the host's: what the core lends from there says so, and Paddle's build for
    the CPU takes it for its own."""
    xpu()
    plain, pointer = paddle.from_dlpack, ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

    def of_the_host(capsule):
        if type(capsule).__name__ == "PyCapsule":
            device = ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p))
            device.value = 1 if device.value == vendors_paddle.ONE_API else device.value
        return plain(capsule)

    monkeypatch.setattr(paddle, "from_dlpack", of_the_host)
    monkeypatch.setattr(paddle.base.core, "XPUPlace", lambda index: paddle.CPUPlace(), raising=False)
    monkeypatch.setattr(paddle.device, "synchronize", lambda place=None: None)
    monkeypatch.setattr(paddle.device.xpu, "memory_total", lambda index: 64 << 30, raising=False)
    yield
    gc.collect()  # what engines hold is given back while the device is there


def test_whole_models_on_the_device(simulated):
    rows = ("attention_paged", "append_kv", "rope", "qkv_linear", "linear", "gated_ffn", "embedding")
    runs_models("kunlun2", *(f"kunlun2::{row}" for row in rows), of_launches=0.65)


def test_gemma_on_the_device(simulated):
    runs_gemma("kunlun2", "kunlun2::attention_paged")
