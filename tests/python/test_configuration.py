"""Each field of KernelFusionConfig by what it changes (docs/configuration.md)."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import sagellm_kernel_fusion as kf

X = kf.layout("f32", (4, 64))
W, NORM = kf.layout("f32", (64, 64)), kf.layout("f32", (64,))
Q, KV = kf.layout("f32", (1, 64, 4, 32)), kf.layout("f32", (1, 64, 2, 32))
POOL = kf.layout("f32", (8, 2, 16, 32))
PAGED = {
    "q": kf.layout("f32", (2, 4, 32)),
    "k": POOL,
    "v": POOL,
    "block_tables": kf.layout("i32", (2, 4)),
    "context_lens": kf.layout("i32", (2,)),
}
OPERANDS = {
    "attention": {"q": Q, "k": KV, "v": KV},
    "ffn": {"x": X, "gate_weight": W, "up_weight": W, "down_weight": W},
    "gelu_linear": {"x": X, "weight": W},
    "silu_linear": {"x": X, "weight": W},
    "linear": {"x": X, "weight": W, "lora_a": kf.layout("f32", (8, 64)), "lora_b": kf.layout("f32", (64, 8))},
    "layernorm": {"x": X, "weight": NORM, "bias": NORM, "residual": X},
    "layernorm_linear": {"x": X, "ln_weight": NORM, "ln_bias": NORM, "linear_weight": W},
    "rmsnorm_linear": {"x": X, "norm_weight": NORM, "linear_weight": W},
    "rmsnorm": {"x": X, "weight": NORM, "residual": X},
    "softmax": {"x": X},
}


def plan_of(operator, **fields):
    return kf.KernelFusionManager(kf.KernelFusionConfig(**fields)).plan(operator, **OPERANDS[operator])


def families_of(operator, **fields):
    m = kf.KernelFusionManager(kf.KernelFusionConfig(**fields))
    return next(r["families"] for r in m.explain(operator, **OPERANDS[operator]) if r["selected"])


def test_every_field_has_its_line_in_the_docs():
    text = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
    table = {line.split("|")[1] for line in text.splitlines() if line.startswith("| `")}
    documented = {name.strip(" `") for cell in table for name in cell.split(",")}
    assert documented == {f.name for f in dataclasses.fields(kf.KernelFusionConfig)}


SWITCHES = {
    "fuse_ffn", "fuse_gelu_linear", "fuse_silu_linear", "fuse_ln", "fuse_ln_linear", "fuse_lora", "fuse_rmsnorm",
    "fuse_softmax", "use_online_softmax",
}  # fmt: skip


@pytest.mark.parametrize(
    ("switch", "operator"),
    [
        ("fuse_ffn", "ffn"),
        ("fuse_gelu_linear", "gelu_linear"),
        ("fuse_silu_linear", "silu_linear"),
        ("fuse_ln", "layernorm"),
        ("fuse_ln_linear", "layernorm_linear"),
        ("fuse_ln_linear", "rmsnorm_linear"),
        ("fuse_lora", "linear"),
        ("fuse_rmsnorm", "rmsnorm"),
        ("use_online_softmax", "attention"),
    ],
)
def test_a_switch_off_runs_the_unfused_composition(switch, operator):
    fused, unfused = plan_of(operator), plan_of(operator, **{switch: False})
    assert fused["launches"] < unfused["launches"] and unfused["kernel"].endswith("_unfused")
    others = dict.fromkeys(SWITCHES - {switch}, False)
    assert plan_of(operator, **others)["kernel"] == fused["kernel"], "another switch governs it too"


def test_fuse_softmax():
    assert "fused" in families_of("softmax") and "vanilla" in families_of("softmax", fuse_softmax=False)
    m = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_softmax=False))
    rows = {r["kernel"]: r for r in m.explain("softmax", x=X)}
    assert all(r["allowed"] == ("vanilla" in r["families"] or "custom" in r["families"]) for r in rows.values())


def test_without_online_softmax_the_scores_are_written():
    scores = 1 * 4 * 64 * 64 * 4  # bytes
    assert plan_of("attention", use_online_softmax=False)["workspace_bytes"] >= scores


def test_attention_backend():
    assert plan_of("attention", attention_backend="flash2")["launches"] == 1
    assert plan_of("attention", attention_backend="vanilla")["kernel"] == "cpu::attention_unfused"
    with pytest.raises(kf.InvalidArgumentError, match="attention_backend paged expects block_tables"):
        plan_of("attention", attention_backend="paged")
    m = kf.KernelFusionManager(kf.KernelFusionConfig(attention_backend="paged"))
    assert "fused" in next(r["families"] for r in m.explain("attention", **PAGED) if r["selected"])
    for elsewhere in ("flash3", "xformers", "triton"):
        m = kf.KernelFusionManager(kf.KernelFusionConfig(attention_backend=elsewhere))
        x = np.ones((1, 2, 2, 8), np.float32)
        with pytest.raises(
            NotImplementedError, match=rf"attention_backend {elsewhere}: (.*\n)*  cpu::attention"
        ) as caught:
            m.fuse_attention(x, x, x)
        assert caught.value.code == "not_implemented"
        assert plan_of("attention", attention_backend=elsewhere, allow_fallback=True)["fallback"]


def test_use_paged_attention():
    m = kf.KernelFusionManager(kf.KernelFusionConfig(use_paged_attention=False))
    with pytest.raises(kf.InvalidArgumentError, match="use_paged_attention is off"):
        m.explain("attention", **PAGED)
    assert m.plan("attention", **OPERANDS["attention"])["launches"] == 1


def test_gqa_and_num_kv_heads():
    for fields, words in (
        ({"enable_gqa": False}, "enable_gqa is off"),
        ({"num_kv_heads": 4}, "configured as 4, k has 2"),
    ):
        with pytest.raises(kf.InvalidArgumentError, match=words):
            plan_of("attention", **fields)
    assert plan_of("attention", num_kv_heads=2)["launches"] == 1


def test_page_size_and_the_16_bit_type_of_a_cache():
    for fields, dtype in (
        ({}, np.float16),
        ({"enable_bf16": True}, ml_dtypes.bfloat16),
        ({"enable_fp16": False}, np.float32),
    ):
        m = kf.KernelFusionManager(kf.KernelFusionConfig(page_size=32, **fields))
        k, v = m.make_kv_cache(3, 2, 8)
        assert k.shape == v.shape == (3, 2, 32, 8) and k.dtype == dtype and not k.any()
        assert m.make_kv_cache(3, 2, 8, kv_layout="NHD")[0].shape == (3, 32, 2, 8)
    with pytest.raises(kf.InvalidArgumentError, match="kv_layout: expected one of HND, NHD"):
        m.make_kv_cache(3, 2, 8, kv_layout="DHN")


def test_low_bit_weights_are_read_by_kernels_or_dequantized_first(rng):
    x, w = rng.standard_normal((3, 64)).astype(np.float32), rng.standard_normal((32, 64)).astype(np.float32)
    weight = kf.quantize(w, "int4", group_size=32)
    fused = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_quant=True))
    assert "weight_scales" in fused.plan("silu_linear", x=x, weight=weight)["shapes"]
    expected = fused.fuse_silu_linear(x, weight)
    for fields, dtype, tolerance in (
        ({"enable_fp16": False}, "f32", 1e-5),
        ({}, "f16", 2e-3),
        ({"enable_bf16": True}, "bf16", 2e-2),
    ):
        m = kf.KernelFusionManager(kf.KernelFusionConfig(**fields))
        shapes = m.plan("silu_linear", x=x, weight=weight)["shapes"]
        assert f"weight={dtype}[32, 64]" in shapes and "weight_scales" not in shapes
        np.testing.assert_allclose(m.fuse_silu_linear(x, weight), expected, atol=tolerance * np.abs(expected).max())


def test_quant_dtype():
    weight = kf.quantize(np.ones((64, 64), np.float32), "int8")
    int4 = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_quant=True, quant_dtype="int4"))
    with pytest.raises(kf.InvalidArgumentError, match="gate_weight: quant_dtype is configured as int4, got i8"):
        int4.plan("ffn", x=X, gate_weight=weight, up_weight=weight, down_weight=weight)
    int8 = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_quant=True, quant_dtype="int8"))
    assert int8.plan("ffn", x=X, gate_weight=weight, up_weight=weight, down_weight=weight)["launches"] >= 1


def test_sparse_weights_are_read_compressed_or_made_dense_first(rng):
    x = rng.standard_normal((3, 64)).astype(np.float32)
    weight = kf.sparsify(rng.standard_normal((32, 64)).astype(np.float32), "2:4")
    plans = {}
    for fused in (True, False):
        m = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_sparse=fused, sparse_pattern="n:m"))
        plans[fused] = m.plan("silu_linear", x=x, weight=weight)["shapes"]
        expected = (x / (1 + np.exp(-x))) @ kf.densify(weight).T
        np.testing.assert_allclose(m.fuse_silu_linear(x, weight), expected, rtol=1e-4, atol=1e-4)
    assert "weight_mask" in plans[True] and "weight_mask" not in plans[False]
    m = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_sparse=True, sparse_pattern="unstructured"))
    with pytest.raises(kf.InvalidArgumentError, match="sparse_pattern is configured as unstructured, got 2:4"):
        m.fuse_silu_linear(x, weight)


def test_tensors_run_where_they_are(rng):
    x = rng.standard_normal((2, 8)).astype(np.float32)
    results = [
        kf.KernelFusionManager(
            kf.KernelFusionConfig(backend=backend, use_triton=triton, enable_tf32=tf32)
        ).fuse_softmax(x)
        for backend in ("cuda", "triton", "rocm", "tensorrt", "cpu")
        for triton in (False, True)
        for tf32 in (False, True)
    ]
    assert all((r == results[0]).all() for r in results)


def test_a_device_without_a_backend_names_the_configured_one():
    class OnCuda:
        """Claims memory of a GPU, by the protocol that carries it."""

        def __init__(self, array):
            self.array = array

        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, **options):
            import ctypes

            capsule = self.array.__dlpack__()
            get = ctypes.pythonapi.PyCapsule_GetPointer
            get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
            # DLTensor: the data pointer, then the device's type and number.
            device = ctypes.cast(get(capsule, b"dltensor") + 8, ctypes.POINTER(ctypes.c_int32))
            device[0] = 2
            return capsule

    x = OnCuda(np.ones((2, 8), np.float32))
    m = kf.KernelFusionManager(kf.KernelFusionConfig(backend="triton"))
    with pytest.raises(kf.UnavailableError, match="backend triton: no backend for tensors on cuda:0") as caught:
        m.explain("softmax", x=x)
    assert caught.value.context["backend"] == "triton"


def test_statistics_and_their_log(rng, caplog):
    x = rng.standard_normal((2, 8)).astype(np.float32)
    for on in (True, False):
        m = kf.KernelFusionManager(kf.KernelFusionConfig(log_fusion_stats=on))
        m.fuse_softmax(x)
        caplog.clear()
        with caplog.at_level(logging.INFO, "sagellm_kernel_fusion"):
            m.report(measure=False)
        assert [r.message for r in caplog.records] == (["kernel fusion: kernel_calls_softmax 1"] if on else [])
        assert bool(m.get_stats()["ops"]) == on


def test_profiling(rng):
    for on in (True, False):
        m = kf.KernelFusionManager(kf.KernelFusionConfig(profile_kernels=on))
        m.fuse_softmax(rng.standard_normal((64, 64)).astype(np.float32))
        [row] = m.get_stats()["ops"]["softmax"]["kernels"].values()
        assert (row["seconds"] is not None) == on


def test_further_fusions():
    q, kv = kf.layout("f32", (3, 4, 8)), kf.layout("f32", (3, 2, 8))
    pool, table = kf.layout("f32", (2, 2, 16, 8)), kf.layout("f32", (16, 4))
    operands = {
        "q": q, "k": kv, "v": kv, "k_cache": pool, "v_cache": pool, "cos": table, "sin": table,
        "positions": kf.layout("i32", (3,)), "slot_mapping": kf.layout("i64", (3,)),
    }  # fmt: skip
    layers = {"x": X, "q_weight": W, "k_weight": W, "v_weight": W}
    for switch, op, given in (
        ("fuse_rope", "append_kv", operands),
        ("fuse_qkv", "qkv_linear", layers),
        ("fuse_lm_head", "lm_head_argmax", {"x": X, "weight": W}),
        ("fuse_residual", "linear", {"x": X, "weight": W, "residual": X}),
    ):
        on, off = (
            kf.KernelFusionManager(kf.KernelFusionConfig(**{switch: value})).plan(op, **given)
            for value in (True, False)
        )
        assert on["launches"] < off["launches"], switch


def test_threads(rng):
    with pytest.raises(kf.InvalidArgumentError, match="num_threads: expected an integer of 0 to 4096, got 5000"):
        kf.KernelFusionConfig(num_threads=5000)
    x = rng.standard_normal((1, 64, 4, 32)).astype(np.float32)
    one, two = (kf.KernelFusionManager(kf.KernelFusionConfig(num_threads=n)) for n in (1, 2))
    plans = [m.plan("attention", q=x, k=x, v=x) for m in (one, two)]
    assert plans[0]["workspace_bytes"] < plans[1]["workspace_bytes"]  # a workspace a thread
    np.testing.assert_array_equal(one.fuse_attention(x, x, x), two.fuse_attention(x, x, x))


def test_rules_of_models(tiny_gguf):
    plain = kf.load_model(tiny_gguf, fusion_config=kf.KernelFusionConfig(fusion="none"))
    fused = kf.load_model(tiny_gguf, fusion_config=kf.KernelFusionConfig(fusion="all"))
    calls = []
    for model in (plain, fused):
        model.prefill([1, 2, 3])
        calls.append(model.engine.last_step["launches"])
    assert calls[1] < calls[0]

    def rules_of(**fields):
        config = kf.KernelFusionConfig(fusion="all", **fields)
        engine = kf.load_model(tiny_gguf, fusion_config=config, families=("fused", "vanilla")).engine
        return {a["rule"] for a in engine.applied(engine.shape_of("ids", 4, 1, 1, 4)) if a["kept"]}

    every = rules_of()
    assert "qkv_merge" in every and "rms_norm_ffn" in every
    assert rules_of(only_rules=["qkv_merge"]) == {"qkv_merge"}
    assert "qkv_merge" not in rules_of(except_rules=["qkv_merge"])
    assert rules_of(only_rules=["qkv_merge", "attention_causal"], except_rules=["qkv_merge"]) == {"attention_causal"}
