"""What torch's settings say of the precision of f32 products."""

import torch


def allows_tf32() -> bool:
    """Whether torch's own products of f32 on CUDA may round their factors to TF32."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # torch 2.9; it refuses the older name where this one was set
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32
