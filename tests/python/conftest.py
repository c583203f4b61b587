"""What the tests share: the real model where it is, a tiny one that is made, and arrays of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model_files import TINY, write_gguf, write_safetensors

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    path = ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip("scripts/get_model.py has not been run")
    return path


@pytest.fixture(scope="session")
def golden() -> dict:
    return json.loads((ROOT / "tests/data/smollm2_golden.json").read_text())


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", TINY)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return write_safetensors(tmp_path_factory.mktemp("tiny"), TINY)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Measured fusions of a test are its own."""
    monkeypatch.setenv("KF_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
