"""Attention as transformers calls it: an entry of its AttentionInterface.

transformers gives query [batch, num_heads, seqlen_q, head_dim], key and value [batch, num_kv_heads, seqlen_k,
head_dim], and a mask made by the entry of the same name in its AttentionMaskInterface: ours is sdpa's, boolean [batch,
1, seqlen_q, seqlen_k] with all that is hidden (padding, sliding windows, the unused rest of a static cache), or None
for causal attention over all keys; of several queries over as many keys, those of a static cache that come first.
"""

from __future__ import annotations

import atexit
from functools import cache

import torch

from ..errors import refusing
from .calls import STATE, Calls

NAME = "kernel_fusion"


def attend(
    calls: Calls, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
    scaling: float | None, causal: bool, softcap: float | None, sinks: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """query [batch, seqlen_q, num_heads, head_dim], key and value as transformers has them; like query."""
    causal, seqlen_q = causal and mask is None, query.shape[1]
    if causal and 1 < seqlen_q < key.shape[2]:  # a prompt into an empty static cache, whose rest is unused
        key, value = key[:, :, :seqlen_q], value[:, :, :seqlen_q]
    fields = {"q": query, "k": key.transpose(1, 2), "v": value.transpose(1, 2), "causal": causal}
    if mask is not None:
        fields["attn_mask"] = mask[..., : key.shape[2]]
    if scaling is not None:
        fields["softmax_scale"] = scaling
    if softcap:
        fields["softcap"] = softcap
    if sinks is not None:
        fields["sinks"] = sinks.float()
    return calls("attention", fields)


def attention_forward(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    is_causal: bool | None = None, softcap: float | None = None, s_aux: torch.Tensor | None = None, **kwargs,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    refuse_unserved(module, dropout, kwargs)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    fused = getattr(module, STATE, None)
    calls = default_calls() if fused is None else fused.calls
    return attend(calls, query.transpose(1, 2), key, value, attention_mask, scaling, causal, softcap, s_aux), None


def refuse_unserved(module: torch.nn.Module, dropout: float, kwargs: dict) -> None:
    refused = {
        "dropout": dropout > 0,
        "output_attentions": bool(kwargs.get("output_attentions")),
        "position_bias": kwargs.get("position_bias") is not None,
        "cache": kwargs.get("cache") is not None,  # continuous batching's own pages
    }
    if wrong := [name for name, is_wanted in refused.items() if is_wanted]:
        raise refusing(
            f"attention of {type(module).__name__}: {', '.join(wrong)}: expected none, fused attention has no such "
            "thing; use attn_implementation eager or sdpa where it is needed"
        )


@cache
def default_calls() -> Calls:
    """For models that were given the attention by name, without fuse_model."""
    from ..manager import KernelFusionManager

    # transformers' table of attentions keeps this module to the end of the process, which the extension does not see.
    atexit.register(default_calls.cache_clear)
    manager = KernelFusionManager()
    return Calls(manager, manager.config)


@cache
def register_attention() -> str:
    """Makes the attention known to transformers as attn_implementation="kernel_fusion"; returns that name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
