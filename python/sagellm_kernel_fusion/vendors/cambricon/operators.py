"""torch_mlu_ops: its functions, with the parameters that they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from ...adapters.library import Library

SOURCE = "torch_mlu_ops as Cambricon/vllm-mlu 8fa99fd9 calls it (vllm_mlu/_mlu_ops.py)"
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "flash_attention": (
        "q", "k", "v", "out", "cu_seq_lens_q", "cu_seq_lens_kv", "alibi_slope", "attn_bias", "max_seq_len_q",
        "max_seq_len_kv", "softmax_scale", "is_causal", "window_size_left", "window_size_right", "compute_dtype",
        "return_lse", "block_tables",
    ),
    "single_query_cached_kv_attn": (
        "q", "k_cache", "v_cache", "out", "block_tables", "context_lens", "k_cache_quant_scale", "v_cache_quant_scale",
        "alibi_slopes", "max_contxt_len", "windows_size_left", "windows_size_right", "softmax_scale",
    ),
    "quant_to_paged_cache": (
        "k", "v", "k_cache", "v_cache", "k_cache_quant_scale", "v_cache_quant_scale", "slot_mapping",
    ),
    "dequant_from_paged_cache": (
        "key", "value", "key_cache", "value_cache", "key_cache_quant_scale", "value_cache_quant_scale",
        "context_lengths", "max_context_len", "context_seq_offset", "block_tables", "quant_mode", "quant_bit",
    ),
    "reshape_paged_cache": ("k", "v", "k_cache", "v_cache", "slot_mapping"),
    "fused_rms_norm": ("x", "residual", "gamma", "beta", "bias", "eps", "store_output_before_norm"),
    "fused_layer_norm": ("x", "residual", "gamma", "beta", "bias", "eps", "store_output_before_norm"),
    "apply_rotary": (
        "input", "sin_cache", "cos_cache", "position_ids", "cu_seqlens", "interleaved", "discrete", "dynamic_ntk",
        "max_seqlen",
    ),
    "matmul": ("a", "b", "bias", "c", "act_mode", "alpha", "beta"),
    "weight_only_quant_matmul": ("a", "b", "scale", "zero", "bias", "c", "act_mode", "quant_bit_size"),
    "smooth_quant_matmul": ("a", "a_scale", "b", "b_scale", "dtype"),
    "per_token_smooth_quantize": ("x", "smooth"),
}  # fmt: skip


@dataclass(frozen=True)
class MluOps(Library):
    """Functions of torch_mlu_ops. They are given by position: names of parameters differ between its versions."""

    def missing(self) -> str | None:
        from . import MLU

        return MLU.unusable() or super().missing()


@cache
def needing(*names: str, **by_name: tuple[str, ...]) -> MluOps:
    """The library of a row that calls these. by_name: parameters of a function that are given by their names."""
    functions = {name: by_name.get(name, ()) for name in names}
    return MluOps("torch_mlu_ops", "it comes with Cambricon's Neuware SDK", SOURCE, functions)


ALL = needing(*PARAMETERS)


def bf16_problem(*operands) -> str | None:
    """bf16 is a matter of the card: MLU370 has none that is documented."""
    if not any(o is not None and o.dtype == "bf16" for o in operands):
        return None
    from . import MLU

    supported = getattr(MLU.space(), "is_bf16_supported", None)
    if supported is not None:
        return None if supported() else "bf16: torch.mlu.is_bf16_supported() says that this card has none"
    name = str(MLU.space().get_device_name(0))
    return f"bf16 on {name}: expected an MLU590 or later" if "370" in name else None
