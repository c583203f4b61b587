"""fuse_model puts the fused operators into a model of transformers or torch, in place; unfuse_model takes them out.

A module is replaced by giving the instance another `forward`; its parameters stay where they are and are read at every
call, so nothing is copied, and taking the attribute away restores the module bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType, SimpleNamespace

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ..config import KernelFusionConfig
from ..errors import KernelFusionError, refusing
from ..manager import KernelFusionManager
from ..torch_precision import allows_tf32
from . import decoder_layer, modules
from .attention_interface import NAME, register_attention
from .calls import STATE, Calls
from .modules import Fused

_ROOT = "_kernel_fusion_model"  # of the model that was given: what unfuse_model restores besides its modules
# Asked by transformers' generate(): whether to compile a step over a static cache, which on a GPU it does unasked.
# Graphs end at every fused call, so nothing is gained.
_COMPILES = "_valid_auto_compile_criteria"


@dataclass
class FusedModules:
    """What fuse_model did. `fused`: (module, what it is now); `refused`: (module, why it was left as it was)."""

    manager: KernelFusionManager
    fused: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{name}: {what}" for name, what in self.fused]
        return "\n".join(lines + [f"{name}: left as it was: {why}" for name, why in self.refused])


@dataclass(frozen=True)
class _Form:
    """A kind of module that has a fused form."""

    what: str
    is_one: Callable[[nn.Module], bool]
    plan: Callable[[nn.Module], SimpleNamespace | str]
    forward: Callable
    probe: Callable[[nn.Module, SimpleNamespace], tuple[tuple, dict]]


def _rows(module: nn.Module, plan: SimpleNamespace) -> tuple[tuple, dict]:
    return modules.probe(module, plan.width), {}


def _is_rms_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.RMSNorm) or type(module).__name__.endswith("RMSNorm")


# In this order: what lies within a fused module is not looked at.
_FORMS = (
    _Form(
        "decoder layer", decoder_layer.is_decoder_layer, decoder_layer.plan_decoder_layer,
        decoder_layer.decoder_layer_forward, decoder_layer.probe,
    ),
    _Form("gated_ffn", modules.is_gated_ffn, modules.plan_gated_ffn, modules.gated_ffn_forward, _rows),
    _Form("rms_norm", _is_rms_norm, modules.plan_rms_norm, modules.rms_norm_forward, _rows),
    _Form(
        "layer_norm", lambda m: isinstance(m, nn.LayerNorm), modules.plan_layer_norm, modules.layer_norm_forward, _rows
    ),
)  # fmt: skip
_HEAD = _Form("linear", lambda module: False, modules.plan_linear, modules.linear_forward, _rows)


def fuse_model(
    model: nn.Module, config: KernelFusionConfig | None = None, *, manager: KernelFusionManager | None = None
) -> FusedModules:
    """Makes a model call fused operators, in place; for inference, on the CPU, a GPU or an accelerator of `vendors`, in
    f32, f16 or bf16.

    transformers' Llama, Qwen2, Qwen3, Mistral, Phi-3, Gemma 2 and Gemma 3: whole decoder layers (norms, the QKV layers,
    rotation, attention over any of its caches, the gated FFN, residuals), and the last layer. In any other model,
    torch's or transformers': RMS and layer norms, and gated FFNs. Before a kind of module is replaced, it is compared
    with its fused form on random operands, in f32.

    config: as the manager's: what a switch turns off runs unfused; a manager of your own (with custom kernels) may be
    given in its place. With neither, products of f32 are TF32 where torch's own may be. Weights are shared with the
    model, and read at every call. Returns what was fused, what was not and why, and the manager, whose report() tells
    what was gained. unfuse_model(model) restores the model.

    While it is fused: calls under torch.no_grad() or inference_mode() (generate() is); no dropout, attention weights or
    pickling (state_dict and save_pretrained are as ever); hooks on modules within a fused one do not run."""
    if not isinstance(model, nn.Module):
        raise refusing(f"fuse_model: model: expected a torch.nn.Module, got {type(model).__name__}")
    if any(STATE in module.__dict__ for module in model.modules()):
        raise refusing("fuse_model: model: expected one that is not fused, got one that is: unfuse_model(model) first")
    if not isinstance(manager, KernelFusionManager | None):
        raise refusing(f"fuse_model: manager: expected a KernelFusionManager, got {type(manager).__name__}")
    if config is None and manager is None:
        config = KernelFusionConfig(enable_tf32=allows_tf32())
    manager = KernelFusionManager(config) if manager is None else manager
    calls = Calls(manager, manager.config if config is None else config)
    done = FusedModules(manager)
    heads = {id(m.get_output_embeddings()) for m in model.modules() if hasattr(m, "get_output_embeddings")}
    known: dict[tuple, str | None] = {}
    within: tuple[str, ...] = ()
    for name, module in list(model.named_modules()):
        if name.startswith(within):
            continue
        form = _HEAD if id(module) in heads else next((form for form in _FORMS if form.is_one(module)), None)
        if form is None:
            if type(module).__name__.endswith("Attention"):
                done.refused.append((name, "attention outside of a decoder layer that is known"))
            continue
        plan = form.plan(module)
        if not isinstance(plan, str):
            kind = (type(module), repr(plan))
            if kind not in known:
                known[kind] = _difference(form, module, plan, calls)
            plan = known[kind] or plan
        if isinstance(plan, str):
            done.refused.append((name, plan))
            continue
        _replace(form, module, plan, calls)
        done.fused.append((name, form.what))
        within += (f"{name}.",) if name else ("",)
    model.__dict__[_ROOT] = _use_attention(model, calls, done)
    if hasattr(model, _COMPILES):
        model.__dict__[_COMPILES] = _never
    return done


def unfuse_model(model: nn.Module) -> nn.Module:
    """Restores a model that fuse_model has changed, bit for bit; returns it."""
    if not isinstance(model, nn.Module) or _ROOT not in model.__dict__:
        raise refusing("unfuse_model: model: expected one that fuse_model has changed")
    for module in model.modules():
        if module.__dict__.pop(STATE, None) is not None:
            module.__dict__.pop("forward", None)
    model.__dict__.pop(_COMPILES, None)
    for config, implementation in model.__dict__.pop(_ROOT):
        config._attn_implementation_internal = implementation
    return model


def _never(*args, **kwargs) -> bool:
    return False


def _replace(form: _Form, module: nn.Module, plan: SimpleNamespace, calls: Calls) -> None:
    # Bound methods, which copies of the model bind to themselves.
    module.__dict__[STATE] = Fused(calls, plan)
    module.__dict__["forward"] = MethodType(form.forward, module)


def _use_attention(model: nn.Module, calls: Calls, done: FusedModules) -> list[tuple]:
    """Has transformers make the masks that fused layers take, and call the same attention from layers of the same
    model that were refused. Returns the configurations that were changed, with what they were."""
    layers = [m for m in model.modules() if STATE in m.__dict__ and decoder_layer.is_decoder_layer(m)]
    configs = {id(layer.self_attn.config): layer.self_attn.config for layer in layers}
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    for config in configs.values():
        config._attn_implementation_internal = register_attention()
    fused = {id(layer.self_attn) for layer in layers}
    for name, module in model.named_modules():
        calls_it = type(module).__name__.endswith("Attention") and id(getattr(module, "config", None)) in configs
        if calls_it and id(module) not in fused:
            module.__dict__[STATE] = Fused(calls, SimpleNamespace())
            done.fused.append((name, f"attention, by transformers' interface, as {NAME}"))
    return before


# f32 sums over some ten thousand elements, in another order: their square root times 2^-24 is 6e-6, and an output goes
# through a handful of such sums, softmax and norms.
_TOLERANCE = 1e-4
# Elsewhere a model is tried in its own dtype, which may be all that the device's operators take: some tens of
# roundings of its values, and of the intermediates that only one side keeps in f32.
_ROUGH = {torch.float32: _TOLERANCE, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def _difference(form: _Form, module: nn.Module, plan: SimpleNamespace, calls: Calls) -> str | None:
    """How a module and its fused form differ, on the CPU in f32; None: they do not."""
    weight = next(module.parameters())
    on_cpu = weight.device.type == "cpu"
    trial = copy.deepcopy(module).eval()
    if on_cpu:
        trial.float()
    args, kwargs = form.probe(module, plan)
    fused_kwargs = kwargs
    if not on_cpu:
        args, kwargs = tree_map_only(torch.Tensor, lambda x: x.to(weight.device, weight.dtype), (args, kwargs))
        fused_kwargs = dict(kwargs)
        if "attention_mask" in kwargs:  # a causal one, for which transformers gives the fused form none
            fused_kwargs["attention_mask"] = None
    for part in trial.modules():
        if hasattr(getattr(part, "config", None), "_attn_implementation_internal"):
            part.config._attn_implementation_internal = "eager"  # a copy's
    try:
        with torch.no_grad():
            expected = trial(*args, **kwargs)
            # Under a manager of its own: a trial is no call of the model's.
            _replace(form, trial, plan, Calls(KernelFusionManager(calls.config), calls.config))
            got = trial(*args, **fused_kwargs)
    except (KernelFusionError, RuntimeError, TypeError, ValueError) as error:
        return f"the fused form was not served: {error}"
    finally:
        trial.__dict__.pop(
            "forward", None
        )  # it is bound to the trial, whose weights would wait for a collector of cycles
    # Of a layer, what it adds: its input would cover differences.
    change = expected - args[0] if form.what == "decoder layer" else expected
    difference, scale = float((got - expected).abs().max()), float(change.abs().max())
    rough = weight.dtype
    if rough == torch.float32 and (calls.config.enable_tf32 or allows_tf32()):
        rough = torch.float16  # TF32's factors have its 11 bits
    if difference <= (_TOLERANCE if on_cpu else _ROUGH[rough]) * scale:
        return None
    return f"the fused form differs by {difference:g} of {scale:g} on random operands: its forward is another one"
