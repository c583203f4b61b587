"""Every piece of Python in the specification (specification.md), taken from its text: examples run as they stand but
for the edits listed here; what only sketches an implementation is compared with ours by its names and parameters."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import sagellm_kernel_fusion as kf
from repository import ROOT
from sagellm_kernel_fusion import kernels

torch = pytest.importorskip("torch")

TEXT = (Path(__file__).parent / "specification.md").read_text("utf-8")
BLOCKS = re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)```", TEXT, re.M | re.S)
PROTOCOL, EXAMPLES, REGISTRY, BENCHMARK = (
    "输入接口（Kernel Fusion Protocol）", "输出接口（使用示例）", "Backend 统一抽象", "Benchmark 设计",
)  # fmt: skip
WITH_SIBLINGS = {"1. 与量化模块（3.1）集成", "2. 与稀疏化模块（3.2）集成", "3. 与 KV Pool（2.2）集成"}
RUN = {PROTOCOL, EXAMPLES, REGISTRY, BENCHMARK, *WITH_SIBLINGS}
SKETCHES = [(title, code) for title, code in BLOCKS if title not in RUN]


def block(title: str) -> str:
    (code,) = (code for name, code in BLOCKS if name == title)
    return code


def edited(code: str, *edits: tuple[str, str]) -> str:
    """Every edit of the text is one of these, and is made once."""
    for old, new in edits:
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


def parameters(function) -> list[tuple[str, object]]:
    """Names and defaults of what may be given by position."""
    given = [p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return [(p.name, p.default) for p in given if p.name != "self"]


def test_every_block_is_looked_at():
    assert len(BLOCKS) == TEXT.count("```python") == 20
    assert {title for title, _ in BLOCKS} >= RUN and len(SKETCHES) == 13


def test_the_protocol():
    theirs: dict = {}
    exec(compile(block(PROTOCOL), PROTOCOL, "exec", dont_inherit=True), theirs)  # no edits
    for name in ("FusionTarget", "AttentionBackend", "FusionBackend"):
        assert typing.get_args(getattr(kf, name)) == typing.get_args(theirs[name])
    expected = [(f.name, f.default) for f in dataclasses.fields(theirs["KernelFusionConfig"])]
    ours = [(f.name, f.default) for f in dataclasses.fields(kf.KernelFusionConfig)]
    assert ours[: len(expected)] == expected
    assert all(f.kw_only for f in dataclasses.fields(kf.KernelFusionConfig)[len(expected) :])
    assert kf.KernelFusionProtocol.__abstractmethods__ == theirs["KernelFusionProtocol"].__abstractmethods__
    for name in kf.KernelFusionProtocol.__abstractmethods__:
        wanted = [p for p, _ in parameters(getattr(theirs["KernelFusionProtocol"], name))]
        for cls in (kf.KernelFusionProtocol, kf.KernelFusionManager):
            assert [p for p, _ in parameters(getattr(cls, name))][: len(wanted)] == wanted, (cls, name)


# Example 3's kernel has no body there, nor parameters.
KERNEL = """def custom_gelu_linear_kernel(x_ptr, w_ptr, b_ptr, out_ptr, N, D_in, D_out, BLOCK_SIZE: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    live = rows < N
    for column in range(D_out):
        total = tl.zeros((BLOCK_SIZE,), tl.float32) + tl.load(b_ptr + column)
        for i in range(D_in):
            x = tl.load(x_ptr + rows * D_in + i, mask=live, other=0.0)
            total += x * tl.sigmoid(1.5957691216 * (x + 0.044715 * x * x * x)) * tl.load(w_ptr + i * D_out + column)
        tl.store(out_ptr + rows * D_out + column, total, mask=live)
"""

# What the examples take for granted: modules, and tensors under their names, before each; results are checked after.
DEFINED = {
    0: """
import torch, triton
import triton.language as tl
from torch.nn import functional as F
import sagellm_kernel_fusion as kf

def attention(q, k, v):
    k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], 2) for t in (k, v))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

def close(got, expected, atol=1e-4):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=atol)

""",
    1: """
q, k, v = torch.randn(2, 64, 8, 32), torch.randn(2, 64, 2, 32), torch.randn(2, 64, 2, 32)
x, gate_w, up_w, down_w = torch.randn(2, 64, 96), torch.randn(96, 128), torch.randn(96, 128), torch.randn(128, 96)
ln_w, ln_b, linear_w = torch.randn(96), torch.randn(96), torch.randn(96, 48)
""",
    2: """
