"""Calls on the simulated device of this process beside the same on the CPU."""

from __future__ import annotations

import itertools
import re

import numpy as np
import simulated_device
import torch

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import _kf
from sagellm_kernel_fusion.bench.op_bench import run_case, select_cases
from sagellm_kernel_fusion.bench.selfcheck import selfcheck
from sagellm_kernel_fusion.bench.step_bench import StepEffort, measure_steps
from sagellm_kernel_fusion.weights import open_model

F16, BF16 = torch.float16, torch.bfloat16
DTYPES = (torch.float32, F16, BF16)
_seeds = itertools.count()


def there(value):
    """On the device."""
    return value.to(simulated_device.name()) if isinstance(value, torch.Tensor) else value


def all_there(operands):
    return {name: there(value) for name, value in operands.items()}


def random(*shape, dtype=F16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(next(_seeds))).to(dtype)


def close(got, expected, dtype=F16):
    """Of f16 and bf16 what some roundings of intermediates leave."""
    rtol = {F16: 4e-3, BF16: 3e-2, torch.float32: 1e-5}[dtype]
    scale = float(expected.float().abs().nan_to_num(posinf=0, neginf=0).max())
    torch.testing.assert_close(got.cpu().float(), expected.float(), rtol=rtol, atol=rtol * max(scale, 1e-6))


def served(m, op):
    return list(m.get_stats()["ops"][op]["kernels"])


def both(m, op, kernel, dtype=F16, **operands):
    """The call on the device and on the CPU: by this kernel, and alike."""
    got = getattr(kf.ops, op)(**all_there(operands), selection=kf.Selection(families=("library",)))
    expected = getattr(kf.ops, op)(**operands)
    rows = m.explain(op, **{n: there(v) for n, v in operands.items() if v is not True})
    assert [r["kernel"] for r in rows if r["selected"]] == [kernel]
    for g, e in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, expected)), strict=True):
        assert g.device.type == torch.device(simulated_device.name()).type
        close(g, e, dtype)


def dense(queries=5, keys=9, heads=6, kv_heads=2, dtype=F16, width=64):
    k = random(2, keys, kv_heads, width, dtype=dtype)
    return {"q": random(2, queries, heads, width, dtype=dtype), "k": k, "v": random(*k.shape, dtype=dtype)}


def packed():
    of_q = torch.tensor([0, 3, 3, 10, 12], dtype=torch.int32)
    of_k = torch.tensor([0, 7, 8, 19, 20], dtype=torch.int32)  # the last has two queries and one key
    return {"q": random(12, 6, 64), "k": random(20, 2, 64), "v": random(20, 2, 64), "cu_seqlens_q": of_q,
            "cu_seqlens_k": of_k}  # fmt: skip


def paged(kv_layout, page, lengths, chunks=None, heads=6):
    """Two sequences over five pages; `chunks`: how many queries each has, else one."""
    shape = (5, 2, page, 64) if kv_layout == "HND" else (5, page, 2, 64)
    operands = {"q": random(sum(chunks or (1, 1)), heads, 64), "k": random(*shape), "v": random(*shape),
                "block_tables": torch.tensor([[4, 1, -1], [3, 0, -1]], dtype=torch.int32), "kv_layout": kv_layout,
                "context_lens": torch.tensor(lengths, dtype=torch.int32)}  # fmt: skip
    if chunks:
        operands["cu_seqlens_q"] = torch.tensor([0, *np.cumsum(chunks)], dtype=torch.int32)
    return operands


def rotates(m, kernel, dtype, interleaved):
    angles = torch.rand(20, 32, generator=torch.Generator().manual_seed(3)) * 6
    operands = {"x": random(7, 3, 64, dtype=dtype), "positions": torch.arange(7, dtype=torch.int32) * 2,
                "cos": angles.cos(), "sin": angles.sin(), "interleaved": interleaved}  # fmt: skip
    both(m, "rope", kernel, dtype, **operands)
    both(m, "rope", kernel, dtype, **operands, norm_weight=random(64, dtype=dtype))


