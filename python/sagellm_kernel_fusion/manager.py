"""The specification's manager: fused operators under one configuration, with what they gained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import get_args

from . import _kf, adapters, operators
from .checks import one_of
from .config import FusionBackend, KernelFusionConfig
from .custom import register
from .custom.adapter import Adapter
from .errors import InvalidArgumentError, NotServedError, refusing
from .protocol import KernelFusionProtocol
from .queues import handle_of
from .recorded import Recorded, recordable
from .registry import ALIASES, KernelFusionBackendRegistry
from .telemetry import Gains, SpanExporter, log_report, stats_of, write_chrome_trace

_OWN_BACKENDS = frozenset(get_args(FusionBackend))


class KernelFusionManager(KernelFusionProtocol):
    """Runs attention, FFN, norms and what surrounds them as one kernel each, as its configuration says.

        m = KernelFusionManager(KernelFusionConfig(attention_backend="flash2"))
        out = m.fuse_attention(q, k, v)
        m.report()

    Tensors are torch's, NumPy's, JAX's or anything with `__dlpack__`, taken without a copy; results are of the first
    one's kind. Activations are f32, f16 or bf16 with a contiguous last dimension. The tensors' device decides where a
    call runs, the configuration with which kernels; every method takes another configuration for one call. `out` is
    memory to write to (not JAX's, whose arrays cannot be written).

    Wrong operands raise InvalidArgumentError (a ValueError) before anything is written; what no configured kernel
    serves raises NotServedError (a NotImplementedError) with every kernel's reason, or under allow_fallback is served
    by the first other kernel that can, counted and shown by report(), get_stats() and explain(). Safe for concurrent
    calls."""

    _only_backend = ""  # the backend whose kernels calls get, by name; "": that of the tensors' device

    def __init__(self, config: KernelFusionConfig | None = None):
        self.config = _checked(config) if config is not None else KernelFusionConfig()
        self._core = _kf.Manager(self.config.bound(), self._only_backend)
        self._exporter = SpanExporter(self._core)
        # torch.compile's tracer loses the object of a method that it looks up itself.
        self._call = self._exporter.call if self.config.profile_kernels else self._core.call
        self._gains = Gains(self._core)
        if not self._only_backend:
            adapters.register(self._core, self.config.libraries)
        self._custom: list[Adapter] = []
        self._recording = 0  # record()s under way
        # Each goes in front of the others: backwards, so that the first given is the first tried.
        for name, kernel in reversed((self.config.custom_kernels or {}).items()):
            self.register_custom_kernel(name, kernel)
        self._others: dict[type, KernelFusionProtocol] = {}  # backends that calls were handed to

    # Attention

    def fuse_attention(
        self, q, k, v, config: KernelFusionConfig | None = None, *, causal: bool = True,
        softmax_scale: float | None = None, window_size: tuple[int, int] = operators.EVERY_KEY, softcap: float = 0.0,
        alibi_slopes=None, attn_mask=None, sinks=None, cu_seqlens_q=None, cu_seqlens_k=None,
        max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, block_tables=None, context_lens=None,
        kv_layout: str = operators.HND, k_scales=None, v_scales=None, k_zeros=None, v_zeros=None, out=None,
        return_lse: bool = False, stream=None, block_layout=None, block_size: tuple[int, int] = operators.NO_BLOCKS,
        keep: tuple[int, int] | None = None,
    ):  # fmt: skip
        """softmax(softmax_scale q k^T) v, causal from the bottom right, with GQA read from the tensors.

        dense   q [batch, seqlen_q, num_heads, head_dim], k and v [batch, seqlen_k, num_kv_heads, head_dim]
        packed  q [total_q, num_heads, head_dim], k and v [total_k, num_kv_heads, head_dim], cu_seqlens_q and
                cu_seqlens_k int32 [batch + 1]
        paged   q [num_tokens, num_heads, head_dim] (one query a sequence, or with cu_seqlens_q several) or [batch,
                seqlen_q, num_heads, head_dim]; k and v pools [num_blocks, num_kv_heads, page_size, head_dim] ("HND") or
                [num_blocks, page_size, num_kv_heads, head_dim] ("NHD"); block_tables int32 [batch, max_blocks], -1
                pads, lists of page numbers, or BlockTables; context_lens int32 [batch] (None: every listed page is
                full)

        softmax_scale None is 1 / sqrt(head_dim). window_size (left, right): keys before and after its own that a row
        sees, -1 for all. softcap, alibi_slopes, attn_mask and sinks as `ops.attention` says. max_seqlen_q and
        max_seqlen_k, where given, are checked. return_lse=True also returns the natural log-sum-exp, f32 [batch,
        num_heads, seqlen_q], or [num_heads, total_q]. k and v may be QuantizedTensors (`quantize_kv`), or codes with
        k_scales and v_scales, whose dimensions are theirs, each of full size or 1, last head_dim / group_size: int8,
        8-bit floats, or uint8, which is int4, two a byte along head_dim; zeros int8 like the scales. stream:
        the device's queue, as an integer or torch's object.

        Sparse (see FusedSparseAttention too): block_layout, boolean [batch or 1, num_heads, num_kv_heads or 1, query
        blocks, key blocks] or int32 lists of key blocks in place of the last, ascending, -1 after the last, says which
        blocks of block_size (query tokens, keys) are attended, 0 query tokens being all; keep (n, m) keeps the n
        largest of every m neighbouring scores."""
        config = self.config if config is None else _checked(config)
        if other := self._elsewhere(config, q):
            return _hand_over(other, "fuse_attention", locals(), ("q", "k", "v"))
        call = operators.attention(
            config, q, k, v, causal, softmax_scale, window_size, softcap, alibi_slopes, attn_mask, sinks, cu_seqlens_q,
            cu_seqlens_k, max_seqlen_q, max_seqlen_k, block_tables, context_lens, kv_layout, k_scales, v_scales,
            k_zeros, v_zeros, out, return_lse, block_layout, block_size, keep,
        )  # fmt: skip
        return self._run(call, config, out, stream)

    def append_kv(
        self, k, v, k_cache, v_cache, slot_mapping, config: KernelFusionConfig | None = None, *, cos=None, sin=None,
        positions=None, q=None, interleaved: bool = False, kv_layout: str = "HND", stream=None,
    ):  # fmt: skip
        """Writes k and v [num_tokens, num_kv_heads, head_dim] to page pools, in place; with cos and sin f32
        [max_position, rotary_dim / 2] and positions int32 [num_tokens], k is rotated on the way, and q [num_tokens,
        num_heads, head_dim], where given, is rotated too and returned.

        Slot s of slot_mapping int32 or int64 [num_tokens] is page s / page_size, row s % page_size; negative ones are
        skipped. Caches may be QuantizedTensors (`quantized_cache`): tokens are quantized as they are written.
        """
        config = self.config if config is None else _checked(config)
        call = operators.append_kv(
            config, k, v, k_cache, v_cache, slot_mapping, cos, sin, positions, q, interleaved, kv_layout
        )
        results = self._run(call, config, None, stream)
        return None if q is None else results

    def make_kv_cache(self, num_pages: int, num_kv_heads: int, head_dim: int, *, kv_layout: str = "HND", like=None):
        """Two zeroed page pools (k_cache, v_cache) of config.page_size tokens a page, of the 16-bit type that the
        configuration allows (bf16, else f16, else f32), of the kind of `like` (None: NumPy's)."""
        one_of("make_kv_cache: kv_layout", kv_layout, ("HND", "NHD"))
        rows = (num_kv_heads, self.config.page_size) if kv_layout == "HND" else (self.config.page_size, num_kv_heads)
        return tuple(operators.zeros(self.config.work_dtype(), (num_pages, *rows, head_dim), like) for _ in range(2))

    # FFN and linear layers

    def fuse_ffn(
        self, x, gate_weight, up_weight, down_weight, config: KernelFusionConfig | None = None, *,
        activation: str = "silu", weight_layout: str = "in_out", out=None, stream=None,
    ):  # fmt: skip
        """(act(x @ gate_weight) * (x @ up_weight)) @ down_weight, activation "silu", "gelu", "gelu_tanh" or "relu".

        x [..., hidden], gate_weight and up_weight [hidden, intermediate], down_weight [intermediate, hidden_out], any
        strides; weight_layout "out_in" for torch.nn.Linear's. Weights may be QuantizedTensors, SparseTensors or
        GgufTensors ([out, in])."""
        config = self.config if config is None else _checked(config)
        if other := self._elsewhere(config, x):
            return _hand_over(other, "fuse_ffn", locals(), ("x", "gate_weight", "up_weight", "down_weight"))
        call = operators.ffn(config, x, gate_weight, up_weight, down_weight, activation, weight_layout, out)
        return self._run(call, config, out, stream)

    def fuse_layernorm_linear(
        self, x, ln_weight, ln_bias, linear_weight, config: KernelFusionConfig | None = None, *, bias=None,
        eps: float = 1e-5, weight_layout: str = "in_out", out=None, stream=None,
    ):  # fmt: skip
        """layer_norm(x) @ linear_weight + bias. x [..., n], ln_weight and ln_bias (or None) [n], linear_weight [n,
        m]."""
        config = self.config if config is None else _checked(config)
        if other := self._elsewhere(config, x):
            return _hand_over(other, "fuse_layernorm_linear", locals(), ("x", "ln_weight", "ln_bias", "linear_weight"))
        call = operators.layernorm_linear(config, x, ln_weight, ln_bias, linear_weight, bias, eps, weight_layout, out)
        return self._run(call, config, out, stream)

    def fuse_rmsnorm_linear(
        self, x, norm_weight, linear_weight, config: KernelFusionConfig | None = None, *, bias=None, eps: float = 1e-6,
        weight_layout: str = "in_out", out=None, stream=None,
    ):  # fmt: skip
        """rms_norm(x) @ linear_weight + bias. x [..., n], norm_weight [n], linear_weight [n, m]."""
        config = self.config if config is None else _checked(config)
        if other := self._elsewhere(config, x):
            return _hand_over(other, "fuse_rmsnorm_linear", locals(), ("x", "norm_weight", "linear_weight"))
        call = operators.rmsnorm_linear(config, x, norm_weight, linear_weight, bias, eps, weight_layout, out)
        return self._run(call, config, out, stream)

    def fuse_gelu_linear(
        self, x, weight, config: KernelFusionConfig | None = None, *, bias=None, approximate: str = "tanh",
        weight_layout: str = "in_out", out=None, stream=None,
    ):  # fmt: skip
        """gelu(x) @ weight + bias: the activation comes first. approximate "tanh" or "none" (erf). x [..., n], weight
        [n, m], bias [m]."""
        config = self.config if config is None else _checked(config)
        if other := self._elsewhere(config, x):
            return _hand_over(other, "fuse_gelu_linear", locals(), ("x", "weight"))
        call = operators.gelu_linear(config, x, weight, bias, approximate, weight_layout, out)
        return self._run(call, config, out, stream)

    def fuse_silu_linear(
        self, x, weight, config: KernelFusionConfig | None = None, *, bias=None, weight_layout: str = "in_out",
        out=None, stream=None,
    ):  # fmt: skip
        """silu(x) @ weight + bias: the activation comes first. x [..., n], weight [n, m], bias [m]."""
        config = self.config if config is None else _checked(config)
        if other := self._elsewhere(config, x):
            return _hand_over(other, "fuse_silu_linear", locals(), ("x", "weight"))
        return self._run(operators.silu_linear(config, x, weight, bias, weight_layout, out), config, out, stream)

    # Norms, softmax, activations

    def fuse_rmsnorm(
        self, x, weight, config: KernelFusionConfig | None = None, *, residual=None, eps: float = 1e-6, out=None,
        stream=None,
    ):  # fmt: skip
        """h / sqrt(mean(h^2) + eps) * weight with h = x + residual; with a residual, (out, h). x [..., n], weight
        [n]."""
        config = self.config if config is None else _checked(config)
        if other := self._elsewhere(config, x):
            return _hand_over(other, "fuse_rmsnorm", locals(), ("x", "weight"))
        return self._run(operators.rmsnorm(config, x, weight, residual, eps, out), config, out, stream)

    def fuse_layernorm(
        self, x, weight, bias=None, config: KernelFusionConfig | None = None, *, residual=None, eps: float = 1e-5,
        out=None, stream=None,
    ):  # fmt: skip
        """(h - mean(h)) / sqrt(var(h) + eps) * weight + bias with h = x + residual; with a residual, (out, h). x [...,
        n], weight and bias [n]."""
        config = self.config if config is None else _checked(config)
        if other := self._elsewhere(config, x):
            return _hand_over(other, "fuse_layernorm", locals(), ("x", "weight", "bias"))
        return self._run(operators.layernorm(config, x, weight, bias, residual, eps, out), config, out, stream)

    def fuse_softmax(
        self, x, config: KernelFusionConfig | None = None, *, scale: float = 1.0, return_lse: bool = False, out=None,
        stream=None,
    ):  # fmt: skip
        """softmax(scale x) over the last dimension; return_lse=True also returns log sum exp(scale x), f32. x [...,
        n]."""
        config = self.config if config is None else _checked(config)
        if other := self._elsewhere(config, x):
            return _hand_over(other, "fuse_softmax", locals(), ("x",))
        return self._run(operators.softmax(config, x, scale, return_lse, out), config, out, stream)

    def fuse_activation(
        self, x, config: KernelFusionConfig | None = None, *, kind: str = "silu", out=None, stream=None
    ):
        """ "silu", "gelu" (erf), "gelu_tanh" or "relu" of x [..., n]."""
        config = self.config if config is None else _checked(config)
        if other := self._elsewhere(config, x):
            return _hand_over(other, "fuse_activation", locals(), ("x",))
        return self._run(operators.activation(config, x, kind, out), config, out, stream)

    # Ahead of calls

    def plan(self, op: str, config: KernelFusionConfig | None = None, **operands) -> dict:
        """Chooses and prepares the kernel of an operator ("attention", "ffn", "gelu_linear", ...; or an op of the
        library) for operands like these, so that a call with the same layout searches nothing. Operands are as the
        method takes them; `layout(dtype, shape)` stands for one that is not there yet.

        Returns op, kernel, shapes, workspace_bytes, launches, flops, bytes, graph_safe, fallback, fallback_reason.
        """
        config = self.config if config is None else _checked(config)
        call = operators.call_of(op, config, operands)
        return self._core.plan(call.op, call.fields, config.bound(), call.transposed, call.rows)

    def warm_up(self, calls: Iterable[tuple[str, Mapping]], config: KernelFusionConfig | None = None) -> list[dict]:
        """Plans (operator, operands) one after another, ahead of the first call of each."""
        try:
            pairs = [(op, dict(operands)) for op, operands in calls]
        except (TypeError, ValueError) as error:
            raise refusing(f"warm_up: calls: expected pairs of an operator and its operands: {error}") from error
        return [self.plan(op, config, **operands) for op, operands in pairs]

    def explain(self, op: str, config: KernelFusionConfig | None = None, **operands) -> list[dict]:
        """Every kernel for such a call in the order of trial: kernel, families, selected, supported, allowed,
        reason."""
        config = self.config if config is None else _checked(config)
        call = operators.call_of(op, config, operands)
        return self._core.explain(call.op, call.fields, config.bound(), call.transposed, call.rows)

    def kernels(self) -> list[dict]:
        """Every kernel of the CPU and of the devices that calls have come for, in the order of trial: name, op,
        families, condition, graph_safe, device."""
        return self._core.kernels()

    def register_custom_kernel(
        self, name: str, kernel: Callable, *, op: str | None = None, reference: Callable | None = None,
        graph_safe: bool = False,
    ) -> None:  # fmt: skip
        """Puts a kernel before the others of an operator ("gelu_linear", "attention", ...; or an op of the library).

        kernel: a function of named operands, a `@triton.jit` function or TritonKernel, CudaSource, or a FusedKernel. It
        appears as `custom::<name>` in kernels(), explain() and the statistics. op: what it serves, where `name` is not
        an operator's. Weights are given to it as x @ W has them. Before a layout is served for the first time, the
        kernel runs on generated data and is compared with `reference` (a function like it; None: the op's own): a
        kernel that is wrong, or writes outside its result, raises InvalidArgumentError and never runs on the caller's
        data; plan() and warm_up() do the same ahead, for layouts. A call with an operand that the kernel does not name
        goes to the next kernel. graph_safe: it only enqueues work."""
        self._custom += register(self._core, name, kernel, op=op, reference=reference, graph_safe=graph_safe)

    def record(self, function: Callable[[], object], device=None) -> Recorded:
        """What `function`, called without arguments, enqueues on torch's CUDA tensors by this manager (and by torch),
        as one CUDA graph: `recorded.replay()` does it again, `recorded.result` is what the function returned. Meanwhile
        only kernels whose launches may be recorded are taken, as under use_cuda_graph: a call that none of them serves
        raises NotServedError before anything is recorded. The function runs three times. device: where, None: torch's
        current one. Raises UnavailableError without PyTorch or a device."""
        self._recording += 1
        try:
            return Recorded(recordable(function), device)
        finally:
            self._recording -= 1

    # What was gained

    def report(self, measure: bool = True) -> dict[str, float]:
        """What fusion gained over the calls so far, measured or absent.

        attention_speedup, ffn_speedup, e2e_speedup: time of the unfused composition over that of the kernel that ran.
        memory_saving, kernel_calls_reduction: the share of the unfused form's peak of results and intermediates, and of
        its kernel calls, that fusion saves. kernel_calls_<op>: kernels that ran. measure=True repeats each distinct
        call that was not measured yet, on generated data, beside its unfused composition, for at most about a second in
        all; measure=False takes what is known. Results that do not agree are left out."""
        report = self._gains.report(measure)
        if self.config.log_fusion_stats:
            log_report(report, self._core.counts())
        return report

    def get_stats(self) -> dict:
        """{"ops": {op: {"calls", "kernel_calls", "fallbacks", "kernels": {kernel: {"calls", "kernel_calls", "bytes",
        "flops", "seconds", "fallbacks", "fallback_reason"}}}}, "distinct_calls": [...]}; seconds are None without
        profile_kernels."""
        return stats_of(self._core, timed=self.config.profile_kernels)

    def write_trace(self, path) -> int:
        """Writes the timed calls so far as a Chrome trace (chrome://tracing, Perfetto); their number. Needs
        profile_kernels."""
        if not self.config.profile_kernels:
            raise refusing("write_trace: expected a manager with profile_kernels, got one that times nothing")
        return write_chrome_trace(path, self._core.spans())

    def export_spans(self, tracer=None) -> int:
        """Gives the timed calls that were not given yet to OpenTelemetry, as spans named by kernel with kf.op,
        kf.kernel, kf.shapes and thread.id; their number. tracer None: the global provider's. Needs profile_kernels. In
        a program that has set a provider (`trace.set_tracer_provider`) every call is given by itself, as a child of the
        span around it."""
        if not self.config.profile_kernels:
            raise refusing("export_spans: expected a manager with profile_kernels, got one that times nothing")
        return self._exporter.export(tracer)

    def reset(self) -> None:
        """Forgets counts, times, and what report() measured."""
        self._core.reset()
        self._gains.reset()

    def __reduce__(self):
        raise refusing(
            "KernelFusionManager: expected to be made where it is used, got a copy or pickle of one: "
            "KernelFusionManager(manager.config), and register_custom_kernel again"
        )

    # Within

    def _run(self, call: tuple, config: KernelFusionConfig, out, stream):
        op, fields, transposed, rows, leading = call
        if self._custom:
            kind = "torch" if any(type(x).__module__.startswith("torch") for x in fields.values()) else "numpy"
            for kernel in self._custom:
                kernel.lend_as(kind)
        queue = None if stream is None else _queue(stream)
        if self._recording:
            config = replace(config, use_cuda_graph=True)
        try:
            results = self._call(op, fields, config.bound(), transposed, rows, queue)
        except InvalidArgumentError as error:
            operand = error.context.get("operand")
            if operand in transposed and len(shape := getattr(fields[operand], "shape", ())) == 2:
                raise _of_a_transposed(error, operand, list(shape)) from None
            raise _with_advice(error, fields, transposed) from None
        if leading is not None:
            results = operators.with_leading(results, leading)
        if out is None or results is None:
            return results
        if isinstance(out, bool):
            raise refusing(f"{op}: out: expected an array to write to, got {out}")
        return (out, *results[1:]) if isinstance(results, tuple) else out

    def _elsewhere(self, config: KernelFusionConfig, tensor) -> KernelFusionProtocol | None:
        """The registered backend that the configuration names or that claims the tensor's device."""
        name = None
        if config.backend not in _OWN_BACKENDS:
            name = ALIASES.get(config.backend, config.backend)
        elif claims := KernelFusionBackendRegistry._claims:
            name = claims.get(getattr(getattr(tensor, "device", None), "type", None))
        if name is None:
            return None
        backend_class = KernelFusionBackendRegistry.backend_class(name)
        if backend_class is type(self) or getattr(backend_class, "is_builtin", False):
            return None
        if backend_class not in self._others:
            self._others[backend_class] = KernelFusionBackendRegistry.get(name)
        return self._others[backend_class]


def _checked(config) -> KernelFusionConfig:
    if not isinstance(config, KernelFusionConfig):
        raise refusing(f"config: expected a KernelFusionConfig, got {type(config).__name__}")
    return config


def _of_a_transposed(error: InvalidArgumentError, operand: str, shape: list[int]) -> InvalidArgumentError:
    """The op takes a weight as [out, in]; the caller gave it as x @ W has it, and shall read of what was given."""
    advice = f'{operand} was given as {shape}, which weight_layout="in_out" reads as [in, out] (x @ W)'
    return InvalidArgumentError(f'{error.message}; {advice}: torch.nn.Linear\'s is "out_in"', error.context)


def _with_advice(error: InvalidArgumentError, fields: dict, transposed: tuple) -> InvalidArgumentError:
    """What to do with arrays that DLPack has no form for: torch's sparse tensors, JAX's tracers. Others as they are."""
    for name, value in fields.items():
        if f": {name}: expected an array" not in error.message:
            continue
        given = f"{name}.t()" if name in transposed else name
        if "sparse" in str(getattr(value, "layout", "")):
            advice = f'pass kf.sparsify({given}, "unstructured")'
        elif type(value).__name__.endswith("Tracer"):
            advice = "call it outside jax.jit, jax.vmap and jax.grad, or by jax.pure_callback"
        else:
            continue
        return InvalidArgumentError(f"{error.message}; {advice}", error.context)
    return error


def _queue(stream) -> int:
    if (handle := handle_of(stream)) is None or not 0 <= handle < 2**64:
        what = type(stream).__name__ if handle is None else handle
        raise refusing(f"stream: expected a handle of 64 bits or an object with cuda_stream, got {what}")
    return handle


@cache
def _defaults(method: str) -> dict:
    parameters = inspect.signature(getattr(KernelFusionManager, method)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _hand_over(other: KernelFusionProtocol, method: str, given: dict, positional: tuple[str, ...]):
    """The call on another backend, with the options that were given."""
    function = getattr(other, method, None)
    if function is None:
        raise NotServedError(f"{type(other).__name__} has no {method}", {"backend": type(other).__name__})
    options = {name: given[name] for name, default in _defaults(method).items() if given[name] is not default}
    return function(*(given[name] for name in positional), given["config"], **options)