close(output, attention(q, k, v))
close(ffn_output, (F.silu(x @ gate_w) * (x @ up_w)) @ down_w, 2e-2)
close(ln_linear_output, F.layer_norm(x, (96,), ln_w, ln_b) @ linear_w, 2e-3)
assert {"attention_speedup", "ffn_speedup", "memory_saving"} <= set(report)
q, (k_cache, v_cache) = torch.randn(2, 32, 16), torch.randn(2, 9, 8, 16, 16)
block_tables = torch.tensor([[5, 2, -1], [7, 1, 3]], dtype=torch.int32)
""",
    3: """
for row, pages in enumerate(([5, 2], [7, 1, 3])):
    k, v = (cache[pages].transpose(1, 2).flatten(0, 1).repeat_interleave(4, 1) for cache in (k_cache, v_cache))
    scores = torch.einsum("hd,nhd->hn", q[row], k) / 4
    close(output[row], torch.einsum("hn,nhd->hd", scores.softmax(-1), v))
""",
    4: """
close(output, F.gelu(x, approximate="tanh") @ linear_w, 1e-3)
assert manager.get_stats()["ops"]["linear"]["kernels"]["custom::gelu_linear"]["calls"] == 1
q, k, v = torch.randn(2, 40, 6, 64), torch.randn(2, 40, 2, 64), torch.randn(2, 40, 2, 64)
k_int4, v_int4 = kf.quantize_kv(k, "int4", group_size=32), kf.quantize_kv(v, "int4", group_size=32)
""",
    5: """
close(output, attention(q, *(torch.from_numpy(t.dequantize()) for t in (k_int4, v_int4))))
sparse_gate_w, sparse_up_w = (kf.sparsify(torch.randn(128, 96), "2:4") for _ in range(2))
sparse_down_w = kf.sparsify(torch.randn(96, 128), "2:4")
""",
    6: """
