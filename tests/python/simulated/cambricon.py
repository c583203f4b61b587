"""The Cambricon backend over stand-ins of torch_mlu and torch_mlu_ops, on a simulated device `mlu`: run in a process
of its own by test_vendors.py."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
import torch_mlu
import torch_mlu_ops
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
from typer.testing import CliRunner

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion.bench.selfcheck import selfcheck
from sagellm_kernel_fusion.cli.app import app
from sagellm_kernel_fusion.kernels import MLUFlashAttention
from sagellm_kernel_fusion.vendors.cambricon import operators, table


def test_the_stand_in_takes_the_parameters_that_are_given_in_their_order():
    assert torch_mlu.mlu.is_available()
    for name, parameters in operators.PARAMETERS.items():
        known = list(inspect.signature(getattr(torch_mlu_ops, name)).parameters)
        assert known[: len(parameters)] == list(parameters) or set(parameters) <= set(known), name


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"softmax_scale": 0.2}, {"window_size": (3, 0)}])
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_dense_attention(m, options, dtype):
    operands = dense(dtype=dtype)
    expected = kf.KernelFusionManager().fuse_attention(**operands, **options)
    close(m.fuse_attention(**all_there(operands), **options), expected, dtype)
    assert served(m, "attention") == ["mlu::attention"]


def test_the_specifications_class():
    operands = dense()
    for causal in (True, False):
        expected = kf.KernelFusionManager().fuse_attention(**operands, causal=causal)
        close(MLUFlashAttention().forward(*map(there, operands.values()), causal=causal), expected)


def test_packed_attention(m):
    operands = packed()
    for options in ({}, {"causal": False}, {"window_size": (3, 0)}):
        expected = kf.KernelFusionManager().fuse_attention(**operands, **options)
        close(m.fuse_attention(**all_there(operands), **options), expected)
    assert served(m, "attention") == ["mlu::attention_packed"]


@pytest.mark.parametrize(
    ("operands", "options", "kernel"),
    [
        (paged("HND", 16, (19, 32)), {}, "mlu::attention_decode"),
        (paged("HND", 16, (0, 20)), {}, "mlu::attention_decode"),
        (paged("HND", 32, (35, 64)), {"window_size": (7, 0)}, "mlu::attention_decode"),
        (paged("HND", 16, (19, 32), (3, 5)), {}, "mlu::attention_paged"),
        (paged("HND", 16, (2, 32), (4, 5)), {}, "mlu::attention_paged"),
        (paged("HND", 16, (2, 32), (4, 5)), {"window_size": (7, 0)}, "mlu::attention_paged"),
    ],
)
def test_paged_attention(m, operands, options, kernel):
    expected = kf.KernelFusionManager().fuse_attention(**operands, **options)
    close(m.fuse_attention(**all_there(operands), **options), expected)
    assert served(m, "attention") == [kernel]


@pytest.mark.parametrize(
    ("operands", "options", "reason"),
    [
        (dense(dtype=torch.float32), {}, "q is f32: this kernel takes f16, bf16"),
        (dense(queries=9, keys=5), {}, "9 queries over 5 keys"),
        (dense(), {"softcap": 2.0}, "softcap 2.0: no parameter"),
        (packed(), {"causal": False, "window_size": (3, 0)}, "without causal: this kernel takes causal windows"),
        (dense(), {"return_lse": True}, "lse is wanted"),
        (paged("HND", 8, (9, 16)), {}, "page size 8: this kernel takes multiples of 16"),
        (paged("NHD", 16, (19, 32)), {}, "kv_layout NHD: this kernel takes HND"),
        (paged("HND", 16, (19, 32), heads=260), {}, "130 query heads a K/V head: this kernel takes at most 128"),
    ],
)
def test_a_call_that_it_does_not_take_says_why(m, operands, options, reason):
    with pytest.raises(kf.NotServedError, match=reason):
        m.fuse_attention(**all_there(operands), **options)


def test_bf16_is_asked_of_the_card(m, monkeypatch):
    monkeypatch.setattr(torch_mlu.mlu, "get_device_name", lambda index=0: "MLU370-X8")
    x, w = there(random(3, 64, dtype=BF16)), there(random(64, dtype=BF16))
    with pytest.raises(kf.NotServedError, match="bf16 on MLU370-X8: expected an MLU590 or later"):
        m.fuse_rmsnorm(x, w)
    monkeypatch.setattr(torch_mlu.mlu, "is_bf16_supported", lambda: False, raising=False)
    with pytest.raises(kf.NotServedError, match="is_bf16_supported"):
        kf.KernelFusionManager().fuse_rmsnorm(x, w)


def test_the_cache_is_written_where_slots_are_not_negative(m):
    writes_slots(m, 16, [19, -1, 0, 31])


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize(("chunks", "row"), [(None, "decode"), ((5, 3), "paged"), ((19, 1), "paged")])
def test_a_cache_of_eight_bits_is_written_and_attended(m, dtype, chunks, row):
    k, v = random(51, 2, 64, dtype=dtype), random(51, 2, 64, dtype=dtype)
    slots = torch.arange(51, dtype=torch.int32) + 16
    slots[7] = -1
    tables = torch.tensor([[1, 2, -1], [3, 4, -1]], dtype=torch.int32)
    lengths, q = torch.tensor([19, 0], dtype=torch.int32), random(sum(chunks or (1, 1)), 6, 64, dtype=dtype)
    of_q = {"cu_seqlens_q": torch.tensor([0, chunks[0], sum(chunks)], dtype=torch.int32)} if chunks else {}
    got = {}
    for name, place in (("cpu", lambda t: t), ("mlu", there)):
        pools = [place(torch.zeros(5, 2, 16, 64, dtype=torch.int8)) for _ in range(2)]
        scales = [place(torch.ones(5, 2, 16, 1)) for _ in range(2)]
        caches = [kf.QuantizedTensor(p, s, dtype="int8") for p, s in zip(pools, scales, strict=True)]
        manager = m if name == "mlu" else kf.KernelFusionManager()
        config = kf.KernelFusionConfig(fuse_with_quant=True)
        manager.append_kv(place(k), place(v), *caches, place(slots), config)
        tables_there = {"block_tables": place(tables), "context_lens": place(lengths)}
        tables_there |= {n: place(t) for n, t in of_q.items()}
        out = manager.fuse_attention(place(q), *caches, config, **tables_there)
        got[name] = [t.cpu().float() for t in (out, *scales, *pools)]
    assert served(m, "attention") == [f"mlu::attention_{row}_i8"] and served(m, "append_kv") == ["mlu::append_kv_i8"]
    close(got["mlu"][0], got["cpu"][0], dtype)
    for g, e in zip(got["mlu"][1:3], got["cpu"][1:3], strict=True):
        torch.testing.assert_close(g, e)
    assert all(float((g - e).abs().max()) <= 1 for g, e in zip(got["mlu"][3:], got["cpu"][3:], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_and_elementwise(m, dtype):
    x, residual, weight = random(3, 7, 96, dtype=dtype), random(3, 7, 96, dtype=dtype), random(96, dtype=dtype)
    bias = random(96, dtype=dtype)
    both(m, "rms_norm", "mlu::rms_norm", dtype, x=x, weight=weight)
    both(m, "rms_norm", "mlu::rms_norm", dtype, x=x, weight=weight, residual=residual, residual_out=True)
    both(m, "layer_norm", "mlu::layer_norm", dtype, x=x, weight=weight, bias=bias, residual=residual)
    for kind in ("silu", "gelu", "gelu_tanh", "relu"):
        both(m, "activation", "mlu::activation", dtype, x=x, kind=kind)
        both(m, "gated_activation", "mlu::gated_activation", dtype, gate=x, up=residual, kind=kind)
    both(m, "softmax", "mlu::softmax", dtype, x=x, scale=2.0)
    both(m, "binary", "mlu::binary", dtype, a=x, b=residual)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_embedding(m, dtype, interleaved):
    rotates(m, "mlu::rope", dtype, interleaved)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_layers_with_what_surrounds_them(m, dtype):
    linear_layers(m, "mlu", dtype)


def test_the_managers_layers_take_weights_as_they_lie(m):
    x, w, norm = random(2, 3, 64), random(64, 48) / 8, random(64)
    cpu = kf.KernelFusionManager()
    for method, operands in [("fuse_layernorm_linear", (x, norm, norm.flip(0), w)), ("fuse_gelu_linear", (x, w)),
                             ("fuse_ffn", (x, w, w.flip(0), w.t().contiguous()))]:  # fmt: skip
        close(getattr(m, method)(*map(there, operands)), getattr(cpu, method)(*operands))


def test_eight_bit_weights(m):
    x, bias, residual = random(5, 96), random(48), random(5, 48)
    g = torch.Generator().manual_seed(1)
    codes = torch.randint(-128, 128, (48, 96), generator=g, dtype=torch.int8)
    operands = {"x": x, "weight": codes, "weight_scales": torch.rand(48, 1, generator=g).half() / 100}
    both(m, "linear", "mlu::linear_w8", **operands, bias=bias, residual=residual)
    both(m, "linear", "mlu::linear_w8a8", **operands, bias=bias, input_quantization="int8")
    operands["weight_scales"] = operands["weight_scales"].float()
    both(m, "linear", "mlu::linear_w8", **operands)


def test_a_selfcheck_without_the_vendors_library_is_not_right(monkeypatch):
    """PyTorch's own operators serve then, but they are not what is to be checked."""
    monkeypatch.setattr(operators.MluOps, "missing", lambda self: "torch_mlu_ops is not installed")
    report = selfcheck("mlu", ("rms_norm",), every=150)
    assert not report["ok"] and not report["failures"]
    result = CliRunner().invoke(app, ["selfcheck", "--backend", "mlu", "--op", "rms_norm", "--every", "150"])
    assert result.exit_code == 1 and "no kernel served any case: torch_mlu_ops is not installed" in result.output


