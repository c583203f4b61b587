"""Accelerators whose operators are functions of Python: Ascend, Cambricon, Kunlun (P800, and R300 through Paddle). Each
is a folder with its table of rows; the core takes them for backends like any other. Another distribution has its own by
the entry points `sagellm.backends` (docs/bring-up-in-python.md), from what is named here: Vendor, VendorRow, Library,
conditions, plain_rows."""

from __future__ import annotations

from .. import _kf
from ..adapters import conditions
from ..adapters.library import Library
from . import detection
from .ascend import ASCEND
from .cambricon import MLU
from .detection import detect
from .kunlun import KUNLUN
from .kunlun2 import KUNLUN2
from .plain import plain_rows
from .row import VendorRow
from .vendor import CUDA, REGISTERED, Vendor

__all__ = [
    "VENDORS", "Library", "Vendor", "VendorRow", "conditions", "detect", "device_problem", "name_device",
    "native_cache", "plain_rows", "register_vendors",
]  # fmt: skip

VENDORS = (ASCEND, MLU, KUNLUN, KUNLUN2)  # in the order of detection


def register_vendors() -> None:
    taken = _kf.backend_names()  # by plug-ins, which come first
    for vendor in VENDORS:
        if vendor.name not in taken:
            vendor.register()
    detection.VENDORS = VENDORS


def device_problem(device: str) -> str | None:
    """Why fused modules cannot run on this device of torch's."""
    vendor = next((v for v in VENDORS if v.device == device), None)
    problem = "" if vendor is None else vendor.unusable()
    if vendor is None or (problem and vendor.dlpack == CUDA):  # most that torch calls cuda is no vendor's of these
        if device == "cuda":
            return _gpu_problem()
        return "fused modules run on the CPU, GPUs, Ascend, Cambricon and Kunlun"
    return problem


def native_cache(device: str) -> dict:
    """The page size and layout in which a vendor's operators have a paged cache, as an engine takes them; none where
    the device is no vendor's."""
    kind = device.partition(":")[0]
    vendor = next((v for v in REGISTERED.values() if v.kind == kind and not v.on_host), None)
    return {} if vendor is None else {"page_size": vendor.page_size, "layout": vendor.kv_layout}


def _gpu_problem() -> str | None:
    """Why this build has no kernels for what torch calls cuda."""
    import torch

    name = "cuda" if torch.version.hip is None else "rocm"
    found = next((b for b in _kf.backends() if b["name"] == name), None)
    if found is None:
        return f"this build has no backend {name}"
    return None if found["available"] else f"the backend {name}: {found['reason']}"


def name_device(code: int) -> None:
    """Tells the core whose the tensors of this device type of DLPack's are, where they are a vendor's."""
    for vendor in VENDORS:
        if vendor.dlpack == code and vendor.is_shown():
            _kf.set_dlpack_device(code, vendor.kind)
