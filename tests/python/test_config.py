"""KernelFusionConfig: the specification's fields and defaults, what is refused, copies."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

import sagellm_kernel_fusion as kf

# Name, default: in the specification's order.
SPECIFIED = {
    "attention_backend": "flash2",
    "use_paged_attention": True,
    "page_size": 16,
    "enable_gqa": True,
    "num_kv_heads": None,
    "fuse_ffn": True,
    "fuse_gelu_linear": True,
    "fuse_silu_linear": True,
    "fuse_ln": True,
    "fuse_ln_linear": True,
    "fuse_rmsnorm": True,
    "fuse_softmax": True,
    "use_online_softmax": True,
    "fuse_with_quant": False,
    "quant_dtype": None,
    "fuse_with_sparse": False,
    "sparse_pattern": None,
    "custom_kernels": None,
    "use_triton": False,
    "use_cuda_graph": False,
    "backend": "cuda",
    "enable_tf32": True,
    "enable_fp16": True,
    "enable_bf16": False,
    "profile_kernels": False,
    "log_fusion_stats": True,
}


def test_fields_and_defaults_are_the_specifications():
    fields = dataclasses.fields(kf.KernelFusionConfig)
    positional = [f for f in fields if not f.kw_only]
    assert {f.name: f.default for f in positional} == SPECIFIED
    assert [f.name for f in positional] == list(SPECIFIED)
    assert kf.KernelFusionConfig("vanilla", False, 32).page_size == 32


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("attention_backend", "flash9", "one of flash2, flash3"),
        ("page_size", 0, "at least 1"),
        ("page_size", 16.0, "an integer"),
        ("page_size", True, "an integer"),
        ("num_kv_heads", -1, "None or an integer"),
        ("fuse_ffn", 1, "True or False"),
        ("fuse_ffn", "yes", "True or False"),
        ("quant_dtype", "int3", "int4, int8, fp8"),
        ("sparse_pattern", "2:4", "n:m, unstructured"),
        ("custom_kernels", [len], "a dictionary"),
        ("backend", "cudaa", "cuda, triton, rocm, tensorrt"),
        ("num_threads", -2, "an integer of 0 to 4096"),
        ("fusion", 7, "measured, all, none"),
        ("only_rules", "norm_linear", "a list"),
    ],
)
def test_a_value_that_a_field_does_not_take_is_refused(field, value, expected):
    with pytest.raises(kf.InvalidArgumentError, match=f"{field}: expected .*{expected}") as caught:
        kf.KernelFusionConfig(**{field: value})
    assert isinstance(caught.value, ValueError) and caught.value.context == {"field": field}
    config = kf.KernelFusionConfig()
    with pytest.raises(kf.InvalidArgumentError, match=field):
        setattr(config, field, value)
    assert getattr(config, field) == getattr(kf.KernelFusionConfig(), field)


def test_a_misspelt_field_is_refused_with_the_nearest():
    config = kf.KernelFusionConfig()
    with pytest.raises(kf.InvalidArgumentError, match="did you mean fuse_ffn"):
        config.fuse_fnn = True
    with pytest.raises(TypeError, match="fuse_fnn"):
        kf.KernelFusionConfig(fuse_fnn=True)


def test_copies_and_pickles_are_equal_and_apart():
    config = kf.KernelFusionConfig(attention_backend="paged", num_kv_heads=8, except_rules=["qkv_merge"])
    config.bound()
    for made in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert made == config
        made.page_size = 64
        assert config.page_size == 16 and made != config
    assert dataclasses.replace(config, page_size=8).page_size == 8


def test_a_changed_field_counts_at_the_next_call(rng):
    x = rng.standard_normal((2, 8)).astype("f4")
    m = kf.KernelFusionManager()
    families = [row["families"] for row in m.explain("rmsnorm", x=x, weight=x[0]) if row["selected"]]
    assert "fused" in families[0]
    m.config.attention_backend = "vanilla"
    m.config.use_online_softmax = False
    q = rng.standard_normal((1, 4, 2, 8)).astype("f4")
    assert [r["families"] for r in m.explain("attention", q=q, k=q, v=q) if r["selected"]] == ["vanilla"]


def test_deterministic_calls_take_batch_invariant_kernels(rng):
    x, weight = rng.standard_normal((5, 576)).astype("f4"), rng.standard_normal((32, 576)).astype("f4")
    m = kf.KernelFusionManager(kf.KernelFusionConfig(deterministic=True))
    q = rng.standard_normal((3, 1, 2, 64)).astype("f4")
    k = rng.standard_normal((3, 3000, 2, 64)).astype("f4")
    rows = m.explain("attention", q=q, k=k, v=k)
    assert [r["kernel"] for r in rows if r["selected"]] == ["cpu::attention_flash_fixed"]
    assert "not batch-invariant" in next(r["reason"] for r in rows if r["kernel"] == "cpu::attention_flash")
    whole = m.fuse_attention(q, k, k)
    for b in range(3):
        assert (m.fuse_attention(q[b : b + 1], k[b : b + 1], k[b : b + 1]) == whole[b]).all()
    whole = m.fuse_gelu_linear(x, weight.T)
    assert (m.fuse_gelu_linear(x[3:4], weight.T) == whole[3]).all()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("fusion", "mesured", "measured, all, none, or a list of rules among .*attention_causal"),
        ("fusion", ["attention_causal", "x"], "measured, all, none, or a list of rules among"),
        ("only_rules", ["x"], "a list of rules among"),
        ("except_rules", ["x"], "a list of rules among"),
        ("num_threads", 4097, "an integer of 0 to 4096"),
    ],
)
def test_values_that_the_library_does_not_know_are_refused_where_they_are_given(field, value, words):
    with pytest.raises(kf.InvalidArgumentError, match=f"{field}: expected {words}"):
        kf.KernelFusionConfig(**{field: value})
    kf.KernelFusionConfig(fusion="attention_causal, gated_ffn", only_rules=["gated_ffn"])
