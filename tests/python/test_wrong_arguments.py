"""Every public function with every argument wrong in turn: a result, or an error of ours that says what was expected,
and arrays that are as they were."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import kernels, ops
from sagellm_kernel_fusion import torch as drop_ins

torch = pytest.importorskip("torch")
jnp = pytest.importorskip("jax.numpy")


class Raising:
    """An array by its looks."""

    shape, dtype, ndim = (3, 64), np.dtype(np.float32), 2

    def __dlpack__(self, **kwargs):
        raise RuntimeError("no longer there")

    def __dlpack_device__(self):
        return 1, 0


class Pool:
    def get_block_tables(self, request_ids):
        return [[0, 1]] * 2


class Jitted:
    """What is seen of a @triton.jit function before it runs."""

    arg_names = ("x_ptr", "out_ptr", "N", "BLOCK")


# What is no array, or no array that is of use. Each is made anew, since some may be written to.
def values() -> dict[str, object]:
    sparse = torch.eye(4).to_sparse()
    return {
        "none": None,
        "object": object(),
        "raising": Raising(),
        "class": dict,
        "function": len,
        "text": "x",
        "no text": "",
        "bytes": b"x",
        "surrogate": "\ud800",
        "true": True,
        "zero": 0,
        "minus": -1,
        "three": 3,
        "huge": 2**70,
        "half": 1.5,
        "nan": math.nan,
        "inf": -math.inf,
        "complex": 1j,
        "list": [],
        "mixed": [1, "a"],
        "nested": [[1.0, 2.0], [3.0]],
        "dict": {},
        "odd keys": {1: 2, "x": object()},
        "tuple": (1, 2, 3),
        "pair": (2, 4),
        "negative pair": (-5, -7),
        "iterator": iter([1, 2]),
        "numpy scalar": np.float32(1),
        "numpy integer": np.int64(2),
        "f64": np.ones((3, 64)),
        "c64": np.ones((3, 64), np.complex64),
        "objects": np.array([object()] * 3),
        "texts": np.array(["a", "b"]),
        "dates": np.array(["2020-01-01"], "M8[D]"),
        "records": np.zeros(3, [("a", "f4"), ("b", "i4")]),
        "big-endian": np.ones((3, 64), ">f4"),
        "0-d": np.array(1.0, np.float32),
        "empty": np.ones((0, 64), np.float32),
        "no columns": np.ones((3, 0), np.float32),
        "vector": np.ones(64, np.float32),
        "deep": np.ones((1,) * 9, np.float32),
        "very deep": np.ones((1,) * 40, np.float32),
        "masked": np.ma.masked_all((3, 64), np.float32),
        "i32": np.ones((3, 64), np.int32),
        "bool": np.ones((3, 64), bool),
        "f8": np.ones((3, 64), ml_dtypes.float8_e5m2),
        "int4": np.ones((3, 64), ml_dtypes.int4),
        "nans": np.full((3, 64), math.nan, np.float32),
        "far ids": np.array([2**31 - 1, -(2**31)], np.int32),
        "torch f64": torch.ones(3, 64, dtype=torch.float64),
        "torch grad": torch.ones(3, 64, requires_grad=True),
        "torch sparse": sparse,
        "torch csr": sparse.to_dense().to_sparse_csr(),
        "torch meta": torch.ones(3, 64, device="meta"),
        "torch conj": torch.ones(3, 64, dtype=torch.complex64).conj(),
        "torch 0-d": torch.tensor(2.0),
        "torch negative": torch.ones(3, 64, dtype=torch.complex64).conj().imag,
        "torch nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "torch quantized": torch.quantize_per_tensor(torch.ones(3, 64), 0.1, 0, torch.qint8),
        "torch dtype": torch.float32,
        "torch device": torch.device("cpu"),
        "module": torch.nn.Linear(2, 2),
        "jax": jnp.ones((3, 64)),
        "jax key": __import__("jax").random.key(0),
        "layout": kf.layout("f32", (3, 64)),
        "quantized": kf.quantize(np.ones((32, 64), np.float32), "int4"),
        "sparse": kf.sparsify(np.ones((32, 64), np.float32)),
        "gguf": kf.GgufTensor(np.zeros(32 * 2 * 20, np.uint8), "q4_1", (32, 64)),
        "config": kf.KernelFusionConfig(),
        "tables": kf.BlockTables([[0, 1]], [3]),
    }


def changed(a: np.ndarray) -> dict[str, np.ndarray]:
    """An array that was right, made wrong."""
    found = {
        "longer": np.resize(a, (*a.shape[:-1], a.shape[-1] + 1)), "rank": a[None], "flat": a.reshape(-1), "turned": a.T,
        "flipped": a[..., ::-1], "repeated": np.broadcast_to(a[:1], a.shape), "columns": np.repeat(a, 2, -1)[..., ::2],
        "f64": a.astype(np.float64), "i8": a.astype(np.int8), "one less": a[1:], "f16": a.astype(np.float16),
        "torch": torch.from_numpy(a.copy()), "jax": jnp.asarray(a), "list": a.tolist(),
        "meta": torch.from_numpy(a.copy()).to("meta"), "subclass": a.copy().view(type("Mine", (np.ndarray,), {})),
    }  # fmt: skip
    memory = np.zeros(a.nbytes + 1, np.uint8)
    found["unaligned"] = memory[1:].view(a.dtype).reshape(a.shape)
    read_only = a.copy()
    read_only.flags.writeable = False
    found["read-only"] = read_only
    if a.dtype.kind in "iu":
        found |= {"far": np.full_like(a, np.iinfo(a.dtype).max), "below": np.full_like(a, np.iinfo(a.dtype).min)}
    return found


def f(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def model_calls(path) -> dict[str, tuple[Callable, dict]]:
    model = kf.load_model(path, fusion="all")
    sampled = {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "seed": 3, "stop": True, "on_text": None}
    return {
        "prefill": (model.prefill, {"tokens": [1, 2]}),
        "decode": (model.decode, {"token": 3}),
        "logits": (model.logits, {"tokens": [1, 2]}),
        "generate": (model.generate, {"prompts": [[1, 2]], "max_new_tokens": 2} | sampled),
        "encode": (model.tokenizer.encode, {"text": "th"}),
        "token_ids": (model.tokenizer.decode, {"ids": [1], "skip_special": True}),
        "chat": (model.tokenizer.chat, {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": True}),
        "measure_performance": (kf.measure_performance, {"model": model, "test_inputs": [[1]], "decode_tokens": 1}),
        "load_model": (
            kf.load_model,
            {"path": path, "fuse_kernels": True, "fusion_config": None, "weights": "file", "fusion": "all"}
            | {"only_rules": (), "except_rules": (), "threads": 0, "context": 0, "max_batch_size": 4}
            | {"max_step_tokens": 64, "cache_dtype": None, "families": (), "device": "cpu", "verdicts": None},
        ),
    }


def i32(*values):
    return np.array(values, np.int32)


def calls() -> dict[str, tuple[Callable, dict]]:
    """A call of everything, whole."""
    m = kf.KernelFusionManager()
    quant = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_quant=True))
    timed = kf.KernelFusionManager(kf.KernelFusionConfig(profile_kernels=True))
    masked = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_sparse=True, sparse_pattern="n:m"))
    x, w, rows = f(3, 64), f(64, 32), {"x": f(3, 64), "out": np.zeros((3, 64), np.float32)}
    linear = {
        "x": x,
        "bias": f(32),
        "out": np.zeros((3, 32), np.float32),
        "weight_layout": "in_out",
        "stream": None,
        "config": None,
    }
    dense = {"q": f(2, 5, 4, 16), "k": f(2, 9, 2, 16), "v": f(2, 9, 2, 16)}
    codes = {n: kf.quantize_kv(dense[n], "int8") for n in "kv"}
    options = {
        "config": None,
        "causal": True,
        "softmax_scale": 0.5,
        "window_size": (3, 0),
        "softcap": 2.0,
        "alibi_slopes": f(4),
        "attn_mask": f(1, 1, 5, 9),
        "sinks": f(4),
        "out": np.zeros((2, 5, 4, 16), np.float32),
        "return_lse": True,
        "stream": None,
        "kv_layout": "HND",
    }
    packed = {
        "q": f(7, 4, 16),
        "k": f(17, 2, 16),
        "v": f(17, 2, 16),
        "cu_seqlens_q": i32(0, 3, 7),
        "cu_seqlens_k": i32(0, 5, 17),
    }
    paged = {"q": f(2, 4, 16), "k": f(6, 2, 4, 16), "v": f(6, 2, 4, 16), "out": np.zeros((2, 4, 16), np.float32)}
    tables = {"block_tables": np.array([[0, 2, -1], [1, 4, 5]], np.int32), "context_lens": i32(5, 12)}
    append = {
        "k": f(3, 2, 16),
        "v": f(3, 2, 16),
        "k_cache": f(6, 2, 4, 16),
        "v_cache": f(6, 2, 4, 16),
        "slot_mapping": np.array([1, 5, 9]),
    }
    rope = {"cos": f(20, 8), "sin": f(20, 8), "positions": i32(0, 1, 2), "q": f(3, 4, 16), "interleaved": False}
    ffn = {"gate_weight": f(64, 32), "up_weight": f(64, 32), "down_weight": f(32, 64)}
    q4 = kf.quantize(f(32, 64), "int4", group_size=32)
    sp = kf.sparsify(f(32, 64), "2:4")
    attention = kf.FusedSparseAttention()
    tensor, ones, square = torch.ones(3, 64), torch.ones(64), torch.ones(64, 64)
    paper = kernels.PagedAttention(4, 16, 4)
    found = {
        "fuse_attention": (m.fuse_attention, dense | options),
        "fuse_attention packed": (
            m.fuse_attention,
            packed | {"max_seqlen_q": 4, "max_seqlen_k": 12, "out": np.zeros((7, 4, 16), np.float32)},
        ),
        "fuse_attention paged": (m.fuse_attention, paged | tables | {"kv_layout": "HND"}),
        "fuse_attention blocks": (
            m.fuse_attention,
            dense | {"block_layout": np.ones((1, 1, 2, 3), bool), "block_size": (4, 4), "keep": (2, 4)},
        ),
        "fuse_attention codes": (
            quant.fuse_attention,
            {
                "q": dense["q"],
                "k": codes["k"].data,
                "v": codes["v"].data,
                "k_scales": codes["k"].scales,
                "v_scales": codes["v"].scales,
            },
        ),
        "append_kv": (m.append_kv, append | rope | {"kv_layout": "HND", "config": None, "stream": None}),
        "make_kv_cache": (
            m.make_kv_cache,
            {"num_pages": 3, "num_kv_heads": 2, "head_dim": 16, "kv_layout": "HND", "like": None},
        ),
        "fuse_ffn": (
            m.fuse_ffn,
            {**ffn, "x": x, "activation": "silu", "weight_layout": "in_out", "out": np.zeros((3, 64), np.float32)},
        ),
        "fuse_ffn quantized": (quant.fuse_ffn, {"x": x, "gate_weight": q4, "up_weight": q4, "down_weight": f(32, 64)}),
        "fuse_ffn masked": (
            masked.fuse_ffn,
            {"x": x, "gate_weight": sp, "up_weight": sp, "down_weight": kf.sparsify(f(64, 32)).densify().T.copy()},
        ),
        "fuse_layernorm_linear": (
            m.fuse_layernorm_linear,
            linear | {"ln_weight": f(64), "ln_bias": f(64), "linear_weight": w, "eps": 1e-5},
        ),
        "fuse_rmsnorm_linear": (
            m.fuse_rmsnorm_linear,
            linear | {"norm_weight": f(64), "linear_weight": w, "eps": 1e-5},
        ),
        "fuse_gelu_linear": (m.fuse_gelu_linear, linear | {"weight": w, "approximate": "tanh"}),
        "fuse_silu_linear": (m.fuse_silu_linear, linear | {"weight": w}),
        "fuse_rmsnorm": (m.fuse_rmsnorm, rows | {"weight": f(64), "residual": f(3, 64), "eps": 1e-6}),
        "fuse_layernorm": (
            m.fuse_layernorm,
            rows | {"weight": f(64), "bias": f(64), "residual": f(3, 64), "eps": 1e-6},
        ),
        "fuse_softmax": (m.fuse_softmax, rows | {"scale": 0.5, "return_lse": True}),
        "fuse_activation": (m.fuse_activation, rows | {"kind": "gelu"}),
        "plan": (m.plan, {"op": "silu_linear", "x": x, "weight": w, "config": None}),
        "explain": (m.explain, {"op": "silu_linear", "x": x, "weight": w, "config": None}),
        "kf.explain": (kf.explain, {"op": "softmax", "x": x}),
        "warm_up": (m.warm_up, {"calls": [("softmax", {"x": x})], "config": None}),
        "register_custom_kernel": (
            lambda **a: kf.KernelFusionManager().register_custom_kernel(**a),
            {"name": "mine", "kernel": lambda x, out: None, "op": "softmax", "reference": None, "graph_safe": False},
        ),
        "report": (m.report, {"measure": True}),
        "record": (m.record, {"function": lambda: None, "device": None}),
        "write_trace": (timed.write_trace, {"path": "/nowhere/at/all.json"}),
        "export_spans": (timed.export_spans, {"tracer": None}),
        "quantize": (
            kf.quantize,
            {"x": x, "dtype": "int4", "group_size": 32, "symmetric": True, "scales_dtype": "f32"},
        ),
        "quantize_kv": (kf.quantize_kv, {"x": dense["k"], "dtype": "int4", "group_size": 16, "heads_axis": -2}),
        "quantized_cache": (kf.quantized_cache, {"shape": (4, 2, 4, 16), "dtype": "int8"}),
        "sparsify": (
            kf.sparsify,
            {
                "x": x,
                "pattern": "n:m",
                "n": 2,
                "m": 4,
                "sparsity": 0.0,
                "prune": True,
                "dtype": "int8",
                "group_size": 32,
                "symmetric": True,
                "scales_dtype": "f32",
            },
        ),
        "densify": (kf.densify, {"weight": sp}),
        "layout": (kf.layout, {"dtype": "f32", "shape": (3, 4)}),
        "GgufTensor": (kf.GgufTensor, {"data": np.zeros(32 * 2 * 20, np.uint8), "dtype": "q4_1", "shape": (32, 64)}),
        "QuantizedTensor": (
            kf.QuantizedTensor,
            {"data": q4.data, "scales": q4.scales, "zeros": None, "group_size": 32, "dtype": "int4"},
        ),
        "SparseTensor": (
            kf.SparseTensor,
            {
                "data": sp.data,
                "mask": sp.mask,
                "shape": (32, 64),
                "offsets": None,
                "n": 2,
                "m": 4,
                "dtype": "f32",
                "scales": None,
                "zeros": None,
                "group_size": 0,
            },
        ),
        "BlockTables": (
            lambda **a: m.fuse_attention(**paged, block_tables=kf.BlockTables(**a)),
            {"tables": tables["block_tables"], "context_lens": tables["context_lens"]},
        ),
        "BlockTables.from_pool by sequence": (
            kf.BlockTables.from_pool,
            {"pool": type("P", (), {"get_sequence_blocks": lambda self, request: [0]})(), "request_ids": [1, 2]},
        ),
        "BlockTables.from_pool": (kf.BlockTables.from_pool, {"pool": Pool(), "request_ids": [1, 2]}),
        "FusedSparseAttention": (
            lambda **a: kf.FusedSparseAttention(**a)(**dense),
            {"sparsity_pattern": "n:m", "n": 2, "m": 4, "use_flash_attention": True},
        ),
        "FusedSparseAttention()": (attention.__call__, dense),
        "CudaSource": (
            lambda **a: kf.KernelFusionManager().register_custom_kernel("softmax", kf.CudaSource(**a)),
            {
                "source": "x",
                "entry": "f",
                "args": ["x", "out"],
                "grid": (1,),
                "block": (32,),
                "options": (),
                "dtypes": ("f32",),
                "shared_bytes": 0,
                "graph_safe": True,
            },
        ),
        "TritonKernel": (
            lambda **a: kf.KernelFusionManager().register_custom_kernel("softmax", kf.TritonKernel(**a)),
            {"fn": Jitted(), "grid": (1,), "args": {"BLOCK": 4}},
        ),
        "FlashAttention2.forward": (kernels.FlashAttention2().forward, dense | {"causal": True, "softmax_scale": 0.5}),
        "FlashAttention2.forward_varlen": (
            kernels.FlashAttention2().forward_varlen,
            packed | {"max_seqlen_q": 4, "max_seqlen_k": 12},
        ),
        "PagedAttention": (kernels.PagedAttention, {"num_heads": 4, "head_dim": 16, "page_size": 4}),
        "PagedAttention.forward": (
            paper.forward,
            {"query": paged["q"], "key_cache": paged["k"], "value_cache": paged["v"], **tables},
        ),
        "GroupedQueryAttention": (kernels.GroupedQueryAttention, {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 16}),
        "GroupedQueryAttention.forward": (kernels.GroupedQueryAttention(4, 2, 16).forward, dense),
        "FusedINT4Attention": (
            kernels.FusedINT4Attention().forward,
            {
                "q_fp16": dense["q"],
                **{f"{n}_int4": kf.quantize_kv(dense[n], "int4").data for n in "kv"},
                **{f"{n}_scales": kf.quantize_kv(dense[n], "int4").scales for n in "kv"},
            },
        ),
        "FusedFFN": (
            kernels.FusedFFN().forward,
            {"x": x, "gate_w": ffn["gate_weight"], "up_w": ffn["up_weight"], "down_w": ffn["down_weight"]},
        ),
        "FusedSparseFFN": (
            kernels.FusedSparseFFN().forward,
            {"x": x, "sparse_gate_w": sp, "sparse_up_w": sp, "sparse_down_w": f(32, 64)},
        ),
        "load_model": (kf.load_model, {"path": "/nowhere", "fuse_kernels": True, "fusion_config": None}),
        "measure_performance": (kf.measure_performance, {"model": None, "test_inputs": None, "decode_tokens": 1}),
        "benchmark_kernel_fusion": (
            kf.benchmark_kernel_fusion,
            {"model_path": "/nowhere", "config": None, "test_inputs": None, "rounds": 1, "decode_tokens": 1},
        ),
        "fuse_model": (kf.fuse_model, {"model": None, "config": None}),
        "unfuse_model": (kf.unfuse_model, {"model": None}),
        "Registry.get": (kf.KernelFusionBackendRegistry.get, {"name": "cuda:9"}),
        "Registry.register": (kf.KernelFusionBackendRegistry.register, {"name": 3, "backend_cls": None}),
        "list_kernels": (kf.list_kernels, dict.fromkeys(inspect.signature(kf.list_kernels).parameters, "cpu")),
        "backends": (kf.backends, {"only": "cpu"}),
        "VerdictStore": (kf.VerdictStore, {"path": ""}),
        "VerdictStore.find": (kf.VerdictStore().find, {"rule": "a", "signature": "b", "device": "c"}),
        "VerdictStore.put": (kf.VerdictStore().put, {"verdict": {}}),
        "Selection": (kf.Selection, dataclasses.asdict(kf.Selection())),
        "torch.rms_norm": (
            drop_ins.rms_norm,
            {"input": tensor, "normalized_shape": (64,), "weight": ones, "eps": 1e-5},
        ),
        "torch.layer_norm": (
            drop_ins.layer_norm,
            {"input": tensor, "normalized_shape": (64,), "weight": ones, "bias": ones, "eps": 1e-5},
        ),
        "torch.swiglu": (
            drop_ins.swiglu,
            {"x": tensor, "gate_weight": square, "up_weight": square, "down_weight": square},
        ),
        "torch.scaled_dot_product_attention": (
            drop_ins.scaled_dot_product_attention,
            {n: torch.ones(2, 4, 5, 16) for n in ("query", "key", "value")}
            | {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False},
        ),
        "KernelFusionManager": (kf.KernelFusionManager, {"config": None}),
    }
    for name, fields in OP_CALLS.items():
        found[f"ops.{name}"] = (getattr(ops, name), fields)
    for field in dataclasses.fields(kf.KernelFusionConfig):
        found[f"KernelFusionConfig.{field.name}"] = (
            lambda **given: kf.KernelFusionManager(kf.KernelFusionConfig(**given)),
            {field.name: None},
        )
    return found


OP_CALLS = {
    "linear": {"x": f(3, 64), "weight": f(32, 64), "bias": f(32), "residual": f(3, 32), "norm": "rms"}
    | {"norm_weight": f(64), "eps": 1e-5, "out": np.zeros((3, 32), np.float32)},
    "gated_ffn": {"x": f(3, 64), "gate_weight": f(32, 64), "up_weight": f(32, 64), "down_weight": f(64, 32)},
    "qkv_linear": {"x": f(3, 64), "q_weight": f(32, 64), "k_weight": f(16, 64), "v_weight": f(16, 64)},
    "lm_head_argmax": {"x": f(3, 64), "weight": f(32, 64)},
    "rms_norm": {"x": f(3, 64), "weight": f(64), "residual": f(3, 64), "eps": 1e-5},
    "layer_norm": {"x": f(3, 64), "weight": f(64), "bias": f(64)},
    "softmax": {"x": f(3, 64), "scale": 0.5},
    "activation": {"x": f(3, 64), "kind": "gelu"},
    "gated_activation": {"gate": f(3, 64), "up": f(3, 64)},
    "binary": {"a": f(3, 64), "b": f(3, 64)},
    "attention": {"q": f(2, 5, 4, 16), "k": f(2, 9, 2, 16), "v": f(2, 9, 2, 16), "causal": True},
    "rope": {"x": f(3, 4, 16), "positions": i32(0, 1, 2), "cos": f(20, 8), "sin": f(20, 8)},
    "embedding": {"ids": i32(0, 3), "table": f(9, 64)},
    "sample": {"logits": f(3, 64), "temperature": 0.7, "top_k": 4, "top_p": 0.9, "seed": 3},
    "dequantize": {"x": kf.GgufTensor(np.zeros(32 * 2 * 20, np.uint8), "q4_1", (32, 64))},
}

WORDS = (
    "expected",
    "must be",
    "there are",
    "not served",
    "there is no",
    "cannot",
    "unsupported",
    "found nothing",
    "no kernel",
    "needs",
    "configured",
    "not a whole",
    "is not in",
    "is empty",
    "has no",
)


def memory_of(value) -> bytes | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return np.ascontiguousarray(value).tobytes()
    return None


def fault(function: Callable, arguments: dict) -> str | None:
    """What is wrong with what came out."""
    before = {name: memory_of(value) for name, value in arguments.items()}
    try:
        function(**arguments)
    except kf.KernelFusionError as error:
        if (
            not str(error)
            or error.code not in kf.errors.ErrorCode.__args__
            or error.to_dict()["message"] != error.message
        ):
            return f"an error without words or code: {error!r}"
        if not any(word in str(error).lower() for word in WORDS):
            return f"says nothing of what was expected: {error}"
        late = [n for n, value in arguments.items() if memory_of(value) != before[n] and before[n] is not None]
        return f"{late} changed, although {error}" if late else None
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


CALLS = calls()


@pytest.mark.parametrize("name", list(CALLS))
def test_every_argument_wrong_in_turn(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some of the values are names of files
    function, whole = CALLS[name]
    faults = []
    for argument, right in whole.items():
        wrong = values() | (changed(right) if isinstance(right, np.ndarray) and right.ndim else {})
        for what, value in wrong.items():
            arguments = {n: a.copy() if isinstance(a, np.ndarray) else a for n, a in whole.items()}
            if problem := fault(function, arguments | {argument: value}):
                faults.append(f"{argument} = {what}: {problem}"[:300])
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", ["prefill", "decode", "logits", "generate", "encode", "token_ids", "chat",
                                  "measure_performance", "load_model"])  # fmt: skip
def test_every_argument_of_a_models_methods_wrong_in_turn(name, tiny_gguf):
    function, whole = model_calls(tiny_gguf)[name]
    faults = []
    for argument in whole:
        for what, value in values().items():
            if argument == "on_text" and callable(value):
                continue  # what it raises is its own
            if problem := fault(function, whole | {argument: value}):
                faults.append(f"{argument} = {what}: {problem}"[:300])
    assert not faults, "\n".join(faults)
