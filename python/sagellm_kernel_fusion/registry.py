"""Backends of kernel fusion by name: the library's own, and those that others register."""

from __future__ import annotations

import os
from typing import ClassVar

from . import _kf
from .errors import UnavailableError, refusing

ENTRY_POINTS = "sagellm.backends"

ALIASES = {
    "pytorch-cuda": "cuda",
    "hygon": "rocm",
    "dcu": "rocm",
    "npu": "ascend",
    "cambricon": "mlu",
    "xpu": "kunlun",
    "r300": "kunlun2",
}


def device_named(device: str) -> str:
    """The core's name of a device, by the name or alias of a backend: "ascend:1" of "npu:1", "kunlun" of "r300"."""
    from .vendors.vendor import REGISTERED

    if not isinstance(device, str) or not device.isprintable():
        raise refusing(f'device: expected the name of a device, as "cpu" or "cuda:1", got {device!r:.80}')
    kind, colon, index = device.partition(":")
    kind = ALIASES.get(kind, kind)
    vendor = REGISTERED.get(kind)
    if vendor is not None and vendor.kind != kind and not vendor.on_host:  # two backends of one type of devices
        if problem := vendor.unusable():
            raise UnavailableError(f"backend {kind}: {problem}", {"backend": kind})
        kind = vendor.kind
    return kind + colon + index


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
        """Every name and alias that `get` takes; those of entry points too, which are loaded when they are
        asked for."""
        others = [e.name for e in _entry_points() if e.name not in cls._backends]
        return [*cls._backends, *dict.fromkeys(others), *(a for a, name in ALIASES.items() if name in cls._backends)]

    @classmethod
    def backend_class(cls, name: str) -> type:
        """The class of this name, or alias."""
        return cls._known(name)

    @classmethod
    def _known(cls, name: str) -> type:
        backend = cls._backends.get(ALIASES.get(name, name) if isinstance(name, str) else None)
        if backend is None and isinstance(name, str):
            backend = cls._from_entry_point(name)
        if backend is None:
            raise refusing(f"Unsupported backend: {name}; there are {', '.join(cls.names())}")
        return backend

    @classmethod
    def _from_entry_point(cls, name: str) -> type | None:
        """The class, or the table of rows (a `vendors.Vendor`), that another distribution has under this name in the
        entry points `sagellm.backends`."""
        found = next((e for e in _entry_points() if e.name == name), None)
        if found is None:
            return None
        try:
            backend_cls = cls._load(name, found.load())
        except Exception as error:
            package = found.dist.name if found.dist else found.value
            message = f"backend {name} of {package} ({found.value}): {type(error).__name__}: {error}"
            raise UnavailableError(message, {"backend": name, "package": package}) from error
        return backend_cls

    @classmethod
    def _load(cls, name: str, found: object) -> type:
        from .plugins import register_table
        from .vendors import Vendor

        if not isinstance(found, Vendor):
            cls.register(name, found)
            return cls._backends[ALIASES.get(name, name)]
        if found.name != name:
            raise refusing(f"expected a Vendor of this name, got one of the name {found.name}")
        register_table(found)
        return cls._backends[name]

    @classmethod
    def detect_backend(cls) -> str:
        """The accelerator that PyTorch (for "kunlun2" Paddle) has here: "ascend", "mlu", "kunlun", "kunlun2", "rocm" or
        "cuda", in this order (the first three come as plug-ins that may also show CUDA devices); else "cpu". The
        environment variable KF_BACKEND names another; what it names must be usable. Why the others are not it, `kf
        info` says."""
        from .vendors.detection import detect

        return next(found.backend for found in detect() if found.cause is None)


def _entry_points():
    from importlib.metadata import entry_points  # a tenth of the package's import

    return entry_points(group=ENTRY_POINTS)
