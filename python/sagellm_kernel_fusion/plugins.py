"""Backends in shared libraries (include/kf/kf_c.h), and other distributions' tables, as the registry has them."""

from __future__ import annotations

from . import _kf
from .manager import KernelFusionManager
from .registry import KernelFusionBackendRegistry


class PluginBackend(KernelFusionManager):
    """A manager whose calls get the kernels of one plug-in, and no others."""


def register_table(vendor) -> None:
    """Makes another distribution's `Vendor` one of the core's backends, and registers it."""
    if vendor.name not in _kf.backend_names():
        vendor.register()
    register_plugin(vendor.name)


def register_plugin(name: str) -> str:
    """Registers the backend of a plug-in that was loaded."""
    if name not in KernelFusionBackendRegistry._backends:
        backend = type(f"PluginBackend_{name}", (PluginBackend,), {"_only_backend": name})
        KernelFusionBackendRegistry.register(name, backend)
    return name


def register_plugins() -> None:
    """Those that KF_PLUGINS names. What could not be loaded of it was logged; `kf info` shows it, too."""
    for plugin in _kf.plugins():
        if plugin["backend"]:
            register_plugin(plugin["backend"])
