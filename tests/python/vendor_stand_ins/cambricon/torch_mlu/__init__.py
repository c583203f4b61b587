"""A stand-in of torch_mlu: the device mlu, simulated."""

from __future__ import annotations

import os

import simulated_device
import torch

mlu = torch.mlu = simulated_device.install("mlu")
mlu.get_device_name = lambda index=0: os.environ.get("STAND_IN_MLU", "MLU590-H8")
