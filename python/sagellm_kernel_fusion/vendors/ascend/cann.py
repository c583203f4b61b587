"""What the installed CANN has: torch_npu lists its operators whatever the CANN below is, and fails when they are
called."""

from __future__ import annotations

import ctypes
import re
from functools import cache

# The function of libopapi.so that an operator calls, read in torch_npu 2.14.0 (libtorch_npu.so); any of them will do.
# Of npu_fused_infer_attention_score's key_antiquant_mode the first whose documentation has every mode.
KERNELS = {
    "npu_rms_norm": ("aclnnRmsNorm",),
    "npu_add_rms_norm": ("aclnnAddRmsNorm",),
    "npu_add_layer_norm": ("aclnnAddLayerNorm",),
    "npu_swiglu": ("aclnnSwiGlu",),
    "npu_gelu": ("aclnnGeluV2", "aclnnGelu"),
    "npu_rotary_mul": ("aclnnRotaryPositionEmbedding", "aclnnRotaryPositionEmbeddingV2"),
    "npu_scatter_nd_update_": ("aclnnScatterNdUpdate",),
    "npu_fusion_attention": ("aclnnFlashAttentionScore", "aclnnFlashAttentionScoreV2"),
    "npu_fused_infer_attention_score": (
        "aclnnFusedInferAttentionScore", "aclnnFusedInferAttentionScoreV2", "aclnnFusedInferAttentionScoreV3",
    ),
    "npu_weight_quant_batchmatmul": ("aclnnWeightQuantBatchMatmulV2", "aclnnWeightQuantBatchMatmulV3"),
    "npu_quant_matmul": ("aclnnQuantMatmulV3", "aclnnQuantMatmulV4", "aclnnQuantMatmulV5"),
    "npu_dynamic_quant": ("aclnnDynamicQuant", "aclnnDynamicQuantV2"),
    "key_antiquant_mode": (
        "aclnnFusedInferAttentionScoreV3", "aclnnFusedInferAttentionScoreV4", "aclnnFusedInferAttentionScoreV5",
    ),
}  # fmt: skip

# The first CANN with each, as Huawei's documentation of torch_npu has it; asked only where libopapi.so cannot be read.
SINCE = {
    "npu_rms_norm": "7.0.0",
    "npu_rotary_mul": "7.0.0",
    "npu_scatter_nd_update_": "7.0.0",
    "npu_fusion_attention": "7.0.0",
    "npu_add_rms_norm": "8.0.RC1",
    "npu_swiglu": "8.0.RC1",
    "npu_fused_infer_attention_score": "8.0.RC1",
    "npu_weight_quant_batchmatmul": "8.0.RC1",
    "npu_quant_matmul": "8.0.RC1",
    "npu_dynamic_quant": "8.0.RC2",
    "npu_add_layer_norm": "8.0.RC2",
    "npu_gelu": "8.0.0",
    "key_antiquant_mode": "8.1.RC1",
}


def lacking(name: str) -> str | None:
    """Why the installed CANN has no kernel for this operator."""
    library = _library()
    if library is not None:
        if any(hasattr(library, kernel) for kernel in KERNELS[name]):
            return None
        return (
            f"CANN's libopapi.so has no {' or '.join(KERNELS[name])}, which {name} calls: {name} came with CANN "
            f"{SINCE[name]}"
        )
    installed = version()
    if installed is None or at_least(installed, SINCE[name]):
        return None
    return f"{name} came with CANN {SINCE[name]}, installed is {installed}"


@cache
def _library():
    """CANN's operators, where they can be asked."""
    try:
        return ctypes.CDLL("libopapi.so")
    except OSError:
        return None


def version() -> str | None:
    """Of the installed CANN as torch_npu tells it; None where it does not."""
    try:
        import torch_npu

        return str(torch_npu.npu.utils.get_cann_version("CANN")) or None
    except Exception:  # older ones have no such function
        return None


def at_least(installed: str, wanted: str) -> bool:
    """8.0.RC1 comes before 8.0.RC2, and these before 8.0.0."""
    return _order(installed) >= _order(wanted)


def _order(text: str) -> tuple:
    numbers = [int(n) for n in re.findall(r"\d+", text.upper().partition("RC")[0])]
    candidate = re.search(r"RC(\d+)", text.upper())
    numbers = [*numbers, 0, 0, 0][:3]
    return (*numbers[:2], 0, int(candidate.group(1))) if candidate else (*numbers[:2], 1, numbers[2])


def soc_name(index: int) -> str:
    """Ascend910B3 and so on."""
    import torch_npu

    return str(torch_npu.npu.get_device_name(index))
