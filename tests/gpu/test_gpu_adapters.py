"""Other projects' kernels, of which those that are installed, and ours in Triton, on the device: each is taken by the
manager and agrees with the CPU."""

from __future__ import annotations

import pytest
import torch
from bounds import attention_agrees, on_the_cpu, random, rows_agree

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import adapters

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
INSTALLED = {row.project for row in adapters.TABLE if row.library.missing() is None}
BACKENDS = {"flash_attn_3": "flash3", "fa3_fwd": "flash3", "xformers": "xformers"}


def manager(project: str, **fields) -> kf.KernelFusionManager:
    fields.setdefault("attention_backend", BACKENDS.get(project, "flash2"))
    return kf.KernelFusionManager(kf.KernelFusionConfig(libraries=[project], use_triton=project == "triton", **fields))


def selected(m, op: str, operands: dict) -> str:
    rows = m.explain(op, **operands)
    return next((r["kernel"] for r in rows if r["selected"]), str([(r["kernel"], r["reason"]) for r in rows[:3]]))


def test_ours_in_triton_are_among_them():
    assert "triton" in INSTALLED


# Attention


def dense(dtype=BF16, batch=2, queries=37, keys=75, heads=8, kv_heads=2, head_dim=128):
    q, k = random(batch, queries, heads, head_dim, dtype=dtype), random(batch, keys, kv_heads, head_dim, dtype=dtype)
    return {"q": q, "k": k, "v": k.flip(1)}


def packed(dtype=BF16, head_dim=128):
    of_q, of_k = (torch.tensor(t, dtype=torch.int32, device="cuda") for t in ([0, 30, 31, 101], [0, 70, 78, 190]))
    q, k = random(101, 8, head_dim, dtype=dtype), random(190, 2, head_dim, dtype=dtype)
    return {"q": q, "k": k, "v": k.flip(0), "cu_seqlens_q": of_q, "cu_seqlens_k": of_k}


def paged(page_size, chunks=None, kv_layout="NHD", dtype=BF16, head_dim=128):
    lengths = torch.tensor([page_size + 3, 2 * page_size], dtype=torch.int32, device="cuda")
    shape = (5, page_size, 2, head_dim) if kv_layout == "NHD" else (5, 2, page_size, head_dim)
    operands = {
        "q": random(sum(chunks or (1, 1)), 8, head_dim, dtype=dtype), "k": random(*shape, dtype=dtype),
        "v": random(*shape, dtype=dtype).flip(0), "kv_layout": kv_layout, "context_lens": lengths,
        "block_tables": torch.tensor([[4, 1, -1], [3, 0, -1]], dtype=torch.int32, device="cuda"),
    }  # fmt: skip
    if chunks:
        ends = torch.tensor([0, *chunks]).cumsum(0).to("cuda", torch.int32)
        operands["cu_seqlens_q"] = ends
    return operands


def slopes():
    return {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 1.0, 2.0, 0.1, 0.3, 0.7], device="cuda")}


PLAIN = [{}, {"causal": False}, {"softmax_scale": 0.2}]
WINDOW, CAP, TWO_SIDED = {"window_size": (13, 0)}, {"softcap": 2.0}, {"causal": False, "window_size": (12, 11)}
CASES = [
    *[("fa3_fwd", dense, {}, o) for o in [*PLAIN, CAP]],
    *[("fa3_fwd", packed, {}, o) for o in [*PLAIN, CAP]],
    ("fa3_fwd", dense, {"queries": 1, "keys": 1000}, {}),
    ("fa3_fwd", dense, {"queries": 75, "keys": 37}, {}),  # rows that see no key
    ("fa3_fwd", dense, {"head_dim": 64}, {}),
    ("fa3_fwd", dense, {"head_dim": 256}, {}),
    *[("flash_attn_3", dense, {}, o) for o in [*PLAIN, WINDOW, TWO_SIDED, CAP]],
    *[("flash_attn_3", packed, {"dtype": F16}, o) for o in [{}, WINDOW]],
    *[("flash_attn_3", paged, {"page_size": 16, "chunks": (3, 1)}, o) for o in [{}, WINDOW]],
    *[("flash_attn", dense, {}, o) for o in [*PLAIN, WINDOW, TWO_SIDED, CAP]],
    ("flash_attn", dense, {}, "alibi"),
    ("flash_attn", dense, {"queries": 75, "keys": 37}, {}),
    ("flash_attn", dense, {"heads": 4, "kv_heads": 4}, {}),
    *[("flash_attn", packed, {}, o) for o in [*PLAIN, WINDOW, CAP]],
    *[("flash_attn", paged, {"page_size": 256}, o) for o in [{}, WINDOW, "alibi"]],
    *[("xformers", dense, {}, o) for o in [*PLAIN, WINDOW, TWO_SIDED]],
    ("xformers", dense, {"heads": 4, "kv_heads": 4}, {}),
    *[("flashinfer", dense, {"batch": 1}, o) for o in [*PLAIN, WINDOW, CAP]],
    *[("flashinfer", paged, {"page_size": 16, "kv_layout": y}, o) for y in ("HND", "NHD") for o in [{}, WINDOW]],
    ("flashinfer", paged, {"page_size": 16, "chunks": (9, 5)}, {}),
    *[("vllm", paged, {"page_size": 16}, o) for o in [{}, WINDOW, CAP, "alibi"]],
    ("vllm", paged, {"page_size": 16, "chunks": (9, 5)}, {}),
]  # fmt: skip


