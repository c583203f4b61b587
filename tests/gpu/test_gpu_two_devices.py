"""Two GPUs in one process: the tensors' device decides, whatever torch's current one is."""

from __future__ import annotations

import threading

import pytest
import torch
from bounds import random, rows_agree
from test_gpu_recording import CALLS, layer, manager
from test_gpu_torch import CALLS as OPERATORS
from test_gpu_torch import Block, heads, waits_for

import sagellm_kernel_fusion as kf
import sagellm_kernel_fusion.torch as kft
from model_files import TINY, write_gguf

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
BF16 = torch.bfloat16


def on(device: int, operands: dict) -> dict:
    return {n: x.to(f"cuda:{device}") if isinstance(x, torch.Tensor) else x for n, x in operands.items()}


def equal(a, b) -> bool:
    return torch.equal(a.cpu(), b.cpu())


def at_once(*functions) -> None:
    """Each in a thread of its own; what one raises is raised here."""
    failed = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("name", list(OPERATORS))
def test_torchs_operators(name, current):
    operands = OPERATORS[name](BF16)
    expected = getattr(kft, name)(**operands)
    with torch.cuda.device(current):
        got = getattr(kft, name)(**on(1, operands))
        assert torch.cuda.current_device() == current
    assert got.device.index == 1 and equal(got, expected)


@pytest.mark.parametrize("name", list(CALLS))
def test_one_manager_serves_both_in_turn(name):
    m, call = manager(), CALLS[name]()
    there = on(1, call)
    method = getattr(m, f"fuse_{name}")
    expected = method(**call)
    for _ in range(3):
        got, here = method(**there), method(**call)
        assert got.device.index == 1 and equal(got, expected) and equal(here, expected)
    assert m.plan(name, **there)["kernel"] == m.plan(name, **call)["kernel"]


def test_both_at_once_from_two_threads():
    """One manager; a thread a device, each on a stream of its own, all calls interleaved."""
    m, calls = manager(), {name: make() for name, make in CALLS.items()}
    expected = {name: getattr(m, f"fuse_{name}")(**call) for name, call in calls.items()}

    def work(device: int):
        there = {name: on(device, call) for name, call in calls.items()}
        torch.cuda.synchronize(device)
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream(device)):
            for _ in range(40):
                got = {name: getattr(m, f"fuse_{name}")(**call) for name, call in there.items()}
            for name in got:
                assert equal(got[name], expected[name]), (name, device)

    at_once(lambda: work(0), lambda: work(1))


def test_operands_of_two_devices_are_refused():
    m = manager()
    x, weight = random(9, 512), random(512)
    out = torch.full((9, 512), 7, dtype=BF16, device="cuda:1")
    expected = m.fuse_rmsnorm(x, weight)
    for wrong in (
        lambda: m.fuse_rmsnorm(x, weight.to("cuda:1")),
        lambda: m.fuse_rmsnorm(x.to("cuda:1"), weight),
        lambda: m.fuse_rmsnorm(x, weight, out=out),
        lambda: kf.ops.linear(x, random(256, 512).to("cuda:1")),
        lambda: kft.scaled_dot_product_attention(**(heads(BF16, 9, 9) | on(1, {"query": random(2, 8, 9, 64)}))),
    ):
        with pytest.raises((kf.KernelFusionError, RuntimeError), match="cuda:[01].*cuda:[01]"):
            wrong()
    assert bool((out == 7).all()) and torch.equal(m.fuse_rmsnorm(x, weight), expected)


def test_a_stream_of_the_other_device_is_refused():
    m, x, weight = manager(), random(9, 512), random(512)
    expected = m.fuse_rmsnorm(x, weight)
    there = on(1, {"x": x, "weight": weight})
    with pytest.raises(kf.InvalidArgumentError, match="stream: expected one of cuda:1.*got one of cuda:0"):
        m.fuse_rmsnorm(**there, stream=torch.cuda.Stream(0))
    assert equal(m.fuse_rmsnorm(**there, stream=torch.cuda.Stream(1)), expected)
    assert equal(m.fuse_rmsnorm(x, weight), expected)


def test_calls_are_on_the_tensors_devices_stream():
    """What the second device's stream is given late is waited for, with the first device current."""
    m, x, weight = manager(), random(64, 4096).to("cuda:1"), random(4096).to("cuda:1")
    expected = torch.nn.functional.rms_norm(x.float(), (4096,), weight.float(), 1e-6)
    stream = torch.cuda.Stream(1)
    values = x.clone()
    m.fuse_rmsnorm(x, weight)
    stream.wait_stream(torch.cuda.current_stream(1))
    with torch.cuda.stream(stream):
        x.zero_()
        torch.cuda._sleep(30_000_000)
        x.copy_(values)
        with torch.cuda.device(0):  # the second device's current stream stays
            out = m.fuse_rmsnorm(x, weight)
    stream.synchronize()
    rows_agree(out, expected, 3.0)
    with torch.cuda.device(1):
        rows_agree(waits_for(torch.cuda.Stream(1), x, lambda: m.fuse_rmsnorm(x, weight)), expected, 3.0)


