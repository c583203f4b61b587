"""torch_npu's operators that rows call, with the parameters that they are given."""

from __future__ import annotations

from functools import cache

from ..operators import Operators
from . import cann

SOURCE = "torch_npu 2.14.0 (npu_native_functions_by_codegen.yaml of its wheel)"
PARAMETERS = {
    "npu_rms_norm": ("self", "gamma", "epsilon"),
    "npu_add_rms_norm": ("x1", "x2", "gamma", "epsilon"),
    "npu_add_layer_norm": ("x1", "x2", "gamma", "beta", "epsilon", "additional_output"),
    "npu_swiglu": ("self", "dim"),
    "npu_gelu": ("self", "approximate"),
    "npu_rotary_mul": ("self", "r1", "r2"),
    "npu_scatter_nd_update_": ("self", "indices", "updates"),
    "npu_fusion_attention": (
        "query", "key", "value", "head_num", "input_layout", "atten_mask", "scale", "sparse_mode",
    ),
    "npu_fused_infer_attention_score": (
        "query", "key", "value", "atten_mask", "actual_seq_lengths", "actual_seq_lengths_kv", "block_table",
        "num_heads", "num_key_value_heads", "scale", "input_layout", "sparse_mode", "block_size", "softmax_lse_flag",
    ),
    "npu_weight_quant_batchmatmul": (
        "x", "weight", "antiquant_scale", "antiquant_offset", "bias", "antiquant_group_size",
    ),
    "npu_quant_matmul": ("x1", "x2", "scale", "pertoken_scale", "output_dtype"),
    "npu_dynamic_quant": ("input",),
}  # fmt: skip


@cache
def needing(*names: str, **also: tuple[str, ...]) -> Operators:
    """The library of a row that calls these. also: parameters that older ones of an operator have not."""
    from . import ASCEND

    parameters = {name: PARAMETERS[name] + also.get(name, ()) for name in names}
    return Operators(lambda: ASCEND, "npu", SOURCE, parameters, cann.lacking)


ALL = needing(*PARAMETERS)
