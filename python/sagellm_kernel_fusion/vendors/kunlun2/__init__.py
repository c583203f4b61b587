"""Kunlun 2 (R200, R300), through PaddlePaddle's build for Kunlun. The P800 (Kunlun 3) is `kunlun`."""

from __future__ import annotations

from ..paddle import ONE_API, PaddleVendor


def _table() -> tuple:
    from . import table

    return table.ROWS


KUNLUN2 = PaddleVendor(
    name="kunlun2",
    device="xpu",
    device_type="kunlun",
    dlpack=ONE_API,
    plug_in="paddle",
    distribution="paddlepaddle-xpu",
    generation="XPU2",
    install="PaddlePaddle's build for Kunlun 2, from its packages for XPU or from source with -DWITH_XPU=ON",
    advice="look at xpu_smi",
    kv_layout="HND",
    page_size=64,
    table=_table,
    isa=lambda index: "XPU2",
)
