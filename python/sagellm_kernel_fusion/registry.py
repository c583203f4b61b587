"""Backends of kernel fusion by name: the library's own, and those that others register."""

from __future__ import annotations

import importlib
import os
from typing import ClassVar

from . import _kf
from .errors import refusing

ALIASES = {
    "pytorch-cuda": "cuda",
    "hygon": "rocm",
    "dcu": "rocm",
    "npu": "ascend",
    "cambricon": "mlu",
    "xpu": "kunlun",
}


class KernelFusionBackendRegistry:
    """Names to classes that implement KernelFusionProtocol.

    A manager whose config.backend is a registered name, or whose tensors lie on a device that a registered class claims
    by `device_types`, hands its calls to an instance of that class."""

    _backends: ClassVar[dict[str, type]] = {}
    _claims: ClassVar[dict[str, str]] = {}  # torch's device type -> name, of classes that are not the library's own

    @classmethod
    def register(cls, name: str, backend_cls: type) -> None:
        """`backend_cls()` is a KernelFusionProtocol. A name that is there already now means the new class."""
        from .protocol import KernelFusionProtocol

        if not isinstance(name, str) or not name:
            raise refusing(f"register: name: expected a name, got {name!r}")
        if not (isinstance(backend_cls, type) and issubclass(backend_cls, KernelFusionProtocol)):
            raise refusing(f"register: {name}: expected a class of KernelFusionProtocol, got {backend_cls!r}")
        name = ALIASES.get(name, name)
        cls._backends[name] = backend_cls
        cls._claims = {device: n for device, n in cls._claims.items() if n != name}
        if not getattr(backend_cls, "is_builtin", False):
            cls._claims |= dict.fromkeys(backend_cls.device_types, name)

    @classmethod
    def load_plugin(cls, path: str | os.PathLike) -> str:
        """Loads the backend in a shared library (include/kf/kf_c.h) and registers it under its name, which is returned:
        KernelFusionConfig(backend=name) gives it a manager's calls. Loading it again changes nothing. Raises
        UnavailableError, with what to do, for a file that is missing, lacks a function, is of another ABI version, does
        not fit, or has the name of a backend that is there."""
        from .plugins import register_plugin

        return register_plugin(_kf.load_plugin(os.fspath(path)))

    @classmethod
    def unregister(cls, name: str) -> None:
        """Forgets a registered class."""
        cls._known(name)
        cls._backends.pop(ALIASES.get(name, name))
        cls._claims = {device: n for device, n in cls._claims.items() if n != ALIASES.get(name, name)}

    @classmethod
    def get(cls, name: str):
        """A new backend of this name. Raises InvalidArgumentError (a ValueError) for a name that is not registered, and
        UnavailableError where the backend cannot be used here."""
        return cls._known(name)()

    @classmethod
    def names(cls) -> list[str]:
        """Every name and alias that `get` takes."""
        return [*cls._backends, *(alias for alias, name in ALIASES.items() if name in cls._backends)]

    @classmethod
    def backend_class(cls, name: str) -> type:
        """The class of this name, or alias."""
        return cls._known(name)

    @classmethod
    def _known(cls, name: str) -> type:
        backend = cls._backends.get(ALIASES.get(name, name) if isinstance(name, str) else None)
        if backend is None:
            raise refusing(f"Unsupported backend: {name}; there are {', '.join(cls.names())}")
        return backend

    @classmethod
    def detect_backend(cls) -> str:
        """The accelerator that PyTorch has here: "ascend", "mlu", "kunlun", "rocm" or "cuda", in this order (the first
        three come as plug-ins that may also show CUDA devices); else "cpu"."""
        for name, module, device in (
            ("ascend", "torch_npu", "npu"),
            ("mlu", "torch_mlu", "mlu"),
            ("kunlun", "torch_xmlir", "xpu"),
        ):
            if _plug_in_has_device(module, device):
                return name
        torch = _imported("torch")
        if torch is not None and torch.cuda.is_available():
            return "rocm" if getattr(torch.version, "hip", None) else "cuda"
        return "cpu"


def _imported(name: str):
    try:
        return importlib.import_module(name)
    except Exception:  # a plug-in without its driver fails in ways of its own
        return None


def _plug_in_has_device(module: str, device: str) -> bool:
    plug_in = _imported(module)
    if plug_in is None:
        return False
    space = getattr(plug_in, device, None) or getattr(_imported("torch"), device, None)
    try:
        return bool(space.is_available())
    except Exception:
        return False