def test_a_peers_stream_feeds_the_other_device():
    """A result of one device, copied by its peer's stream behind an event, is what the peer's call reads."""
    m, x, weight = manager(), random(64, 4096), random(4096)
    there = weight.to("cuda:1")
    expected = m.fuse_rmsnorm(m.fuse_rmsnorm(x, weight), weight)
    streams = torch.cuda.Stream(0), torch.cuda.Stream(1)
    for round_ in range(5):
        received = torch.zeros(64, 4096, dtype=BF16, device="cuda:1")
        torch.cuda.synchronize(0)
        torch.cuda.synchronize(1)
        with torch.cuda.stream(streams[0]):
            torch.cuda._sleep(5_000_000)
            h = m.fuse_rmsnorm(x, weight)
            made = streams[0].record_event()
        with torch.cuda.stream(streams[1]):
            streams[1].wait_event(made)
            received.copy_(h, non_blocking=True)
            got = m.fuse_rmsnorm(received, there)
        streams[1].synchronize()
        assert equal(got, expected), round_


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("name", list(CALLS))
def test_a_recording_on_the_second_device(name, current):
    m, call = manager(use_cuda_graph=True), on(1, CALLS[name]())
    method = getattr(m, f"fuse_{name}")
    first = next(iter(call.values()))
    with torch.cuda.device(current):
        recorded = m.record(lambda: method(**call), device=1)
        first.copy_(first.flip(0))
        expected = method(**call)
        torch.cuda.synchronize(1)
        assert equal(recorded.replay(), expected)
    with torch.cuda.device(1):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = method(**call)
    first.mul_(0.5)
    graph.replay()
    assert torch.equal(out, method(**call))


def test_recordings_of_both_replayed_at_once():
    m, call = manager(), CALLS["attention"]()
    x, weight = random(2, 4096), random(4096)
    expected = layer(m, x, weight, call)

    def work(device: int, recorded):
        with torch.cuda.device(device):
            for _ in range(50):
                assert equal(recorded.replay(), expected)

    there = on(1, call)
    x1, weight1 = x.to("cuda:1"), weight.to("cuda:1")
    recordings = (
        m.record(lambda: layer(m, x, weight, call)),
        m.record(lambda: layer(m, x1, weight1, there), device=1),
    )
    at_once(*(lambda d=d, r=r: work(d, r) for d, r in enumerate(recordings)))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_on_the_second_device(mode):
    torch.manual_seed(0)
    block, x = Block(BF16), random(2, 17, 128)
    expected = block(x)
    block, x = block.to("cuda:1"), x.to("cuda:1")
    with torch.cuda.device(1):
        compiled = torch.compile(block, fullgraph=True, mode=mode)
        for _ in range(3):
            got = compiled(x).clone()
    assert got.device.index == 1
    rows_agree(got, expected, 4.0)
    torch._dynamo.reset()


def test_a_custom_kernel_of_both():
    silu = kf.CudaSource(
        r"""#include <cuda_bf16.h>
            extern "C" __global__ void silu(const KF_TYPE* x, KF_TYPE* out, int n) {
              int i = blockIdx.x * 256 + threadIdx.x;
              if (i < n) { float v = float(x[i]); out[i] = KF_TYPE(v / (1 + expf(-v))); }
            }""",
        "silu", ("x", "out", "x.numel"), grid=lambda a: (-(-a["N"] * a["D"] // 256),), dtypes=("f32", "bf16"),
    )  # fmt: skip
    m, x = manager(), random(9, 512)
    m.register_custom_kernel("my_silu", silu, op="activation")
    expected, there = torch.nn.functional.silu(x.float()), x.to("cuda:1")
    for call in (there, x, there):
        got = m.fuse_activation(call)
        assert got.device == call.device
        rows_agree(got, expected, 3.0)
    assert m.plan("activation", x=there)["kernel"].endswith("my_silu")


def test_models_on_both_at_once(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", TINY)
    prompts = [[5, 9, 14, 3], [7, 2, 21]]
    models = [kf.load_model(path, weights="f32", device=device) for device in ("cpu", "cuda:0", "cuda:1")]
    expected = [g.tokens for g in models[0].generate(prompts, 24, stop=False)]

    def work(model):
        for _ in range(5):
            assert [g.tokens for g in model.generate(prompts, 24, stop=False)] == expected

    at_once(*(lambda model=model: work(model) for model in models[1:]))
