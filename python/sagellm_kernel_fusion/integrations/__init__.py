"""The fused operators inside other people's models: `fuse_model` for transformers' and torch's. Needs torch."""

from __future__ import annotations

from .attention_interface import register_attention
from .fuse_model import FusedModules, fuse_model, unfuse_model

__all__ = ["FusedModules", "fuse_model", "register_attention", "unfuse_model"]