gate, up, down = (torch.from_numpy(kf.densify(w)).T for w in (sparse_gate_w, sparse_up_w, sparse_down_w))
close(ffn_output, (F.silu(x @ gate) * (x @ up)) @ down, 2e-2)
""",
}


def test_the_examples(tmp_path):
    pytest.importorskip("triton")
    body = "def custom_gelu_linear_kernel(...):\n    # 自定义 Triton 实现\n    pass\n"
    parts = re.split(r"(?=^# 示例 )", edited(block(EXAMPLES), (body, KERNEL)), flags=re.M)
    assert len(parts) == 6  # the imports, and the five
    script = tmp_path / "examples.py"  # Triton reads the source of its kernels from a file
    script.write_text("".join(DEFINED[i] + part for i, part in enumerate(parts)) + DEFINED[6], "utf-8")
    subprocess.run([sys.executable, script], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)


@pytest.fixture
def names(monkeypatch):
    """Stand-ins for the modules beside this one, under their own import paths, and what the blocks name."""
    monkeypatch.syspath_prepend(str(ROOT / "tests/python/siblings"))
    from sage.llm.engines.sagellm.accel.quantization import QuantConfig, QuantizationManager
    from sage.llm.engines.sagellm.accel.sparsity import SparsityConfig, SparsityManager

    quant, sparse = QuantizationManager(QuantConfig()), SparsityManager(SparsityConfig())
    q, k, v = torch.randn(3, 1, 40, 4, 64)
    codes = {"k_fp8": quant.quantize_kv(k), "v_fp8": quant.quantize_kv(v)}
    weights = {"sparse_gate": (64, 96), "sparse_up": (64, 96), "sparse_down": (96, 64)}
    return {
        "KernelFusionConfig": kf.KernelFusionConfig,
        "KernelFusionManager": kf.KernelFusionManager,
        "QuantConfig": QuantConfig,
        "SparsityConfig": SparsityConfig,
        "q": q,
        **{name: pair[0] for name, pair in codes.items()},
        **{f"{name[0]}_scales": pair[1] for name, pair in codes.items()},
        "x": torch.randn(4, 64),
        **{name: sparse.sparsify(torch.randn(shape)) for name, shape in weights.items()},
    }


def test_with_the_quantization_module(names):
    title = "1. 与量化模块（3.1）集成"
    code = edited(
        block(title),
        ("k_fp8, v_fp8, config)", "k_fp8, v_fp8, config, k_scales=k_scales, v_scales=v_scales)"),
    )
    names["config"] = kf.KernelFusionConfig(fuse_with_quant=True, quant_dtype="fp8")
    exec(compile(code, title, "exec"), names)
    k, v = (names[f"{n}_fp8"].float() * names[f"{n}_scales"] for n in "kv")
    q, k, v = (t.transpose(1, 2) for t in (names["q"], k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(names["output"], expected, rtol=1e-4, atol=1e-4)


def test_with_the_sparsity_module(names):
    title = "2. 与稀疏化模块（3.2）集成"
    names["config"] = kf.KernelFusionConfig(fuse_with_sparse=True, sparse_pattern="n:m")
    exec(compile(block(title), title, "exec"), names)  # no edits
    x, gate, up, down = (names[n] for n in ("x", "sparse_gate", "sparse_up", "sparse_down"))
    expected = (torch.nn.functional.silu(x @ gate) * (x @ up)) @ down
    torch.testing.assert_close(names["ffn_output"], expected, rtol=1e-4, atol=1e-2)


def test_with_the_kv_pool(names):
    title = "3. 与 KV Pool（2.2）集成"
    names |= {
        "request_ids": [7, 3],
        "config": kf.KernelFusionConfig(attention_backend="paged"),
        "q": torch.randn(2, 4, 32),
    }
    names["k_cache"], names["v_cache"] = torch.randn(2, 1000, 2, 16, 32)
    code = edited(
        block(title),
        ("block_size=16)", "block_size=16)\nfor request in request_ids:\n    kv_pool.grow(request, 32)"),
    )
    exec(compile(code, title, "exec"), names)
    for row, request in enumerate(names["request_ids"]):
        pages = names["kv_pool"].grow(request, 0)
        k, v = (names[n][pages].transpose(1, 2).flatten(0, 1).repeat_interleave(2, 1) for n in ("k_cache", "v_cache"))
        scores = torch.einsum("hd,nhd->hn", names["q"][row], k) / 32**0.5
        expected = torch.einsum("hn,nhd->hd", scores.softmax(-1), v)
        torch.testing.assert_close(names["output"][row], expected, rtol=1e-4, atol=1e-4)


def test_the_benchmark(tiny_gguf):
    """Its body runs over our load_model and measure_performance, and gives the keys of our benchmark_kernel_fusion."""
    names = {name: getattr(kf, name) for name in kf.__all__} | {"test_inputs": [[1, 2, 3, 4] * 8]}
    exec(compile(block(BENCHMARK), BENCHMARK, "exec"), names)
    config = kf.KernelFusionConfig(fusion="all")
    written = names["benchmark_kernel_fusion"](tiny_gguf, config)
    ours = kf.benchmark_kernel_fusion(tiny_gguf, config, names["test_inputs"], rounds=1)
    assert list(written) == list(ours)
    assert written["kernel_calls_reduction"] == ours["kernel_calls_reduction"] > 0
    assert [p for p, _ in parameters(kf.benchmark_kernel_fusion)][:2] == ["model_path", "config"]


def test_the_registry(monkeypatch):
    from sagellm_kernel_fusion import builtin

    theirs = vars(builtin) | {}
    exec(compile(block(REGISTRY), REGISTRY, "exec"), theirs)  # it registers our classes with its registry
    registry, ours = theirs["KernelFusionBackendRegistry"], kf.KernelFusionBackendRegistry
    for name, cls in registry._backends.items():
        assert ours.backend_class(name) is cls
    for method in ("register", "get", "detect_backend"):
        assert parameters(getattr(registry, method)) == parameters(getattr(ours, method))
    for each in (registry, ours):
        with pytest.raises(ValueError, match="Unsupported backend: fpga"):
            each.get("fpga")
    assert registry.detect_backend() == ours.detect_backend()


@pytest.mark.parametrize(("title", "code"), SKETCHES, ids=[title for title, _ in SKETCHES])
def test_what_sketches_an_implementation_names(title, code):
    """Public methods of each class are ours with these parameters first; a Triton kernel's are known by name."""
    tree = ast.parse(code)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert classes or functions
    for cls in classes:
        for method in (m for m in cls.body if isinstance(m, ast.FunctionDef)):
            if method.name.startswith("_") and method.name != "__init__":
                continue
            arguments, given = method.args.args[1:], method.args.defaults
            wanted = [inspect.Parameter.empty] * (len(arguments) - len(given)) + [ast.literal_eval(d) for d in given]
            expected = list(zip((a.arg for a in arguments), wanted, strict=True))
            ours = parameters(getattr(getattr(kernels, cls.name), method.name))
            assert [name for name, _ in ours][: len(expected)] == [name for name, _ in expected], (
                cls.name,
                method.name,
            )
            for (name, default), (_, got) in zip(expected, ours, strict=False):
                assert default is inspect.Parameter.empty or got == default, (cls.name, method.name, name)
    from sagellm_kernel_fusion.custom.triton_kernel import _POINTERS

    for function in functions:
        known = {*_POINTERS, "N", "D", "D_in", "D_out", "H", "eps", "BLOCK_SIZE"}
        assert {a.arg for a in function.args.args} <= known, function.name
