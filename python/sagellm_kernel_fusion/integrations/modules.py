"""Modules that are replaced one by one: norms and gated FFNs, of torch's and of transformers' models.

A `plan_*` function returns the arguments that the fused form needs, or a string: why there is none. A `*_forward`
stands in for the module's own.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from ..vendors import device_problem
from .calls import STATE, Calls, parameter

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def problem_of(module: nn.Module, *weights: nn.Module) -> str | None:
    """What speaks against calling kernels on the weights of these modules instead of the modules."""
    for part in (module, *weights):
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        if part is not module and any(hooks):
            return f"{type(part).__name__} has hooks, which would not run"
        if "forward" in part.__dict__:
            return f"{type(part).__name__} has another forward already"
        for parameter_ in part._parameters.values():
            if parameter_ is None:
                continue
            if parameter_.device.type != "cpu" and (problem := device_problem(parameter_.device.type)):
                return f"weights on {parameter_.device}: {problem}"
            if parameter_.dtype not in DTYPES:
                return f"weights of {parameter_.dtype}: expected float32, float16 or bfloat16"
    return None


def linears_problem(**layers: nn.Module) -> str | None:
    """Only torch's own Linear is known to be x @ weight^T + bias: adapters and quantized layers compute more."""
    for name, layer in layers.items():
        if type(layer) is not nn.Linear:
            return f"{name} is a {type(layer).__name__}, not torch.nn.Linear"
    return None


# Norms


def norm_arguments(module: nn.Module) -> dict | str:
    """norm_weight, eps and norm_weight_offset of an RMS norm of the Llama family's or Gemma's."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = module._parameters.get("weight")
    if not isinstance(eps, float) or weight is None or weight.dim() != 1 or len(module._parameters) != 1:
        return "not weight [n] and eps"
    return {"eps": eps, "offset": 1.0 if type(module).__name__.startswith("Gemma") else 0.0}


def plan_rms_norm(module: nn.Module) -> SimpleNamespace | str:
    if isinstance(module, nn.RMSNorm):
        if len(module.normalized_shape) != 1 or module.weight is None:
            return "expected one normalised dimension and a weight"
        eps = torch.finfo(module.weight.dtype).eps if module.eps is None else module.eps
        found = {"eps": eps, "offset": 0.0}
    else:
        found = norm_arguments(module)
    if isinstance(found, str):
        return found
    return problem_of(module) or SimpleNamespace(width=module.weight.shape[0], **found)


def rms_norm_forward(self: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    fused = getattr(self, STATE)
    fields = {"x": hidden_states, "weight": parameter(self), "eps": fused.plan.eps, "weight_offset": fused.plan.offset}
    return fused.calls("rms_norm", fields)


def plan_layer_norm(module: nn.LayerNorm) -> SimpleNamespace | str:
    if len(module.normalized_shape) != 1 or module.weight is None:
        return "expected one normalised dimension and a weight"
    return problem_of(module) or SimpleNamespace(width=module.normalized_shape[0], eps=module.eps)


def layer_norm_forward(self: nn.LayerNorm, input: torch.Tensor) -> torch.Tensor:
    fused = getattr(self, STATE)
    fields = {"x": input, "weight": parameter(self), "bias": parameter(self, "bias"), "eps": fused.plan.eps}
    return fused.calls("layer_norm", fields)


# Gated FFNs


def activation_name(function) -> str | None:
    """The library's name of an activation module or function; None where it has none."""
    kind = type(function).__name__
    if kind in ("SiLU", "SiLUActivation") or function is nn.functional.silu:
        return "silu"
    if kind in ("GELUTanh", "PytorchGELUTanh", "NewGELUActivation"):
        return "gelu_tanh"
    if kind in ("GELU", "GELUActivation"):
        return "gelu_tanh" if getattr(function, "approximate", "none") == "tanh" else "gelu"
    if kind == "ReLU":
        return "relu"
    return None


def plan_gated_ffn(module: nn.Module) -> SimpleNamespace | str:
    """Of down(act(gate(x)) * up(x)) as the Llama family has it, or with gate and up in one layer, as Phi-3."""
    merged = "gate_up_proj" in module._modules
    names = ("gate_up_proj", "down_proj") if merged else ("gate_proj", "up_proj", "down_proj")
    layers = {name: module._modules[name] for name in names}
    if problem := linears_problem(**layers) or problem_of(module, *layers.values()):
        return problem
    if any(layer.bias is not None for layer in layers.values()):
        return "layers with biases: gated_ffn has none"
    function = getattr(module, "act_fn", getattr(module, "activation_fn", None))
    activation = activation_name(function)
    if activation is None:
        return f"activation {type(function).__name__}: expected SiLU, GELU or ReLU"
    return SimpleNamespace(width=layers[names[0]].in_features, merged=merged, activation=activation)


def ffn_weights(module: nn.Module, merged: bool) -> dict:
    layers = module._modules
    if merged:
        gate, up = parameter(layers["gate_up_proj"]).chunk(2)
    else:
        gate, up = parameter(layers["gate_proj"]), parameter(layers["up_proj"])
    return {"gate_weight": gate, "up_weight": up, "down_weight": parameter(layers["down_proj"])}


def gated_ffn_forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    fused = getattr(self, STATE)
    fields = {"x": x, **ffn_weights(self, fused.plan.merged), "activation": fused.plan.activation}
    return fused.calls("gated_ffn", fields, rows=True)


def is_gated_ffn(module: nn.Module) -> bool:
    names = module._modules
    return "down_proj" in names and ("gate_up_proj" in names or ("gate_proj" in names and "up_proj" in names))


# The last layer. Nothing is fused with it, but it then computes with the same threads as the layers before it: torch's
# have a pool of their own, and two pools that wait for work in turns take the cores from each other.


def plan_linear(module: nn.Linear) -> SimpleNamespace | str:
    return linears_problem(head=module) or problem_of(module) or SimpleNamespace(width=module.in_features)


def linear_forward(self: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    fields = {"x": input, "weight": parameter(self), "bias": parameter(self, "bias")}
    return getattr(self, STATE).calls("linear", fields, rows=True)


def probe(module: nn.Module, width: int):
    """Operands to compare a module and its fused form on."""
    return (torch.randn(3, 5, width, generator=torch.Generator().manual_seed(0)),)


class Fused:
    """A module's state: what to call, with what."""

    def __init__(self, calls: Calls, plan: SimpleNamespace):
        self.calls, self.plan = calls, plan
