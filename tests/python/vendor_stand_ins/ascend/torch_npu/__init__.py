"""A stand-in of torch_npu: its operators under the schemas of the wheel (.cache/vendors), so that PyTorch's dispatcher
refuses what they do not take, computed by PyTorch on the CPU behind the limits that Huawei documents (op-plugin
0adf4501, docs/context). The device npu is simulated. STAND_IN_CANN says which CANN is below; none: the last."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import simulated_device
import torch

from . import operators

SCHEMAS = Path(__file__).resolve().parents[5] / ".cache/vendors/torch_npu-2.14.0.json"
npu = torch.npu = simulated_device.install("npu")
npu.get_device_name = lambda index=0: "Ascend910B3"
npu.utils = SimpleNamespace(get_cann_version=lambda module="CANN": os.environ.get("STAND_IN_CANN", "8.3.RC1"))

_library = torch.library.Library("npu", "DEF")
_schemas = json.loads(SCHEMAS.read_text())["schemas"]
for _name in operators.NAMES:
    _library.define(_schemas[_name])
    _library.impl(_name, getattr(operators, _name), "CPU")


def __getattr__(name: str):
    return getattr(torch.ops.npu, name)