def linear_layers(m, backend, dtype):
    """linear, qkv_linear and gated_ffn with what stands before and after them."""
    x, w, bias = random(5, 64, dtype=dtype), random(48, 64, dtype=dtype) / 8, random(48, dtype=dtype)
    residual, norm, shift = random(5, 48, dtype=dtype), random(64, dtype=dtype), random(64, dtype=dtype)
    name = f"{backend}::linear"
    both(m, "linear", name, dtype, x=x, weight=w, residual=residual)
    both(m, "linear", name, dtype, x=x, weight=w, bias=bias, norm="rms", norm_weight=norm, activation="silu")
    both(m, "linear", name, dtype, x=x, weight=w, bias=bias, norm="layer", norm_weight=norm, norm_bias=shift)
    after = {"residual": residual, "activation": "relu"}
    both(m, "linear", name, dtype, x=x, weight=w, bias=bias, pre_activation="gelu", **after)
    both(m, "qkv_linear", f"{backend}::qkv_linear", dtype, x=x, q_weight=w, k_weight=w[:16], v_weight=w[16:32],
         norm="rms", norm_weight=norm)  # fmt: skip
    ffn = {"x": x, "gate_weight": w, "up_weight": w.flip(0), "down_weight": w.t().contiguous() / 4}
    for options in ({}, {"residual": x, "norm": "rms", "norm_weight": norm}, {"activation": "gelu"}):
        both(m, "gated_ffn", f"{backend}::gated_ffn", dtype, **ffn, **options)


_HIDDEN, _WIDE, _HEADS, _KV_HEADS, _HEAD_DIM = 128, 96, 4, 2, 32


def quantized(rows, wide, dtype, **how):
    """A weight of codes, with scales in the layers' dtype."""
    w = kf.quantize((random(rows, wide).float() / wide**0.5).numpy(), dtype, scales_dtype="f16", **how)
    parts = {n: torch.from_numpy(p) for n in ("data", "scales", "zeros") if (p := getattr(w, n)) is not None}
    return kf.QuantizedTensor(**parts, dtype=w.dtype, group_size=w.group_size)


def placed(place, value):
    if not isinstance(value, kf.QuantizedTensor):
        return place(value)
    parts = {n: place(p) for n in ("data", "scales", "zeros") if (p := getattr(value, n)) is not None}
    return kf.QuantizedTensor(**parts, dtype=value.dtype, group_size=value.group_size)


def low_bit_model(backend, rows, dtype="int8", layout="HND", page=64, rounded=False, **how):
    """Two layers of a Llama whose linear layers all have codes for weights, seven tokens and then one: on the device by
    these rows, op by op, and as on the CPU."""
    sizes = {"q": (_HEADS * _HEAD_DIM, _HIDDEN), "k": (_KV_HEADS * _HEAD_DIM, _HIDDEN),
             "v": (_KV_HEADS * _HEAD_DIM, _HIDDEN), "o": (_HIDDEN, _HEADS * _HEAD_DIM), "gate": (_WIDE, _HIDDEN),
             "up": (_WIDE, _HIDDEN), "down": (_HIDDEN, _WIDE)}  # fmt: skip
    layers = [{n: quantized(*size, dtype, **how) for n, size in sizes.items()} for _ in range(2)]
    table, head, norm = random(99, _HIDDEN), quantized(99, _HIDDEN, dtype, **how), 1 + random(_HIDDEN) / 4
    bias = random(_HEADS * _HEAD_DIM) / 4
    angles = torch.outer(torch.arange(9.0), 100.0 ** -torch.arange(0, 1, 2 / _HEAD_DIM))
    shape = (1, _KV_HEADS, page, _HEAD_DIM) if layout == "HND" else (1, page, _KV_HEADS, _HEAD_DIM)
    options = {"input_quantization": "int8"} if rounded else {}

    def run(call, place):
        w = [{n: placed(place, v) for n, v in layer.items()} for layer in layers]
        caches = [[place(torch.zeros(shape, dtype=F16)) for _ in range(2)] for _ in layers]
        before = {"norm": "rms", "norm_weight": place(norm), **options}
        tables, logits = {"cos": place(angles.cos()), "sin": place(angles.sin())}, []
        for first, last in ((0, 7), (7, 8)):
            at = place(torch.arange(first, last, dtype=torch.int32))
            of_q = {"cu_seqlens_q": place(torch.tensor([0, last], dtype=torch.int32))} if first == 0 else {}
            where = {"block_tables": place(torch.zeros(1, 1, dtype=torch.int32)), **of_q,
                     "context_lens": place(torch.tensor([last], dtype=torch.int32)), "kv_layout": layout}  # fmt: skip
            x = call("embedding", ids=at + 11, table=place(table), scale=1.3)
            for layer, (k_cache, v_cache) in zip(w, caches, strict=True):
                weights = {f"{n}_weight": layer[n] for n in "qkv"}
                q, k, v = call("qkv_linear", x=x, **weights, q_bias=place(bias), **before)
                q, k, v = (t.view(last - first, -1, _HEAD_DIM) for t in (q, k, v))
                q, k = (call("rope", x=t, positions=at, **tables) for t in (q, k))
                call("append_kv", k=k, v=v, k_cache=k_cache, v_cache=v_cache, slot_mapping=at, kv_layout=layout)
                y = call("attention", q=q, k=k_cache, v=v_cache, **where).view(last - first, -1)
                x = call("linear", x=y, weight=layer["o"], residual=x, **options)
                weights = {f"{n}_weight": layer[n] for n in ("gate", "up", "down")}
                x = call("gated_ffn", x=x, **weights, residual=x, **before)
            logits.append(call("linear", x=x, weight=placed(place, head), **before))
        return torch.cat([t.cpu().float() for t in logits])

    def there_by_rows(op, **operands):
        only = {"kernel": f"{backend}::{rows[op]}"} if op in rows else {"families": ("library",)}
        return getattr(kf.ops, op)(**operands, selection=kf.Selection(**only))

    expected = run(lambda op, **operands: getattr(kf.ops, op)(**operands), lambda t: t)
    got, scale = run(there_by_rows, there), float(expected.abs().max())
    # Of inputs that are rounded to 8 bits, what lies between two codes may fall either way.
    assert float((got - expected).abs().max()) < (4e-2 if rounded else 1e-2) * scale


