"""The rows of Kunlun's P800 over stand-ins of torch_xmlir and kunlun_ops, on a simulated device that torch calls cuda:
run in a process of its own by test_vendors.py."""

from __future__ import annotations

import inspect

import kunlun_ops
import pytest
import torch
import torch_xmlir
from on_device import (
    BF16,
    DTYPES,
    F16,
    all_there,
    benchmarks,
    both,
    close,
    covers,
    dense,
    in_place,
    linear_layers,
    low_bit_model,
    packed,
    paged,
    placed,
    quantized,
    random,
    reports_gains,
    rotates,
    roundings_are_allowed_for,
    runs_gemma,
    runs_models,
    scales_embeddings,
    selfchecks_well,
    served,
    there,
    unfused_forms,
    writes_slots,
)

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion.bench.selfcheck import selfcheck
from sagellm_kernel_fusion.vendors import detect
from sagellm_kernel_fusion.vendors.kunlun import operators, table


def test_the_stand_in_takes_the_parameters_that_are_given():
    for name, parameters in operators.PARAMETERS.items():
        assert set(parameters) <= set(inspect.signature(getattr(kunlun_ops, name)).parameters), name


def test_it_is_found_before_cuda_which_its_tensors_say_they_are_on(m):
    causes = {f.backend: f.cause for f in detect()}
    assert causes["kunlun"] is None and causes["cuda"] == "kunlun comes before it"
    x = there(random(3, 64))
    assert x.is_cuda
    rows = m.explain("rms_norm", x=x, weight=there(random(64)))
    assert [r["kernel"] for r in rows if r["selected"]] == ["kunlun::rms_norm"]


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"softmax_scale": 0.2}])
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_dense_attention(m, options, dtype):
    operands = dense(queries=9, dtype=dtype)
    expected = kf.KernelFusionManager().fuse_attention(**operands, **options)
    close(m.fuse_attention(**all_there(operands), **options), expected, dtype)
    assert served(m, "attention") == ["kunlun::attention"]


def test_attention_with_sinks(m):
    for operands in (dense(queries=9), paged("HND", 64, (67, 128))):
        operands["sinks"] = random(6, dtype=torch.float32)
        close(m.fuse_attention(**all_there(operands)), kf.KernelFusionManager().fuse_attention(**operands))


@pytest.mark.parametrize("causal", [True, False])
def test_packed_attention(m, causal):
    one = packed()
    same = {n: one[n] for n in ("q", "cu_seqlens_q")} | {n: random(12, 2, 64) for n in ("k", "v")}
    same["cu_seqlens_q"] = same["cu_seqlens_k"] = torch.tensor([0, 3, 10, 12], dtype=torch.int32)
    long = {"q": random(70, 6, 64), "k": random(150, 2, 64), "v": random(150, 2, 64),
            "cu_seqlens_q": torch.tensor([0, 60, 70], dtype=torch.int32),
            "cu_seqlens_k": torch.tensor([0, 130, 150], dtype=torch.int32)}  # fmt: skip
    for operands in (same, one, long):
        expected = kf.KernelFusionManager().fuse_attention(**operands, causal=causal)
        close(m.fuse_attention(**all_there(operands), causal=causal), expected)
    assert served(m, "attention") == ["kunlun::attention_packed"]


@pytest.mark.parametrize(
    ("operands", "kernel"),
    [
        (paged("HND", 64, (67, 128)), "kunlun::attention_decode"),
        (paged("HND", 64, (0, 70)), "kunlun::attention_decode"),
        (paged("HND", 16, (19, 32)), "kunlun::attention_decode"),
        (paged("HND", 64, (67, 128), (3, 5)), "kunlun::attention_paged"),
        (paged("HND", 64, (2, 128), (4, 5)), "kunlun::attention_paged"),
        (paged("HND", 64, (0, 0), (4, 5)), "kunlun::attention_paged"),
    ],
)
def test_paged_attention(m, operands, kernel):
    expected = kf.KernelFusionManager().fuse_attention(**operands)
    close(m.fuse_attention(**all_there(operands)), expected)
    assert served(m, "attention") == [kernel]


