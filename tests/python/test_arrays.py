"""Arrays of other libraries: in without a copy, out of the caller's kind, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import ops
from sagellm_kernel_fusion.quantized import from_awq, from_codes, from_gptq
from sagellm_kernel_fusion.queues import current_queue


def test_numpy_in_numpy_out(rng):
    x = rng.standard_normal((2, 8)).astype(np.float32)
    out = np.empty_like(x)
    assert ops.activation(x, out) is out
    np.testing.assert_array_equal(out, ops.activation(x))


def test_bfloat16_of_ml_dtypes(rng):
    x = rng.standard_normal((2, 8)).astype(ml_dtypes.bfloat16)
    out = ops.binary(x, x)
    assert out.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(out.astype(np.float32), 2 * x.astype(np.float32))


def test_torch_in_torch_out(rng):
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.randn(3, 16).to(dtype)
        got = ops.binary(x, x)
        assert isinstance(got, torch.Tensor) and got.dtype == dtype
        torch.testing.assert_close(got, x + x)
    out = torch.empty(3, 16)
    assert ops.activation(torch.ones(3, 16), out) is out and (out > 0.7).all()


def test_torch_views_are_not_copied():
    torch = pytest.importorskip("torch")
    wide = torch.zeros(4, 32)
    ops.binary(torch.ones(4, 8), torch.ones(4, 8), out=wide[:, 8:16])
    assert wide[:, 8:16].eq(2).all() and wide.sum() == 64


def memory_of(array) -> int:
    for address in ("data_ptr", "unsafe_buffer_pointer"):
        if hasattr(array, address):
            return getattr(array, address)()
    return array.ctypes.data


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("library", ["numpy", "torch", "jax.numpy"])
def test_kernels_work_on_the_callers_memory(rng, library, dtype):
    """What a kernel reads is the operand's memory, and what it writes the result's: by a kernel that tells."""
    library = pytest.importorskip(library)
    dtype = getattr(library, dtype, None) or ml_dtypes.bfloat16
    seen = []

    def doubled(x, out):
        seen.append((memory_of(x), memory_of(out)))
        out[...] = x + x

    m = kf.KernelFusionManager()
    m.register_custom_kernel("doubled", doubled, op="activation", reference=doubled)
    kept = []  # so that every size has memory of its own
    for rows in (1, 3, 64, 1000):
        x = library.asarray(rng.standard_normal((rows, 24)).astype(np.float32))
        x = x.to(dtype) if hasattr(x, "data_ptr") else x.astype(dtype)
        out = m.fuse_activation(x)
        assert type(out) is type(x) and out.dtype == x.dtype and (out == x + x).all()
        assert seen[-1] == (memory_of(x), memory_of(out)), rows
        kept += [x, out]


def test_torch_that_requires_gradients_is_refused_with_advice():
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 4, requires_grad=True)
    with pytest.raises(kf.InvalidArgumentError, match=r"x: .*detach"):
        ops.activation(x)


def test_anything_with_dlpack_goes():
    class Wrapped:
        """An array library that knows only the protocol."""

        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(ops.binary(Wrapped(x), x), x + x)


def test_cupy_in_cupy_out(monkeypatch):
    """By contract, on the host: CuPy itself needs a GPU. Results are made by its `empty`, on the input's device."""
    import types

    class Device:
        entered = 0

        def __enter__(self):
            Device.entered += 1

        def __exit__(self, *error):
            pass

    class Array:  # cupy.ndarray: DLPack in both directions, no C exchange API
        device = Device()

        def __init__(self, array):
            self.array = array
            self.dtype, self.shape, self.ndim = array.dtype, array.shape, array.ndim

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    Array.__module__ = "cupy"
    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.empty = Array, lambda shape, dtype: Array(np.empty(shape, dtype))
    cupy.cuda = types.SimpleNamespace(get_current_stream=lambda: types.SimpleNamespace(ptr=77))
    monkeypatch.setitem(sys.modules, "cupy", cupy)

    q = np.random.default_rng(0).standard_normal((1, 5, 2, 16)).astype(np.float32)
    m = kf.KernelFusionManager()
    out, lse = m.fuse_attention(Array(q), Array(q), Array(q), return_lse=True)
    assert type(out) is Array and type(lse) is Array and Device.entered == 2
    np.testing.assert_array_equal(out.array, m.fuse_attention(q, q, q))
    given = Array(np.empty((2, 8), np.float32))
    assert m.fuse_softmax(Array(np.ones((2, 8), np.float32)), out=given) is given and (given.array == 0.125).all()
    assert current_queue(given) == 77


