"""The library's own backends as the registry has them."""

from __future__ import annotations

from typing import ClassVar

from . import _kf
from .config import KernelFusionConfig
from .errors import UnavailableError
from .manager import KernelFusionManager
from .registry import KernelFusionBackendRegistry


class BuiltinBackend(KernelFusionManager):
    """A manager of which it is known that the backend's device can be used here; raises UnavailableError else."""

    is_builtin = True
    backend: ClassVar[str]  # as `backends()` names it

    def __init__(self, config: KernelFusionConfig | None = None):
        rows = {row["name"]: row for row in _kf.backends(self.backend)}
        row = rows.get(self.backend)
        reason = (
            f"not compiled into this build, which has {', '.join(_kf.backend_names())}"
            if row is None
            else row["reason"]
        )
        if row is None or not row["available"]:
            raise UnavailableError(f"backend {self.backend}: {reason}", {"backend": self.backend})
        super().__init__(config)


class CPUKernelFusion(BuiltinBackend):
    backend = "cpu"
    device_types = ("cpu",)


class CUDAKernelFusion(BuiltinBackend):
    backend = "cuda"
    device_types = ("cuda",)


class ROCmKernelFusion(BuiltinBackend):
    backend = "rocm"
    device_types = ("cuda",)  # as torch names it


class AscendKernelFusion(BuiltinBackend):
    backend = "ascend"
    device_types = ("npu",)


class MLUKernelFusion(BuiltinBackend):
    backend = "mlu"
    device_types = ("mlu",)


class KunlunKernelFusion(BuiltinBackend):
    backend = "kunlun"
    device_types = ("cuda",)  # as torch names it


class Kunlun2KernelFusion(BuiltinBackend):
    backend = "kunlun2"
    device_types = ("xpu",)  # as Paddle names it


class TritonKernelFusion(BuiltinBackend):
    backend = "triton"


class TensorRTKernelFusion(BuiltinBackend):
    backend = "tensorrt"


def register_builtin() -> None:
    for backend in BuiltinBackend.__subclasses__():
        KernelFusionBackendRegistry.register(backend.backend, backend)