@pytest.mark.parametrize(
    ("operands", "options", "reason"),
    [
        (dense(queries=9, dtype=torch.float32), {}, "q is f32: this kernel takes f16, bf16"),
        (dense(), {}, "5 queries over 9 keys: this kernel takes as many of both"),
        (dense(queries=9, width=48), {}, "head_dim 48: this kernel takes 32, 64, 80"),
        (dense(queries=9), {"softcap": 2.0}, "softcap 2.0: no parameter"),
        (dense(queries=9), {"window_size": (3, 0)}, "window_left 3: no parameter"),
        (dense(queries=9), {"return_lse": True}, "lse is wanted"),
        (paged("HND", 8, (9, 16)), {}, "page size 8: this kernel takes multiples of 16"),
        (paged("NHD", 64, (67, 128)), {}, "kv_layout NHD: this kernel takes HND"),
    ],
)
def test_a_call_that_it_does_not_take_says_why(m, operands, options, reason):
    with pytest.raises(kf.NotServedError, match=reason):
        m.fuse_attention(**all_there(operands), **options)


@pytest.mark.parametrize("name", ["R300", "Kunlun R200-8F", "RG800"])
def test_on_a_card_before_kunlun_3_its_functions_are_refused(m, monkeypatch, name):
    monkeypatch.setattr(torch_xmlir.cuda, "get_device_name", lambda index=0: name)
    with pytest.raises(kf.NotServedError, match="is a card before Kunlun 3: kunlun_ops is for the P800"):
        m.fuse_rmsnorm(there(random(3, 64)), there(random(64)))


def test_the_cache_is_written_where_slots_are_not_negative(m):
    writes_slots(m, 64, [67, -1, 0, 127])
    writes_slots(m, 64, [-1] * 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_and_elementwise(m, dtype):
    x, residual, weight = random(3, 7, 96, dtype=dtype), random(3, 7, 96, dtype=dtype), random(96, dtype=dtype)
    bias = random(96, dtype=dtype)
    both(m, "rms_norm", "kunlun::rms_norm", dtype, x=x, weight=weight)
    both(m, "rms_norm", "kunlun::add_rms_norm", dtype, x=x, weight=weight, residual=residual, residual_out=True)
    both(m, "rms_norm", "kunlun::add_rms_norm", dtype, x=x, weight=weight, residual=residual)
    both(m, "layer_norm", "kunlun::layer_norm", dtype, x=x, weight=weight, bias=bias)
    for kind in ("silu", "gelu", "gelu_tanh", "relu"):
        both(m, "activation", "kunlun::activation", dtype, x=x, kind=kind)
        both(m, "gated_activation", "kunlun::gated_activation", dtype, gate=x, up=residual, kind=kind)
    both(m, "softmax", "kunlun::softmax", dtype, x=x, scale=2.0)
    both(m, "binary", "kunlun::binary", dtype, a=x, b=residual)
    both(m, "argmax", "kunlun::argmax", dtype, logits=x[0])
    both(m, "embedding", "kunlun::embedding", dtype, ids=torch.tensor([2, 0, 2], dtype=torch.int32), table=x[0])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_embedding(m, dtype, interleaved):
    rotates(m, "kunlun::rope", dtype, interleaved)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_layers_with_what_surrounds_them(m, dtype):
    linear_layers(m, "kunlun", dtype)
    assert kunlun_ops.calls.count("swiglu") >= 2


def test_the_managers_layers_take_weights_as_they_lie(m):
    x, w, norm = random(2, 3, 64), random(64, 48) / 8, random(64)
    cpu = kf.KernelFusionManager()
    for method, operands in [("fuse_layernorm_linear", (x, norm, norm.flip(0), w)), ("fuse_gelu_linear", (x, w)),
                             ("fuse_ffn", (x, w, w.flip(0), w.t().contiguous()))]:  # fmt: skip
        close(getattr(m, method)(*map(there, operands)), getattr(cpu, method)(*operands))


def test_eight_bit_weights_and_inputs(m):
    x, bias, residual = random(5, 96), random(48), random(5, 48)
    g = torch.Generator().manual_seed(1)
    codes = torch.randint(-128, 128, (48, 96), generator=g, dtype=torch.int8)
    operands = {"x": x, "weight": codes, "weight_scales": torch.rand(48, 1, generator=g).half() / 100,
                "input_quantization": "int8"}  # fmt: skip
    both(m, "linear", "kunlun::linear_w8a8", **operands, bias=bias, residual=residual)


def test_a_function_that_a_version_lacks_is_a_reason(monkeypatch):
    monkeypatch.delattr(kunlun_ops, "add_rmsnorm")
    operators.needing.cache_clear()
    assert "kunlun_ops has no add_rmsnorm" in operators.needing("add_rmsnorm").problem
    operators.needing.cache_clear()
    monkeypatch.setattr(kunlun_ops, "swiglu", lambda x, out: None)
    assert "kunlun_ops.swiglu takes no y" in operators.needing("swiglu").problem
    operators.needing.cache_clear()


def test_a_model_through_fuse_model_gives_the_cpus_logits_and_tokens():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=160, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).half().eval()
    ids = torch.tensor([[1, 5, 9, 33, 150, 7, 21]])
    expected = model(ids).logits
    model.to("cuda:0")
    fused = kf.fuse_model(model)
    assert not fused.refused, fused.refused[:2]
    close(model(there(ids)).logits, expected)
    kernels = {k for op in fused.manager.get_stats()["ops"].values() for k in op["kernels"]}
    assert kernels == {f"kunlun::{op}" for op in ("qkv_linear", "rope", "attention", "linear", "gated_ffn", "rms_norm")}