def scales_embeddings(m, backend):
    """By a factor that f16 and bf16 do not have, as Gemma's are."""
    for dtype in DTYPES:
        table, ids = random(9, 64, dtype=dtype), torch.tensor([2, 0, 8, 2], dtype=torch.int32)
        both(m, "embedding", f"{backend}::embedding", dtype, ids=ids, table=table, scale=45.254834)
        got = kf.ops.embedding(there(ids), there(table), scale=45.254834)
        assert torch.equal(got.cpu(), kf.ops.embedding(ids, table, scale=45.254834))


def specified(kv_layout, page):
    """A call of each operator that the specification has of every accelerator: by name, the op and its operands."""
    x, w, bias, norm, residual = random(5, 64), random(64, 64) / 8, random(64), random(64), random(5, 64)
    layer = {"x": x, "weight": w, "bias": bias}
    codes = torch.ones(64, 64, dtype=torch.int8)
    of_eight = {"weight": codes, "weight_scales": torch.ones(64, 1, dtype=F16)}
    decode, several = paged(kv_layout, page, (page - 3, page)), paged(kv_layout, page, (page - 3, page), (2, 3))
    pools = {f"{n}_cache": decode[n] for n in "kv"}
    new = {n: random(4, 2, 64) for n in "kv"} | {"slot_mapping": torch.arange(4, dtype=torch.int32)}
    scales = torch.ones(*decode["k"].shape[:3], 1)
    eight = {n: kf.QuantizedTensor(decode[n].to(torch.int8), scales, dtype="int8") for n in "kv"}
    eight_pools = {f"{n}_cache": eight[n] for n in "kv"}
    angles = torch.rand(20, 32)
    where = {"kv_layout": kv_layout}
    return {
        "attention: prefill, causal, GQA": ("attention", dense(queries=9)),
        "attention: prefill, varlen": ("attention", packed()),
        "attention: paged decode": ("attention", decode),
        "attention: paged prefill": ("attention", several),
        "append": ("append_kv", new | pools | where),
        "gated FFN": ("gated_ffn", {"x": x, "gate_weight": w, "up_weight": w, "down_weight": w, "residual": residual}),
        "LayerNorm": ("layer_norm", {"x": x, "weight": norm, "bias": bias}),
        "RMSNorm": ("rms_norm", {"x": x, "weight": norm}),
        "residual + RMSNorm": ("rms_norm", {"x": x, "weight": norm, "residual": residual}),
        "softmax": ("softmax", {"x": x}),
        "silu": ("activation", {"x": x, "kind": "silu"}),
        "gelu": ("activation", {"x": x, "kind": "gelu"}),
        "gelu_tanh": ("activation", {"x": x, "kind": "gelu_tanh"}),
        "relu": ("activation", {"x": x, "kind": "relu"}),
        "rope": ("rope", {"x": random(5, 2, 64), "positions": torch.arange(5, dtype=torch.int32), "cos": angles.cos(),
                          "sin": angles.sin()}),
        "linear, prologue and epilogue": ("linear", layer | {"norm": "rms", "norm_weight": norm, "activation": "silu",
                                                             "residual": residual}),
        "LN + linear": ("linear", layer | {"norm": "layer", "norm_weight": norm, "norm_bias": bias}),
        "gelu_linear": ("linear", layer | {"pre_activation": "gelu_tanh"}),
        "linear, i8": ("linear", {"x": x} | of_eight),
        "linear, i8, inputs of 8 bits": ("linear", {"x": x} | of_eight | {"input_quantization": "int8"}),
        "linear, int4": ("linear", {"x": x, "weight": quantized(64, 64, "int4", group_size=64)}),
        "append, i8": ("append_kv", new | eight_pools | where),
        "attention: paged decode, i8": ("attention", decode | eight),
        "attention: paged prefill, i8": ("attention", several | eight),
    }  # fmt: skip


