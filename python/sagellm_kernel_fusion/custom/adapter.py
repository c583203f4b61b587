"""A Python function as a kernel: which calls it accepts, and its call with arrays of the caller's kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cached_property

import ml_dtypes
import numpy as np

from .. import _kf
from ..errors import InvalidArgumentError, KernelFusionError, refusing
from ..queues import on_queue
from .served import Served

_CARRIED = {"bf16": ml_dtypes.bfloat16, "fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}


def as_array(lent: _kf.TypedArray, kind: str):
    """An operand lent to a kernel as a NumPy array or a tensor of torch's or Paddle's over the same memory."""
    if kind == "torch":
        return lent.torch()
    if kind == "paddle":
        import paddle

        return paddle.from_dlpack(lent.dlpack())
    array = lent.numpy()
    return array.view(_CARRIED[lent.dtype]) if lent.dtype in _CARRIED else array


def write_array(out, result, kind: str) -> None:
    """An output's elements, converted to its type."""
    if kind == "torch":
        out[...] = result
    elif kind == "paddle":
        out.copy_(result.astype(out.dtype), False)
    else:
        out[...] = np.asarray(result)


def _on_queue(stream: int, arrays, kind: str):
    """The device's queue of this handle (0: its default one) as torch's current one, where there are tensors of torch's
    on a device."""
    if kind != "torch":
        return nullcontext()
    device = next((d for a in arrays if getattr(d := getattr(a, "device", None), "type", "cpu") != "cpu"), None)
    return nullcontext() if device is None else on_queue(device.type, device.index or 0, stream)


class Adapter:
    """`supports(fields)` and `run(fields)` as a row has them, over a function of named operands.

    The function is given what its parameters name (all that a call has, with **kwargs): operands as arrays, attributes
    as values. It returns the result, or several in a tuple, or writes to the outputs that its parameters name. A call
    is declined that has an operand, or an attribute that is not at its default, which no parameter names: the function
    could not mind it. A parameter `tf32` is given whether the call lets products of f32 round their
    factors to TF32."""

    def __init__(
        self,
        name: str,
        function: Callable,
        form: Served,
        *,
        what: str = "a Python function",
        named: str | None = None,
        declines: Callable[..., str | None] | None = None,
        kind: str | None = None,
    ):
        self.name, self.function, self.form, self.what, self._declines = name, function, form, what, declines
        self._named = named or f"custom kernel {name}"  # in errors
        self._only_kind = kind  # "numpy", "torch" or "paddle" where the function takes no other
        self.kind = kind or "numpy"
        fields = _kf.ops()[form.op]["fields"]
        self.outputs = [f["name"] for f in fields if f["kind"] == "tensor" and f["role"] != "in"]
        self.defaults = {f["name"]: f["default"] for f in fields if f["kind"] != "tensor"}
        self._takes_tf32 = "tf32" in self._signature(function)
        self.takes_all, self.names = self._parameters(function, [f["name"] for f in fields])

    def _signature(self, function: Callable) -> Mapping[str, inspect.Parameter]:
        try:
            return inspect.signature(function).parameters
        except (TypeError, ValueError) as error:  # of builtins
            raise refusing(f"{self._named}: expected a function whose parameters can be read: {error}") from error

    def _parameters(self, function: Callable, known: list[str]) -> tuple[bool, list[str]]:
        parameters = self._signature(function).values()
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        for p in parameters:
            known_name = self.form.field_of(p.name) in known or p.name == "tf32"
            if p.name in names and not known_name and p.default is p.empty:
                raise refusing(
                    f"{self._named}: parameter {p.name}: expected a name among {', '.join([*self.form.names, *known])}"
                )
        return takes_all, [name for name in names if self.form.field_of(name) in known]

    def lend_as(self, kind: str) -> None:
        """What arrays are lent as from now on: the kind of the call's own."""
        self.kind = self._only_kind or kind

    @cached_property
    def taken(self) -> set[str]:
        """Fields that the function is given."""
        return {self.form.field_of(name) for name in self.names}

    def supports(self, fields: Mapping) -> str | None:
        """Why the kernel does not serve a call, its operands given as layouts; None: it does."""
        every = self.form.fixed if self.takes_all else self.taken
        if reason := self.form.declines(fields, every, self.name):
            return reason
        if not self.takes_all:
            for name, value in fields.items():
                if name in self.taken or value is None or name in self.form.fixed:
                    continue
                if name in self.outputs:
                    if name != self.outputs[0]:
                        return f"{name} is wanted, which no parameter of {self.name} names"
                elif name not in self.defaults:
                    return f"{name} is given, which no parameter of {self.name} names"
                elif not _same(value, self.defaults[name]):
                    return f"{name} {value}: no parameter of {self.name} names it"
        if self._declines is None:
            return None
        try:
            return self._declines(**{k: v for k, v in fields.items() if v is not None})
        except Exception as error:
            return f"supports() raised {type(error).__name__}: {error}"

    def run(self, fields: Mapping, stream: int, tf32: bool = False) -> None:
        """One call, enqueued on the device's queue of this handle."""
        arrays = {name: self._value(name, value) for name, value in fields.items()}
        given = {name: arrays[self.form.field_of(name)] for name in self.names}
        if self.takes_all:
            renamed = {field: name for name, field in self.form.names.items()}
            given = {renamed.get(name, name): value for name, value in arrays.items()} | given
        if self._takes_tf32:
            given["tf32"] = tf32
        with _on_queue(stream, arrays.values(), self.kind):
            try:
                results = self.function(**given)
            except KernelFusionError:
                raise
            except Exception as error:
                raise self._wrong(f"raised {type(error).__name__}: {error}") from error
            self._write(results, {name: arrays[name] for name in self.outputs if arrays[name] is not None})

    def _wrong(self, problem: str) -> InvalidArgumentError:
        return refusing(f"{self._named}: {problem}", kernel=self.name, op=self.form.op)

    def _value(self, name: str, value):
        if not isinstance(value, _kf.TypedArray):
            return value
        array = as_array(value, self.kind)
        return array.T if name in self.form.transposed else array

    def _write(self, results, outputs: dict) -> None:
        wanted = [name for name in outputs if self.takes_all or name not in self.taken]
        if results is None:
            if wanted and not self.takes_all:
                raise self._wrong(f"expected a result for {', '.join(wanted)}, got none")
            return
        results = results if isinstance(results, tuple) else (results,)
        names = wanted if len(wanted) == len(results) else list(outputs)
        if len(results) != len(names):
            raise self._wrong(f"expected {len(names)} results, got {len(results)}")
        # All are looked at before any is written.
        for name, result in zip(names, results, strict=True):
            shape = getattr(result, "shape", None)
            if shape is None or tuple(shape) != tuple(outputs[name].shape):
                got = type(result).__name__ if shape is None else list(shape)
                raise self._wrong(f"{name}: expected shape {list(outputs[name].shape)}, got {got}")
        for name, result in zip(names, results, strict=True):
            if result is not outputs[name]:
                write_array(outputs[name], result, self.kind)


def _same(value, default) -> bool:
    return value == default or (isinstance(value, float) and abs(value - default) <= 1e-6 * abs(default))
