"""Backends by name, those of others, and what becomes of a call that one claims."""

from __future__ import annotations

import types

import numpy as np
import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion.builtin import CPUKernelFusion

Registry = kf.KernelFusionBackendRegistry


class Recorder(kf.KernelFusionProtocol):
    """A backend of somebody else's, which notes what it is asked."""

    device_types = ("npu",)

    def __init__(self):
        self.calls = []

    def _note(self, name, *operands, **options):
        self.calls.append((name, operands, options))
        return f"{name} elsewhere"

    def fuse_attention(self, q, k, v, config=None, **options):
        return self._note("attention", q, k, v, **options)

    def fuse_ffn(self, x, gate_weight, up_weight, down_weight, config=None, **options):
        return self._note("ffn", x, gate_weight, up_weight, down_weight, **options)

    def fuse_layernorm_linear(self, x, ln_weight, ln_bias, linear_weight, config=None, **options):
        return self._note("layernorm_linear", x, **options)

    def register_custom_kernel(self, name, kernel, **options):
        raise NotImplementedError

    def report(self):
        return {}


@pytest.fixture
def recorder():
    Registry.register("recorder", Recorder)
    yield
    Registry.unregister("recorder")


def test_the_cpu_is_a_backend_like_any_other(rng):
    backend = Registry.get("cpu")
    assert isinstance(backend, CPUKernelFusion) and isinstance(backend, kf.KernelFusionProtocol)
    q = rng.standard_normal((1, 3, 2, 8)).astype(np.float32)
    np.testing.assert_array_equal(backend.fuse_attention(q, q, q), kf.ops.attention(q, q, q))


def test_the_backends_of_the_build_are_listed():
    rows = {row["name"]: row for row in kf.backends()}
    assert rows["cpu"]["available"] and rows["cpu"]["devices"]


def test_an_unknown_backend_is_a_value_error_with_the_known_ones():
    with pytest.raises(ValueError, match="Unsupported backend: gaudi; there are cpu, cuda") as caught:
        Registry.get("gaudi")
    assert caught.value.code == "invalid_argument"


@pytest.mark.parametrize("name", ["cuda", "pytorch-cuda", "rocm", "dcu", "tensorrt"])
def test_a_backend_that_is_not_here_says_so(name):
    with pytest.raises(kf.UnavailableError, match="not compiled into this build") as caught:
        Registry.get(name)
    assert caught.value.is_retryable()


def test_only_classes_of_the_protocol_are_taken():
    for bad in (object, Recorder(), None):
        with pytest.raises(kf.InvalidArgumentError, match="a class of KernelFusionProtocol"):
            Registry.register("bad", bad)
    with pytest.raises(kf.InvalidArgumentError, match="a name"):
        Registry.register("", Recorder)


def test_a_manager_calls_the_backend_that_its_configuration_names(recorder, rng):
    m = kf.KernelFusionManager(kf.KernelFusionConfig(backend="recorder"))
    x = rng.standard_normal((2, 8)).astype(np.float32)
    assert m.fuse_ffn(x, x, x, x, activation="gelu") == "ffn elsewhere"
    assert m.fuse_attention(x, x, x) == "attention elsewhere"
    [other] = m._others.values()
    assert [(name, options) for name, _, options in other.calls] == [("ffn", {"activation": "gelu"}), ("attention", {})]
    with pytest.raises(NotImplementedError, match="Recorder has no fuse_softmax"):
        m.fuse_softmax(x)


def test_a_manager_calls_the_backend_that_claims_a_device(recorder):
    m = kf.KernelFusionManager()
    tensor = types.SimpleNamespace(device=types.SimpleNamespace(type="npu"), shape=(2, 8))
    assert m.fuse_attention(tensor, tensor, tensor) == "attention elsewhere"


def test_a_cuda_device_of_torch_is_cuda_or_rocm(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Registry.detect_backend() == "cuda"
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert Registry.detect_backend() == "rocm"