def test_read_only_arrays_are_inputs_but_not_outputs(rng):
    x = rng.standard_normal((2, 4)).astype(np.float32)
    x.flags.writeable = False
    np.testing.assert_array_equal(ops.binary(x, x), 2 * x)
    with pytest.raises(kf.InvalidArgumentError, match=r"out: .*read-only"):
        ops.binary(x, x, out=x)


def test_importing_does_not_import_torch():
    code = "import sys, sagellm_kernel_fusion as kf; kf.load_model; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_namespace_of_sagellm_is_the_same_package():
    from sage.llm.engines.sagellm.accel import kernel_fusion

    assert kernel_fusion.ops is ops and set(kernel_fusion.__all__) == set(kf.__all__)
    assert all(getattr(kernel_fusion, name) is getattr(kf, name) for name in kf.__all__)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_the_namespace_is_shared_with_another_distribution(tmp_path, first):
    """Other distributions own other parts of it, wherever they stand on the path."""
    for part in ("accel/quantization", "kv_runtime/kv_pool"):
        module = tmp_path / "sage/llm/engines/sagellm" / f"{part}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text("HERE = __name__")
    code = (
        f"import sys; sys.path.insert({0 if first else len(sys.path)}, {str(tmp_path)!r})\n"
        "from sage.llm.engines.sagellm.accel import kernel_fusion, quantization\n"
        "from sage.llm.engines.sagellm.kv_runtime import kv_pool\n"
        "import sagellm_kernel_fusion\n"
        "assert kernel_fusion.KernelFusionManager is sagellm_kernel_fusion.KernelFusionManager\n"
        "assert quantization.HERE.endswith('accel.quantization') and kv_pool.HERE.endswith('kv_pool')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, w: ops.rms_norm([1.0, 2.0], w), "x: expected an array .* got list"),
        (lambda x, w: ops.rms_norm(x.astype(np.float64), w), "rms_norm: x: "),
        (lambda x, w: ops.rms_norm(None, w), "x: expected an array, got none"),
        (lambda x, w: ops.rms_norm(True, w), "x: expected an array, got True"),
        (lambda x, w: ops.rms_norm(x, w[:3]), r"weight: expected 8 .* got shape \[3\]"),
        (lambda x, w: ops.rms_norm(x, w, out=np.empty((2, 7), np.float32)), "out: expected the shape of x"),
        (lambda x, w: ops.rms_norm(x.T, w), "contiguous last dimension"),
        (lambda x, w: ops.rms_norm(x, w, eps="small"), "eps: expected a number, got 'small'"),
        (lambda x, w: ops.activation(x, kind="tanh"), "kind: expected one of none, silu"),
        (lambda x, w: ops.linear(x, w), "weight: expected 2 dimensions"),
        (lambda x, w: ops.linear(w, x), "x: expected 2 dimensions"),
        (lambda x, w: ops.linear(x, np.ones((4, 9), np.float32)), "weight: expected 8 .* dimension 1"),
        (lambda x, w: ops.binary(x, x.astype(np.float16)), "b: expected f32"),
        (lambda x, w: ops.embedding(np.array([0, 2], np.int32), x), "2"),
        (lambda x, w: ops.activation(np.ones((1,) * 7, np.float32)), "dimensions"),
        (lambda x, w: ops.sample(x, temperature=-1.0), "temperature"),
    ],
)  # fmt: skip
def test_bad_operands(call, words):
    with pytest.raises(kf.InvalidArgumentError, match=words) as caught:
        call(np.ones((2, 8), np.float32), np.ones(8, np.float32))
    assert isinstance(caught.value, ValueError) and caught.value.code == "invalid_argument"
    assert not caught.value.is_retryable()
    assert caught.value.to_dict()["message"] == str(caught.value)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (lambda: np.ones((2, 8)), "got float64: convert it first"),
        (lambda: np.ones((2, 8), np.complex64), "got complex64: convert it first"),
        (lambda: np.ones((2, 8), ">f4"), "got ndarray of dtype >f4, which its library does not export: .*byte order"),
        (lambda: pytest.importorskip("torch").empty(2, 8, device="meta"), "got Tensor of .* export: .*meta"),
        (lambda: pytest.importorskip("torch").eye(8).to_sparse(), "got Tensor of .* export: .*layout"),
    ],
)  # fmt: skip
def test_an_array_that_cannot_be_taken_says_why(array, words):
    with pytest.raises(kf.InvalidArgumentError, match=f"softmax: x: .*{words}"):
        ops.softmax(array())


def test_an_error_leaves_the_outputs_alone():
    out = np.full((2, 4), 7, np.float32)
    with pytest.raises(kf.KernelFusionError):
        ops.embedding(np.array([0, 9], np.int32), np.ones((3, 4), np.float32), out)
    assert (out == 7).all()


