"""Kernels of other projects as rows: tested by contract, over stand-ins with their signatures and checks (stand_ins/),
and ours in Triton through its interpreter."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import sagellm_kernel_fusion as kf
from repository import ROOT
from sagellm_kernel_fusion import adapters

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parent / "stand_ins"
MODULES = {
    "flash_attn": "flash_attn", "flash_attn_3": "flash_attn_interface", "fa3_fwd": "fa3_fwd_interface",
    "xformers": "xformers.ops", "flashinfer": "flashinfer", "vllm": "vllm.vllm_flash_attn", "liger": "liger_kernel.ops",
    "flash_attn_ck": "flash_attn", "vllm_triton": "vllm.v1.attention.ops.triton_unified_attention",
}  # fmt: skip
BACKENDS = {
    "flash_attn": "flash2", "flash_attn_3": "flash3", "fa3_fwd": "flash3", "xformers": "xformers", "vllm": "flash2",
}  # fmt: skip
F16, BF16 = torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(adapters.flashinfer, "_wrappers", adapters.flashinfer._Wrappers())
    monkeypatch.setattr(adapters.hip, "architectures", lambda: ["gfx90a"])
    yield
    roots = {path.stem for path in FOLDER.iterdir()}
    for name in [n for n in sys.modules if n.partition(".")[0] in roots]:
        del sys.modules[name]


def on_the_cpu(project: str) -> list[adapters.Row]:
    """Its rows as they are, but for the device that they ask for."""
    rows = [r for r in adapters.TABLE if r.project == project]
    return [replace(r, devices=("cpu",), library=replace(r.library)) for r in rows]


def manager(project: str, **fields) -> kf.KernelFusionManager:
    m = kf.KernelFusionManager(kf.KernelFusionConfig(libraries=[], **fields))
    adapters.register(m._core, table=on_the_cpu(project))
    return m


def row_of(m, name: str, op: str, **operands) -> dict:
    return next(r for r in m.explain(op, **operands) if r["kernel"] == name)


# Operands of attention in each form. Sizes are such that nothing is a multiple of anything.


def random(*shape, dtype=F16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def dense(dtype=F16, batch=2, queries=5, keys=9, head_dim=64):
    q, k = random(batch, queries, 6, head_dim, dtype=dtype), random(batch, keys, 2, head_dim, dtype=dtype)
    return {"q": q, "k": k, "v": k.flip(1)}


def packed(dtype=F16):
    of_q, of_k = torch.tensor([0, 3, 4, 10], dtype=torch.int32), torch.tensor([0, 7, 8, 19], dtype=torch.int32)
    q, k = random(10, 6, 64, dtype=dtype), random(19, 2, 64, dtype=dtype)
    return {"q": q, "k": k, "v": k.flip(0), "cu_seqlens_q": of_q, "cu_seqlens_k": of_k}


def paged(page_size, chunks=None, kv_layout="NHD", dtype=F16):
    """Two sequences of scattered pages; one query token each, or chunks of these lengths."""
    lengths = torch.tensor([page_size + 3, 2 * page_size], dtype=torch.int32)
    shape = (5, page_size, 2, 64) if kv_layout == "NHD" else (5, 2, page_size, 64)
    operands = {
        "q": random(sum(chunks or (1, 1)), 6, 64, dtype=dtype), "k": random(*shape, dtype=dtype),
        "v": random(*shape, dtype=dtype).flip(0), "kv_layout": kv_layout, "context_lens": lengths,
        "block_tables": torch.tensor([[4, 1, -1], [3, 0, -1]], dtype=torch.int32),
    }  # fmt: skip
    if chunks:
        operands["cu_seqlens_q"] = torch.tensor([0, *np.cumsum(chunks)], dtype=torch.int32)
    return operands


SLOPES = torch.tensor([0.5, 0.25, 0.125, 1.0, 2.0, 0.1])
WINDOW, CAP, ALIBI = {"window_size": (3, 0)}, {"softcap": 2.0}, {"alibi_slopes": SLOPES}
SINKS = {"sinks": SLOPES * 3}
TWO_SIDED = {"causal": False, "window_size": (2, 1)}
PLAIN = [{}, {"causal": False}, {"softmax_scale": 0.2}]
CASES = [
    *[("flash_attn", dense(), o) for o in [*PLAIN, WINDOW, TWO_SIDED, CAP, ALIBI]],
    ("flash_attn", dense(torch.bfloat16), {}),
    *[("flash_attn_ck", operands, o) for operands in (dense(), packed(BF16), paged(256)) for o in [{}, WINDOW, ALIBI]],
    ("flash_attn", dense(queries=9, keys=5), {}),  # rows that see no key
    ("flash_attn", {name: x[..., :40] for name, x in dense().items()}, {}),  # strided
    *[("flash_attn", packed(), o) for o in [*PLAIN, WINDOW, CAP, ALIBI]],
    *[("flash_attn", paged(256), o) for o in [{}, WINDOW, ALIBI]],
    *[("flash_attn_3", dense(), o) for o in [*PLAIN, WINDOW, TWO_SIDED, CAP]],
    *[("flash_attn_3", packed(), o) for o in [*PLAIN, WINDOW]],
    *[("flash_attn_3", operands, o) for operands in (paged(7), paged(16, (3, 1))) for o in [{}, WINDOW, CAP]],
    *[("fa3_fwd", operands, o) for operands in (dense(BF16), packed(BF16)) for o in [*PLAIN, CAP]],
    *[("xformers", dense(), o) for o in [*PLAIN, WINDOW, TWO_SIDED, {"causal": False, "window_size": (-1, 2)}]],
    ("xformers", {"q": random(2, 5, 6, 64), "k": random(2, 9, 6, 64), "v": random(2, 9, 6, 64) + 1}, {}),  # not grouped
    *[("flashinfer", dense(batch=1), o) for o in [*PLAIN, WINDOW, CAP]],
    *[("flashinfer", paged(16, kv_layout=y), o) for y in ("HND", "NHD") for o in [{}, WINDOW, CAP]],
    ("flashinfer", paged(7, (3, 1), "HND"), {}),
    *[("vllm", operands, o) for operands in (paged(16), paged(32, (2, 5))) for o in [{}, WINDOW, CAP, ALIBI]],
    # The last with rows that see no key.
    *[("vllm_triton", operands, o) for operands in (paged(32), paged(64, (2, 5), dtype=BF16), paged(32, (41, 5)))
      for o in [{}, WINDOW, ALIBI, SINKS]],
    ("vllm_triton", paged(32), {"causal": False}),
]  # fmt: skip


@pytest.mark.parametrize(("project", "operands", "options"), CASES)
def test_attention_by_another_project(project, operands, options):
    m = manager(project, attention_backend=BACKENDS.get(project, "flash2"))
    name = f"{project}::attention"
    calls = importlib.import_module(MODULES[project]).calls
    # FlashAttention-2's log-sum-exp of causal rows with slopes is another, so that the row declines it; vLLM's Triton
    # kernel gives none.
    with_lse = options is not ALIBI and project != "vllm_triton"
    got = m.fuse_attention(**operands, **options, return_lse=with_lse)
    out, lse = got if with_lse else (got, None)
    assert row_of(m, name, "attention", **operands, **options)["selected"] and calls
    assert list(m.get_stats()["ops"]["attention"]["kernels"]) == [name]
    assert m.report(measure=False)["kernel_calls_attention"] == 1
    [kernel] = [k for k in m.kernels() if k["name"] == name and k["device"] == "cpu"]
    assert kernel["op"] == "attention" and MODULES[project].partition(".")[0] in kernel["condition"]

    plain = kf.KernelFusionManager(kf.KernelFusionConfig(libraries=[]))
    expected, expected_lse = plain.fuse_attention(**operands, **options, return_lse=True)
    # Both compute in f32 and round once to the 16-bit type: an ulp, 2^-10 or 2^-7 of the value.
    ulp = 2.0**-10 if out.dtype is F16 else 2.0**-7
    torch.testing.assert_close(out, expected, rtol=ulp, atol=ulp * 0.1)
    if with_lse:
        torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(m.fuse_attention(**operands, **options), out, rtol=0, atol=0)


def norm(width=40, dtype=F16):
    return {"x": random(3, width, dtype=dtype), "weight": random(width, dtype=dtype)}


def halves(dtype=F16):
    return {"gate": random(3, 40, dtype=dtype), "up": random(3, 40, dtype=dtype) + 1}


@pytest.mark.parametrize(
    ("name", "op", "operands"),
    [
        ("flashinfer::rms_norm", "rms_norm", norm()),
        ("flashinfer::rms_norm", "rms_norm", norm(dtype=torch.bfloat16) | {"eps": 0.1}),
        ("liger::rms_norm", "rms_norm", norm(dtype=torch.float32)),
        ("liger::rms_norm", "rms_norm", norm(dtype=torch.bfloat16) | {"weight_offset": 1.0}),
        ("liger::layer_norm", "layer_norm", norm() | {"bias": random(40)}),
        ("liger::gated_activation", "gated_activation", halves()),
        ("liger::gated_activation", "gated_activation", halves(torch.float32) | {"kind": "gelu_tanh"}),
    ],
)
def test_norms_and_activations_by_another_project(name, op, operands):
    m = manager(name.partition("::")[0])
    assert row_of(m, name, op, **operands)["selected"]
    calls = importlib.import_module(MODULES[name.partition("::")[0]]).calls
    got = m._core.call(op, operands, m.config.bound())
    assert calls and list(m.get_stats()["ops"][op]["kernels"]) == [name]
    expected = getattr(kf.ops, op)(**operands, selection=kf.REFERENCE)
    # f32 arithmetic rounded to the dtype; a gated activation rounds its first factor before the product, too.
    ulp = {torch.float32: 2.0**-20, F16: 2.0**-9, torch.bfloat16: 2.0**-6}[got.dtype]
    torch.testing.assert_close(got, expected, rtol=ulp, atol=ulp)


@pytest.mark.parametrize(
    ("project", "operands", "options", "reason"),
    [
        ("flash_attn", dense(torch.float32), {}, "q is f32: this kernel takes f16, bf16"),
        ("flash_attn", dense() | {"q": dense(torch.bfloat16)["q"]}, {}, "k is f16, q bf16: this kernel takes one"),
        ("flash_attn", dense(head_dim=36), {}, "head_dim 36: this kernel takes multiples of 8 up to 256"),
        ("flash_attn", dense(head_dim=264), {}, "head_dim 264: this kernel takes multiples of 8 up to 256"),
        ("flash_attn", dense(keys=0), {}, "k has shape [2, 0, 2, 64]: this kernel takes no empty operands"),
        ("flash_attn", dense(), {"sinks": SLOPES}, "sinks is given, which no parameter of flash_attn::attention names"),
        ("flash_attn", paged(16), {}, "page size 16: this kernel takes multiples of 256"),
        ("flash_attn", paged(256, kv_layout="HND"), {}, "kv_layout HND: this kernel takes NHD"),
        ("flash_attn", paged(256, (2, 1)), {}, "cu_seqlens_q with block_tables: this kernel takes one query token"),
        ("flash_attn_ck", dense(), CAP, "softcap 2.0: no parameter of flash_attn_ck::attention names it"),
        ("flash_attn_ck", paged(16), {}, "page size 16: this kernel takes multiples of 128"),
        ("flash_attn_3", dense(), ALIBI, "alibi_slopes is given, which no parameter of flash_attn_3::attention names"),
        ("fa3_fwd", dense(), {}, "q is f16: this kernel takes bf16"),
        ("fa3_fwd", dense(BF16), WINDOW, "window (3, 0): this kernel's build has none"),
        ("fa3_fwd", paged(16, dtype=BF16), {}, "block_tables: this kernel's build has no paged caches"),
        ("xformers", packed(), {}, "cu_seqlens_q is given, which no parameter of xformers::attention names"),
        ("xformers", dense(queries=9, keys=5), {}, "9 queries and 5 keys: this kernel takes no rows that see no key"),
        ("xformers", dense(), CAP, "softcap 2.0: no parameter of xformers::attention names it"),
        ("flashinfer", dense(), {}, "a batch of 2: this kernel takes one dense sequence or a paged cache"),
        ("flashinfer", dense(batch=1, head_dim=80), {}, "head_dim 80: this kernel takes 64, 128, 256, 512"),
        ("flashinfer", dense(batch=1), TWO_SIDED, "window_right 1: this kernel takes windows to the left"),
        ("vllm", dense(), {}, "no block_tables: this kernel takes paged caches"),
        ("vllm", paged(7), {}, "page size 7: this kernel takes multiples of 16"),
        ("vllm_triton", dense(), {}, "no block_tables: this kernel takes paged caches"),
        ("vllm_triton", paged(16), {}, "page size 16: this kernel takes multiples of 32"),
        ("vllm_triton", paged(32), CAP, "softcap 2.0: no parameter of vllm_triton::attention names it"),
        ("vllm_triton", paged(32, (2, 5)), {"causal": False}, "causal False: this kernel takes causal attention, and"),
        ("vllm_triton", paged(32), ALIBI | SINKS, "sinks with alibi_slopes: this kernel's leaves out the bias"),
    ],
)  # fmt: skip
def test_what_another_project_does_not_take_goes_to_the_next_kernel(project, operands, options, reason):
    m = manager(project, attention_backend=BACKENDS.get(project, "flash2"), allow_fallback=True)
    row = row_of(m, f"{project}::attention", "attention", **operands, **options)
    assert not row["supported"] and row["reason"].startswith(reason), row["reason"]
    m.fuse_attention(**operands, **options)
    assert f"{project}::attention" not in m.get_stats()["ops"]["attention"]["kernels"]
    assert not importlib.import_module(MODULES[project]).calls


def test_a_configuration_names_whose_kernels_it_takes():
    for project, backend in BACKENDS.items():
        operands = {"xformers": dense(), "fa3_fwd": dense(BF16)}.get(project, paged(256))
        m = manager(project, attention_backend="vanilla")
        row = row_of(m, f"{project}::attention", "attention", **operands)
        assert row["supported"] and not row["allowed"] and "configured is custom|vanilla" in row["reason"]
        other = "flash3" if backend != "flash3" else "flash2"
        m = manager(project, attention_backend=other)
        assert not row_of(m, f"{project}::attention", "attention", **operands)["allowed"]
    names = [r["kernel"] for r in kf.KernelFusionManager().explain("attention", **dense())]
    order = ("flash_attn_3", "fa3_fwd", "xformers", "flash_attn", "flashinfer", "vllm", "flash_attn_ck",
             "vllm_triton")  # fmt: skip
    assert names[:8] == [f"{p}::attention" for p in order]
    m = kf.KernelFusionManager(kf.KernelFusionConfig(libraries=["vllm"]))
    assert [r["kernel"] for r in m.explain("attention", **dense())][:2] == ["vllm::attention", names[8]]
    with pytest.raises(kf.InvalidArgumentError, match=r"libraries: expected None or a list of triton, .*, got \["):
        kf.KernelFusionConfig(libraries=["flash-attn"])


def layout(device="cuda:0", dtype="f16", shape=(1, 4, 2, 64)):
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return SimpleNamespace(device=device, dtype=dtype, shape=shape, strides=strides)


def fields_of(op, **operands) -> dict:
    """A call's fields as a row is asked about them."""
    described = kf._kf.ops()[op]["fields"]
    return {f["name"]: operands.get(f["name"], None if f["kind"] == "tensor" else f["default"]) for f in described}


