"""Fused transformer kernels: operators, fusion of whole graphs, models, and the measured gain of each.

    import numpy as np, sagellm_kernel_fusion as kf

    y = kf.ops.rms_norm(np.ones((4, 64), np.float32), np.ones(64, np.float32))
    model = kf.load_model("SmolLM2-135M-Instruct.Q4_1.gguf")
    print(model.generate("Once upon a time", max_new_tokens=32).text)

Arrays are NumPy's, torch's, JAX's or anything with `__dlpack__`, taken without a copy. PyTorch is not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import ops
from ._kf import __version__, rules
from .adapters import list_kernels
from .arrays import GgufTensor, layout
from .builtin import register_builtin
from .call import FUSED, REFERENCE, VANILLA, Selection, explain
from .config import AttentionBackend, FusionBackend, FusionTarget, KernelFusionConfig
from .custom import CudaSource, FusedKernel, TritonKernel
from .errors import (
    DeadlineExceededError,
    ErrorCode,
    InvalidArgumentError,
    KernelFusionError,
    NotServedError,
    ResourceExhaustedError,
    UnavailableError,
)
from .libraries import find_libraries
from .manager import KernelFusionManager
from .paged import BlockTables
from .plugins import register_plugins
from .protocol import KernelFusionProtocol
from .quantized import QuantizedTensor, quantize, quantize_kv, quantized_cache
from .registry import KernelFusionBackendRegistry
from .sparse import SparseTensor, densify, sparsify
from .sparse_attention import FusedSparseAttention
from .vendors import register_vendors
from .verdicts import VerdictStore, backends

if TYPE_CHECKING:  # what __getattr__ imports when it is asked for
    from .benchmark import benchmark_kernel_fusion, measure_performance
    from .integrations import fuse_model, unfuse_model
    from .models import Model, load_model

register_vendors()
register_builtin()
find_libraries()
register_plugins()

__all__ = [
    "FUSED",
    "REFERENCE",
    "VANILLA",
    "AttentionBackend",
    "BlockTables",
    "CudaSource",
    "DeadlineExceededError",
    "ErrorCode",
    "FusedKernel",
    "FusedSparseAttention",
    "FusionBackend",
    "FusionTarget",
    "GgufTensor",
    "InvalidArgumentError",
    "KernelFusionBackendRegistry",
    "KernelFusionConfig",
    "KernelFusionError",
    "KernelFusionManager",
    "KernelFusionProtocol",
    "Model",
    "NotServedError",
    "QuantizedTensor",
    "ResourceExhaustedError",
    "Selection",
    "SparseTensor",
    "TritonKernel",
    "UnavailableError",
    "VerdictStore",
    "__version__",
    "backends",
    "benchmark_kernel_fusion",
    "densify",
    "explain",
    "fuse_model",
    "layout",
    "list_kernels",
    "load_model",
    "measure_performance",
    "ops",
    "quantize",
    "quantize_kv",
    "quantized_cache",
    "rules",
    "sparsify",
    "unfuse_model",
]


def __getattr__(name: str):
    # Models need the libraries that read files and tokens; who only calls ops does not wait for them.
    if name in ("load_model", "Model"):
        from . import models

        return getattr(models, name)
    if name in ("benchmark_kernel_fusion", "measure_performance"):
        from . import benchmark

        return getattr(benchmark, name)
    if name in ("fuse_model", "unfuse_model"):
        try:
            from . import integrations
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            return _without_torch(name)
        return getattr(integrations, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _without_torch(name: str):
    # The name is there all the same: `import *` gives all that a script names.
    def refuse(*args, **kwargs):
        raise UnavailableError(f"{name}: expected PyTorch, found none: pip install torch", {"package": "torch"})

    return refuse
