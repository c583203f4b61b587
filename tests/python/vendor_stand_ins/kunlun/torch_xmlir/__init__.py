"""A stand-in of torch_xmlir: torch's CUDA device is its card from now on, simulated."""

from __future__ import annotations

import os

import simulated_device

cuda = simulated_device.install_as_cuda()
cuda.get_device_name = lambda index=0: os.environ.get("STAND_IN_KUNLUN", "P800 OAM")