def test_what_no_allowed_kernel_serves_lists_every_reason():
    x = np.ones((2, 4), np.float32)
    with pytest.raises(kf.NotServedError, match="cpu::") as caught:
        ops.activation(x, selection=kf.Selection(families=("library",)))
    assert isinstance(caught.value, NotImplementedError) and caught.value.code == "not_implemented"
    got = ops.activation(x, selection=kf.Selection(families=("library",), allow_fallback=True))
    np.testing.assert_array_equal(got, ops.activation(x))


def test_explain_names_every_kernel():
    rows = kf.explain("rms_norm", x=kf.layout("f32", (2, 8)), weight=kf.layout("f32", (8,)))
    assert {r["kernel"] for r in rows} == {
        k["name"] for k in kf.list_kernels() if k["op"] == "rms_norm" and k["backend"] == "cpu"
    }
    assert sum(r["selected"] for r in rows) == 1 and rows[-1]["families"] == "reference"


@pytest.mark.parametrize(
    ("data", "dtype", "shape", "words"),
    [
        (np.zeros(20, np.uint8), "q4_1", (1, 32), None),
        (np.zeros(19, np.uint8), "q4_1", (1, 32), "expected 20 bytes"),
        (np.zeros(20, np.uint8), "q4_1", (1, 31), "whole blocks of 32"),
        (np.zeros(20, np.uint8), "q5_k", (1, 32), "dtype: expected one of f32"),
        (np.zeros(40, np.uint8)[::2], "q4_1", (1, 32), "contiguous"),
        (np.zeros(20, np.uint8), "q4_1", (-1, 32), "at least 0"),
        (np.zeros(20, np.uint8), "f32", (2**40, 2**40), "more than memory"),
    ],
)
def test_gguf_tensor(data, dtype, shape, words):
    if words is None:
        assert kf.GgufTensor(data, dtype, shape).shape == shape
    else:
        with pytest.raises(kf.InvalidArgumentError, match=words):
            kf.GgufTensor(data, dtype, shape)


MANAGER = kf.KernelFusionManager()
F32 = np.ones((4, 32), np.float32)
MASK, WORDS = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.int32)
Q, I8, POOL = np.ones((1, 1, 2, 16), np.float32), np.ones((1, 3, 2, 16), np.int8), np.ones((2, 2, 4, 16), np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.softmax(np.ones((2, 8), np.float32), selection="fused"), "selection: expected a Selection"),
        (lambda: kf.layout(np.float32, (2,)), "layout: dtype: expected one of f32, f16, .* got <class"),
        (lambda: kf.layout("f32", 2), "layout: shape: expected a sequence of integers, got 2"),
        (lambda: kf.densify(3), "densify: weight: expected a SparseTensor, got int"),
        (lambda: kf.quantized_cache(3, "int8"), "quantized_cache: shape: expected a sequence of integers, got 3"),
        (lambda: kf.measure_performance(None), "model: expected one of load_model's, got NoneType"),
        (lambda: kf.layout("f32", (2, 2**63)), "layout: shape: expected sizes of at least 0 and less than 2"),
        (lambda: kf.GgufTensor(b"", "q4_1", 32), "GgufTensor: shape: expected a sequence of integers, got 32"),
        (lambda: kf.GgufTensor(b"", None, (1, 32)), "GgufTensor: dtype: expected the name of a format"),
        (lambda: kf.Selection(families="fused"), "Selection: families: expected a tuple of names, .* got 'fused'"),
        (lambda: kf.Selection(kernel=None), "Selection: kernel: expected the name of a row, got None"),
        (lambda: kf.explain(None), "explain: op: expected one of linear, .* got None"),
        (lambda: MANAGER.plan(["ffn"]), "op: expected the name of an operator, got \\['ffn'\\]"),
        (lambda: kf.quantize(F32, {}), "dtype: expected int4, int8"),
        (lambda: kf.quantize(F32, "int8", group_size=2**70), "quantize: group_size: expected an integer of 64 bits"),
        (lambda: kf.quantize_kv(F32[None], "int8", group_size="16"), "group_size: expected an integer, got '16'"),
        (lambda: kf.quantize_kv(F32[None], "int8", heads_axis=None), "heads_axis: expected an integer, got None"),
        (lambda: kf.QuantizedTensor(F32, F32, group_size="32"), "group_size: expected an integer, got '32'"),
        (lambda: kf.sparsify(F32, 24), 'pattern: expected "n:m", one like "2:4", or "unstructured", got 24'),
        (lambda: kf.sparsify(F32, n="2"), "sparsify: n: expected an integer, got '2'"),
        (lambda: kf.sparsify(F32, "unstructured", sparsity="0.7"), "sparsity: expected a share from 0 to 1, got '0.7'"),
        (lambda: kf.SparseTensor(F32, None, (4, 32)), "SparseTensor: mask: expected an array, got none"),
        (lambda: kf.SparseTensor([1.0], MASK, (4, 32)), "SparseTensor: data: expected an array, got list"),
        (lambda: kf.SparseTensor(F32, MASK, 4), "SparseTensor: shape: expected a sequence of integers, got 4"),
        (lambda: kf.SparseTensor(F32, MASK, (4, 32), dtype=None), "SparseTensor: dtype: expected one of f32, .* None"),
        (lambda: from_awq(WORDS, 3.0, WORDS), "expected scales and zeros of whole groups"),
        (lambda: from_awq(WORDS, F32, WORDS[:0]), "expected scales and zeros of whole groups"),
        (lambda: from_gptq(WORDS, 3.0, WORDS, np.arange(32) // 8), "expected scales and zeros of whole groups"),
        (lambda: from_codes(["a"], F32), "codes: expected integers"),
        (lambda: MANAGER.fuse_attention(Q, I8, I8, k_scales=0.5), "k_scales: expected an array, got float"),
        (lambda: MANAGER.fuse_attention([1.0], POOL, POOL, block_tables=[[0]]), "q: expected an array, got list"),
        (
            lambda: MANAGER.fuse_attention(Q[0], POOL, POOL, block_tables=[[0]], context_lens=[1.5]),
            r"context_lens: expected integers of 32 bits, got \[1.5\]",
        ),
        (
            lambda: MANAGER.fuse_attention(Q[0], POOL, POOL, block_tables=[[0.5]], context_lens=[1]),
            r"block_tables: expected integers of 32 bits, got \[0.5\]",
        ),
        (
            lambda: MANAGER.fuse_attention(Q[0], POOL, POOL, block_tables=[0], context_lens=[1]),
            r"block_tables: expected a list of page numbers for each sequence, got \[0\]",
        ),
        (
            lambda: MANAGER.fuse_attention(Q[0], POOL, POOL, block_tables=[[0]], context_lens=[2**40]),
            "context_lens: expected integers of 32 bits",
        ),
    ],
)
def test_what_is_of_another_type_is_refused(call, words):
    with pytest.raises(kf.InvalidArgumentError, match=words):
        call()