def test_rows_say_what_is_missing(monkeypatch):
    # The device comes first, then the package, then the call; it is imported last.
    rows = {r["kernel"]: r["reason"] for r in kf.KernelFusionManager().explain("attention", **dense())}
    assert rows["flash_attn::attention"] == "q is on cpu:0: this kernel runs on cuda"
    for row in adapters.TABLE:
        listed = next(k for k in kf.list_kernels() if k["name"] == row.name)
        assert listed["condition"] == row.words and listed["families"] == row.family and row.condition in row.words
    q = layout()
    call = fields_of("attention", q=q, k=q, v=q, out=q)
    [row] = on_the_cpu("flash_attn")
    row = replace(row, devices=("cuda",))
    assert row.supports(call) is None and "flash_attn" in sys.modules
    assert row.supports(call | {"q": layout(dtype="f32")}) == "q is f32: this kernel takes f16, bf16"
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(FOLDER)])
    del sys.modules["flash_attn"]
    importlib.invalidate_caches()
    row = replace(row, library=replace(row.library))
    assert row.supports(call) == "flash_attn is not installed: pip install flash-attn --no-build-isolation"


def test_a_package_of_another_version_is_told_apart(monkeypatch):
    import flash_attn

    m = manager("flash_attn")
    older = flash_attn.flash_attn_func

    def without_softcap(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                        alibi_slopes=None, deterministic=False, return_attn_probs=False):  # fmt: skip
        return older(q, k, v)

    monkeypatch.setattr(flash_attn, "flash_attn_func", without_softcap)
    reason = row_of(m, "flash_attn::attention", "attention", **dense())["reason"]
    assert reason.startswith(
        "flash_attn.flash_attn_func takes no softcap; this adapter is written for flash-attn 2.8.4"
    )
    monkeypatch.delattr(flash_attn, "flash_attn_func")
    reason = row_of(manager("flash_attn"), "flash_attn::attention", "attention", **dense())["reason"]
    assert reason.startswith("flash_attn has no flash_attn_func; this adapter is written for")


