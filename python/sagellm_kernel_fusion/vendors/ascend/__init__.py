"""Huawei Ascend 910B and its like, through torch_npu (CANN 7.0 and later)."""

from __future__ import annotations

from ..vendor import Vendor


def _table() -> tuple:
    from . import table

    return table.ROWS


def _isa(index: int) -> str:
    from . import cann

    return cann.soc_name(index)


ASCEND = Vendor(
    name="ascend",
    device="npu",
    plug_in="torch_npu",
    install="pip install torch-npu, of the version that goes with this PyTorch and CANN",
    advice="look at npu-smi info, and source CANN's set_env.sh",
    kv_layout="NHD",
    page_size=128,
    table=_table,
    isa=_isa,
)
