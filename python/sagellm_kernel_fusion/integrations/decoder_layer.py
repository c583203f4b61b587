"""Whole decoder layers of transformers' models: five or so calls a layer, norms and residuals within them.

q, k, v = qkv_linear(norm(h));  q, k = rope(q), rope(k);  a = attention(q, cache + k, cache + v)
h = linear(a) + h;  h = gated_ffn(norm(h)) + h                        with a norm before each part (Llama)
h = norm(linear(a)) + h;  h = norm(gated_ffn(norm(h))) + h            with a norm before and after (Gemma)
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from . import modules
from .attention_interface import attend, refuse_unserved
from .calls import STATE, in_inference, parameter

# The layers whose forward is one of the two above, read in transformers 5.23; any other is refused by name, and these
# are compared with the fused form before they are replaced.
NORM_BEFORE = {
    "LlamaDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "MistralDecoderLayer", "Phi3DecoderLayer",
}  # fmt: skip
NORM_BEFORE_AND_AFTER = {"Gemma2DecoderLayer", "Gemma3DecoderLayer"}


def is_decoder_layer(module: nn.Module) -> bool:
    return type(module).__name__.endswith("DecoderLayer") and "self_attn" in module._modules


def plan_decoder_layer(layer: nn.Module) -> SimpleNamespace | str:
    kind = type(layer).__name__
    if kind not in NORM_BEFORE | NORM_BEFORE_AND_AFTER:
        return f"{kind} is not one of {', '.join(sorted(NORM_BEFORE | NORM_BEFORE_AND_AFTER))}"
    parts = layer._modules
    attention, mlp = parts["self_attn"], parts["mlp"]
    if not modules.is_gated_ffn(mlp):
        return f"{type(mlp).__name__} is not a gated FFN"
    ffn = modules.plan_gated_ffn(mlp)
    if isinstance(ffn, str):
        return f"{type(mlp).__name__}: {ffn}"
    names = ("qkv_proj", "o_proj") if "qkv_proj" in attention._modules else ("q_proj", "k_proj", "v_proj", "o_proj")
    layers = {name: attention._modules[name] for name in names}
    head_norms = {name: attention._modules[name] for name in ("q_norm", "k_norm") if name in attention._modules}
    norm_names = [name for name in parts if name.endswith("layernorm")]
    norms = {name: parts[name] for name in norm_names} | head_norms
    everything = [attention, mlp, *mlp._modules.values(), *layers.values(), *norms.values()]
    if problem := modules.linears_problem(**layers) or modules.problem_of(layer, *everything):
        return problem
    arguments = {}
    for name, norm in norms.items():
        arguments[name] = modules.norm_arguments(norm)
        if isinstance(arguments[name], str):
            return f"{name}: {arguments[name]}"
    config = attention.config
    return SimpleNamespace(
        width=config.hidden_size,
        after=kind in NORM_BEFORE_AND_AFTER,
        ffn=ffn,
        norms=arguments,
        head_dim=attention.head_dim,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        rotary_dim=_rotary_dim(config, attention.head_dim),
        softcap=getattr(attention, "attn_logit_softcapping", None) if kind == "Gemma2DecoderLayer" else None,
        dropout=max(attention.attention_dropout, getattr(config, "resid_pdrop", 0.0)),
    )


def _rotary_dim(config, head_dim: int) -> int:
    rope = getattr(config, "rope_parameters", None) or {}
    return int(head_dim * rope.get("partial_rotary_factor", 1.0))


def _prologue(layer: nn.Module, plan: SimpleNamespace, name: str) -> dict:
    found = plan.norms[name]
    weight = parameter(layer._modules[name])
    return {"norm": "rms", "norm_weight": weight, "eps": found["eps"], "norm_weight_offset": found["offset"]}


def _norm(layer: nn.Module, fused: modules.Fused, name: str, x: torch.Tensor) -> torch.Tensor:
    found = fused.plan.norms[name]
    weight = parameter(layer._modules[name])
    return fused.calls("rms_norm", {"x": x, "weight": weight, "eps": found["eps"], "weight_offset": found["offset"]})


def _queries_keys_values(attention: nn.Module, plan: SimpleNamespace) -> dict:
    layers = attention._modules
    if "qkv_proj" in layers:  # in one matrix, without biases
        widths = [plan.num_heads * plan.head_dim, plan.num_kv_heads * plan.head_dim, plan.num_kv_heads * plan.head_dim]
        q, k, v = parameter(layers["qkv_proj"]).split(widths)
        return {"q_weight": q, "k_weight": k, "v_weight": v}
    fields = {}
    for letter in "qkv":
        layer = layers[f"{letter}_proj"]
        fields[f"{letter}_weight"] = parameter(layer)
        if (bias := parameter(layer, "bias")) is not None:
            fields[f"{letter}_bias"] = bias
    return fields


def _rotated(fused: modules.Fused, attention: nn.Module, name: str, x: torch.Tensor, rotation: tuple) -> torch.Tensor:
    tokens, cos, sin = rotation
    fields = {"x": x, "positions": tokens, "cos": cos, "sin": sin}
    if found := fused.plan.norms.get(name):
        fields["norm_weight"] = parameter(attention._modules[name])
        fields["norm_eps"], fields["norm_weight_offset"] = found["eps"], found["offset"]
    return fused.calls("rope", fields)


def decoder_layer_forward(
    self: nn.Module, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, position_ids=None,
    past_key_values=None, use_cache: bool | None = False, position_embeddings=None, **kwargs,
) -> torch.Tensor:  # fmt: skip
    fused = getattr(self, STATE)
    calls, plan = fused.calls, fused.plan
    in_inference(self, plan.dropout)
    attention, mlp = self._modules["self_attn"], self._modules["mlp"]
    refuse_unserved(attention, 0.0, kwargs)
    batch, seqlen, width = hidden_states.shape
    h = hidden_states.reshape(-1, width)

    fields = {"x": h, **_queries_keys_values(attention, plan), **_prologue(self, plan, "input_layernorm")}
    q, k, v = calls("qkv_linear", fields)
    rotation = calls.rotation(*position_embeddings, batch)
    q = _rotated(fused, attention, "q_norm", q.view(-1, plan.num_heads, plan.head_dim), rotation)
    k = _rotated(fused, attention, "k_norm", k.view(-1, plan.num_kv_heads, plan.head_dim), rotation)
    heads = (batch, seqlen, -1, plan.head_dim)
    key, value = k.view(heads).transpose(1, 2), v.view(heads).transpose(1, 2)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, attention.layer_idx)
    causal = getattr(attention, "is_causal", True)
    a = attend(calls, q.view(heads), key, value, attention_mask, attention.scaling, causal, plan.softcap)

    output = attention._modules["o_proj"]
    fields = {"x": a.view(batch * seqlen, -1), "weight": parameter(output), "bias": parameter(output, "bias")}
    ffn = {**modules.ffn_weights(mlp, plan.ffn.merged), "activation": plan.ffn.activation}
    if plan.after:
        h = h + _norm(self, fused, "post_attention_layernorm", calls("linear", fields))
        ffn |= {"x": h, **_prologue(self, plan, "pre_feedforward_layernorm")}
        h = h + _norm(self, fused, "post_feedforward_layernorm", calls("gated_ffn", ffn))
    else:
        h = calls("linear", fields | {"residual": h})
        ffn |= {"x": h, "residual": h, **_prologue(self, plan, "post_attention_layernorm")}
        h = calls("gated_ffn", ffn)
    return h.view(batch, seqlen, width)


def probe(layer: nn.Module, plan: SimpleNamespace) -> tuple[tuple, dict]:
    """Arguments to compare a layer and its fused form on: five tokens, causal, at angles drawn at random."""
    generator = torch.Generator().manual_seed(0)
    seqlen = 5
    hidden = torch.randn(2, seqlen, plan.width, generator=generator)
    angles = torch.randn(1, seqlen, plan.rotary_dim // 2, generator=generator)
    angles = torch.cat((angles, angles), dim=-1)
    mask = torch.full((seqlen, seqlen), torch.finfo(torch.float32).min).triu(1)[None, None]
    return (hidden,), {"attention_mask": mask, "position_embeddings": (angles.cos(), angles.sin())}
