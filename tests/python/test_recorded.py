"""Recording a function's launches: what is said where there is nothing to record with."""

from __future__ import annotations

import numpy as np
import pytest

import sagellm_kernel_fusion as kf


def test_it_needs_a_device_and_says_so():
    m = kf.KernelFusionManager()
    called = []
    with pytest.raises(kf.UnavailableError, match="record: expected a CUDA device, got none that PyTorch can use"):
        m.record(lambda: called.append(1))
    assert called == []
    with pytest.raises(
        kf.InvalidArgumentError, match="record: function: expected a callable without arguments, got int"
    ):
        m.record(3)


def test_calls_while_recording_take_only_what_may_be_recorded(monkeypatch):
    m = kf.KernelFusionManager()
    m.register_custom_kernel("mine", lambda x: x / (1 + np.exp(-x)), op="activation")
    x = np.ones((2, 4), np.float32)
    ran = []

    def recorded(function, device):
        function()
        ran.append(list(m.get_stats()["ops"]["activation"]["kernels"]))

    monkeypatch.setattr("sagellm_kernel_fusion.manager.Recorded", recorded)
    m.record(lambda: m.fuse_activation(x))
    assert ran[0] and "custom::mine" not in ran[0]
    m.fuse_activation(x)
    assert "custom::mine" in m.get_stats()["ops"]["activation"]["kernels"]
