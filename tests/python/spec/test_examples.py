"""What the specification's examples call, further than its text goes (test_blocks.py runs that); compared with plain
PyTorch."""

from __future__ import annotations

import pytest

from repository import ROOT

torch = pytest.importorskip("torch")
F = torch.nn.functional


def attention_by_torch(q, k, v):
    k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], 2) for t in (k, v))
    return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True).transpose(1, 2)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def cache_of(sequences, page_size=16):
    """Page pools [num_blocks, num_kv_heads, page_size, head_dim] that hold the sequences' keys and values, and
    tables."""
    num_blocks = sum(-(-k.shape[0] // page_size) for k, _ in sequences)
    heads, dim = sequences[0][0].shape[1:]
    pools = torch.zeros(2, num_blocks + 1, heads, page_size, dim)
    tables = torch.full((len(sequences), num_blocks), -1, dtype=torch.int32)
    free = list(range(num_blocks, 0, -1))
    for row, pair in enumerate(sequences):
        for begin in range(0, pair[0].shape[0], page_size):
            block = free.pop()
            tables[row, begin // page_size] = block
            for pool, values in zip(pools, pair, strict=True):
                part = values[begin : begin + page_size].transpose(0, 1)
                pool[block, :, : part.shape[1]] = part
    return pools[0], pools[1], tables, torch.tensor([k.shape[0] for k, _ in sequences], dtype=torch.int32)


@pytest.fixture
def paged():
    sequences = [(torch.randn(n, 8, 16), torch.randn(n, 8, 16)) for n in (32, 48)]
    q = torch.randn(2, 32, 16)
    # The query is the last row of a causal attention.
    rows = [torch.cat([q.new_zeros(k.shape[0] - 1, 32, 16), q[i : i + 1]]) for i, (k, _) in enumerate(sequences)]
    each = [attention_by_torch(row[None], k[None], v[None])[:, -1] for row, (k, v) in zip(rows, sequences, strict=True)]
    return q, *cache_of(sequences), torch.cat(each)


def floats(quantized):
    return torch.from_numpy(quantized.dequantize())


def test_quantized(rng):
    import sagellm_kernel_fusion as kf

    q, k, v = torch.randn(2, 40, 6, 64), torch.randn(2, 40, 2, 64), torch.randn(2, 40, 2, 64)
    k_int4, v_int4 = kf.quantize_kv(k, "int4", group_size=32), kf.quantize_kv(v, "int4", group_size=32)
    from sage.llm.engines.sagellm.accel.kernel_fusion import KernelFusionConfig, KernelFusionManager

    config_quant_fused = KernelFusionConfig(
        attention_backend="flash2",
        fuse_with_quant=True,
        quant_dtype="int4",
        fuse_ffn=True,
    )

    manager = KernelFusionManager(config_quant_fused)
    output = manager.fuse_attention(q, k_int4, v_int4, config_quant_fused)
    expected = attention_by_torch(q, floats(k_int4), floats(v_int4))
    close(output, expected)

    from sagellm_kernel_fusion.kernels import FusedINT4Attention

    codes = (torch.from_numpy(x) for x in (k_int4.data, v_int4.data, k_int4.scales, v_int4.scales))
    close(FusedINT4Attention().forward(q, *codes), expected)
    with pytest.raises(ValueError, match="k: quant_dtype is configured as int4, got i8"):
        manager.fuse_attention(q, kf.quantize_kv(k, "int8"), v_int4, config_quant_fused)


def test_sparse(rng):
    import sagellm_kernel_fusion as kf

    x, (gate, up) = torch.randn(4, 96), torch.randn(2, 128, 96)
    sparse_gate_w, sparse_up_w = kf.sparsify(gate, "2:4"), kf.sparsify(up, "2:4")
    sparse_down_w = kf.sparsify(torch.randn(96, 128), "2:4")
    from sage.llm.engines.sagellm.accel.kernel_fusion import KernelFusionConfig, KernelFusionManager

    config_sparse_fused = KernelFusionConfig(
        fuse_with_sparse=True,
        sparse_pattern="n:m",
        fuse_ffn=True,
    )

    manager = KernelFusionManager(config_sparse_fused)
    ffn_output = manager.fuse_ffn(x, sparse_gate_w, sparse_up_w, sparse_down_w, config_sparse_fused)

    gate, up, down = (torch.from_numpy(kf.densify(w)) for w in (sparse_gate_w, sparse_up_w, sparse_down_w))
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(ffn_output, expected, rtol=1e-4, atol=1e-3)

    from sagellm_kernel_fusion.kernels import FusedSparseFFN

    torch.testing.assert_close(FusedSparseFFN().forward(x, sparse_gate_w, sparse_up_w, sparse_down_w), ffn_output)


@pytest.fixture
def siblings(monkeypatch):
    """Stand-ins for the modules beside this one, under their own import paths (tests/python/siblings)."""
    monkeypatch.syspath_prepend(str(ROOT / "tests/python/siblings"))


def test_with_the_quantization_module(siblings):
    """K/V in fp8, attention that reads them as they lie: the codes and scales of a sibling; its weights too."""
    q, k, v = torch.randn(1, 40, 4, 64), torch.randn(1, 40, 4, 64), torch.randn(1, 40, 4, 64)

    from sage.llm.engines.sagellm.accel.quantization import QuantConfig, QuantizationManager

    from sage.llm.engines.sagellm.accel.kernel_fusion import KernelFusionConfig, KernelFusionManager

    quant_mgr = QuantizationManager(QuantConfig(kv_cache_dtype="fp8"))
    fusion_mgr = KernelFusionManager(KernelFusionConfig(
        attention_backend="flash2",
        fuse_with_quant=True,
        quant_dtype="fp8"
    ))  # fmt: skip
    config = fusion_mgr.config
    (k_fp8, k_scales), (v_fp8, v_scales) = quant_mgr.quantize_kv(k), quant_mgr.quantize_kv(v)

    output = fusion_mgr.fuse_attention(q, k_fp8, v_fp8, config, k_scales=k_scales, v_scales=v_scales)
    close(output, attention_by_torch(q, k_fp8.float() * k_scales, v_fp8.float() * v_scales))
    assert "k_scales=f32" in fusion_mgr.get_stats()["distinct_calls"][0]["shapes"]  # not dequantized first
    with pytest.raises(ValueError, match="k_scales: expected scales, since k is fp8_e4m3, got none"):
        fusion_mgr.fuse_attention(q, k_fp8, v_fp8, config)

    x, gate, up, down = torch.randn(3, 64), torch.randn(96, 64), torch.randn(96, 64), torch.randn(64, 96)
    for dtype in ("int4", "int8"):
        quant_mgr = QuantizationManager(QuantConfig(weight_dtype=dtype))
        config = KernelFusionConfig(fuse_with_quant=True, quant_dtype=dtype)
        weights = [quant_mgr.quantize_weight(w) for w in (gate, up, down)]
        output = fusion_mgr.fuse_ffn(x, *weights, config)
        exact = [w.dequantize().T for w in weights]
        torch.testing.assert_close(output, (F.silu(x @ exact[0]) * (x @ exact[1])) @ exact[2], rtol=1e-4, atol=2e-2)


def test_with_the_sparsity_module(siblings):
    """Weights stay dense there, masked 2:4; `sparsify` compresses them, and refuses what is not masked so."""
    import sagellm_kernel_fusion as kf

    x, gate, up, down = torch.randn(4, 64), torch.randn(64, 96), torch.randn(64, 96), torch.randn(96, 64)

    from sage.llm.engines.sagellm.accel.sparsity import SparsityConfig, SparsityManager

    from sage.llm.engines.sagellm.accel.kernel_fusion import KernelFusionConfig, KernelFusionManager

    sparse_mgr = SparsityManager(SparsityConfig(pattern="n:m", n=2, m=4))
    fusion_mgr = KernelFusionManager(KernelFusionConfig(
        fuse_ffn=True,
        fuse_with_sparse=True,
        sparse_pattern="n:m"
    ))  # fmt: skip
    config = fusion_mgr.config
    sparse_gate, sparse_up, sparse_down = (sparse_mgr.sparsify(w) for w in (gate, up, down))

    ffn_output = fusion_mgr.fuse_ffn(x, sparse_gate, sparse_up, sparse_down, config)
    expected = (F.silu(x @ sparse_gate) * (x @ sparse_up)) @ sparse_down
    torch.testing.assert_close(ffn_output, expected, rtol=1e-4, atol=1e-3)

    compressed = [kf.sparsify(w.T.contiguous(), "n:m", prune=False) for w in (sparse_gate, sparse_up, sparse_down)]
    assert {w.sparsity for w in compressed} == {0.5}
    torch.testing.assert_close(fusion_mgr.fuse_ffn(x, *compressed, config), expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="at most 2 values that are not 0 in every 4"):
        kf.sparsify(gate.T.contiguous(), "n:m", prune=False)

    class SparseSemiStructuredTensor:  # torch makes them on a GPU only
        def __init__(self, dense):
            self.dense, self.shape = dense, dense.shape

        def to_dense(self):
            return self.dense

    given = [SparseSemiStructuredTensor(w.T.contiguous()) for w in (sparse_gate, sparse_up, sparse_down)]
    torch.testing.assert_close(fusion_mgr.fuse_ffn(x, *given, config), expected, rtol=1e-4, atol=1e-3)


def test_with_the_kv_pool(siblings):
    from sage.llm.engines.sagellm.kv_runtime.kv_pool import KVPool

    from sage.llm.engines.sagellm.accel.kernel_fusion import KernelFusionConfig, KernelFusionManager

    config = KernelFusionConfig(attention_backend="paged", page_size=16)

    kv_pool = KVPool(max_blocks=1000, block_size=16)
    fusion_mgr = KernelFusionManager(KernelFusionConfig(
        attention_backend="paged",
        page_size=16
    ))  # fmt: skip
    request_ids = [7, 3]
    k_cache, v_cache = torch.randn(2, 1000, 2, 16, 32)
    q = torch.randn(2, 4, 32)
    lengths = [32, 48]
    for length in range(16, 49, 16):  # the requests grow in turns, so that their blocks lie apart
        for request, longest in zip(request_ids, lengths, strict=True):
            blocks = kv_pool.grow(request, min(length, longest))
    assert blocks != sorted(range(min(blocks), min(blocks) + len(blocks)))

    block_tables = kv_pool.get_block_tables(request_ids)
    output = fusion_mgr.fuse_attention(q, k_cache, v_cache, block_tables=block_tables, config=config)
    for i, request in enumerate(request_ids):
        blocks = kv_pool.grow(request, 0)
        k, v = (cache[blocks].transpose(1, 2).flatten(0, 1)[None] for cache in (k_cache, v_cache))
        k, v = (t.repeat_interleave(2, 2).transpose(1, 2) for t in (k, v))
        close(output[i], F.scaled_dot_product_attention(q[i][None, :, None], k, v)[0, :, 0])


def test_the_registry():
    """The specification registers its backends by classes of these names."""
    from sagellm_kernel_fusion import KernelFusionBackendRegistry, KernelFusionProtocol
    from sagellm_kernel_fusion.builtin import AscendKernelFusion, CUDAKernelFusion, MLUKernelFusion, ROCmKernelFusion

    for name, backend in (
        ("cuda", CUDAKernelFusion),
        ("ascend", AscendKernelFusion),
        ("mlu", MLUKernelFusion),
        ("rocm", ROCmKernelFusion),
    ):
        assert issubclass(backend, KernelFusionProtocol)
        KernelFusionBackendRegistry.register(name, backend)
        assert KernelFusionBackendRegistry.backend_class(name) is backend
    with pytest.raises(ValueError, match="Unsupported backend: fpga"):
        KernelFusionBackendRegistry.get("fpga")
    detected = KernelFusionBackendRegistry.detect_backend()
    assert detected == "cpu" or KernelFusionBackendRegistry.get(detected)


def test_the_kernel_classes_of_accelerators_are_over_their_backends():
    """Their results are compared on simulated devices (tests/python/simulated)."""
    from sagellm_kernel_fusion import backends, kernels

    there = {row["name"] for row in backends() if row["available"]}
    for name, backend in (
        ("AscendFlashAttention", "ascend"),
        ("AscendFusedFFN", "ascend"),
        ("MLUFlashAttention", "mlu"),
        ("ROCmFlashAttention", "rocm"),
    ):
        if backend in there:
            continue
        with pytest.raises(RuntimeError, match=f"backend {backend}: ") as caught:
            getattr(kernels, name)()
        assert caught.value.code == "unavailable"


def test_the_kernel_classes(paged):
    from sagellm_kernel_fusion.errors import InvalidArgumentError
    from sagellm_kernel_fusion.kernels import FlashAttention2, FusedFFN, GroupedQueryAttention, PagedAttention

    q, k_cache, v_cache, block_tables, context_lens, expected = paged
    close(PagedAttention(32, 16, page_size=16).forward(q, k_cache, v_cache, block_tables, context_lens), expected)
    with pytest.raises(InvalidArgumentError, match=r"key_cache: expected 8 in dimension -2"):
        PagedAttention(32, 16, page_size=8).forward(q, k_cache, v_cache, block_tables, context_lens)

    q, k, v = torch.randn(2, 20, 6, 16), torch.randn(2, 20, 2, 16), torch.randn(2, 20, 2, 16)
    close(FlashAttention2().forward(q, k, v), attention_by_torch(q, k, v))
    close(GroupedQueryAttention(6, 2, 16).forward(q, k, v), attention_by_torch(q, k, v))
    with pytest.raises(InvalidArgumentError, match="expected a multiple of num_kv_heads, 4, got 6"):
        GroupedQueryAttention(6, 4, 16)
    with pytest.raises(InvalidArgumentError, match="k: expected 3 in dimension -2"):
        GroupedQueryAttention(6, 3, 16).forward(q, k, v)
    ends = torch.tensor([0, 20, 40], dtype=torch.int32)
    packed = FlashAttention2().forward_varlen(*(t.flatten(0, 1) for t in (q, k, v)), ends, ends, 20, 20)
    close(packed, attention_by_torch(q, k, v).flatten(0, 1))

    x, gate_w, up_w, down_w = torch.randn(5, 24), torch.randn(24, 32), torch.randn(24, 32), torch.randn(32, 24)
    torch.testing.assert_close(
        FusedFFN().forward(x, gate_w, up_w, down_w), (F.silu(x @ gate_w) * (x @ up_w)) @ down_w, rtol=1e-4, atol=1e-3
    )


KEYS = {"attention_speedup", "ffn_speedup", "memory_saving", "kernel_calls_reduction", "e2e_speedup"}


def test_benchmark(tiny_gguf, tiny_folder):
    from sagellm_kernel_fusion import KernelFusionConfig, benchmark_kernel_fusion, load_model, measure_performance

    config = KernelFusionConfig(fusion="all")
    transformers = pytest.importorskip("transformers")
    in_memory = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    for path in (tiny_gguf, tiny_folder, in_memory):
        report = benchmark_kernel_fusion(path, config, [[1, 2, 3, 4] * 8, [5, 6]], decode_tokens=3, rounds=1)
        assert set(report) == KEYS and all(isinstance(value, float) for value in report.values())
        assert 0 < report["kernel_calls_reduction"] < 1 and report["e2e_speedup"] > 0
    # As the specification writes it out.
    model_vanilla = load_model(tiny_gguf, fuse_kernels=False, count_calls=True)
    model_fused = load_model(tiny_gguf, fuse_kernels=True, fusion_config=config, count_calls=True)
    vanilla_metrics = measure_performance(model_vanilla, [[1, 2, 3]], 2)
    fused_metrics = measure_performance(model_fused, [[1, 2, 3]], 2)
    for key in ("attn_time", "ffn_time", "total_time", "peak_mem", "kernel_calls"):
        assert vanilla_metrics[key] > 0 and fused_metrics[key] > 0, key
    assert vanilla_metrics["attn_time"] + vanilla_metrics["ffn_time"] < vanilla_metrics["total_time"]
    assert fused_metrics["kernel_calls"] < vanilla_metrics["kernel_calls"]
    plain = load_model(tiny_gguf, fusion_config=config)  # counts nothing itself
    plain.prefill([5, 6])
    assert measure_performance(plain, [[1, 2, 3]], 2)["kernel_calls"] == fused_metrics["kernel_calls"]
    assert plain.engine.distinct_calls() == [] and plain.counting is plain.counting
    with pytest.raises(ValueError, match="test_inputs: expected at least one prompt"):
        measure_performance(model_fused, [])


def test_the_ffn_is_known_by_its_width():
    from sagellm_kernel_fusion.benchmark import _is_ffn

    for op, shapes, expected in (
        ("linear", "x=f32[4, 576] weight=q4_1[1536, 576] out=f32[4, 1536] norm=none", True),
        ("linear", "x=f32[4, 1536] weight=q4_1[576, 1536] out=f32[4, 576]", True),
        ("binary", "a=f32[4, 1536] b=f32[4, 1536] out=f32[4, 1536]", True),
        ("linear", "x=f32[4, 576] weight=f32[192, 576] out=f32[4, 192]", False),
        ("softmax", "x=f32[9, 4, 1536] out=f32[9, 4, 1536]", False),
        ("gated_ffn", "x=f32[4, 8]", True),
    ):
        assert _is_ffn({"op": op, "shapes": shapes}, 1536) == expected, (op, shapes)