def covers(m, kv_layout, page, refused, place=there):
    """Every specified operator has a row of the backend's own or a refusal by each with its reason: these, of `refused`
    by a part of what is said."""
    for name, (op, operands) in specified(kv_layout, page).items():
        given = {n: placed(place, v) if isinstance(v, (torch.Tensor, kf.QuantizedTensor)) else v
                 for n, v in operands.items()}  # fmt: skip
        if isinstance(weight := given.get("weight"), kf.QuantizedTensor):
            given |= weight.fields("weight")
        rows = m.explain(op, config=kf.KernelFusionConfig(fuse_with_quant=True), **given)
        chosen = [r["kernel"] for r in rows if r["selected"]]
        own = [r for r in rows if "library" in r["families"]]
        if name in refused:
            assert not chosen and all(r["reason"] for r in own), (name, chosen)
            assert any(refused[name] in r["reason"] for r in own), (name, [(r["kernel"], r["reason"]) for r in own])
        else:
            assert chosen and chosen[0] in {r["kernel"] for r in own}, (name, [(r["kernel"], r["reason"]) for r in own])


def writes_slots(m, page, slots):
    """append_kv into a cache of HND, but for slots that are negative."""
    k, v, slots = random(4, 2, 64), random(4, 2, 64), torch.tensor(slots, dtype=torch.int32)
    caches = [torch.zeros(2, 2, page, 64, dtype=F16) for _ in range(2)]
    on_device = [there(c.clone()) for c in caches]
    m.append_kv(there(k), there(v), *on_device, there(slots))
    kf.ops.append_kv(k, v, slot_mapping=slots, k_cache=caches[0], v_cache=caches[1])
    assert all(torch.equal(g.cpu(), e) for g, e in zip(on_device, caches, strict=True))


def in_place():
    """A linear layer whose result lies in the memory of the residual, which is read after the product is made."""
    x, w, bias, residual = random(5, 64), random(48, 64) / 8, random(48), random(5, 48)
    for activation in ("none", "silu"):
        to = there(residual.clone())
        options = {"activation": activation}
        kf.ops.linear(there(x), there(w), bias=there(bias), residual=to, out=to, **options)
        close(to, kf.ops.linear(x, w, bias=bias, residual=residual, **options))


def selfchecks_well(backend, **every):
    """`kf selfcheck` of these ops, one case in so many: each has rows of the backend that serve some, and all are
    right."""
    for op, step in every.items():
        report = selfcheck(backend, (op,), every=step)
        assert report["ok"], (op, report["failures"][:3])
        assert any(r["served"] for r in report["rows"]), op


# What roundings between operators, and a textbook's tanh, are seen in.
_ROUNDED = (
    "activation/gelu_tanh/f32/5x1021", "gated_activation/gelu_tanh/f32/5x1021", "linear/f16/f16/37x320x71/bias",
    "linear/f16/i8-row-f32/1x675x45/bias", "rms_norm/f16/2150x520_residual_own_weight_apart",
)  # fmt: skip


def roundings_are_allowed_for(backend):
    for name in _ROUNDED:
        for r in _kf.check_case(name, backend):
            assert r["ok"] or not r["supported"], (name, r["kernel"], r["detail"])


_UNFUSED = {  # cases by name, one in so many, and the unfused form that they are to reach
    r"attention/f32/(dense|packed|paged)[^/]*/[^/]*/h6-2-d64(-causal)?(-window\d+_-1)?$": (23, "attention_unfused"),
    r"linear/f32/f32/[^/]*/rms_norm/bias/silu/residual$": (9, "linear_unfused"),
    r"qkv_linear/f32/f32-f32-f32/[1-9][^/]*/rms_norm/bias": (9, "qkv_linear_unfused"),
    r"gated_ffn/f32/f32/[1-9][^/]*/rms_norm/silu/residual": (19, "gated_ffn_unfused"),
    r"rms_norm/f32/(?!2150|4300|530x).*residual": (15, "rms_norm_unfused"),
    r"rope/f32/": (5, "rope_plain"),
    r"append_kv/f32/[^/]*/f32_": (5, "append_kv_plain"),
    r"softmax/f32/": (9, "softmax_plain"),
}


