"""Kunlunxin: found, but without rows so far."""

from __future__ import annotations

from ..vendor import Vendor

KUNLUN = Vendor(
    name="kunlun",
    device="cuda",  # as torch_xmlir shows a P800
    plug_in="torch_xmlir",
    install="it comes with Kunlunxin's XPytorch",
    advice="look at xpu_smi",
    kv_layout="HND",
    page_size=64,
    extension=False,
)