def test_selfcheck_runs_the_cases_on_the_device():
    report = selfcheck("kunlun", ("rms_norm", "rope"), every=33)
    assert report["ok"], report["failures"]
    rows = {r["kernel"]: r for r in report["rows"]}
    assert rows["kunlun::rms_norm"]["served"] and rows["kunlun::rope"]["served"]


def test_every_row_says_what_it_saves_and_how_far_it_was_checked():
    for row in table.ROWS:
        assert row.saves and isinstance(row.saves, str) and row.level == "contract" and row.devices == ("kunlun",), (
            row.name
        )


def test_unfused_forms_and_what_reports_hold_against_them(m):
    unfused_forms("kunlun")
    reports_gains(m)
    benchmarks("kunlun", "kunlun::")


def test_roundings_between_operators_are_within_the_cases_tolerances():
    roundings_are_allowed_for("kunlun")


def test_whole_models_on_the_device():
    rows = ("attention_paged", "append_kv", "rope", "qkv_linear", "linear", "gated_ffn", "embedding")
    runs_models("xpu", *(f"kunlun::{row}" for row in rows))


def test_a_result_in_the_memory_of_the_residual():
    in_place()


def test_selfcheck_of_what_has_refusals_of_its_own():
    selfchecks_well("kunlun", activation=1, gated_activation=5)
    selfchecks_well(
        "kunlun", linear=67, qkv_linear=31, gated_ffn=31, embedding=7, attention_values=11, lm_head_argmax=7
    )


def test_a_model_of_eight_bit_weights_and_inputs():
    low_bit_model("kunlun", {op: f"{op}_w8a8" for op in ("linear", "qkv_linear", "gated_ffn")}, rounded=True)


def test_weights_whose_inputs_are_not_rounded_are_refused(m):
    """vLLM-Kunlun gives kunlun_ops weights of 4 bits in an order of its own, and those of 8 with inputs of 8."""
    x = there(random(3, 128))
    for dtype in ("int4", "int8"):
        w = placed(there, quantized(64, 128, dtype))
        with pytest.raises(kf.NotServedError, match="linear_w8a8: input_quantization none: this kernel serves int8"):
            kf.ops.qkv_linear(x, w, w, w)


def test_embeddings_are_scaled(m):
    scales_embeddings(m, "kunlun")


def test_every_specified_operator_has_a_row_or_a_reason(m):
    over_i8 = "k_scales is given, which no parameter of kunlun::attention_"
    refused = {"linear, i8": "input_quantization none: this kernel serves int8",
               "linear, int4": "input_quantization none: this kernel serves int8",
               "append, i8": "k_cache_scales is wanted", "attention: paged decode, i8": over_i8,
               "attention: paged prefill, i8": over_i8}  # fmt: skip
    covers(m, "HND", 64, refused)


def test_gemma_on_the_device():
    runs_gemma("kunlun", "kunlun::attention_paged")
