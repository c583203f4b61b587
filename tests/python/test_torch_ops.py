"""torch's own words for fused operators: values against torch.nn.functional, torch.library.opcheck, no graph break
under torch.compile, torch.export."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
import sagellm_kernel_fusion as kf  # noqa: E402
import sagellm_kernel_fusion.torch as kft  # noqa: E402

F = torch.nn.functional


@pytest.fixture(autouse=True)
def inference():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def reference_swiglu(x, gate, up, down):
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


# Sums of at most 64 terms of order 1 in f32, in another order.
def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64), (0, 64)])
def test_norms(shape):
    x, w, b = torch.randn(shape), torch.randn(64), torch.randn(64)
    same(kft.rms_norm(x, (64,), w, 1e-6), F.rms_norm(x, (64,), w, 1e-6))
    same(kft.rms_norm(x, [64]), F.rms_norm(x, [64]))
    same(kft.layer_norm(x, (64,), w, b), F.layer_norm(x, (64,), w, b))
    same(kft.layer_norm(x, (64,)), F.layer_norm(x, (64,)))


def test_operands_that_are_not_contiguous():
    x = torch.randn(64, 6).t()
    same(kft.rms_norm(x, (64,)), F.rms_norm(x, (64,)))
    weights = torch.randn(64, 96).t(), torch.randn(96, 64), torch.randn(96, 64).t()
    same(kft.swiglu(x, *weights) / 64, reference_swiglu(x, *weights) / 64)


MASKS = {
    "none": lambda: {},
    "causal": lambda: {"is_causal": True},
    "boolean": lambda: {"attn_mask": torch.rand(7, 9) > 0.3},
    "a head": lambda: {"attn_mask": torch.randn(2, 4, 7, 9)},
    "a batch": lambda: {"attn_mask": torch.rand(2, 1, 7, 9) > 0.3},
    "scaled": lambda: {"scale": 0.3},
}


@pytest.mark.parametrize("mask", list(MASKS))
@pytest.mark.parametrize("heads", [4, 2])
def test_attention(mask, heads):
    q, k, v = torch.randn(2, 4, 7, 16), torch.randn(2, heads, 9, 16), torch.randn(2, heads, 9, 24)
    options = MASKS[mask]()
    options["enable_gqa"] = heads != 4
    if "attn_mask" in options and options["attn_mask"].dtype == torch.bool:
        options["attn_mask"][..., 0] = True  # a row that sees nothing: NaN there, zero here
    same(kft.scaled_dot_product_attention(q, k, v, **options), F.scaled_dot_product_attention(q, k, v, **options))


def test_attention_without_heads_and_causal_over_equal_lengths():
    q, k, v = (torch.randn(3, 8, 16) for _ in range(3))
    mask = torch.rand(3, 8, 8) > 0.3
    mask[..., 0] = True
    for options in ({}, {"is_causal": True}, {"attn_mask": mask}):
        same(kft.scaled_dot_product_attention(q, k, v, **options), F.scaled_dot_product_attention(q, k, v, **options))


def test_swiglu():
    x, gate, up, down = torch.randn(2, 3, 32), torch.randn(48, 32), torch.randn(48, 32), torch.randn(20, 48)
    expected = reference_swiglu(x, gate, up, down)
    scale = expected.abs().max()
    same(kft.swiglu(x, gate, up, down) / scale, expected / scale)


SAMPLES = {
    "rms_norm": lambda: (torch.randn(2, 3, 32), torch.randn(32), 1e-6),
    "layer_norm": lambda: (torch.randn(3, 32), torch.randn(32), None, 1e-5),
    "attention": lambda: (
        torch.randn(2, 5, 4, 16), torch.randn(2, 5, 2, 16), torch.randn(2, 5, 2, 24), None, True, None,
    ),
    "gated_ffn": lambda: (torch.randn(2, 3, 32), torch.randn(48, 32), torch.randn(48, 32), torch.randn(20, 48)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SAMPLES))
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.kernel_fusion, name).default, SAMPLES[name]())


class Layer(torch.nn.Module):
    def __init__(self, norms, attention, ffn):
        super().__init__()
        self.rms_norm, self.layer_norm = norms
        self.attention, self.ffn = attention, ffn
        self.qkv = torch.nn.Linear(32, 96)
        self.weights = torch.nn.ParameterList([torch.randn(48, 32), torch.randn(48, 32), 0.1 * torch.randn(32, 48)])
        self.norm = torch.nn.Parameter(torch.randn(32))

    def forward(self, x):
        h = self.rms_norm(x, (32,), self.norm, 1e-6)
        q, k, v = (t.view(*x.shape[:2], 2, 16).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        x = x + self.attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.layer_norm(x + self.ffn(x, *self.weights), (32,), self.norm)


def layers():
    fused = Layer((kft.rms_norm, kft.layer_norm), kft.scaled_dot_product_attention, kft.swiglu)
    plain = Layer((F.rms_norm, F.layer_norm), F.scaled_dot_product_attention, reference_swiglu)
    plain.load_state_dict(fused.state_dict())
    return fused, plain


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_breaks_no_graph(dynamic):
    fused, plain = layers()
    compiled = torch.compile(fused, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (6, 11):
        x = torch.randn(2, length, 32)
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-4)


def test_a_managers_calls_end_a_graph():
    m = kf.KernelFusionManager()

    def step(x, q):
        return 2 * m.fuse_softmax(x + 1), m.fuse_attention(q, q, q) + x.sum()

    operands = torch.randn(3, 8), torch.randn(1, 5, 2, 16)
    for got, expected in zip(torch.compile(step, backend="eager")(*operands), step(*operands), strict=True):
        torch.testing.assert_close(got, expected)


def test_torch_compile_with_inductor(tmp_path, monkeypatch):
    """The default backend, which compiles what lies around our operators (with a C++ compiler)."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))

    def block(x, norm, *weights):
        return torch.tanh(x) + kft.swiglu(kft.rms_norm(2 * x, (32,), norm), *weights)

    def plain(x, norm, *weights):
        return torch.tanh(x) + reference_swiglu(F.rms_norm(2 * x, (32,), norm), *weights)

    operands = torch.randn(3, 32), torch.randn(32), torch.randn(48, 32), torch.randn(48, 32), torch.randn(32, 48) / 10
    with torch._inductor.config.patch(cpp_cache_precompile_headers=False):  # they are made for one kernel here
        got, code = torch._inductor.utils.run_and_get_code(torch.compile(block, fullgraph=True), *operands)
    torch.testing.assert_close(got, plain(*operands), rtol=1e-4, atol=1e-4)
    assert "kernel_fusion.rms_norm" in code[0] and "tanh" in code[0]  # our calls, and a kernel made around them