def test_packages_without_what_a_call_needs(monkeypatch):
    import xformers._cpp_lib

    m = manager("flash_attn")
    rows = m.explain("attention", **dense(), **ALIBI, return_lse=True)
    assert rows[0]["reason"].startswith("lse with alibi_slopes and causal"), rows[0]
    monkeypatch.setattr(xformers._cpp_lib, "_built_with_cuda", False)
    reason = row_of(manager("xformers"), "xformers::attention", "attention", **dense())["reason"]
    assert reason.startswith("xformers could not load its kernels")


def test_flash_attention_by_rocm_asks_for_its_architectures(monkeypatch):
    def reason() -> str:
        return row_of(manager("flash_attn_ck"), "flash_attn_ck::attention", "attention", **dense())["reason"]

    assert reason() == ""
    monkeypatch.setenv("FLASH_ATTENTION_TRITON_AMD_ENABLE", "TRUE")
    assert reason().startswith("FLASH_ATTENTION_TRITON_AMD_ENABLE is TRUE: this adapter is written for")
    monkeypatch.delenv("FLASH_ATTENTION_TRITON_AMD_ENABLE")
    monkeypatch.setattr(adapters.hip, "architectures", lambda: ["gfx906", "gfx942"])
    assert reason() == "flash_attn has kernels for gfx90a, gfx942, gfx950 by ROCm, and there is gfx906"
    monkeypatch.undo()
    monkeypatch.syspath_prepend(FOLDER)
    assert reason() == "PyTorch has no device by HIP: flash_attn's kernels for ROCm cannot run"
    call = fields_of("attention", **{name: layout() for name in ("q", "k", "v", "out")})
    for row in adapters.TABLE:
        if row.project in ("flash_attn_ck", "vllm_triton"):
            assert row.supports(call) == "q is on cuda:0: this kernel runs on rocm"