def test_a_function_that_a_version_lacks_is_a_reason(m, monkeypatch):
    monkeypatch.delattr(torch_mlu_ops, "fused_rms_norm")
    operators.needing.cache_clear()
    library = operators.needing("fused_rms_norm")
    assert "torch_mlu_ops has no fused_rms_norm" in library.problem


def test_out_does_not_alias_q_in_place(m):
    q = there(random(1, 4, 2, 64))
    with pytest.raises(kf.KernelFusionError):
        m.fuse_attention(q, q, q, out=q)


def test_a_model_through_fuse_model_gives_the_cpus_logits_and_tokens():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).half().eval()
    ids = torch.tensor([[1, 5, 9, 33, 150, 7, 21]])
    expected = model(ids).logits
    model.to("mlu")
    fused = kf.fuse_model(model)
    assert not fused.refused, fused.refused[:2]
    got = model(there(ids)).logits
    close(got, expected)
    model.generate(there(ids), max_new_tokens=3, do_sample=False)
    kernels = {k for op in fused.manager.get_stats()["ops"].values() for k in op["kernels"]}
    assert kernels == {f"mlu::{op}" for op in ("qkv_linear", "rope", "attention", "linear", "gated_ffn", "rms_norm")}


def test_selfcheck_runs_the_cases_on_the_device():
    report = selfcheck("cambricon", ("rms_norm", "rope"), every=33)
    assert report["ok"], report["failures"]
    rows = {r["kernel"]: r for r in report["rows"]}
    assert rows["mlu::rms_norm"]["served"] and rows["mlu::rope"]["served"]


