"""Backends in shared libraries (include/kf/kf_c.h) as the registry has them."""

from __future__ import annotations

from . import _kf
from .manager import KernelFusionManager
from .registry import KernelFusionBackendRegistry


class PluginBackend(KernelFusionManager):
    """A manager whose calls get the kernels of one plug-in, and no others."""


def register_plugin(name: str) -> str:
    """Registers the backend of a plug-in that was loaded."""
    if name not in KernelFusionBackendRegistry.names():
        backend = type(f"PluginBackend_{name}", (PluginBackend,), {"_only_backend": name})
        KernelFusionBackendRegistry.register(name, backend)
    return name


def register_plugins() -> None:
    """Those that KF_PLUGINS names. What could not be loaded of it was logged; `kf info` shows it, too."""
    for plugin in _kf.plugins():
        if plugin["backend"]:
            register_plugin(plugin["backend"])