def test_vllms_triton_kernel_asks_for_what_triton_has_code_for(monkeypatch):
    monkeypatch.setattr(adapters.hip, "architectures", lambda: ["gfx906"])
    row = row_of(manager("vllm_triton"), "vllm_triton::attention", "attention", **paged(32))
    assert row["reason"] == "vllm has kernels for gfx90a, gfx942, gfx950 by ROCm, and there is gfx906"


def test_a_package_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "flash_attn.py").write_text("raise OSError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    reason = row_of(manager("flash_attn"), "flash_attn::attention", "attention", **dense())["reason"]
    assert reason == "flash_attn cannot be imported: OSError: undefined symbol"


def test_a_package_that_computes_something_else_is_refused_before_use(monkeypatch):
    import flash_attn

    right = flash_attn.flash_attn_func

    def top_left(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                 alibi_slopes=None, deterministic=False, return_attn_probs=False):  # fmt: skip
        return right(q, k[:, : q.shape[1]], v[:, : q.shape[1]], causal=causal)

    monkeypatch.setattr(flash_attn, "flash_attn_func", top_left)
    m, out = manager("flash_attn"), torch.full((2, 5, 6, 64), 7, dtype=F16)
    with pytest.raises(kf.InvalidArgumentError, match="kernel flash_attn::attention: its results differ from cpu::"):
        m.fuse_attention(**dense(), out=out)
    assert (out == 7).all()

    def without_an_image(condition, message):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(flash_attn, "check", without_an_image)
    monkeypatch.setattr(flash_attn, "flash_attn_func", right)
    with pytest.raises(kf.InvalidArgumentError, match=r"kernel flash_attn::attention: raised RuntimeError: no kernel"):
        manager("flash_attn").fuse_attention(**dense())


def test_a_form_is_checked_once():
    import flash_attn

    m = manager("flash_attn")
    m.fuse_attention(**dense())
    assert len(flash_attn.calls) == 2  # the check, and the call
    m.fuse_attention(**dense(keys=10))
    assert len(flash_attn.calls) == 3
    m.fuse_attention(**dense(head_dim=128))
    assert len(flash_attn.calls) == 5


def test_flashinfers_workspaces_are_bounded(monkeypatch):
    monkeypatch.setattr(adapters.flashinfer, "_KEPT", 2)
    wrappers = adapters.flashinfer._Wrappers()
    queries = torch.empty(1), torch.empty(1, device="meta")
    first, _ = wrappers.of(queries[0], "NHD"), wrappers.of(queries[1], "NHD")
    assert wrappers.of(queries[0], "NHD") is first
    wrappers.of(queries[0], "HND")  # in place of the second, which was used longest ago
    assert wrappers.of(queries[0], "NHD") is first
    assert [(device.type, layout) for device, layout, _ in wrappers._all] == [("cpu", "HND"), ("cpu", "NHD")]


def test_nothing_is_imported_until_a_call_would_be_served():
    code = """
import sys
import numpy as np
import sagellm_kernel_fusion as kf
m = kf.KernelFusionManager()
x = np.ones((1, 4, 2, 8), np.float32)
m.fuse_attention(x, x, x), m.explain("attention", q=x, k=x, v=x), m.kernels(), kf.list_kernels(), m.report()
for name in ("torch", "triton", "flash_attn", "flash_attn_interface", "xformers", "flashinfer", "vllm", "liger_kernel"):
    assert name not in sys.modules, name
"""
    env = os.environ | {"PYTHONPATH": f"{FOLDER}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_our_triton_kernels_through_the_interpreter():
    pytest.importorskip("triton")
    env = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, Path(__file__).parent / "triton_rows.py"], env=env, check=True)


def test_our_triton_kernels_decline_the_cpu():
    m = kf.KernelFusionManager(kf.KernelFusionConfig(use_triton=True))
    x = torch.ones(2, 8)
    rows = {r["kernel"]: r for r in m.explain("rmsnorm", x=x, weight=x[0])}
    assert rows["triton::rms_norm"]["reason"] == "x is on cpu:0: this kernel runs on cuda"
    assert rows["triton::rms_norm"]["allowed"]


def test_every_row_is_in_the_docs():
    text = (ROOT / "docs/adapters.md").read_text()
    assert all(f"`{row.name}`" in text for row in adapters.TABLE)
