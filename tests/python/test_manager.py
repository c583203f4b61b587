"""KernelFusionManager's operators against plain PyTorch, what its layouts mean, and what it refuses."""

from __future__ import annotations

import copy
import logging
import sys
import threading
import time

import numpy as np
import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import paged

torch = pytest.importorskip("torch")
F = torch.nn.functional


@pytest.fixture
def m():
    return kf.KernelFusionManager()


def attention_by_torch(q, k, v, causal=True):
    """Causal from the bottom right, for [batch, seqlen, heads, head_dim]."""
    q, k, v = (t.transpose(1, 2).double() for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        rows, columns = scores.shape[-2:]
        scores = scores.masked_fill(torch.ones(rows, columns).triu(columns - rows + 1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def close(got, expected, dtype=torch.float32):
    tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[
        dtype
    ]  # some roundings of the result
    largest = expected.abs().max().item()
    torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_attention_dense(m, dtype, causal):
    q, k, v = torch.randn(2, 5, 4, 32).to(dtype), torch.randn(2, 9, 2, 32).to(dtype), torch.randn(2, 9, 2, 32).to(dtype)
    out = m.fuse_attention(q, k, v, causal=causal)
    assert isinstance(out, torch.Tensor) and out.dtype == dtype and out.shape == q.shape
    close(out, attention_by_torch(q, k, v, causal), dtype)


def test_attention_packed_is_each_sequence_by_itself(m):
    q, k, v = torch.randn(7, 4, 16), torch.randn(10, 2, 16), torch.randn(10, 2, 16)
    ends_q, ends_k = torch.tensor([0, 3, 7], dtype=torch.int32), torch.tensor([0, 4, 10], dtype=torch.int32)
    options = {"cu_seqlens_q": ends_q, "cu_seqlens_k": ends_k, "max_seqlen_q": 4, "max_seqlen_k": 6}
    out, lse = m.fuse_attention(q, k, v, return_lse=True, **options)
    close(out[:3], attention_by_torch(q[None, :3], k[None, :4], v[None, :4])[0])
    close(out[3:], attention_by_torch(q[None, 3:], k[None, 4:], v[None, 4:])[0])
    assert lse.shape == (4, 7)
    with pytest.raises(
        kf.InvalidArgumentError, match="max_seqlen_k: expected at least the longest sequence's 6, got 5"
    ):
        m.fuse_attention(q, k, v, **(options | {"max_seqlen_k": 5}))


@pytest.fixture
def pages():
    """Keys and values of two sequences, of 7 and 20, dense and as pages of 16 in "HND"."""
    k, v = torch.randn(2, 2, 20, 2, 16)
    pool_k, pool_v = torch.zeros(2, 5, 2, 16, 16)
    tables, lengths = torch.tensor([[3, -1], [0, 4]], dtype=torch.int32), torch.tensor([7, 20], dtype=torch.int32)
    for pool, values in ((pool_k, k), (pool_v, v)):
        for row, length in enumerate(lengths.tolist()):
            for i in range(length):
                pool[tables[row, i // 16], :, i % 16] = values[row, i]
    return k, v, pool_k, pool_v, tables, lengths


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_attention_paged(m, pages, layout):
    k, v, pool_k, pool_v, tables, lengths = pages
    if layout == "NHD":
        pool_k, pool_v = pool_k.transpose(1, 2).contiguous(), pool_v.transpose(1, 2).contiguous()
    q = torch.randn(2, 4, 16)
    rows = [(slice(i, i + 1), n) for i, n in enumerate(lengths.tolist())]
    expected = torch.cat([attention_by_torch(q[None, i], k[i, :n], v[i, :n])[0] for i, n in rows])
    given = {"kv_layout": layout, "context_lens": lengths}
    close(m.fuse_attention(q, pool_k, pool_v, block_tables=tables, **given), expected)
    close(m.fuse_attention(q, pool_k, pool_v, block_tables=[[3], [0, 4]], **given), expected)
    given.pop("context_lens")
    close(m.fuse_attention(q, pool_k, pool_v, block_tables=kf.BlockTables(tables, lengths), **given), expected)
    # As a batch of one query each, and written where the caller says.
    out = torch.empty(2, 1, 4, 16)
    got, lse = m.fuse_attention(
        q[:, None],
        pool_k,
        pool_v,
        block_tables=tables,
        context_lens=lengths,
        kv_layout=layout,
        out=out,
        return_lse=True,
    )
    assert got is out and lse.shape == (2, 4, 1)
    close(out[:, 0], expected)


def test_tables_without_lengths_are_of_full_pages_and_say_so_once(m, pages, caplog, monkeypatch):
    _, _, pool_k, pool_v, tables, _ = pages
    monkeypatch.setattr(paged, "_said_full", False)
    q = torch.randn(2, 4, 16)
    with caplog.at_level(logging.WARNING, "sagellm_kernel_fusion"):
        got = [m.fuse_attention(q, pool_k, pool_v, block_tables=tables) for _ in range(2)]
    full = torch.tensor([16, 32], dtype=torch.int32)
    torch.testing.assert_close(got[0], m.fuse_attention(q, pool_k, pool_v, block_tables=tables, context_lens=full))
    assert [r.message.split(":")[0] for r in caplog.records] == ["block_tables without context_lens"]


def test_tables_of_a_pool():
    class Pool:
        def get_block_tables(self, ids):
            return np.array([[i, -1] for i in ids], np.int32)

    class Block:
        def __init__(self, number):
            self.block_id = number

    class OldPool:
        def get_sequence_blocks(self, i):
            return [Block(i), Block(i + 1)]

    assert kf.BlockTables.from_pool(Pool(), [4, 2]).tables.tolist() == [[4, -1], [2, -1]]
    assert kf.BlockTables.from_pool(OldPool(), [4, 2]).tables == [[4, 5], [2, 3]]
    with pytest.raises(kf.InvalidArgumentError, match="get_block_tables"):
        kf.BlockTables.from_pool(object(), [1])


@pytest.mark.parametrize("shape", [(3, 32), (2, 3, 32), (32,)], ids=str)
@pytest.mark.parametrize("layout", ["in_out", "out_in"])
def test_ffn(m, shape, layout):
    x, gate, up, down = torch.randn(shape), torch.randn(32, 48), torch.randn(32, 48), torch.randn(48, 32)
    expected = (F.silu(x @ gate) * (x @ up)) @ down
    weights = (gate, up, down) if layout == "in_out" else (gate.T, up.T, down.T)
    got = m.fuse_ffn(x, *weights, weight_layout=layout)
    assert got.shape == expected.shape
    close(got, expected)
    out = torch.empty(expected.shape)
    assert m.fuse_ffn(x, *weights, weight_layout=layout, out=out) is out
    close(out, expected)
    got = m.fuse_ffn(x, *weights, weight_layout=layout, activation="gelu")
    close(got, (F.gelu(x @ gate) * (x @ up)) @ down)


def test_layers_with_what_stands_before_them(m):
    x, w, bias = torch.randn(2, 3, 32), torch.randn(32, 24), torch.randn(24)
    ln_w, ln_b = torch.randn(2, 32)
    close(m.fuse_layernorm_linear(x, ln_w, ln_b, w), F.layer_norm(x, (32,), ln_w, ln_b) @ w)
    close(m.fuse_layernorm_linear(x, ln_w, None, w, bias=bias), F.layer_norm(x, (32,), ln_w) @ w + bias)
    close(m.fuse_rmsnorm_linear(x, ln_w, w), F.rms_norm(x, (32,), ln_w, 1e-6) @ w)
    close(m.fuse_gelu_linear(x, w, bias=bias), F.gelu(x, approximate="tanh") @ w + bias)
    close(m.fuse_gelu_linear(x, w, approximate="none"), F.gelu(x) @ w)
    close(m.fuse_silu_linear(x, w.T, weight_layout="out_in"), F.silu(x) @ w)


def test_norms_softmax_and_activations(m):
    x, r, w, b = torch.randn(2, 5, 40), torch.randn(2, 5, 40), torch.randn(40), torch.randn(40)
    close(m.fuse_rmsnorm(x, w), F.rms_norm(x, (40,), w, 1e-6))
    out, h = m.fuse_rmsnorm(x, w, residual=r)
    close(h, x + r)
    close(out, F.rms_norm(x + r, (40,), w, 1e-6))
    close(m.fuse_layernorm(x, w, b), F.layer_norm(x, (40,), w, b))
    close(m.fuse_softmax(x, scale=0.5), (x * 0.5).softmax(-1))
    close(m.fuse_softmax(x, return_lse=True)[1], x.logsumexp(-1))
    close(m.fuse_activation(x, kind="gelu"), F.gelu(x))


def test_keys_are_rotated_on_their_way_to_the_cache(m):
    k, v, q = torch.randn(3, 2, 8), torch.randn(3, 2, 8), torch.randn(3, 4, 8)
    cos, sin = torch.rand(16, 4), torch.rand(16, 4)
    positions, slots = torch.tensor([5, 6, 7], dtype=torch.int32), torch.tensor([1, 2, 17], dtype=torch.int64)
    pools = [torch.zeros(2, 2, 16, 8) for _ in range(4)]
    assert m.append_kv(k, v, *pools[:2], slots, cos=cos, sin=sin, positions=positions) is None
    rotated = m.append_kv(k, v, *pools[2:], slots, cos=cos, sin=sin, positions=positions, q=q)
    assert torch.equal(rotated, kf.ops.rope(q, positions, cos, sin))
    turned = kf.ops.rope(k, positions, cos, sin)
    for pool_k, pool_v in (pools[:2], pools[2:]):
        assert torch.equal(pool_k[1, :, 1], turned[2]) and torch.equal(pool_k[0, :, 2], turned[1])
        assert torch.equal(pool_v[0, :, 1], v[0])
    m.append_kv(k, v, *pools[:2], slots)
    assert torch.equal(pools[0][1, :, 1], k[2])
    with pytest.raises(kf.InvalidArgumentError, match="positions: expected cos, sin and positions together"):
        m.append_kv(k, v, *pools[:2], slots, cos=cos, sin=sin)


def test_one_configuration_a_call(m):
    q = torch.randn(1, 8, 2, 16)
    vanilla = kf.KernelFusionConfig(attention_backend="vanilla")
    m.fuse_attention(q, q, q)
    m.fuse_attention(q, q, q, vanilla)
    kernels = m.get_stats()["ops"]["attention"]["kernels"]
    assert {name: row["calls"] for name, row in kernels.items()} == {
        next(n for n in kernels if n != "cpu::attention_unfused"): 1,
        "cpu::attention_unfused": 1,
    }
    with pytest.raises(kf.InvalidArgumentError, match="config: expected a KernelFusionConfig, got dict"):
        m.fuse_attention(q, q, q, {})


def test_plan_ahead_and_explain(m):
    operands = {"x": kf.layout("f32", (4, 64)), "weight": kf.layout("f32", (64, 96))}
    plan = m.plan("gelu_linear", **operands)
    assert plan["op"] == "linear" and plan["launches"] >= 1 and not plan["fallback"]
    assert plan["flops"] >= 2 * 4 * 64 * 96
    assert [r["kernel"] for r in m.explain("gelu_linear", **operands) if r["selected"]] == [plan["kernel"]]
    norm = {"x": operands["x"], "weight": kf.layout("f32", (64,))}
    assert [p["op"] for p in m.warm_up([("gelu_linear", operands), ("rms_norm", norm)])] == ["linear", "rms_norm"]
    assert m.get_stats()["ops"] == {}
    with pytest.raises(kf.InvalidArgumentError, match=r"expected one of attention, ffn.*got conv"):
        m.plan("conv")
    with pytest.raises(kf.InvalidArgumentError, match=r"gelu_linear: .*wieght"):
        m.plan("gelu_linear", x=operands["x"], wieght=operands["weight"])


def test_report_is_measured_or_absent(m):
    assert m.report() == {}
    q, x, w = torch.randn(1, 128, 4, 32), torch.randn(8, 64), torch.randn(64, 64)
    m.fuse_attention(q, q, q)
    m.fuse_ffn(x, w, w, w)
    known = m.report(measure=False)
    assert known == {"kernel_calls_attention": 1.0, "kernel_calls_gated_ffn": 1.0}
    measured = m.report()
    gains = {"attention_speedup", "ffn_speedup", "memory_saving", "kernel_calls_reduction", "e2e_speedup"}
    assert set(measured) == gains | set(known)
    assert all(isinstance(value, float) for value in measured.values())
    assert min(measured[name] for name in measured if name.endswith("_speedup")) > 0
    assert 0 < measured["kernel_calls_reduction"] < 1 and measured["memory_saving"] < 1
    assert m.report(measure=False) == measured  # remembered
    m.reset()
    assert m.report() == {}


def test_what_was_not_fused_has_no_speedup():
    m = kf.KernelFusionManager(kf.KernelFusionConfig(attention_backend="vanilla"))
    q = torch.randn(1, 16, 2, 16)
    m.fuse_attention(q, q, q)
    assert set(m.report()) == {"kernel_calls_attention"}


def test_fallbacks_are_counted_and_say_why():
    m = kf.KernelFusionManager(kf.KernelFusionConfig(attention_backend="flash3", allow_fallback=True))
    q = torch.randn(1, 16, 2, 16)
    close(m.fuse_attention(q, q, q), attention_by_torch(q, q, q))
    [row] = m.get_stats()["ops"]["attention"]["kernels"].values()
    assert row["fallbacks"] == 1 and "flash_attn_3::attention: q is on cpu:0" in row["fallback_reason"]
    assert m.plan("attention", q=q, k=q, v=q)["fallback"]


def test_kernels_lists_every_row(m):
    rows = m.kernels()
    assert {"cpu::attention_unfused", "cpu::attention_reference"} <= {r["name"] for r in rows}
    assert set(rows[0]) == {"name", "op", "families", "condition", "graph_safe", "device"}


def test_wrong_operands_are_refused_with_what_was_expected(m):
    q, x, w = torch.randn(1, 4, 2, 16), torch.randn(3, 32), torch.randn(32, 8)
    for expected, call in {
        "k": lambda: m.fuse_attention(q, q[..., :8], q),
        "attention: q: expected an array": lambda: m.fuse_attention("q", q, q),
        "attention: k: expected an array, got none": lambda: m.fuse_attention(q, None, q),
        "window_size: expected": lambda: m.fuse_attention(q, q, q, window_size=4),
        "softcap": lambda: m.fuse_attention(q, q, q, softcap="big"),
        "kv_layout": lambda: m.fuse_attention(q, q, q, kv_layout="NDH"),
        "weight": lambda: m.fuse_gelu_linear(x, w.T),
        "weight_layout: expected in_out": lambda: m.fuse_gelu_linear(x, w, weight_layout="oi"),
        "approximate: expected one of tanh, none": lambda: m.fuse_gelu_linear(x, w, approximate="erf"),
        "activation": lambda: m.fuse_ffn(x, w, w, w.T.contiguous(), activation="swish"),
        "page pool of 4 dimensions": lambda: m.fuse_attention(
            q, q[0], q, block_tables=torch.zeros(1, 1, dtype=torch.int32)
        ),
        "stream: expected": lambda: m.fuse_softmax(x, stream="main"),
        "detach": lambda: m.fuse_softmax(x.clone().requires_grad_()),
        "stream: expected .*got -1": lambda: m.fuse_softmax(x, stream=-1),
        "write_trace": lambda: m.write_trace("trace.json"),
        "export_spans": lambda: m.export_spans(),
        "warm_up: calls: expected pairs": lambda: m.warm_up(["softmax"]),
        r"make_kv_cache: expected sizes of at least 0 .*, got \(-1": lambda: m.make_kv_cache(-1, 2, 8),
        r"KernelFusionManager\(manager.config\)": lambda: copy.deepcopy(m),
        "path: expected a GGUF file": lambda: kf.load_model(7),
    }.items():
        with pytest.raises(kf.InvalidArgumentError, match=expected):
            call()
    with pytest.raises(kf.ResourceExhaustedError, match="make_kv_cache: no memory for f16"):
        m.make_kv_cache(10**12, 2000, 8000)


def test_a_weight_that_lies_the_other_way_is_refused_in_the_callers_words(m):
    x, w = torch.randn(3, 32), torch.randn(48, 32)
    for call, given in (
        (lambda: m.fuse_ffn(x, w, w, w.T), "gate_weight"),
        (lambda: m.fuse_gelu_linear(x, w), "weight"),
    ):
        with pytest.raises(kf.InvalidArgumentError, match=rf'{given} was given as \[48, 32\].*Linear\'s is "out_in"'):
            call()
    with pytest.raises(kf.InvalidArgumentError) as caught:
        m.fuse_gelu_linear(x, w.T, weight_layout="out_in")
    assert "was given as" not in str(caught.value)


def test_longest_lengths_are_numbers_and_checked_on_the_host_alone(m):
    class OnADevice:
        """Offsets that NumPy cannot read without a copy."""

        def __dlpack__(self, **options):
            raise BufferError

        def __dlpack_device__(self):
            return 2, 0

    q, ends = torch.randn(20, 2, 16), torch.tensor([0, 8, 20], dtype=torch.int32)

    def packed(offsets, longest):
        return m.fuse_attention(q, q, q, cu_seqlens_q=offsets, cu_seqlens_k=ends, max_seqlen_q=longest)

    assert torch.equal(packed(ends, torch.tensor(12)), packed(ends, None))
    for offsets, longest, expected in (
        (ends, "12", "max_seqlen_q: expected a number of tokens, got '12'"),
        (ends, 11, "max_seqlen_q: expected at least the longest sequence's 12, got 11"),
        ([0, 8, 20], 12, "cu_seqlens_q: expected an array .*got list"),
        (OnADevice(), 1, "cu_seqlens_q: expected an array .*got OnADevice"),  # the op asks first
    ):
        with pytest.raises(kf.InvalidArgumentError, match=expected):
            packed(offsets, longest)


def test_stale_tables_change_nothing(m, pages):
    _, _, pool_k, pool_v, tables, lengths = pages
    out = torch.full((2, 4, 16), 7.0)
    for bad_tables, bad_lengths in ((tables + 4, lengths), (tables, lengths + 16), (tables, lengths - 100)):
        with pytest.raises(kf.InvalidArgumentError, match=r"block_tables|context_lens"):
            m.fuse_attention(
                torch.randn(2, 4, 16), pool_k, pool_v, block_tables=bad_tables, context_lens=bad_lengths, out=out
            )
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("stale", "words"),
    [
        (lambda k, v, tables: (k, v, tables.masked_fill(tables == 4, -1)), "expected a page of 0 to 4 .*got -1"),
        (lambda k, v, tables: (k[:4], v[:4], tables), "expected a page of 0 to 3 .*got 4"),  # a smaller pool's
        (lambda k, v, tables: (k, v, tables[:, :1]), "context_lens"),  # fewer pages than the lengths need
        (lambda k, v, tables: (k, freed(v.clone()), tables), "v: expected memory, got a null pointer"),
    ],
    ids=["a page given back", "a pool made smaller", "a table cut short", "a pool that was freed"],
)
def test_tables_that_outlived_their_pages(m, pages, stale, words):
    _, _, pool_k, pool_v, tables, lengths = pages
    k, v, tables = stale(pool_k, pool_v, tables)
    out = torch.full((2, 4, 16), 7.0)
    with pytest.raises(kf.InvalidArgumentError, match=words):
        m.fuse_attention(torch.randn(2, 4, 16), k, v, block_tables=tables, context_lens=lengths, out=out)
    assert (out == 7).all()


def freed(pool):
    pool.untyped_storage().resize_(0)
    return pool


def test_slots_that_outlived_their_pages(m, pages):
    _, _, pool_k, pool_v, _, _ = pages
    k, before = torch.randn(2, 2, 16), pool_k.clone()
    with pytest.raises(kf.InvalidArgumentError, match="slot_mapping: expected values less than 80 "):
        m.append_kv(k, k, pool_k, pool_v, torch.tensor([1, 80]))
    with pytest.raises(kf.InvalidArgumentError, match="v_cache: expected memory, got a null pointer"):
        m.append_kv(k, k, pool_k, freed(pool_v.clone()), torch.tensor([1, 2]))
    assert torch.equal(pool_k, before)


def test_results_are_of_the_callers_kind(m):
    x = np.ones((2, 8), np.float32)
    assert isinstance(m.fuse_softmax(x), np.ndarray)
    with torch.inference_mode():
        t = torch.ones(2, 8, requires_grad=True)
        assert torch.equal(m.fuse_softmax(t), torch.full((2, 8), 0.125))
    # One of each: the first decides.
    assert isinstance(m.fuse_rmsnorm(torch.ones(2, 8), x[0]), torch.Tensor)


def test_managers_in_threads(m):
    other, failures = kf.KernelFusionManager(kf.KernelFusionConfig(attention_backend="vanilla")), []
    q = torch.randn(1, 32, 2, 16)
    expected = m.fuse_attention(q, q, q)

    def work(manager):
        for _ in range(20):
            if not torch.allclose(manager.fuse_attention(q, q, q), expected, atol=1e-5):
                failures.append(manager)

    threads = [threading.Thread(target=work, args=(manager,)) for manager in (m, other, m, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert m.get_stats()["ops"]["attention"]["calls"] == 41


def test_profiling_times_kernels_and_writes_a_trace(tmp_path):
    import json

    m = kf.KernelFusionManager(kf.KernelFusionConfig(profile_kernels=True))
    x = torch.randn(64, 64)
    for _ in range(3):
        m.fuse_softmax(x)
    [row] = m.get_stats()["ops"]["softmax"]["kernels"].values()
    assert row["calls"] == 3 and row["seconds"] > 0 and row["bytes"] > 0
    assert m.write_trace(tmp_path / "trace.json") == 3
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [e["cat"] for e in events] == ["softmax"] * 3 and all(e["ph"] == "X" and e["dur"] > 0 for e in events)
    assert events[0]["ts"] + events[0]["dur"] <= events[1]["ts"]


@pytest.mark.parametrize("out", [True, False])
def test_a_switch_is_no_array_to_write_to(out):
    with pytest.raises(kf.InvalidArgumentError, match=f"softmax: out: expected an array to write to, got {out}"):
        kf.KernelFusionManager().fuse_softmax(np.ones((2, 3), np.float32), out=out)


def test_blocks_without_a_number():
    class Pool:
        def get_sequence_blocks(self, request):
            return [None]

    with pytest.raises(kf.InvalidArgumentError, match="an id or block_id, got NoneType"):
        kf.BlockTables.from_pool(Pool(), [1])


def test_spans_go_to_opentelemetry_once():
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    m = kf.KernelFusionManager(kf.KernelFusionConfig(profile_kernels=True))
    before = time.time_ns()
    for _ in range(2):
        m.fuse_softmax(torch.randn(4, 8))
    after = time.time_ns()
    assert m.export_spans(tracer) == 2
    assert m.export_spans(tracer) == 0
    m.fuse_activation(torch.randn(4, 8))
    assert m.export_spans(tracer) == 1
    spans = exporter.get_finished_spans()
    assert [span.attributes["kf.op"] for span in spans] == ["softmax", "softmax", "activation"]
    assert spans[0].name == spans[0].attributes["kf.kernel"] and "x=f32[4, 8]" in spans[0].attributes["kf.shapes"]
    slack = 1_000_000  # between reading two clocks, one after the other
    assert before - slack <= spans[0].start_time < spans[0].end_time <= spans[1].start_time <= after + slack
    with pytest.raises(kf.InvalidArgumentError, match=r"set_tracer_provider\); found neither"):
        m.export_spans()  # the global provider is none that keeps anything


def test_spans_go_to_the_programs_provider_by_themselves(monkeypatch):
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    profiled = kf.KernelFusionManager(kf.KernelFusionConfig(profile_kernels=True))
    plain = kf.KernelFusionManager()
    x = torch.randn(4, 8)
    profiled.fuse_softmax(x)  # before there is a provider: left for export_spans
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    with provider.get_tracer("program").start_as_current_span("request") as request:
        plain.fuse_softmax(x)
        profiled.fuse_activation(x)
        other = threading.Thread(target=profiled.fuse_rmsnorm, args=(x, torch.ones(8)))
        other.start()
        other.join()
        profiled.fuse_layernorm(x, torch.ones(8), None)
    spans = {span.attributes["kf.op"]: span for span in exporter.get_finished_spans() if span.attributes}
    assert list(spans) == ["softmax", "activation", "rms_norm", "layer_norm"]  # the first came with the second
    assert spans["activation"].parent.span_id == spans["layer_norm"].parent.span_id == request.context.span_id
    assert spans["rms_norm"].parent is None  # another thread has another context
    assert profiled.export_spans() == 0


def test_spans_without_opentelemetry(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    m = kf.KernelFusionManager(kf.KernelFusionConfig(profile_kernels=True))
    with pytest.raises(kf.NotServedError, match="pip install opentelemetry-sdk"):
        m.export_spans()
