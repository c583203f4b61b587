"""Kernels of the user's: Python callables, Triton kernels, CUDA source, objects that say what they serve.

Each becomes a row of its op's table, in front of the others: named, taken only where it accepts a call, and checked
against a reference before a layout is served for the first time.
"""

from .cuda_source import CudaSource
from .fused_kernel import FusedKernel
from .register import register
from .triton_kernel import TritonKernel

__all__ = ["CudaSource", "FusedKernel", "TritonKernel", "register"]
