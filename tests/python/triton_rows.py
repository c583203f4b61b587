"""Our Triton kernels beside the references, on the CPU: run with TRITON_INTERPRET=1 (test_adapters.py does)."""

import itertools

import torch

import sagellm_kernel_fusion as kf

m = kf.KernelFusionManager(kf.KernelFusionConfig(use_triton=True, backend="triton", libraries=["triton"]))
generator = torch.Generator().manual_seed(3)
# Of the largest value: sums of products in f32; for 16-bit data the rounding of the result, and of what an activation
# or a norm gives before the product, each half an ulp of 2^-10 or 2^-7.
BOUND = {torch.float32: 2e-6, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}


def random(*shape, dtype):
    return torch.randn(shape, generator=generator).to(dtype)


def check(op: str, kernel: str, **operands) -> None:
    fields = kf.ops.__dict__[op]
    got = m._core.call(op, operands, m.config.bound())
    expected = fields(**operands, selection=kf.REFERENCE)
    pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=BOUND[a.dtype] * max(1.0, float(b[b.isfinite()].abs().max())))
    assert kernel in m.get_stats()["ops"][op]["kernels"], (kernel, m.get_stats())
    assert all(name.startswith("triton::") for name in m.get_stats()["ops"][op]["kernels"])


for dtype, (rows, width) in itertools.product(BOUND, [(1, 1), (3, 40), (2, 5000)]):
    x, w = random(rows, width, dtype=dtype), random(width, dtype=dtype)
    check("rms_norm", "triton::rms_norm", x=x, weight=w, eps=1e-5)
    check("softmax", "triton::softmax", x=x, scale=0.5, lse=True)
check(
    "rms_norm", "triton::rms_norm", x=random(2, 3, 20, dtype=torch.float32)[..., :12], weight=w[:12], weight_offset=1.0
)
hostile = random(4, 9, dtype=torch.float32)
hostile[0], hostile[1, :3], hostile[2, 5], hostile[3] = -torch.inf, -torch.inf, torch.nan, 1e30
got = m.fuse_softmax(hostile)
torch.testing.assert_close(got, kf.ops.softmax(hostile, selection=kf.REFERENCE), equal_nan=True)
assert (got[0] == 0).all() and got[2].isnan().all()

for dtype, (rows, inner, outputs) in itertools.product(BOUND, [(1, 1, 1), (17, 70, 33)]):
    x, w, bias = random(rows, inner, dtype=dtype), random(outputs, inner, dtype=dtype), random(outputs, dtype=dtype)
    n, b = random(inner, dtype=dtype), random(inner, dtype=dtype)
    for kind in ("gelu_tanh", "gelu", "silu", "relu"):
        check("linear", "triton::gelu_linear", x=x, weight=w, bias=bias, pre_activation=kind)
    check("linear", "triton::gelu_linear", x=x, weight=w.t().contiguous().t(), pre_activation="silu")
    check("linear", "triton::ln_linear", x=x, weight=w, norm="layer", norm_weight=n, norm_bias=b, bias=bias)
    check("linear", "triton::ln_linear", x=x, weight=w, norm="rms", norm_weight=n, eps=1e-6, norm_weight_offset=1.0)
    up, down = random(outputs, inner, dtype=dtype), random(inner, outputs, dtype=dtype)
    for kind in ("silu", "gelu"):
        operands = {"x": x, "gate_weight": w, "up_weight": up, "down_weight": down, "activation": kind}
        check("gated_ffn", "triton::gated_ffn", **{n: v / 4 if torch.is_tensor(v) else v for n, v in operands.items()})

# The specification's methods, weights as x @ W.
x, w = random(4, 24, dtype=torch.float32), random(24, 16, dtype=torch.float32)
m.reset()
torch.testing.assert_close(
    m.fuse_gelu_linear(x, w), torch.nn.functional.gelu(x, approximate="tanh") @ w, rtol=1e-5, atol=1e-5
)
n, b = x[0].clone(), x[1].clone()  # the interpreter takes operands that begin at one address for one operand
torch.testing.assert_close(
    m.fuse_layernorm_linear(x, n, b, w),
    torch.nn.functional.layer_norm(x, (24,), n, b) @ w,
    rtol=1e-5,
    atol=1e-4,
)
up, down = random(24, 16, dtype=torch.float32), random(16, 24, dtype=torch.float32)
expected = (torch.nn.functional.silu(x @ w) * (x @ up)) @ down
torch.testing.assert_close(m.fuse_ffn(x, w, up, down), expected, rtol=1e-4, atol=1e-3)
assert set(m.get_stats()["ops"]["linear"]["kernels"]) == {"triton::gelu_linear", "triton::ln_linear"}
assert m.get_stats()["ops"]["gated_ffn"]["kernel_calls"] == 2
# Factors of f32 are rounded to TF32 where the configuration lets them; the interpreter rounds none.
from sagellm_kernel_fusion.triton import kernels  # noqa: E402

precisions = []


class Noting:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(*args, **options):
            precisions.append(options["PRECISION"])
            return self.kernel[grid](*args, **options)

        return launch


plain = kernels.linear, kernels.gate_and_up
kernels.linear, kernels.gate_and_up = Noting(plain[0]), Noting(plain[1])
hip = torch.version.hip
for allowed, rocm, word in ((True, None, "tf32"), (False, None, "ieee"), (True, "6.4", "ieee")):
    torch.version.hip = rocm
    config = kf.KernelFusionConfig(use_triton=True, backend="triton", enable_tf32=allowed)
    m.fuse_gelu_linear(x, w, config)
    m.fuse_layernorm_linear(x, n, b, w, config)
    m.fuse_ffn(x, w, up, down, config)
    assert set(precisions) == {word} and len(precisions) >= 4, precisions
    precisions.clear()
torch.version.hip = hip
kernels.linear, kernels.gate_and_up = plain
# Declined: what they do not compute.
for name, operands, reason in (
    ("rmsnorm", {"x": x, "weight": x[0], "residual": x}, "residual is given, which no parameter of triton::rms_norm"),
    ("softmax", {"x": x[:0]}, "x has shape [0, 24]: this kernel takes no empty operands"),
    ("gelu_linear", {"x": x, "weight": w.half()}, "weight is f16, x f32: this kernel takes one dtype"),
    ("rmsnorm", {"x": x.view(2, 2, 24).transpose(0, 1), "weight": x[0]}, "x has strides [24, 48, 1]: this kernel"),
):  # fmt: skip
    rows = {r["kernel"]: r["reason"] for r in m.explain(name, **operands) if r["kernel"].startswith("triton::")}
    assert any(r.startswith(reason) for r in rows.values()), rows
