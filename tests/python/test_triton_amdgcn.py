"""Our Triton kernels compiled for GPUs with waves of 64 lanes, without one: Triton's own compiler makes their code, and
says what it takes. gfx90a and gfx942 have matrix units; gfx906 (Hygon's Z100) Triton 3.7 does not compile for."""

import re

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from sagellm_kernel_fusion.triton import kernels  # noqa: E402

# Of the sizes that rows.py launches for 16-bit data.
TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "PRECISION": "ieee"}
LINEAR = {"NORM": "rms", "BEFORE": "none", "WITH_BIAS": True, "WITH_NORM_BIAS": False, "WIDE": False, **TILE}
KERNELS = {
    "rms_norm": (kernels.rms_norm, {"BLOCK": 4096}),
    "softmax": (kernels.softmax, {"WITH_LSE": True, "BLOCK": 4096}),
    "linear": (kernels.linear, LINEAR),
    "gelu_linear": (kernels.linear, LINEAR | {"NORM": "none", "BEFORE": "gelu_tanh"}),
    "gate_and_up": (kernels.gate_and_up, {"KIND": "silu", "WIDE": False, **TILE}),
}


def signature_of(kernel, constants: dict) -> dict[str, str]:
    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name.endswith("_ptr"):
            return "*fp32" if name == "lse_ptr" else "*fp16"
        return "fp32" if name in ("eps", "offset", "scale") else "i32"

    return {name: kind(name) for name in kernel.arg_names}


@pytest.mark.parametrize("architecture", ["gfx90a", "gfx942"])
@pytest.mark.parametrize("name", KERNELS)
def test_they_compile(name, architecture):
    kernel, constants = KERNELS[name]
    source = ASTSource(fn=kernel, signature=signature_of(kernel, constants), constexprs=constants)
    code = triton.compile(source, target=GPUTarget("hip", architecture, 64)).asm["amdgcn"]

    def figure(field: str) -> int:
        return int(re.search(rf"\.{field}:\s*(\d+)", code)[1])

    assert f"amdgcn-amd-amdhsa--{architecture}" in code
    assert figure("wavefront_size") == 64
    assert figure("vgpr_spill_count") == 0
    assert figure("group_segment_fixed_size") <= 65536
