"""A Triton kernel of one's own as an operator of the manager: checked against the library's before it is used.

Without a CUDA device it runs through Triton's interpreter."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernel is defined

import triton
import triton.language as tl

import sagellm_kernel_fusion as kf


@triton.jit
def gelu_linear(x_ptr, w_ptr, b_ptr, out_ptr, N, D_in, D_out, BLOCK_SIZE: tl.constexpr):
    """gelu(x) @ w + b, a program for BLOCK_SIZE rows; parameters by the specification's names are filled in."""
    rows = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    is_row = rows < N
    for column in range(D_out):
        total = tl.zeros((BLOCK_SIZE,), tl.float32) + tl.load(b_ptr + column)
        for i in range(D_in):
            x = tl.load(x_ptr + rows * D_in + i, mask=is_row, other=0.0)
            gelu = x * tl.sigmoid(1.5957691216 * (x + 0.044715 * x * x * x))  # the tanh form
            total += gelu * tl.load(w_ptr + i * D_out + column)
        tl.store(out_ptr + rows * D_out + column, total, mask=is_row)


m = kf.KernelFusionManager(kf.KernelFusionConfig(use_triton=True, fuse_gelu_linear=True, backend="triton"))
m.register_custom_kernel("gelu_linear", gelu_linear)

x, w = torch.randn(5, 24), torch.randn(24, 7)
out = m.fuse_gelu_linear(x, w)
torch.testing.assert_close(out, torch.nn.functional.gelu(x, approximate="tanh") @ w, rtol=1e-4, atol=1e-4)
print("served by", *m.get_stats()["ops"]["linear"]["kernels"])


# A launch of another form says its grid and arguments.
@triton.jit
def silu(source, target, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + i, mask=i < count)
    tl.store(target + i, x * tl.sigmoid(x), mask=i < count)


launch = kf.TritonKernel(
    silu,
    grid=lambda a: (triton.cdiv(a["count"], 64),),
    args=lambda a: {"source": a["x"], "target": a["out"], "count": a["x"].numel(), "BLOCK": 64},
)
m.register_custom_kernel("swish", launch, op="activation")
torch.testing.assert_close(m.fuse_activation(x), torch.nn.functional.silu(x))
print("served by", *m.get_stats()["ops"]["activation"]["kernels"])


# One that is wrong is refused by the first call that would use it, which has written nothing.
@triton.jit
def half(source, target, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + i, 0.5 * tl.load(source + i, mask=i < count), mask=i < count)


m.register_custom_kernel("wrong", kf.TritonKernel(half, launch.grid, launch.args), op="activation")
try:
    m.fuse_activation(x)
except kf.InvalidArgumentError as error:
    print("refused:", str(error).partition(" (")[0])
else:
    raise AssertionError("a wrong kernel was used")
