"""Kunlunxin P800 (Kunlun 3), through XPytorch (torch_xmlir) and kunlun_ops."""

from __future__ import annotations

from ..vendor import CUDA, Vendor


def _table() -> tuple:
    from . import table

    return table.ROWS


def _isa(index: int) -> str:
    return str(KUNLUN.space().get_device_name(index))


KUNLUN = Vendor(
    name="kunlun",
    device="cuda",  # as XPytorch shows a P800
    dlpack=CUDA,
    plug_in="torch_xmlir",
    install="it comes with Kunlunxin's XPytorch",
    advice="look at xpu_smi",
    kv_layout="HND",
    page_size=64,
    table=_table,
    isa=_isa,
)
