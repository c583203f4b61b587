"""What the tests share: the real model where it is, a tiny one that is made, and arrays of every kind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from model_files import TINY, write_gguf, write_safetensors
from repository import ROOT

# Set by `make test`, which installs everything: a test that is not run there is a failure.
REQUIRE_ALL = os.environ.get("KF_REQUIRE_ALL", "") not in ("", "0")


def _no_skips(report):
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        where = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{where} (KF_REQUIRE_ALL: nothing may be skipped)"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _no_skips((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _no_skips((yield))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    path = ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip("scripts/get_model.py has not been run")
    return path


@pytest.fixture(scope="session")
def golden() -> dict:
    values = json.loads((ROOT / "tests/data/smollm2_golden.json").read_text())
    return values | {key: np.array(rows) for key, rows in values.items() if key.endswith("projections")}


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