def test_kf_bench_op_on_the_device():
    command = ["bench", "op", "rms_norm/f32/1x576_residual", "--backend", "cambricon", "--seconds", "0.01", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["device"] == "Simulated" and report["comparisons"][0]["optimized_name"] == "mlu::rms_norm"


def test_every_row_says_what_it_saves_and_how_far_it_was_checked():
    for row in table.ROWS:
        assert row.saves and isinstance(row.saves, str) and row.level == "contract" and row.devices == ("mlu",), (
            row.name
        )


def test_unfused_forms_and_what_reports_hold_against_them(m):
    unfused_forms("mlu")
    reports_gains(m)
    benchmarks("mlu", "mlu::")


def test_roundings_between_operators_are_within_the_cases_tolerances():
    roundings_are_allowed_for("mlu")


def test_whole_models_on_the_device():
    rows = ("attention_paged", "append_kv", "rope", "qkv_linear", "linear", "gated_ffn")
    runs_models("cambricon", *(f"mlu::{row}" for row in rows))


def test_a_result_in_the_memory_of_the_residual():
    in_place()


def test_selfcheck_of_what_has_refusals_of_its_own():
    selfchecks_well("mlu", activation=1, gated_activation=5)
    selfchecks_well(
        "mlu",
        linear=67,
        qkv_linear=31,
        gated_ffn=31,
        embedding=7,
        lm_head_argmax=7,
        attention_scores=11,
        attention_values=11,
        append_kv=7,
    )


_LOW_BIT = {"qkv_linear": "qkv_linear_low_bit", "gated_ffn": "gated_ffn_low_bit"}


@pytest.mark.parametrize(
    ("dtype", "rows", "how"),
    [
        ("int8", {"linear": "linear_w8"} | _LOW_BIT, {}),
        ("int4", {"linear": "linear_w4"} | _LOW_BIT, {}),
        ("int8", {op: f"{op}_w8a8" for op in ("linear", "qkv_linear", "gated_ffn")}, {"rounded": True}),
    ],
)
def test_a_model_of_low_bit_weights(dtype, rows, how):
    low_bit_model("mlu", rows, dtype, page=16, **how)


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize(("codes", "group"), [("int4", 0), ("int4", 64), ("int4", 128), ("int8", 64)])
def test_low_bit_weights_of_groups(m, codes, group, dtype):
    w = quantized(48, 256, codes, group_size=group)
    w = kf.QuantizedTensor(w.data, w.scales.to(dtype), dtype=codes, group_size=group)
    x, bias, residual = random(5, 256, dtype=dtype), random(48, dtype=dtype), random(5, 48, dtype=dtype)
    others = {"x": x, "bias": bias, "residual": residual, "norm": "rms", "norm_weight": random(256, dtype=dtype)}
    only = kf.Selection(kernel=f"mlu::linear_w{codes[3:]}")
    got = kf.ops.linear(**all_there(others), weight=placed(there, w), selection=only)
    close(got, kf.ops.linear(**others, weight=w), dtype)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"group_size": 32}, "weight has groups of 32: this kernel takes whole rows, or groups of 64, 128, 256, 512"),
        ({"symmetric": False}, "weight has zeros: this kernel takes none"),
    ],
)
def test_low_bit_weights_that_are_not_taken_say_why(how, reason):
    w = placed(there, quantized(64, 128, "int4", **how))
    for call in (kf.ops.linear, lambda x, w: kf.ops.qkv_linear(x, w, w, w)):
        with pytest.raises(kf.NotServedError, match=reason):
            call(there(random(3, 128)), w)


def test_embeddings_are_scaled_and_tokens_chosen(m):
    scales_embeddings(m, "mlu")
    both(m, "argmax", "mlu::argmax", logits=random(3, 99, dtype=torch.float32))
    both(m, "lm_head_argmax", "mlu::lm_head_argmax", x=random(3, 64), weight=random(99, 64), norm="rms",
         norm_weight=random(64))  # fmt: skip
    with pytest.raises(kf.NotServedError, match="x is bf16: the logits of this kernel are rounded"):
        kf.ops.lm_head_argmax(there(random(3, 64, dtype=BF16)), there(random(99, 64, dtype=BF16)))


def test_every_specified_operator_has_a_row_or_a_reason(m):
    covers(m, "HND", 16, {})


def test_gemma_on_the_device():
    runs_gemma("mlu", "mlu::attention_paged")