def named(case) -> str:
    project, form, sizes, options = case
    words = [options] if isinstance(options, str) else list(options)
    return "-".join([project, form.__name__, *map(str, sizes.values()), *(words or ["plain"])])


@pytest.mark.parametrize("case", [c for c in CASES if c[0] in INSTALLED], ids=named)
def test_attention(case):
    project, form, sizes, options = case
    with_lse = options != "alibi"  # which FlashAttention-2 has otherwise
    operands, options = form(**sizes), slopes() if options == "alibi" else options
    m = manager(project)
    assert selected(m, "attention", operands | options) == f"{project}::attention"
    got = m.fuse_attention(**operands, **options, return_lse=with_lse)
    out, lse = got if with_lse else (got, None)
    assert list(m.get_stats()["ops"]["attention"]["kernels"]) == [f"{project}::attention"]
    attention_agrees(out, lse, operands, options)
    attention_agrees(m.fuse_attention(**operands, **options), None, operands, options)


@pytest.mark.parametrize("project", sorted({c[0] for c in CASES} & INSTALLED))
def test_attention_on_another_stream(project):
    """Operands that are written on the stream just before, results read on it just after."""
    operands = paged(256) if project in ("flash_attn", "vllm") else dense(batch=1)
    m = manager(project)
    m.fuse_attention(**operands)
    filled = operands["q"].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        operands["q"].zero_()
        torch.cuda._sleep(20_000_000)
        operands["q"].copy_(filled)
        out = m.fuse_attention(**operands) * 1
    stream.synchronize()
    attention_agrees(out, None, operands, {})


# Norms, activations, products


def norm(width=1000, dtype=BF16):
    return {"x": random(33, width, dtype=dtype), "weight": random(width, dtype=dtype)}


def matrix(inputs, outputs, dtype):
    return random(outputs, inputs, dtype=dtype, scale=inputs**-0.5).t()


def ffn(dtype):
    hidden, inside = 200, 328
    gate, up = matrix(hidden, inside, dtype), matrix(hidden, inside, dtype) * 0.5
    return {
        "x": random(33, hidden, dtype=dtype), "gate_weight": gate, "up_weight": up,
        "down_weight": matrix(inside, hidden, dtype),
    }  # fmt: skip


def bias(width, dtype):
    return {"bias": random(width, dtype=dtype)}


# Of the roundings: those of results and of what lies between two parts of an op; f32 sums are some tens of units apart.
FEW = {F32: 200.0, F16: 3.0, BF16: 3.0}
ROWS = [
    *[("flashinfer::rms_norm", "rmsnorm", lambda t: norm(dtype=t), t) for t in (F16, BF16)],
    *[("liger::rms_norm", "rmsnorm", lambda t: norm(dtype=t), t) for t in (F32, F16, BF16)],
    *[("liger::layer_norm", "layernorm", lambda t: norm(dtype=t) | bias(1000, t), t) for t in (F32, F16, BF16)],
    *[("triton::rms_norm", "rmsnorm", lambda t: norm(dtype=t), t) for t in (F32, F16, BF16)],
    ("triton::rms_norm", "rmsnorm", lambda t: norm(9001, t), F32),
    *[("triton::softmax", "softmax", lambda t: {"x": random(33, 1000, dtype=t)}, t) for t in (F32, F16, BF16)],
    *[("triton::ffn", "ffn", ffn, t) for t in (F32, F16, BF16)],
    *[
        (
            "triton::gelu_linear", "gelu_linear",
            lambda t: {"x": random(33, 200, dtype=t), "weight": matrix(200, 328, t)} | bias(328, t), t,
        )
        for t in (F32, F16, BF16)
    ],
    *[
        (
            "triton::ln_linear", "layernorm_linear",
            lambda t: {
                "x": random(33, 200, dtype=t), "ln_weight": random(200, dtype=t), "ln_bias": random(200, dtype=t),
                "linear_weight": matrix(200, 328, t),
            },
            t,
        )
        for t in (F32, F16, BF16)
    ],
]  # fmt: skip
OF_THE_LIBRARY = {"triton::ffn": "triton::gated_ffn"}
RUNS = [r for r in ROWS if r[0].partition("::")[0] in INSTALLED]


@pytest.mark.parametrize(("name", "method", "operands", "dtype"), RUNS, ids=[f"{r[0]}-{r[3]}" for r in RUNS])
def test_rows(name, method, operands, dtype):
    name = OF_THE_LIBRARY.get(name, name)
    operands = operands(dtype)
    m = manager(name.partition("::")[0], enable_tf32=False)  # with it: test_gpu_tf32
    assert selected(m, method, operands) == name
    got = getattr(m, f"fuse_{method}")(**operands)
    expected = getattr(kf.KernelFusionManager(kf.KernelFusionConfig(libraries=[])), f"fuse_{method}")(
        **on_the_cpu(operands)
    )
    rows_agree(got, expected, FEW[dtype])


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_gated_activation(kind, dtype):
    """By Liger where it is installed, else by ours."""
    operands = {"gate": random(33, 1000, dtype=dtype), "up": random(33, 1000, dtype=dtype) + 1}
    m = manager("liger")
    name = "liger::gated_activation" if "liger" in INSTALLED else "cuda::gated_activation_fused"
    assert selected(m, "gated_activation", operands | {"kind": kind}) == name
    got = m._core.call("gated_activation", operands | {"kind": kind}, m.config.bound())
    expected = kf.ops.gated_activation(**on_the_cpu(operands), kind=kind)
    rows_agree(got, expected, FEW[dtype])
