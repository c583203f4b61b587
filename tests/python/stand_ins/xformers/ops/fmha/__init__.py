from . import attn_bias

__all__ = ["attn_bias"]