def test_torch_export():
    fused, plain = layers()
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(fused, (torch.randn(2, 6, 32),), dynamic_shapes=({1: length},))
    called = {str(node.target) for node in program.graph.nodes}
    assert {f"kernel_fusion.{name}.default" for name in SAMPLES} <= called
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(program.module()(x), plain(x), rtol=1e-4, atol=1e-4)


def test_wrong_use_says_what_to_do():
    x = torch.randn(2, 4, 5, 16)
    with pytest.raises(ValueError, match=r"normalized_shape: expected the last dimension, \(16,\)"):
        kft.rms_norm(x, (5, 16))
    with pytest.raises(ValueError, match="dropout_p: expected 0"):
        kft.scaled_dot_product_attention(x, x, x, dropout_p=0.1)
    with pytest.raises(ValueError, match="expected False with attn_mask"):
        kft.scaled_dot_product_attention(x, x, x, torch.ones(5, 5), is_causal=True)
    with pytest.raises(ValueError, match="enable_gqa"):
        kft.scaled_dot_product_attention(x, x[:, :2], x[:, :2])
    with pytest.raises(ValueError, match="3 or 4 dimensions"):
        kft.scaled_dot_product_attention(x[0, 0], x[0, 0], x[0, 0])
    with pytest.raises(ValueError, match=r"normalized_shape: expected the last dimension.* got 16"):
        kft.rms_norm(x, 16)
    with pytest.raises(ValueError, match="query: expected a torch tensor, got ndarray"):
        kft.scaled_dot_product_attention(*[x.numpy()] * 3)
    with torch.enable_grad(), pytest.raises(RuntimeError, match="autograd"):
        kft.rms_norm(x.requires_grad_(), (16,)).sum().backward()
    with pytest.raises(ValueError, match="rms_norm: x: from_dlpack: expected a dtype of kf"):
        kft.rms_norm(x.detach().double(), (16,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_default_eps_is_torchs(dtype):
    """Of small values, which another eps would drown."""
    x = (torch.randn(3, 64) * 1e-3).to(dtype)
    torch.testing.assert_close(kft.rms_norm(x, (64,)), F.rms_norm(x, (64,)))


def test_attention_without_scale_and_over_batches_of_one():
    q, k, v = torch.randn(2, 4, 5, 16), torch.randn(1, 4, 7, 16), torch.randn(1, 4, 7, 16)
    for options in ({"scale": 0.0}, {}, {"scale": 0.3}):
        got = kft.scaled_dot_product_attention(q, k, v, **options)
        torch.testing.assert_close(got, F.scaled_dot_product_attention(q, k, v, **options), rtol=1e-4, atol=1e-5)
    assert kft.scaled_dot_product_attention(q[:0], k, v).shape == (0, 4, 5, 16)


def test_swiglu_of_nothing():
    assert kft.swiglu(torch.randn(0, 8), torch.randn(16, 8), torch.randn(16, 8), torch.randn(8, 16)).shape == (0, 8)


def test_a_profiled_manager_under_compile():
    m = kf.KernelFusionManager(kf.KernelFusionConfig(profile_kernels=True))
    x, w = torch.randn(2, 8), torch.randn(8, 4)
    step = torch.compile(lambda x: m.fuse_silu_linear(x * 2, w) + 1, backend="eager")
    torch.testing.assert_close(step(x), F.silu(x * 2) @ w + 1, rtol=1e-5, atol=1e-5)
    assert m.get_stats()["ops"]["linear"]["calls"] == 1
