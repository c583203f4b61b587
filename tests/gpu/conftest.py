"""What the tests on a CUDA device share. They are run by `make test-gpu`; without a device they fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import sagellm_kernel_fusion as kf

sys.path.append(str(Path(__file__).parents[1] / "python"))  # model_files, which both folders' tests use


@pytest.fixture(scope="session", autouse=True)
def device():
    import torch

    [backend] = [b for b in kf._kf.backends() if b["name"] == "cuda"] or [{"available": False, "reason": "not built"}]
    assert backend["available"], f"the backend cuda: {backend['reason']}"
    assert torch.cuda.is_available(), "PyTorch finds no CUDA device"
    torch.set_grad_enabled(False)
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What a test compiles and measures is its own."""
    monkeypatch.setenv("KF_CACHE_DIR", str(tmp_path / "cache"))