def test_errors_can_be_pickled():
    import pickle

    error = pickle.loads(pickle.dumps(kf.NotServedError("no", {"op": "linear"})))
    assert error.code == "not_implemented" and error.context == {"op": "linear"}


@pytest.mark.parametrize("flag", [np.True_, np.bool_(1)])
def test_numpys_booleans_are_booleans(rng, flag):
    q, k, v = rng.standard_normal((3, 1, 5, 2, 16)).astype(np.float32)
    m = kf.KernelFusionManager()
    np.testing.assert_array_equal(m.fuse_attention(q, k, v, causal=flag), m.fuse_attention(q, k, v))
    np.testing.assert_array_equal(m.fuse_attention(q, k, v, causal=np.False_), m.fuse_attention(q, k, v, causal=False))


def test_none_is_no_value_of_a_switch_or_a_choice(rng):
    """None would read as another value than the default that it stood for: not causal, no activation."""
    q, k, v = rng.standard_normal((3, 1, 5, 2, 16)).astype(np.float32)
    x, w = rng.standard_normal((2, 8)).astype(np.float32), np.ones((8, 8), np.float32)
    m = kf.KernelFusionManager()
    for words, call in (
        ("causal: expected True or False, got None", lambda: m.fuse_attention(q, k, v, causal=None)),
        ("causal: expected True or False, got None", lambda: ops.attention(q, k, v, causal=None)),
        ("activation: expected one of none, silu", lambda: m.fuse_ffn(x, w, w, w, activation=None)),
        ("kind: expected one of none, silu", lambda: m.fuse_activation(x, kind=None)),
        ("activation: expected one of none, silu", lambda: ops.linear(x, w, activation=None)),
    ):
        with pytest.raises(kf.InvalidArgumentError, match=words):
            call()
    np.testing.assert_array_equal(m.fuse_attention(q, k, v, softmax_scale=None), m.fuse_attention(q, k, v))


def test_keys_that_are_no_array():
    m, table = kf.KernelFusionManager(), np.ones((4, 8), np.float32)
    slots = np.zeros(1, np.int32)
    with pytest.raises(kf.InvalidArgumentError, match="rope_append: k: expected an array, got list"):
        m.append_kv([[1.0]], table, table, table, slots, cos=table, sin=table, positions=slots)
    with pytest.raises(kf.InvalidArgumentError, match="8-bit float with scales, got list"):
        m.fuse_attention(np.ones((1, 1, 1, 16), np.float32), [[1.0]], table, k_scales=table)