def unfused_forms(backend):
    """A vendor's plain operators, and what the core makes of them, over cases in f32."""
    for pattern, (every, form) in _UNFUSED.items():
        served = set()
        for name in [c["name"] for c in _kf.cases() if re.match(pattern, c["name"]) and not c["bench"]][::every]:
            for r in _kf.check_case(name, backend):
                kernel = r["kernel"].removesuffix("+packed")
                if r["supported"] and kernel.endswith(("_plain", "_unfused")):
                    assert r["ok"], (name, kernel, r["detail"])
                    served.add(kernel.partition("::")[2])
        assert form in served, (pattern, served)


_BENCHMARK = "rms_norm/f32/1x576_residual"


def reports_gains(m, placed=there):
    """After calls on the device, where `placed` puts tensors, a report has what they gain over the unfused forms, which
    ran there."""
    x, w, norm = map(placed, (random(5, 64), random(64, 64) / 8, random(64)))
    m.fuse_rmsnorm(x, norm)
    m.fuse_ffn(x, w, w, w)
    m.fuse_attention(**{n: placed(v) for n, v in dense(queries=9).items()})
    report = m.report()
    for name in ("attention_speedup", "ffn_speedup", "e2e_speedup"):
        assert report[name] > 0, report
    assert report["kernel_calls_reduction"] > 0 and report["memory_saving"] >= 0, report


def runs_models(backend, *kernels, of_launches=0.5):
    """A whole model on the device, unfused and fused by these kernels among others, in this part of the launches at the
    most: the CPU's logits, and the benchmark of it."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.inference_mode(False):
        file = open_model(transformers.LlamaForCausalLM(config).to(F16))
    effort = StepEffort(batch=2, context=7, tokens=2, rounds=1)
    unfused, fused, replayed = measure_steps(file, device=backend, effort=effort, fusion="all").forms
    assert unfused.ok and fused.ok and fused.launches < of_launches * unfused.launches and not replayed.replayed
    ids = np.arange(3, 12, dtype=np.int32)
    model = kf.load_model(file, device=backend, fusion="all", count_calls=True)
    got, expected = model.logits(ids), kf.load_model(file).logits(ids)
    assert np.abs(got - expected).max() < 4e-3 * np.abs(expected).max()
    model.decode(3)
    called = {call["kernel"] for call in model.engine.calls()}
    assert set(kernels) <= called, called
    assert not [k for k in called if k.endswith(("_unfused", "_reference"))], called


def benchmarks(backend, prefix):
    """A row, whose name has the prefix, timed on the device beside the unfused form there."""
    [case] = select_cases([_BENCHMARK])
    timing = run_case(case, 0.01, backend=backend).timing
    assert timing["ok"] and timing["optimized_ms"] > 0 and timing["baseline_ms"] > 0
    assert timing["optimized"].startswith(prefix) and timing["baseline"].endswith("::rms_norm_unfused"), timing


_SMALL = {
    "vocab_size": 99, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256,
}  # fmt: skip


def runs_gemma(backend, attention):
    """Gemma 2 and 3: scaled embeddings, weights of norms less one, windows that `attention`, a row, does not take, and
    soft caps: the CPU's logits, and its tokens where they are drawn from logits that are capped."""
    import transformers

    windows = {"sliding_window": 9, "query_pre_attn_scalar": 25}
    third = transformers.Gemma3TextConfig(**_SMALL, **windows, layer_types=["sliding_attention", "full_attention"])
    second = transformers.Gemma2Config(**_SMALL, **windows, attn_logit_softcapping=2.0, final_logit_softcapping=0.5)
    for config in (third, second):
        torch.manual_seed(0)
        with torch.inference_mode(False):
            model = transformers.AutoModelForCausalLM.from_config(config).to(F16)
            for name, p in model.named_parameters():
                if "norm" in name:  # zeros say nothing
                    p.data += (0.2 * torch.randn(p.shape)).to(F16)
            file = open_model(model)
        ids, cpu = np.arange(3, 24, dtype=np.int32), kf.load_model(file)
        model = kf.load_model(file, device=backend, fusion="all", count_calls=True)
        expected = cpu.logits(ids)
        assert np.abs(model.logits(ids) - expected).max() < 6e-3 * np.abs(expected).max(), config.model_type
        called = {call["kernel"] for call in model.engine.calls()}
        assert attention in called or config is second, called
        assert np.abs(expected).max() < 0.5 or config is third
