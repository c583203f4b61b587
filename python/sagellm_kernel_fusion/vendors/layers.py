"""Linear layers with what comes before and after them, and the gated FFN, of a device's own operators one after
another: what differs between devices is what they are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .compositions import argmax, shifted


@dataclass(frozen=True)
class Layers:
    """activate(x, kind); rms_norm(x, weight, eps=) and layer_norm(x, weight, bias, eps=); product(x, weight, bias,
    residual, activation): act(x @ weight^T + bias) + residual; gated(gate, up, activation). Without products: what
    stands around those of others."""

    activate: Callable
    rms_norm: Callable
    layer_norm: Callable
    product: Callable | None = None
    gated: Callable | None = None

    def before(self, x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset=0.0):
        if norm == "rms":
            x = self.rms_norm(x, shifted(norm_weight, norm_weight_offset), eps=eps)
        elif norm == "layer":
            x = self.layer_norm(x, norm_weight, norm_bias, eps=eps)
        return x if pre_activation == "none" else self.activate(x, pre_activation)

    def linear(
        self, x, weight, bias=None, residual=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
        pre_activation="none", activation="none", norm_weight_offset=0.0,
    ):  # fmt: skip
        y = self.before(x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset)
        return self.product(y, weight, bias, residual, activation)

    def qkv_linear(
        self, x, q_weight, k_weight, v_weight, k, v, q_bias=None, k_bias=None, v_bias=None, norm="none",
        norm_weight=None, norm_bias=None, eps=1e-5, pre_activation="none", norm_weight_offset=0.0,
    ):  # fmt: skip
        y = self.before(x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset)
        k[...] = self.product(y, k_weight, k_bias, None, "none")
        v[...] = self.product(y, v_weight, v_bias, None, "none")
        return self.product(y, q_weight, q_bias, None, "none")

    def gated_ffn(
        self, x, gate_weight, up_weight, down_weight, residual=None, norm="none", norm_weight=None, norm_bias=None,
        eps=1e-5, pre_activation="none", activation="silu", norm_weight_offset=0.0,
    ):  # fmt: skip
        y = self.before(x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset)
        return self.product(self.gated(y, gate_weight, up_weight, activation), down_weight, None, residual, "none")

    def lm_head_argmax(
        self, x, weight, max=None, norm="none", norm_weight=None, norm_bias=None, eps=1e-5, pre_activation="none",
        norm_weight_offset=0.0,
    ):  # fmt: skip
        y = self.before(x, norm, norm_weight, norm_bias, eps, pre_activation, norm_weight_offset)
        return argmax(self.product(y, weight, None, None, "none"), max)

    def after(self, y, bias, residual, activation):
        """What a product without them leaves to do."""
        y = y if bias is None else y + bias
        y = y if activation == "none" else self.activate(y, activation)
        return y if residual is None else y + residual


def operands_of_layer(x, **rest) -> dict:
    """Those of a layer's operands that are to be of one dtype, by name."""
    from .layouts import prologue_and_epilogue

    operands = {"x": x} | {n: v for n, v in rest.items() if hasattr(v, "dtype") and n.endswith("weight")}
    return operands | prologue_and_epilogue(**rest)
