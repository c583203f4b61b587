"""The Ascend backend over a stand-in of torch_npu, on a simulated device `npu`: run in a process of its own by
test_vendors.py, for each CANN."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_npu
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
    low_bit_model,
    packed,
    paged,
    placed,
    quantized,
    random,
    reports_gains,
    roundings_are_allowed_for,
    runs_gemma,
    runs_models,
    scales_embeddings,
    selfchecks_well,
    served,
    there,
    unfused_forms,
)

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion.bench.selfcheck import selfcheck
from sagellm_kernel_fusion.kernels import AscendFlashAttention, AscendFusedFFN
from sagellm_kernel_fusion.vendors.ascend import cann, operators, table
from sagellm_kernel_fusion.weights.gguf_file import read_gguf

ROOT = Path(__file__).resolve().parents[3]
CANN = os.environ["STAND_IN_CANN"]
HAS_INFER = cann.at_least(CANN, "8.0.RC1")
HAS_GELU = cann.at_least(CANN, "8.0.0")
since_8 = pytest.mark.skipif(not HAS_INFER, reason="of CANN 8.0")  # run for another CANN


# The contract


def test_every_parameter_is_one_of_the_wheels_schemas():
    wheel = json.loads((ROOT / ".cache/vendors/torch_npu-2.14.0.json").read_text())
    assert torch_npu.npu.is_available() and (operators.ALL.problem is None or not HAS_GELU)
    for name, parameters in operators.PARAMETERS.items():
        schema = torch._C.parse_schema(wheel["schemas"][name])
        assert set(parameters) <= {a.name for a in schema.arguments}
        assert set(cann.KERNELS[name]) & set(wheel["kernels"]), name
        assert name in cann.SINCE
    for row in table.ROWS:
        for name, parameters in row.library.names.items():
            schema = torch._C.parse_schema(wheel["schemas"][name])
            assert set(parameters) <= {a.name for a in schema.arguments}, (row.name, name)


def test_the_specifications_call_of_fusion_attention_is_refused():
    q = there(random(1, 4, 2, 32))
    with pytest.raises(RuntimeError, match="pre_tokens"):
        torch.ops.npu.npu_fusion_attention(
            q, q, q, head_num=2, input_layout="BSND", scale=0.2, pre_tokens=65536, next_tokens=0
        )


def test_respelled_it_is_not_causal_without_a_mask():
    q, k, v = (random(1, 4, 2, 32) for _ in range(3))
    operands = [there(x) for x in (q, k, v)]
    out, *_ = torch.ops.npu.npu_fusion_attention(
        *operands, head_num=2, input_layout="BSND", scale=32**-0.5, pre_tockens=65536, next_tockens=0
    )
    close(out, kf.ops.attention(q, k, v, causal=False))
    causal = kf.ops.attention(q, k, v)
    assert float((out.cpu() - causal).abs().max()) > 0.1


# Attention


DENSE = [{}, {"causal": False}, {"softmax_scale": 0.2}]


@pytest.mark.parametrize("options", DENSE)
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_dense_attention(m, options, queries, dtype):
    kv_heads = 2 if HAS_INFER else 6
    operands = dense(queries, dtype=dtype, kv_heads=kv_heads)
    out, lse = m.fuse_attention(**all_there(operands), **options, return_lse=True)
    expected, sums = kf.KernelFusionManager().fuse_attention(**operands, **options, return_lse=True)
    close(out, expected, dtype)
    close(lse, sums, dtype)
    assert served(m, "attention") == ["ascend::attention" if HAS_INFER else "ascend::attention_fusion"]


@since_8
def test_a_boolean_mask_hides_and_rows_that_see_nothing_are_zeros(m):
    operands = dense()
    mask = torch.rand(2, 1, 5, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    mask[0, :, 2] = False
    out = m.fuse_attention(**all_there(operands), causal=False, attn_mask=there(mask))
    close(out, kf.ops.attention(**operands, causal=False, attn_mask=mask))
    assert not out.cpu()[0, 2].any()


@since_8
def test_packed_sequences_each_by_a_call(m):
    operands = packed()
    for causal in (True, False):
        got = m.fuse_attention(**all_there(operands), causal=causal, return_lse=True)
        expected = kf.KernelFusionManager().fuse_attention(**operands, causal=causal, return_lse=True)
        for g, e in zip(got, expected, strict=True):
            close(g, e)
    assert served(m, "attention") == ["ascend::attention_by_sequence"]


@since_8
@pytest.mark.parametrize(
    "operands",
    [paged("NHD", 128, (131, 256)), paged("NHD", 16, (3, 32)), paged("NHD", 128, (0, 200)),
     paged("NHD", 128, (131, 200), (5, 3)), paged("NHD", 128, (2, 200), (4, 2))],
)  # fmt: skip
def test_paged_attention(m, operands):
    got = m.fuse_attention(**all_there(operands), return_lse=True)
    expected = kf.KernelFusionManager().fuse_attention(**operands, return_lse=True)
    for g, e in zip(got, expected, strict=True):
        close(g, e)
    assert served(m, "attention") == ["ascend::attention_paged"]


@since_8
@pytest.mark.parametrize(("chunks", "calls"), [(None, 1), ((1, 1), 1), ((2, 1), 2)])
def test_one_query_a_sequence_is_one_call_for_all(m, monkeypatch, chunks, calls):
    from sagellm_kernel_fusion.vendors.operators import Operators

    operands = paged("NHD", 128, (131, 200), chunks)
    m.fuse_attention(**all_there(operands))  # checked
    asked, ask = [], Operators.__call__
    monkeypatch.setattr(Operators, "__call__", lambda self, name: asked.append(name) or ask(self, name))
    close(m.fuse_attention(**all_there(operands)), kf.ops.attention(**operands))
    assert asked == ["npu_fused_infer_attention_score"] * calls


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kv_layout": "HND"}, "kv_layout HND: this kernel takes NHD"),
        ({"window_size": (4, 0)}, "window_left 4: no parameter"),
        ({"softcap": 2.0}, "softcap 2.0: no parameter"),
        ({"alibi_slopes": torch.ones(6)}, "alibi_slopes is given"),
    ],
)
@since_8
def test_a_paged_call_that_it_does_not_take_says_why(m, change, reason):
    operands = paged("NHD", 128, (131, 256)) | change
    if change.get("kv_layout") == "HND":
        operands |= {n: operands[n].transpose(1, 2).contiguous() for n in ("k", "v")}
    with pytest.raises(kf.NotServedError, match=reason):
        m.fuse_attention(**all_there(operands))


@since_8
@pytest.mark.parametrize(
    ("operands", "reason"),
    [
        (dense(dtype=torch.float32), "q is f32: this kernel takes f16, bf16"),
        (dense(width=40), "head_dim 40: this kernel takes multiples of 16 up to 512"),
        (dense(queries=9, keys=5), "9 causal queries over 5 keys"),
        (dense(heads=130, kv_heads=2), "65 query heads a K/V head: this kernel takes at most 64"),
        (dense(heads=258, kv_heads=258, width=16), "258 heads: this kernel takes at most 256"),
        (
            paged("NHD", 24, (3, 24)),
            "page size 24: for one query a sequence this kernel takes multiples of 16 up to 512",
        ),
        (
            paged("NHD", 64, (13, 24), (2, 2)),
            "page size 64: for several queries a sequence this kernel takes multiples of 128",
        ),
    ],
)
def test_a_call_beyond_the_operators_limits_says_why(m, operands, reason):
    with pytest.raises(kf.NotServedError, match=reason):
        m.fuse_attention(**all_there(operands))


def test_the_cache_is_written_where_slots_are_not_negative(m):
    k, v = random(4, 2, 64), random(4, 2, 64).flip(0)
    slots = torch.tensor([130, -1, 0, 255], dtype=torch.int32)
    caches = [torch.zeros(2, 128, 2, 64, dtype=F16) for _ in range(2)]
    on_device = [there(c.clone()) for c in caches]
    m.append_kv(there(k), there(v), *on_device, there(slots), kv_layout="NHD")
    kf.ops.append_kv(k, v, slot_mapping=slots, k_cache=caches[0], v_cache=caches[1], kv_layout="NHD")
    assert all(torch.equal(g.cpu(), e) for g, e in zip(on_device, caches, strict=True))
    assert served(m, "append_kv") == ["ascend::append_kv"]


_SCALES = {"tensor": (1, 1, 1, 1), "head": (1, 1, 2, 1), "token": (5, 32, 1, 1), "row": (5, 32, 2, 1)}


@pytest.mark.skipif(not cann.at_least(CANN, "8.1.RC1"), reason="of CANN 8.1")
@pytest.mark.parametrize("per", list(_SCALES))
@pytest.mark.parametrize(
    ("lengths", "chunks"), [((19, 63), None), ((0, 40), None), ((19, 63), (5, 7)), ((3, 40), (5, 40)), ((0, 0), (2, 3))]
)
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_a_cache_of_eight_bits_is_written_and_attended(m, per, lengths, chunks, dtype):
    k, v = random(51, 2, 64, dtype=dtype), random(51, 2, 64, dtype=dtype)
    slots = torch.arange(51, dtype=torch.int32) + 30
    slots[7] = -1
    tables = torch.tensor([[1, 2, -1], [3, 4, -1]], dtype=torch.int32)
    q, of_token = random(sum(chunks or (1, 1)), 6, 64, dtype=dtype), per in ("token", "row")
    of_q = {"cu_seqlens_q": torch.tensor([0, chunks[0], sum(chunks)], dtype=torch.int32)} if chunks else {}
    got = {}
    for name, place in (("cpu", lambda t: t), ("npu", there)):
        g = torch.Generator().manual_seed(1)
        pools = [torch.randint(-127, 128, (5, 32, 2, 64), generator=g, dtype=torch.int8) for _ in range(2)]
        scales = [torch.rand(_SCALES[per], generator=g).to(torch.float32 if of_token else dtype) / 50 for _ in range(2)]
        pools, scales = ([place(t) for t in group] for group in (pools, scales))
        caches = [kf.QuantizedTensor(p, s, dtype="int8") for p, s in zip(pools, scales, strict=True)]
        manager = m if name == "npu" else kf.KernelFusionManager()
        config = kf.KernelFusionConfig(fuse_with_quant=True)
        if of_token:
            manager.append_kv(place(k), place(v), *caches, place(slots), config, kv_layout="NHD")
        where = {"block_tables": place(tables), "context_lens": place(torch.tensor(lengths, dtype=torch.int32))}
        where |= {n: place(t) for n, t in of_q.items()}
        out, lse = manager.fuse_attention(place(q), *caches, config, **where, kv_layout="NHD", return_lse=True)
        got[name] = [t.cpu().float() for t in (out, lse, *scales, *pools)]
    assert served(m, "attention") == [f"ascend::attention_{'paged' if chunks else 'decode'}_i8"]
    if of_token:
        assert served(m, "append_kv") == ["ascend::append_kv_i8"]
    for g, e in zip(got["npu"][:2], got["cpu"][:2], strict=True):
        close(g, e, dtype)
    for g, e in zip(got["npu"][2:4], got["cpu"][2:4], strict=True):
        torch.testing.assert_close(g, e)
    assert all(float((g - e).abs().max()) <= 1 for g, e in zip(got["npu"][4:], got["cpu"][4:], strict=True))


def _of_eight_bits(page=32, width=64, scales=None, scales_dtype=torch.float32):
    pools = [there(torch.zeros(5, page, 2, width, dtype=torch.int8)) for _ in range(2)]
    shape = scales or (5, page, 2, 1)
    return [kf.QuantizedTensor(p, there(torch.ones(shape, dtype=scales_dtype)), dtype="int8") for p in pools]


@pytest.mark.parametrize(
    ("caches", "reason"),
    [
        (lambda: _of_eight_bits(page=16), "page size 16: for one query a sequence over i8 this kernel takes"),
        (lambda: _of_eight_bits(width=48), "head_dim 48: this kernel takes multiples of 32 up to 512"),
        (lambda: _of_eight_bits(scales_dtype=F16), "k_scales is f16: this kernel takes whole ones in f32"),
        (lambda: _of_eight_bits(scales=(1, 1, 2, 1)), "k_scales is f32: this kernel takes whole ones in f16"),
        (lambda: _of_eight_bits(scales=(1, 32, 2, 1)), "this kernel takes one for each token, token and head, head"),
    ],
)
def test_a_cache_of_eight_bits_that_it_does_not_take_says_why(m, caches, reason):
    k, v = caches()
    where = {"block_tables": there(torch.zeros(2, 1, dtype=torch.int32)),
             "context_lens": there(torch.full((2,), 9, dtype=torch.int32))}  # fmt: skip
    config = kf.KernelFusionConfig(fuse_with_quant=True)
    if not cann.at_least(CANN, "8.1.RC1"):
        reason = f"key_antiquant_mode came with CANN 8.1.RC1, installed is {CANN}"
    with pytest.raises(kf.NotServedError, match=reason):
        m.fuse_attention(there(random(2, 6, k.shape[-1])), k, v, config, **where, kv_layout="NHD")


# Norms, activations, layers


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(m, dtype):
    x, residual = random(3, 7, 96, dtype=dtype), random(3, 7, 96, dtype=dtype).flip(0)
    weight, bias = random(96, dtype=dtype), random(96, dtype=dtype).flip(0)
    both(m, "rms_norm", "ascend::rms_norm", dtype, x=x, weight=weight)
    both(m, "layer_norm", "ascend::layer_norm", dtype, x=x, weight=weight, bias=bias)
    both(m, "layer_norm", "ascend::layer_norm", dtype, x=x, weight=weight)
    if HAS_INFER:
        both(m, "rms_norm", "ascend::add_rms_norm", dtype, x=x, weight=weight, residual=residual, residual_out=True)
        both(m, "rms_norm", "ascend::add_rms_norm", dtype, x=x, weight=weight, residual=residual)
        name = "ascend::add_layer_norm"
        both(m, "layer_norm", name, dtype, x=x, weight=weight, bias=bias, residual=residual, residual_out=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_elementwise(m, dtype):
    x = random(5, 64, dtype=dtype)
    both(m, "activation", "ascend::activation", dtype, x=x, kind="silu")
    both(m, "activation", "ascend::activation", dtype, x=x, kind="relu")
    both(m, "binary", "ascend::binary", dtype, a=x, b=x.flip(0), kind="mul")
    both(m, "softmax", "ascend::softmax", dtype, x=x, scale=2.0)
    both(m, "gated_activation", "ascend::gated_activation", dtype, gate=x, up=x.flip(0), kind="relu")
    if HAS_GELU:
        for kind in ("gelu", "gelu_tanh"):
            both(m, "activation", "ascend::gelu", dtype, x=x, kind=kind)
            both(m, "gated_activation", "ascend::gated_activation", dtype, gate=x, up=x.flip(0), kind=kind)
    wide = random(5, 128, dtype=dtype)
    gate, up = there(wide).split(64, -1)
    close(kf.ops.gated_activation(gate, up), kf.ops.gated_activation(*wide.split(64, -1)), dtype)


def test_a_softmax_row_of_minus_infinity_is_zeros():
    x = random(4, 8)
    x[1] = -float("inf")
    out, lse = kf.ops.softmax(there(x), lse=True)
    close(out, kf.ops.softmax(x))
    assert not out.cpu()[1].any() and lse.cpu()[1] == -float("inf")


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_embedding(m, dtype):
    angles = torch.rand(20, 32, generator=torch.Generator().manual_seed(3)) * 6
    operands = {"x": random(7, 3, 64, dtype=dtype), "positions": torch.arange(7, dtype=torch.int32) * 2,
                "cos": angles.cos(), "sin": angles.sin()}  # fmt: skip
    both(m, "rope", "ascend::rope", dtype, **operands)
    both(m, "rope", "ascend::rope", dtype, **operands, norm_weight=random(64, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_layers_with_what_surrounds_them(m, dtype):
    x, w, bias = random(5, 64, dtype=dtype), random(48, 64, dtype=dtype) / 8, random(48, dtype=dtype)
    residual, norm, shift = random(5, 48, dtype=dtype), random(64, dtype=dtype), random(64, dtype=dtype).flip(0)
    name = "ascend::linear"
    both(m, "linear", name, dtype, x=x, weight=w)
    both(m, "linear", name, dtype, x=x, weight=w, residual=residual)
    both(m, "linear", name, dtype, x=x, weight=w, bias=bias, norm="rms", norm_weight=norm, activation="silu")
    both(m, "linear", name, dtype, x=x, weight=w, bias=bias, norm="layer", norm_weight=norm, norm_bias=shift)
    both(m, "linear", name, dtype, x=x, weight=w, bias=bias, residual=residual, pre_activation="silu")
    both(m, "qkv_linear", "ascend::qkv_linear", dtype, x=x, q_weight=w, k_weight=w[:16], v_weight=w[16:32],
         norm="rms", norm_weight=norm)  # fmt: skip
    name = "ascend::gated_ffn" if HAS_INFER else "ascend::gated_ffn_plain"
    ffn = {"x": x, "gate_weight": w, "up_weight": w.flip(0), "down_weight": w.t().contiguous() / 4}
    both(m, "gated_ffn", name, dtype, **ffn)
    both(m, "gated_ffn", name, dtype, **ffn, residual=x, norm="rms", norm_weight=norm)
    if HAS_GELU:
        both(m, "linear", "ascend::linear", dtype, x=x, weight=w, bias=bias, pre_activation="gelu_tanh")
        both(m, "gated_ffn", "ascend::gated_ffn_plain", dtype, **ffn, activation="gelu")


def test_the_managers_layers(m):
    x, w, norm = random(2, 3, 64), random(64, 48) / 8, random(64)
    cpu = kf.KernelFusionManager()
    calls = [("fuse_layernorm_linear", (x, norm, norm.flip(0), w)), ("fuse_rmsnorm_linear", (x, norm, w)),
             ("fuse_silu_linear", (x, w)), ("fuse_ffn", (x, w, w.flip(0), w.t().contiguous()))]  # fmt: skip
    if HAS_GELU:
        calls.append(("fuse_gelu_linear", (x, w)))
    for method, operands in calls:
        close(getattr(m, method)(*map(there, operands)), getattr(cpu, method)(*operands))


@since_8
def test_the_specifications_classes():
    operands = dense()
    flash = AscendFlashAttention()
    close(flash.forward(*map(there, operands.values())), kf.KernelFusionManager().fuse_attention(**operands))
    with pytest.raises(kf.InvalidArgumentError, match="q: expected a tensor on npu, got one on cpu"):
        flash.forward(*operands.values())
    x, w = random(2, 3, 64), random(64, 48) / 8
    ffn = x, w, w.flip(0), w.t().contiguous()
    close(AscendFusedFFN().forward(*map(there, ffn)), kf.KernelFusionManager().fuse_ffn(*ffn))


@since_8
def test_tables_on_the_device_without_lengths_are_of_full_pages(m):
    operands = paged("NHD", 128, [256, 256])
    expected = kf.KernelFusionManager().fuse_attention(**operands)
    del operands["context_lens"]
    close(m.fuse_attention(**all_there(operands)), expected)


@since_8
@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("zeros", [False, True])
def test_eight_bit_weights(m, group, zeros):
    x, bias, residual = random(5, 96), random(48), random(5, 48)
    g = torch.Generator().manual_seed(1)
    codes = torch.randint(-128, 128, (48, 96), generator=g, dtype=torch.int8)
    groups = 96 // group if group else 1
    operands = {"x": x, "weight": codes, "weight_scales": torch.rand(48, groups, generator=g).half() / 100,
                "weight_group_size": group, "bias": bias, "residual": residual}  # fmt: skip
    if zeros:
        operands["weight_zeros"] = torch.randint(-9, 9, (48, groups), generator=g, dtype=torch.int8)
    both(m, "linear", "ascend::linear_w8", **operands)


@since_8
@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_four_bit_weights(m, group, symmetric, dtype):
    w = kf.quantize(random(48, 96).numpy(), "int4", group_size=group, symmetric=symmetric, scales_dtype="f16")
    parts = {n: None if (p := getattr(w, n)) is None else torch.from_numpy(p) for n in ("data", "scales", "zeros")}
    parts["scales"] = parts["scales"].to(dtype)
    w = kf.QuantizedTensor(**parts, group_size=group)
    x, bias, residual = random(5, 96, dtype=dtype), random(48, dtype=dtype), random(5, 48, dtype=dtype)
    others = {"x": x, "bias": bias, "residual": residual, "norm": "rms", "norm_weight": random(96, dtype=dtype)}
    on_device = kf.QuantizedTensor(**{n: there(p) for n, p in parts.items()}, group_size=group)
    got = kf.ops.linear(**all_there(others), weight=on_device)
    close(got, kf.ops.linear(**others, weight=w), dtype)
    rows = m.explain("linear", **all_there(others), **on_device.fields("weight"))
    assert [r["kernel"] for r in rows if r["selected"]] == ["ascend::linear_w4"]


@since_8
@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((48, 20), "int4", r"weight has shape \[48, 20\]: this kernel takes 2 outputs or more of a multiple of 8"),
        ((48, 8), "int4", r"weight has shape \[48, 8\]: this kernel takes 2 outputs or more"),
        ((1, 64), "int4", r"weight has shape \[1, 64\]: this kernel takes 2 outputs or more"),
        ((65536, 16), "int4", r"weight has shape \[65536, 16\]: this kernel takes at most 65535 inputs and outputs"),
        ((65536, 16), "i8", r"weight has shape \[65536, 16\]: this kernel takes at most 65535 inputs and outputs"),
    ],
)
def test_low_bit_weights_beyond_the_operators_limits_say_why(shape, dtype, reason):
    rows, wide = shape
    data = torch.zeros(rows, wide // (2 if dtype == "int4" else 1), dtype=torch.int8 if dtype == "i8" else torch.uint8)
    weight = kf.QuantizedTensor(there(data), there(torch.ones(rows, 1, dtype=F16)), dtype=dtype)
    with pytest.raises(kf.NotServedError, match=reason):
        kf.ops.linear(there(random(2, wide)), weight)
    if dtype == "i8":
        with pytest.raises(kf.NotServedError, match=reason):
            kf.ops.linear(there(random(2, wide)), weight, input_quantization="int8")


@since_8
def test_scales_of_another_dtype_would_be_rounded():
    codes = there(torch.ones(48, 96, dtype=torch.int8))
    with pytest.raises(kf.NotServedError, match="weight_scales is f32, x f16: this kernel takes one dtype"):
        kf.ops.linear(there(random(2, 96)), codes, weight_scales=there(torch.ones(48, 1)))


@since_8
def test_inputs_with_gaps_between_their_rows_are_copied_for_low_bit_weights(m):
    x, codes = random(5, 192), torch.ones(48, 96, dtype=torch.int8)
    scales = torch.ones(48, 1, dtype=F16)
    got = kf.ops.linear(there(x)[:, :96], there(codes), weight_scales=there(scales))
    close(got, kf.ops.linear(x[:, :96], codes, weight_scales=scales))


def test_what_eight_bit_weights_need_is_said(m):
    x, codes = there(random(5, 96)), there(torch.zeros(48, 96, dtype=torch.int8))
    scales = there(torch.ones(48, 1, dtype=F16))
    with pytest.raises(kf.NotServedError, match="weight is fp8_e4m3: this kernel takes i8 with scales"):
        kf.ops.linear(x, codes.view(torch.float8_e4m3fn), weight_scales=scales)
    if not HAS_INFER:
        with pytest.raises(kf.NotServedError, match=f"came with CANN 8.0.RC1, installed is {CANN}"):
            kf.ops.linear(x, codes, weight_scales=scales)


@pytest.mark.skipif(not cann.at_least(CANN, "8.0.RC2"), reason="of CANN 8.0")
def test_inputs_in_eight_bits(m):
    x = random(5, 96)
    g = torch.Generator().manual_seed(1)
    codes = torch.randint(-128, 128, (48, 96), generator=g, dtype=torch.int8)
    operands = {"x": x, "weight": codes, "weight_scales": torch.rand(48, 1, generator=g) / 100}
    both(m, "linear", "ascend::linear_w8a8", **operands, input_quantization="int8")


# One CANN and another


def test_rows_that_the_cann_lacks_say_so(m):
    x, w = there(random(3, 64)), there(random(64))
    rows = {r["kernel"]: r for r in m.explain("rms_norm", x=x, weight=w, residual=x)}
    assert rows["ascend::add_rms_norm"]["supported"] == HAS_INFER
    if not HAS_INFER:
        assert rows["ascend::add_rms_norm"]["reason"] == f"npu_add_rms_norm came with CANN 8.0.RC1, installed is {CANN}"
        grouped = {n: there(v) for n, v in dense().items()}
        with pytest.raises(kf.NotServedError, match=r"grouped heads came with CANN 7.1, installed is 7.0.0"):
            m.fuse_attention(**grouped)


def test_libopapi_tells_before_the_version_does(monkeypatch):
    class Some:
        aclnnRmsNorm = None

    monkeypatch.setattr(cann, "_library", Some)
    assert cann.lacking("npu_rms_norm") is None
    assert "has no aclnnSwiGlu, which npu_swiglu calls" in cann.lacking("npu_swiglu")


def test_an_older_torch_npu_is_told_apart_by_its_schemas(monkeypatch):
    from sagellm_kernel_fusion.vendors import operators as of_plug_ins

    library = operators.needing("npu_rms_norm")
    monkeypatch.setattr(of_plug_ins, "schema_of", lambda namespace, name: None)
    assert library.problem.startswith("torch_npu has no npu_rms_norm; this kernel is written for torch_npu 2.14.0")
    older = torch._C.parse_schema("npu_rms_norm(Tensor self, Tensor gamma) -> (Tensor, Tensor)")
    monkeypatch.setattr(of_plug_ins, "schema_of", lambda namespace, name: older)
    assert library.problem.startswith("torch_npu.npu_rms_norm takes no epsilon; this kernel is written for")
    with pytest.raises(kf.NotServedError, match="takes no epsilon"):
        kf.KernelFusionManager().fuse_rmsnorm(there(random(3, 64)), there(random(64)))


def test_versions_are_in_order():
    order = ["7.0.0", "7.1.0", "8.0.RC1", "8.0.RC2.alpha003", "8.0.0", "8.0.1", "8.3.RC1", "8.3.0"]
    assert sorted(order, key=cann._order) == order


# Like any other backend


def test_a_manager_explains_counts_and_reports(m):
    x, w = there(random(3, 64)), there(random(64))
    m.fuse_rmsnorm(x, w)
    plan = m.plan("rmsnorm", x=x, weight=w)
    assert (plan["kernel"], plan["launches"], plan["graph_safe"]) == ("ascend::rms_norm", 1, True)
    assert m.report(measure=True)["kernel_calls_rms_norm"] == 1
    assert {k["device"] for k in m.kernels()} >= {"cpu", "ascend"}


def test_a_custom_kernel_is_first_and_checked_against_the_cpus_reference(m):
    m.register_custom_kernel("doubled", lambda x: torch.nn.functional.silu(x) * 2, op="activation")
    with pytest.raises(kf.InvalidArgumentError, match="its results differ from ascend::activation_reference"):
        m.fuse_activation(there(random(3, 64)))
    right = kf.KernelFusionManager()
    right.register_custom_kernel("right", lambda x: x * torch.sigmoid(x), op="activation")
    x = random(3, 64)
    close(right.fuse_activation(there(x)), kf.ops.activation(x))
    assert served(right, "activation") == ["custom::right"]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (lambda x, *a, **k: (x[:1], None), r"ascend::rms_norm: out: expected shape \[3, 64\], got \[1, 64\]"),
        (lambda x, *a, **k: 1 / 0, "ascend::rms_norm: raised ZeroDivisionError"),
        (lambda x, *a, **k: (x * 0, None), "ascend::rms_norm: its results differ"),
    ],
)
def test_an_operator_that_is_wrong_is_an_error_and_the_process_goes_on(monkeypatch, result, said):
    from sagellm_kernel_fusion.vendors.operators import Operators

    host = random(3, 64), random(64)
    x, w = map(there, host)
    monkeypatch.setattr(Operators, "__call__", lambda self, name: result)
    m = kf.KernelFusionManager()
    with pytest.raises(kf.InvalidArgumentError, match=said):
        m.fuse_rmsnorm(x, w)
    monkeypatch.undo()
    close(m.fuse_rmsnorm(x, w), kf.ops.rms_norm(*host))


def test_a_tensor_of_the_host_beside_one_of_the_device_is_refused(m):
    with pytest.raises(kf.InvalidArgumentError, match="weight"):
        m.fuse_rmsnorm(there(random(3, 64)), random(64))


def test_a_queue_is_current_while_a_row_runs(m, monkeypatch):
    import simulated_device

    seen = []
    monkeypatch.setattr(simulated_device.Queue, "__init__", lambda self, stream=0, device=None: seen.append(stream))
    stream = type("Stream", (), {"npu_stream": 77})()
    m.fuse_rmsnorm(there(random(3, 64)), there(random(64)), stream=stream)
    assert 77 in seen
    # Without one, that which the caller's library works on.
    seen.clear()
    monkeypatch.setattr(torch.npu, "current_stream", lambda device=None: type("Stream", (), {"npu_stream": 78})())
    m.fuse_rmsnorm(there(random(3, 64)), there(random(64)))
    assert 78 in seen


def test_selfcheck_runs_the_cases_on_the_device():
    report = selfcheck("ascend", ("rms_norm", "softmax", "rope"), every=33)
    assert report["ok"], report["failures"]
    rows = {r["kernel"]: r for r in report["rows"]}
    assert rows["ascend::rms_norm"]["served"] and rows["ascend::rms_norm"]["level"] == "contract"
    assert rows["ascend::rope"]["served"] and not rows["ascend::rms_norm"]["failed"]
    assert report["device"]["isa"] == "Ascend910B3" and report["environment"]["torch"]["torch"]


def test_every_row_says_what_it_saves_and_how_far_it_was_checked():
    for row in table.ROWS:
        assert row.saves and isinstance(row.saves, str) and row.level == "contract" and row.devices == ("ascend",), (
            row.name
        )


def smollm2(dtype):
    """transformers' model with the file's weights, decoded; its q and k are in the order of GGUF's interleaved
    rotation."""
    transformers = pytest.importorskip("transformers")
    file = read_gguf(ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    c = file.config
    config = transformers.LlamaConfig(
        vocab_size=c["vocab_size"], hidden_size=c["hidden_size"], intermediate_size=c["intermediate_size"],
        num_hidden_layers=c["num_layers"], num_attention_heads=c["num_heads"], num_key_value_heads=c["num_kv_heads"],
        rms_norm_eps=c["rms_norm_eps"], rope_theta=c["rope_theta"], tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    weights = {}
    for name in file.tensors:
        values = torch.from_numpy(np.array(file.dequantize(name), np.float32))
        if "q_proj" in name or "k_proj" in name:
            values = values.view(-1, c["head_dim"] // 2, 2, values.shape[-1]).transpose(1, 2).reshape(values.shape)
        weights[name] = values.to(dtype)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


@since_8
def test_a_real_model_through_fuse_model_gives_the_cpus_logits_and_tokens():
    model = smollm2(F16)
    ids = torch.tensor([[1, 4093, 198, 504, 3575, 282, 4649, 314]])

    def two_tokens(ids):
        return model.generate(
            ids, max_new_tokens=2, do_sample=False, pad_token_id=2, output_logits=True, return_dict_in_generate=True
        )

    expected = two_tokens(ids)
    model.to("npu")
    fused = kf.fuse_model(model)
    assert not fused.refused, fused.refused[:2]
    got = two_tokens(there(ids))
    assert torch.equal(got.sequences.cpu(), expected.sequences)
    for g, e in zip(got.logits, expected.logits, strict=True):
        close(g, e)
    ran = fused.manager.get_stats()["ops"]
    kernels = {k for op in ran.values() for k in op["kernels"]}
    assert kernels == {f"ascend::{op}" for op in ("qkv_linear", "rope", "attention", "linear", "gated_ffn", "rms_norm")}


def test_unfused_forms_and_what_reports_hold_against_them(m):
    unfused_forms("ascend")
    reports_gains(m)
    benchmarks("ascend", "ascend::")


@since_8
def test_roundings_between_operators_are_within_the_cases_tolerances():
    roundings_are_allowed_for("ascend")


@since_8
def test_whole_models_on_the_device():
    rows = ("attention_paged", "append_kv", "rope", "qkv_linear", "linear", "gated_ffn", "embedding")
    runs_models("npu", *(f"ascend::{row}" for row in rows))


@since_8
def test_a_result_in_the_memory_of_the_residual():
    in_place()


@since_8
def test_selfcheck_of_what_has_refusals_of_its_own():
    selfchecks_well("ascend", activation=1, gated_activation=5)
    selfchecks_well(
        "ascend",
        linear=67,
        qkv_linear=31,
        gated_ffn=31,
        embedding=7,
        attention_scores=11,
        attention_values=11,
        lm_head_argmax=7,
    )
    selfchecks_well("ascend", append_kv=7)


@pytest.mark.parametrize("slots", [[], [-1, -1]])
def test_a_cache_to_which_nothing_is_appended_stays_as_it_is(m, slots):
    cache = there(torch.ones(2, 128, 2, 64, dtype=F16))
    new = there(torch.zeros(len(slots), 2, 64, dtype=F16))
    m.append_kv(new, new, cache, cache.clone(), there(torch.tensor(slots, dtype=torch.int32)), kv_layout="NHD")
    assert bool((cache.cpu() == 1).all())


@since_8
def test_a_call_without_results_asks_no_operator(m, monkeypatch):
    from sagellm_kernel_fusion.vendors.operators import Operators

    monkeypatch.setattr(Operators, "__call__", lambda self, name: pytest.fail(name))
    codes, scales = there(torch.zeros(48, 96, dtype=torch.int8)), there(torch.ones(48, 1, dtype=F16))
    assert kf.ops.linear(there(random(0, 96)), codes, weight_scales=scales).shape == (0, 48)
    assert m.fuse_rmsnorm(there(random(0, 64)), there(random(64))).shape == (0, 64)
    empty = all_there(dense(queries=0))
    assert m.fuse_attention(**empty).shape == empty["q"].shape


@since_8
def test_results_of_nothing_are_refused():
    codes, scales = there(torch.zeros(48, 0, dtype=torch.int8)), there(torch.ones(48, 1, dtype=F16))
    with pytest.raises(kf.NotServedError, match=r"ascend::linear_w8: x has shape \[5, 0\]"):
        kf.ops.linear(there(random(5, 0)), codes, weight_scales=scales)


def test_tokens_are_not_chosen_among_logits_of_bf16():
    x, w = there(random(3, 64, dtype=BF16)), there(random(99, 64, dtype=BF16))
    with pytest.raises(kf.NotServedError, match="x is bf16: the logits of this kernel are rounded"):
        kf.ops.lm_head_argmax(x, w)


_LOW_BIT = {"qkv_linear": "qkv_linear_low_bit", "gated_ffn": "gated_ffn_low_bit"}


@since_8
@pytest.mark.parametrize(
    ("dtype", "rows", "how"),
    [
        ("int8", {"linear": "linear_w8"} | _LOW_BIT, {}),
        ("int8", {"linear": "linear_w8"} | _LOW_BIT, {"group_size": 32}),
        ("int4", {"linear": "linear_w4"} | _LOW_BIT, {"group_size": 32}),
        ("int4", {"linear": "linear_w4"} | _LOW_BIT, {"group_size": 32, "symmetric": False}),
        ("int8", {op: f"{op}_w8a8" for op in ("linear", "qkv_linear", "gated_ffn")}, {"rounded": True}),
    ],
)
def test_a_model_of_low_bit_weights(dtype, rows, how):
    low_bit_model("ascend", rows, dtype, layout="NHD", page=128, **how)


@since_8
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_layers_may_have_weights_of_four_and_of_eight_bits(activation):
    x = random(3, 128)
    codes = {"gate_weight": quantized(96, 128, "int4"), "up_weight": quantized(96, 128, "int8"),
             "down_weight": quantized(128, 96, "int4", group_size=32)}  # fmt: skip
    got = kf.ops.gated_ffn(there(x), **{n: placed(there, w) for n, w in codes.items()}, activation=activation)
    close(got, kf.ops.gated_ffn(x, **codes, activation=activation))


@since_8
def test_a_layer_one_of_whose_weights_is_not_taken_says_which(m):
    x, w = there(random(3, 128)), placed(there, quantized(64, 128, "int8"))
    for other, reason in [
        (
            there(random(64, 128)),
            "ascend::qkv_linear_low_bit: v_weight is f16: this kernel takes i8 and int4 with scales",
        ),
        (
            placed(there, quantized(1, 128, "int4")),
            r"v_weight has shape \[1, 128\]: this kernel takes 2 outputs or more",
        ),
    ]:
        with pytest.raises(kf.NotServedError, match=reason):
            kf.ops.qkv_linear(x, w, w, other)
    with pytest.raises(kf.NotServedError, match="ascend::qkv_linear_w8a8: k_weight has zeros or groups"):
        kf.ops.qkv_linear(x, w, placed(there, quantized(64, 128, "int8", group_size=32)), w, input_quantization="int8")


def test_embeddings_are_scaled(m):
    scales_embeddings(m, "ascend")


@pytest.mark.skipif(not cann.at_least(CANN, "8.1.RC1"), reason="of CANN 8.1")
def test_every_specified_operator_has_a_row_or_a_reason(m):
    covers(m, "NHD", 128, {})


@since_8
def test_gemma_on_the_device():
    runs_gemma("ascend", "ascend::attention_paged")
