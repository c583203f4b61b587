"""Linear layers whose weights are codes with scales beside them, of a device's products of such weights: what differs
between devices is these, and what they do not take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..adapters.conditions import dtypes, not_empty
from .layers import Layers
from .layouts import prologue_and_epilogue

WEIGHTS = {
    "linear": ("weight",),
    "qkv_linear": ("q_weight", "k_weight", "v_weight"),
    "gated_ffn": ("gate_weight", "up_weight", "down_weight"),
}

AS_THEY_ARE, ROUNDED = {"input_quantization": ("none",)}, {"input_quantization": ("int8",)}  # of inputs: what rows fix


class Codes(NamedTuple):
    """A weight [out, in] of codes: (code - zero) * scale, a scale an output or for each `group` inputs of it. name: the
    operand's, in reasons."""

    name: str
    weight: Any
    scales: Any
    zeros: Any = None
    group: int = 0


@dataclass(frozen=True)
class LowBitLayers:
    """around: the device's norms and activations. enter(y): what products of one input share. product(entered, codes,
    bias): what is entered times a weight, and the bias, in the dtype that the layer was given."""

    around: Layers
    enter: Callable
    product: Callable

    def _entered(self, *prologue):
        return self.enter(self.around.before(*prologue))

    def linear(
        self, x, weight, bias=None, residual=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
        pre_activation="none", activation="none", weight_scales=None, weight_zeros=None, weight_group_size=0,
        input_quantization="none", norm_weight_offset=0.0,
    ):  # fmt: skip
        y = self._entered(x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset)
        y = self.product(y, Codes("weight", weight, weight_scales, weight_zeros, weight_group_size), bias)
        return self.around.after(y, None, residual, activation)

    def qkv_linear(
        self, x, q_weight, k_weight, v_weight, k, v, q_bias=None, k_bias=None, v_bias=None, norm="none",
        norm_weight=None, norm_bias=None, eps=1e-5, pre_activation="none", q_weight_scales=None, k_weight_scales=None,
        v_weight_scales=None, q_weight_zeros=None, k_weight_zeros=None, v_weight_zeros=None, q_weight_group_size=0,
        k_weight_group_size=0, v_weight_group_size=0, input_quantization="none",
        norm_weight_offset=0.0,
    ):  # fmt: skip
        y = self._entered(x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset)
        k[...] = self.product(y, Codes("k_weight", k_weight, k_weight_scales, k_weight_zeros, k_weight_group_size),
                              k_bias)  # fmt: skip
        v[...] = self.product(y, Codes("v_weight", v_weight, v_weight_scales, v_weight_zeros, v_weight_group_size),
                              v_bias)  # fmt: skip
        return self.product(
            y, Codes("q_weight", q_weight, q_weight_scales, q_weight_zeros, q_weight_group_size), q_bias
        )

    def gated_ffn(
        self, x, gate_weight, up_weight, down_weight, residual=None, norm="none", norm_weight=None, norm_bias=None,
        eps=1e-5, pre_activation="none", activation="silu", gate_weight_scales=None, up_weight_scales=None,
        down_weight_scales=None, gate_weight_zeros=None, up_weight_zeros=None, down_weight_zeros=None,
        gate_weight_group_size=0, up_weight_group_size=0, down_weight_group_size=0, input_quantization="none",
        norm_weight_offset=0.0,
    ):  # fmt: skip
        y = self._entered(x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset)
        gate = Codes("gate_weight", gate_weight, gate_weight_scales, gate_weight_zeros, gate_weight_group_size)
        up = Codes("up_weight", up_weight, up_weight_scales, up_weight_zeros, up_weight_group_size)
        down = Codes("down_weight", down_weight, down_weight_scales, down_weight_zeros, down_weight_group_size)
        hidden = self.around.activate(self.product(y, gate, None), activation) * self.product(y, up, None)
        return self.around.after(self.product(self.enter(hidden), down, None), None, residual, "none")


def declines_of(
    op: str, problem: Callable, around: Callable[..., str | None] = lambda x, **rest: None
) -> Callable[..., str | None]:
    """problem(x, codes): why a weight is none for the device; around: what else it does not take of a layer."""

    def declines(x, **rest) -> str | None:
        for name in WEIGHTS[op]:
            parts = (rest.get(f"{name}_{part}") for part in ("scales", "zeros"))
            codes = Codes(name, rest[name], *parts, rest.get(f"{name}_group_size", 0))
            if reason := problem(x, codes):
                return reason
        operands = {"x": x} | prologue_and_epilogue(**rest)
        return around(x, **rest) or dtypes(operands, ("f16", "bf16")) or not_empty(operands)

    return declines


def are_codes(codes: Codes, *taken: str) -> str | None:
    """Why a weight is none of codes of these dtypes with scales."""
    if codes.weight.dtype not in taken:
        return f"{codes.name} is {codes.weight.dtype}: this kernel takes {' and '.join(taken)} with scales"
    return f"{codes.name} has no scales: this kernel takes it with scales" if codes.scales is None else None


def a_scale_an_output(codes: Codes) -> str | None:
    outputs = codes.weight.shape[0]
    if codes.zeros is None and list(codes.scales.shape) in ([outputs, 1], [outputs]):
        return None
    return f"{codes.name} has zeros or groups: this kernel takes a scale an output"


def scales_in_dtype_of(x, codes: Codes) -> str | None:
    """Why an operator that has scales in x's dtype alone does not take these: rounded, they would be off by as much in
    the whole of an output, which sums of it with a bias or a residual show."""
    if codes.scales.dtype == x.dtype:
        return None
    return (
        f"{codes.name}_scales is {codes.scales.dtype}, x {x.dtype}: this kernel takes one dtype (kf.quantize: "
        "scales_dtype)"
    )
