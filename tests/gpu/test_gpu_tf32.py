"""TF32: products of f32 round their factors where it is allowed, and only there."""

from __future__ import annotations

import pytest
import torch
from bounds import random

import sagellm_kernel_fusion as kf
import sagellm_kernel_fusion.torch as kft

F32 = torch.float32
# Relative errors of whole results: factors of 11 bits (2^-11, less by their chance signs), or of 24.
ROUNDED, EXACT = (5e-5, 1e-3), (0.0, 5e-6)


def ffn_operands():
    shapes = {"gate_weight": (1024, 512), "up_weight": (1024, 512), "down_weight": (512, 1024)}
    weights = {name: random(*shape, dtype=F32, scale=0.04) for name, shape in shapes.items()}
    return weights | {"x": random(256, 512, dtype=F32)}


def ffn_error(got, x, gate_weight, up_weight, down_weight) -> float:
    x, gate, up, down = (t.double() for t in (x, gate_weight, up_weight, down_weight))
    return relative_error(got, (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T)


def relative_error(got, expected) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def within(error: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= error <= bounds[1]


@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(tf32, with_bias):
    x, weight = random(256, 512, dtype=F32), random(384, 512, dtype=F32)
    selection = kf.Selection(tf32=tf32)
    for shift in (0.0, 1.0):  # another bias is another description of the product
        bias = {"bias": random(384, dtype=F32) + shift} if with_bias else {}
        got = kf.ops.linear(x, weight, selection=selection, **bias)
        expected = x.double() @ weight.double().T + (bias["bias"].double() if with_bias else 0.0)
        assert within(error := relative_error(got, expected), ROUNDED if tf32 else EXACT), error


@pytest.mark.parametrize("tf32", [True, False])
def test_gated_ffn(tf32):
    operands = ffn_operands()
    for families in (("fused",), ("vanilla",)):
        got = kf.ops.gated_ffn(**operands, selection=kf.Selection(families=families, tf32=tf32))
        assert within(error := ffn_error(got, **operands), ROUNDED if tf32 else EXACT), (families, error)


def test_managers_take_it_from_the_configuration():
    operands = ffn_operands()
    for tf32 in (True, False):
        m = kf.KernelFusionManager(kf.KernelFusionConfig(libraries=[], enable_tf32=tf32))
        got = m.fuse_ffn(**operands, weight_layout="out_in")
        assert within(error := ffn_error(got, **operands), ROUNDED if tf32 else EXACT), (tf32, error)


@pytest.fixture
def allow_tf32():
    """Sets torch's own setting, for a test."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    yield lambda allowed: setattr(matmul, "allow_tf32", allowed)
    matmul.allow_tf32 = before


def test_torchs_operators_follow_torch(allow_tf32):
    operands = ffn_operands()
    for tf32 in (True, False):
        allow_tf32(tf32)
        assert within(error := ffn_error(kft.swiglu(**operands), **operands), ROUNDED if tf32 else EXACT), (tf32, error)


@pytest.mark.parametrize(
    ("allowed", "config", "expected"),
    [
        (True, None, True),
        (False, None, False),
        (False, {"enable_tf32": True}, True),
        (True, {"enable_tf32": False}, False),
    ],
)
def test_fused_models_follow_torch_unless_a_configuration_is_given(allow_tf32, allowed, config, expected):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=512, **sizes)).cuda().eval()
    ids = torch.arange(64, device="cuda")[None]
    exact = model.double()(ids).logits
    model.float()
    allow_tf32(allowed)
    done = kf.fuse_model(model, None if config is None else kf.KernelFusionConfig(**config))
    assert not done.refused, str(done)
    assert within(error := relative_error(model(ids).logits, exact), ROUNDED if expected else EXACT), error


def test_sixteen_bits_are_not_concerned():
    x, weight = random(256, 512), random(384, 512)
    exact, rounded = (kf.ops.linear(x, weight, selection=kf.Selection(tf32=tf32)) for tf32 in (False, True))
    assert torch.equal(exact, rounded)
