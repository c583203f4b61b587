"""Ops and torch's operators on CUDA tensors: results, torch.compile, streams, inference mode, threads."""

from __future__ import annotations

import threading

import pytest
import torch
from bounds import attention_agrees, on_the_cpu, random, rows_agree

import sagellm_kernel_fusion as kf
import sagellm_kernel_fusion.torch as kft

F = torch.nn.functional
F32, BF16 = torch.float32, torch.bfloat16


def heads(dtype, queries, keys):
    q, k = random(2, 8, queries, 64, dtype=dtype), random(2, 2, keys, 64, dtype=dtype)
    return {"query": q, "key": k, "value": k.flip(2), "enable_gqa": True}


def weights(dtype):
    gate, down = random(328, 200, dtype=dtype, scale=0.07), random(200, 328, dtype=dtype, scale=0.05)
    return {"x": random(2, 33, 200, dtype=dtype), "gate_weight": gate, "up_weight": gate.flip(0), "down_weight": down}


CALLS = {
    "rms_norm": lambda t: {
        "input": random(2, 9, 200, dtype=t), "normalized_shape": (200,), "weight": random(200, dtype=t),
    },
    "layer_norm": lambda t: {
        "input": random(9, 200, dtype=t), "normalized_shape": (200,), "weight": random(200, dtype=t),
        "bias": random(200, dtype=t),
    },
    "scaled_dot_product_attention": lambda t: heads(t, 37, 75),
    "swiglu": weights,
}  # fmt: skip
# Of f32, sums in another order; of bf16 the result's and those of a value that lies between two parts of an op.
FEW = {F32: 200.0, BF16: 3.0}


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("name", list(CALLS))
def test_operators(name, dtype):
    operands = CALLS[name](dtype)
    got = getattr(kft, name)(**operands)
    assert got.is_cuda and got.dtype == dtype
    rows_agree(got, getattr(kft, name)(**on_the_cpu(operands)), FEW[dtype])
    with torch.inference_mode():
        assert torch.equal(getattr(kft, name)(**operands), got)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": "a boolean one"}, {"scale": 0.3}], ids=str)
def test_attention(options):
    operands = heads(BF16, 64, 64) | options
    if "attn_mask" in options:
        operands["attn_mask"] = torch.ones(64, 64, dtype=torch.bool, device="cuda").tril(3)
    got = kft.scaled_dot_product_attention(**operands)
    rows_agree(got, kft.scaled_dot_product_attention(**on_the_cpu(operands)), FEW[BF16])


@pytest.mark.parametrize("causal", [True, False])
def test_cudnns_attention(causal):
    """In the process of PyTorch, which has cuDNN and a frontend to it of its own."""
    m = kf.KernelFusionManager(kf.KernelFusionConfig(libraries=[], attention_backend="flash3"))
    operands = {"q": random(2, 130, 8, 64), "k": random(2, 130, 2, 64), "v": random(2, 130, 2, 64).flip(1)}
    assert m.plan("attention", **operands, causal=causal)["kernel"] == "cuda::attention_cudnn"
    attention_agrees(m.fuse_attention(**operands, causal=causal), None, operands, {"causal": causal})


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "attention", "gated_ffn"])
def test_opcheck(name):
    x = random(2, 5, 4, 16, dtype=F32)
    samples = {
        "rms_norm": (x, random(16, dtype=F32), 1e-6),
        "layer_norm": (x, random(16, dtype=F32), None, 1e-5),
        "attention": (x, x[:, :, :2].contiguous(), random(2, 5, 2, 16, dtype=F32), None, True, None),
        "gated_ffn": (x, *(random(*s, dtype=F32) for s in ((48, 16), (48, 16), (20, 48)))),
    }
    torch.library.opcheck(
        getattr(torch.ops.kernel_fusion, name).default, samples[name],
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip


class Block(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.qkv, self.norm = torch.nn.Linear(128, 384, bias=False), torch.nn.Parameter(torch.ones(128))
        self.gate, self.up = (torch.nn.Parameter(torch.randn(256, 128) * 0.09) for _ in range(2))
        self.down = torch.nn.Parameter(torch.randn(128, 256) * 0.06)
        self.to("cuda", dtype)

    def forward(self, x):
        h = kft.rms_norm(x, (128,), self.norm, 1e-6)
        q, k, v = (t.view(*x.shape[:2], 2, 64).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        x = x + kft.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return kft.layer_norm(x + kft.swiglu(x, self.gate, self.up, self.down), (128,), self.norm)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_without_a_break(mode):
    """reduce-overhead: launches recorded by inductor as a CUDA graph."""
    torch.manual_seed(0)
    block, x = Block(BF16), random(2, 17, 128)
    expected = block(x)
    compiled = torch.compile(block, fullgraph=True, mode=mode)
    for _ in range(3):
        got = compiled(x).clone()
    rows_agree(got, expected, 4.0)  # inductor rounds residuals elsewhere
    torch._dynamo.reset()


def waits_for(stream, x, run):
    """x is written on the stream after a pause, and what `run` makes is read there at once."""
    values = x.clone()
    run()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        x.zero_()
        torch.cuda._sleep(30_000_000)
        x.copy_(values)
        out = run() * 1
    stream.synchronize()
    return out


def test_calls_are_on_torchs_current_stream():
    x, weight = random(64, 4096), random(4096)
    manager = kf.KernelFusionManager(kf.KernelFusionConfig(libraries=[]))
    expected = F.rms_norm(x.float(), (4096,), weight.float(), 1e-6)
    for run in (
        lambda: kf.ops.rms_norm(x, weight, eps=1e-6),
        lambda: kft.rms_norm(x, (4096,), weight, 1e-6),
        lambda: manager.fuse_rmsnorm(x, weight),
    ):
        rows_agree(waits_for(torch.cuda.Stream(), x, run), expected, 3.0)


def test_two_threads_with_a_stream_each():
    manager = kf.KernelFusionManager(kf.KernelFusionConfig(libraries=[]))
    failed = []

    def work(seed: int):
        x, weight = random(31 + seed, 1024), random(1024)
        gate, down = random(2816, 1024, scale=0.03), random(1024, 2816, scale=0.02)
        expected = None
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            for _ in range(50):
                h = manager.fuse_rmsnorm(x, weight)
                got = manager.fuse_ffn(h, gate, gate, down, weight_layout="out_in") + kf.ops.softmax(h)
                expected = got if expected is None else expected
                if not torch.equal(got, expected):
                    failed.append(seed)
        torch.cuda.synchronize()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed


def test_results_share_torchs_memory():
    """What is made is torch's own tensor, and operands are read where they lie."""
    x, weight = random(1024, 4096), random(4096)
    kf.ops.rms_norm(x, weight)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = kf.ops.rms_norm(x, weight)
    assert torch.cuda.max_memory_allocated() - before <= out.nbytes + 512
    given = torch.empty_like(x)
    assert kf.KernelFusionManager().fuse_rmsnorm(x, weight, out=given) is given


def test_operands_on_two_devices_are_refused():
    x = random(3, 64)
    with pytest.raises(kf.KernelFusionError, match="cpu"):
        kf.ops.rms_norm(x, torch.ones(64, dtype=BF16))
