"""kunlun_ops: its functions, with the parameters that they are given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from ...adapters.library import Library

SOURCE = "kunlun_ops 0.1.58 as baidu/vLLM-Kunlun 09869ee7 calls it (vllm_kunlun/ops/_custom_ops.py, kunlun_attn.py)"
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "prefill_attention": (
        "q", "k", "v", "out", "is_causal", "is_prefix_cache", "alpha", "block_table", "context_qlen_lod_cpu",
        "context_qlen_lod_xpu", "context_kvlen_lod_cpu", "context_kvlen_lod_xpu", "alibi_slopes", "softmax_lse",
        "swa_left", "swa_right", "sink",
    ),
    "speculative_attention": (
        "out", "q", "k_cache", "v_cache", "context_lens_cpu", "context_lens_xpu", "batch_num", "qlen",
        "max_context_len", "head_num", "head_dim", "scale", "kv_head_num", "block_size", "max_num_blocks_per_seq",
        "max_window_size", "block_tables", "sink",
    ),
    "reshape_and_cache_flash": ("key", "value", "key_cache", "value_cache", "slot_mapping", "BLHD_LAYOUT"),
    "rmsnorm": ("x", "weight", "output", "eps"),
    "add_rmsnorm": ("x", "y", "weight", "output", "eps", "residual_output"),
    "swiglu": ("x", "y"),
    "rotary_embedding": ("positions", "query", "key", "head_size", "cos_sin_cache", "is_neox"),
    "quant2d": ("x", "y", "max", "force_sdnn"),
    "matmul": (
        "x", "w", "out", "x_trans", "w_trans", "alpha", "beta", "bias", "x_max", "w_max", "x_pc_max", "w_pc_max",
    ),
}  # fmt: skip
_EARLIER = re.compile(r"\b(R|K|RG|S)\d{3}")  # cards of Kunlun 1 and 2: K100, K200, R200, R300, R480, RG800


@dataclass(frozen=True)
class KunlunOps(Library):
    """Functions of kunlun_ops, which are a P800's."""

    def missing(self) -> str | None:
        from . import KUNLUN

        return KUNLUN.unusable() or card_problem(str(KUNLUN.space().get_device_name(0))) or super().missing()


def card_problem(name: str) -> str | None:
    """Why kunlun_ops cannot run on a card of this name; what a P800 is called is not documented, and not asked."""
    if _EARLIER.search(name):
        return f"{name} is a card before Kunlun 3: kunlun_ops is for the P800"
    return None


@cache
def needing(*names: str) -> KunlunOps:
    """The library of a row that calls these."""
    functions = {name: PARAMETERS[name] for name in names}
    return KunlunOps("kunlun_ops", "a wheel of Kunlunxin's, with XPytorch", SOURCE, functions)


ALL = needing(*PARAMETERS)
