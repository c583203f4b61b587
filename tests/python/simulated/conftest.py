"""What every simulated device's tests are run with."""

import pytest
import torch

import sagellm_kernel_fusion as kf


@pytest.fixture(autouse=True)
def no_grad():
    with torch.inference_mode():
        yield


@pytest.fixture
def m():
    return kf.KernelFusionManager()
