"""Cambricon MLU370 and MLU590, through torch_mlu and torch_mlu_ops."""

from __future__ import annotations

from ..vendor import Vendor


def _table() -> tuple:
    from . import table

    return table.ROWS


def _isa(index: int) -> str:
    return str(MLU.space().get_device_name(index))


MLU = Vendor(
    name="mlu",
    device="mlu",
    plug_in="torch_mlu",
    install="it comes with Cambricon's PyTorch, of the Neuware SDK",
    advice="look at cnmon",
    kv_layout="HND",
    page_size=16,
    table=_table,
    isa=_isa,
)
