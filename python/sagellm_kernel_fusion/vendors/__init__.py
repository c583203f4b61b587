"""Accelerators whose operators are functions of Python: Ascend, Cambricon, Kunlun. Each is a folder with its table of
rows; the core takes them for backends like any other."""

from __future__ import annotations

from .. import _kf
from . import detection
from .ascend import ASCEND
from .cambricon import MLU
from .detection import detect
from .kunlun import KUNLUN
from .row import VendorRow
from .vendor import Vendor, device_of_plug_ins

__all__ = ["VENDORS", "Vendor", "VendorRow", "detect", "device_problem", "name_extension_device", "register_vendors"]

VENDORS = (ASCEND, MLU, KUNLUN)  # in the order of detection


def register_vendors() -> None:
    taken = _kf.backend_names()  # by plug-ins, which come first
    for vendor in VENDORS:
        if vendor.extension and vendor.name not in taken:
            vendor.register()
    detection.VENDORS = VENDORS


def device_problem(device: str) -> str | None:
    """Why fused modules cannot run on this device of torch's."""
    vendor = next((v for v in VENDORS if v.device == device and v.extension), None)
    return "fused modules run on the CPU, Ascend and Cambricon so far" if vendor is None else vendor.unusable()


def name_extension_device() -> None:
    """Tells the core whose the tensors are that DLPack has no name for, where that is known."""
    device = device_of_plug_ins()
    for vendor in VENDORS:
        if vendor.extension and vendor.device == device:
            _kf.set_extension_device(vendor.name)
