"""The tests' own machinery: where everything is installed, a test that is not run is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SKIPPING = """
import pytest

def test_called():
    pytest.skip("no model")

@pytest.mark.skip(reason="marked")
def test_marked(): ...

def test_imported():
    pytest.importorskip("no_such_module")

@pytest.mark.xfail(reason="known")
def test_known():
    assert False
"""


@pytest.mark.parametrize(("required", "code", "summary"), [("0", 0, "sssx"), ("1", 1, "FEFx")])
def test_skips_are_failures_where_all_is_required(tmp_path, required, code, summary):
    (tmp_path / "test_it.py").write_text(_SKIPPING)
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"KF_REQUIRE_ALL": required, "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", "test_it.py"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == code and result.stdout.startswith(summary), result.stdout + result.stderr
    assert ("no model (KF_REQUIRE_ALL: nothing may be skipped)" in result.stdout) == (required == "1")
