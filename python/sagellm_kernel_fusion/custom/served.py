"""What a custom kernel may serve: the manager's operators as forms of the library's ops."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from .. import _kf
from ..errors import refusing


@dataclass(frozen=True)
class Served:
    """An op, or the form of it that an operator of the manager's is.

    names: what a kernel calls a field, where that is not the field's name. transposed: fields whose matrices a kernel
    gets as x @ W has them. fixed: the values that an attribute of this form has.
    """

    op: str
    names: Mapping[str, str] = field(default_factory=dict)  # the kernel's name -> the field's
    transposed: tuple[str, ...] = ()
    fixed: Mapping[str, tuple] = field(default_factory=dict)

    def field_of(self, name: str) -> str:
        return self.names.get(name, name)

    def declines(self, fields: Mapping, taken: Collection[str], kernel: str) -> str | None:
        """Why a call is not of this form, or of one that a kernel of the fields `taken` could mind; None: it is."""
        for attribute, values in self.fixed.items():
            if fields[attribute] not in values:
                expected = values[0] if len(values) == 1 else f"one of {', '.join(values)}"
                return f"{attribute} {fields[attribute]}: this kernel serves {expected}"
            if attribute not in taken and fields[attribute] != values[0]:
                return f"{attribute} {fields[attribute]}: no parameter of {kernel} names it"
        return None


_FFN = ("gate_weight", "up_weight", "down_weight")
_NO_NORM = {"norm": ("none",)}
_NO_ACTIVATION = {"pre_activation": ("none",)}
_LAYER_NORM_LINEAR = Served(
    "linear",
    {"ln_weight": "norm_weight", "ln_bias": "norm_bias", "linear_weight": "weight"},
    ("weight",),
    {"norm": ("layer",)} | _NO_ACTIVATION,
)

OPERATORS = {
    "attention": Served("attention"),
    "ffn": Served("gated_ffn", transposed=_FFN, fixed=_NO_NORM | _NO_ACTIVATION),
    "layernorm_linear": _LAYER_NORM_LINEAR,
    "ln_linear": _LAYER_NORM_LINEAR,
    "rmsnorm_linear": Served("linear", {"linear_weight": "weight"}, ("weight",), {"norm": ("rms",)} | _NO_ACTIVATION),
    "gelu_linear": Served("linear", {}, ("weight",), {"pre_activation": ("gelu_tanh", "gelu")} | _NO_NORM),
    "silu_linear": Served("linear", {}, ("weight",), {"pre_activation": ("silu",)} | _NO_NORM),
    "rmsnorm": Served("rms_norm"),
    "layernorm": Served("layer_norm"),
    "softmax": Served("softmax"),
    "activation": Served("activation"),
}


def served(name: str) -> Served:
    """By an operator's name or an op's."""
    if isinstance(name, str):
        if found := OPERATORS.get(name):
            return found
        if name in _kf.ops():
            return Served(name)
    raise refusing(
        f"custom kernel: op: expected one of {', '.join(OPERATORS)}, or an op of the library "
        f"({', '.join(_kf.ops())}); got {name!r}"
    )
