"""CUDA source: compiled by NVRTC without a device; what it is given; what is said where there is no device."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion.custom import cuda_source
from sagellm_kernel_fusion.custom.served import served

HERE = Path(__file__).parent
SILU = kf.CudaSource(
    r"""
#include <cuda_bf16.h>
extern "C" __global__ void silu(const KF_TYPE* x, KF_TYPE* out, int n) {
  int i = blockIdx.x * 256 + threadIdx.x;
  if (i < n) { float v = float(x[i]); out[i] = KF_TYPE(v / (1 + expf(-v))); }
}
template <int k> __global__ void scaled(float* x, double eps, long long n, bool flag) { if (flag) x[n] *= k * eps; }
""",
    "silu",
    ("x", "out", "x.numel"),
    grid=lambda a: (-(-a["N"] * a["D"] // 256),),
    dtypes=("f32", "bf16"),
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KF_CACHE_DIR", str(tmp_path))
    return tmp_path / "cuda"


def test_it_is_compiled_for_devices_that_are_not_here_and_kept(folder):
    made = SILU.compile("sm_90")
    assert made["image"][:4] == b"\x7fELF" and made["symbol"] == "silu" and not made["cached"]
    assert made["parameters"] == ["u64", "u64", "u32"]
    again = SILU.compile("sm_90")
    assert again["cached"] and again["image"] == made["image"]
    assert not SILU.compile("sm_80")["cached"] and not SILU.compile("sm_90", "bf16")["cached"]
    templated = replace(SILU, entry="scaled<3>").compile("sm_90")
    assert templated["parameters"] == ["u64", "f64", "u64", "u8"] and "scaled" in templated["symbol"]
    assert len(list(folder.iterdir())) == 4
    unknown = SILU.compile("sm_1000")  # an architecture that NVRTC does not know yet: PTX, for the driver
    assert b".entry silu" in unknown["image"]


def test_processes_share_the_folder(folder):
    program = "from test_cuda_source import SILU; print(SILU.compile('sm_90')['image'].hex())"
    several = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=HERE) for _ in range(2)]
    images = {p.communicate()[0] for p in several}
    assert images == {SILU.compile("sm_90")["image"].hex().encode() + b"\n"}
    assert len(list(folder.iterdir())) == 1


def test_an_error_carries_the_log_with_its_line():
    wrong = replace(SILU, source=SILU.source.replace("expf(", "exqf("))
    line = r'source.cu\(5\): error: identifier "exqf" is undefined'
    with pytest.raises(kf.InvalidArgumentError, match=line) as error:
        wrong.compile("sm_90")
    assert "exqf" in error.value.context["log"]
    with pytest.raises(kf.InvalidArgumentError, match="silu"):  # no template
        replace(SILU, entry="silu<3>").compile("sm_90")
    with pytest.raises(kf.InvalidArgumentError, match="entry: expected a function of the source, got other"):
        replace(SILU, entry="other")
    with pytest.raises(kf.InvalidArgumentError, match="--nothing"):
        replace(SILU, options=("--nothing",)).compile("sm_90")
    by_value = kf.CudaSource('struct S { int a, b, c; }; extern "C" __global__ void f(S s) {}', "f", ("x",), grid=(1,))
    with pytest.raises(kf.InvalidArgumentError, match="parameter 0: expected a pointer or a number, got a structure"):
        by_value.compile("sm_90")


class Lent:
    def __init__(self, *shape):
        self.shape = list(shape)
        self.strides = [int(n) for n in np.zeros(shape, np.int8).strides]
        self.dtype = "f32"


def test_launches_are_sized_by_names_of_the_operator():
    form = served("gelu_linear")
    fields = {"x": Lent(3, 8), "weight": Lent(5, 8), "out": Lent(3, 5), "bias": None, "pre_activation": "gelu"}
    seen = {}

    def grid(a):
        seen.update(a)
        return a["N"], a["D_out"]

    kernel = replace(
        SILU, args=("x", "weight", "out", "weight.shape[0]"), grid=grid, block=lambda a: 64, shared_bytes=128
    )
    assert cuda_source.launch_shape("mine", kernel, form, fields) == ([3, 5, 1], [64, 1, 1], 128)
    assert seen["weight"].shape == (8, 5) and seen["weight"].strides == (1, 8) and seen["D_in"] == 8
    norm = served("layernorm_linear")
    named = replace(SILU, args=("ln_weight", "ln_weight.numel", "linear_weight.stride[1]", "eps"))
    assert cuda_source.args_of(named, norm) == ["norm_weight", "norm_weight.numel", "weight.stride[1]", "eps"]
    with pytest.raises(kf.InvalidArgumentError, match="custom kernel mine: grid: expected one to three numbers"):
        cuda_source.launch_shape("mine", replace(SILU, grid=(1, 1, 1, 1)), form, fields)
    call = {"norm": "none", "pre_activation": "gelu_tanh"}
    assert form.declines(call, (), "mine") is None
    assert form.declines(call | {"norm": "rms"}, (), "mine") == "norm rms: this kernel serves none"
    plain = form.declines(call | {"pre_activation": "gelu"}, (), "mine")
    assert plain == "pre_activation gelu: no parameter of mine names it"
    assert form.declines(call | {"pre_activation": "gelu"}, ("pre_activation",), "mine") is None


def test_registering_says_why_no_device_can_run_it():
    with pytest.raises(kf.UnavailableError, match="custom kernel activation: CUDA source needs the backend cuda"):
        kf.KernelFusionManager().register_custom_kernel("activation", SILU)
