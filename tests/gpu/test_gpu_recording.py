"""CUDA graphs: of single ops and of a callable; what may not be recorded is refused before anything is launched."""

from __future__ import annotations

import pytest
import torch
from bounds import random, rows_agree

import sagellm_kernel_fusion as kf


def manager(**fields) -> kf.KernelFusionManager:
    return kf.KernelFusionManager(kf.KernelFusionConfig(libraries=[], **fields))


def operands():
    return {"q": random(2, 8, 8, 64), "k": random(2, 700, 2, 64), "v": random(2, 700, 2, 64).flip(1)}


CALLS = {
    "rmsnorm": lambda: {"x": random(9, 512), "weight": random(512)},
    "softmax": lambda: {"x": random(9, 512)},
    "attention": operands,
    "ffn": lambda: {
        "x": random(9, 512), "gate_weight": random(512, 768, scale=0.04), "up_weight": random(512, 768, scale=0.05),
        "down_weight": random(768, 512, scale=0.04),
    },
    "gelu_linear": lambda: {"x": random(9, 512), "weight": random(512, 256, scale=0.04)},
}  # fmt: skip


@pytest.mark.parametrize("name", list(CALLS))
def test_a_single_op_in_torchs_graph(name):
    m, call = manager(use_cuda_graph=True), CALLS[name]()
    method = getattr(m, f"fuse_{name}")
    first, expected = next(iter(call.values())), method(**call)
    assert m.plan(name, **call)["graph_safe"]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = method(**call)
    first.copy_(first.flip(0))
    flipped = method(**call)
    graph.replay()
    assert torch.equal(out, flipped) and not torch.equal(out, expected)


def layer(m, x, weight, call):
    h = m.fuse_rmsnorm(x, weight)
    q = h.view(2, 8, 8, 64)
    return m.fuse_attention(q, call["k"], call["v"]).flatten(1) + torch.relu(x)


def test_a_callable_recorded_and_replayed():
    m, call = manager(), operands()
    x, weight = random(2, 4096), random(4096)
    recorded = m.record(lambda: layer(m, x, weight, call))
    for seed in range(3):
        x.copy_(random(2, 4096) * (seed + 1))
        expected = layer(m, x, weight, call)
        assert torch.equal(recorded.replay(), expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x.mul_(0.5)
        got = recorded.replay() * 1
    stream.synchronize()
    assert torch.equal(got, layer(m, x, weight, call))


def waits_for_the_device(x):
    return x * (float(x.float().abs().max()) > -1)  # reads a value back


def test_what_waits_for_the_device_is_not_taken_while_recording():
    """A custom kernel that is not graph-safe comes first; while a function is recorded the library's own is taken."""
    m, x = manager(), random(9, 512)
    m.register_custom_kernel("mine", waits_for_the_device, op="activation", reference=lambda x: x)
    assert torch.equal(m.fuse_activation(x), x)
    recorded = m.record(lambda: m.fuse_activation(x))
    rows_agree(recorded.replay(), torch.nn.functional.silu(x.float()), 3.0)
    assert torch.equal(m.fuse_activation(x), x)


def test_what_only_an_unsafe_kernel_serves_is_refused():
    m, x = manager(), random(9, 512)
    ran = []

    def mine(x, kind):
        ran.append(kind)
        return x * 1

    m.register_custom_kernel("mine", mine, op="activation", reference=lambda x, kind: x)
    out = torch.full_like(x, 7)
    config = kf.KernelFusionConfig(libraries=[], use_cuda_graph=True)
    names = [r["kernel"] for r in m.explain("activation", config, x=x) if r["allowed"]]
    assert "custom::mine" not in names
    # By torch's own graph, without the setting: the call is refused before it launches, and the graph goes on.
    m.fuse_activation(x)
    count = len(ran)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = x + x
        with pytest.raises(kf.KernelFusionError, match="may not be recorded"):
            m.fuse_activation(x, out=out)
    graph.replay()
    torch.cuda.synchronize()
    assert len(ran) == count and bool((out == 7).all()) and torch.equal(doubled, x + x)


def test_a_layout_that_comes_first_while_recording():
    """Planned while a stream is recorded: a result as ever, or an error; never a graph that computes something else."""
    m, call = manager(), CALLS["ffn"]()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            out = m.fuse_ffn(**call)
    except kf.KernelFusionError as error:
        assert error.args
    else:
        graph.replay()
        assert torch.equal(out, m.fuse_ffn(**call))
    rows_agree(m.fuse_ffn(**call), manager().fuse_ffn(**{n: x.float().cpu() for n, x in call.items()}), 3.0)


def test_record_says_what_it_takes():
    with pytest.raises(kf.InvalidArgumentError, match="record: function: expected a callable"):
        manager().record(torch.ones(3))
