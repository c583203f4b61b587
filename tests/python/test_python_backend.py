"""Backends in Python of other distributions: docs/bring-up-in-python.md followed in an empty folder; the example."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from repository import ROOT

pytest.importorskip("torch")
PAGE = (ROOT / "docs/bring-up-in-python.md").read_text()
EXAMPLE = ROOT / "examples/python_backend"


def block(language: str) -> str:
    return re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE).group(1)


def install(folder: Path) -> None:
    """What pip leaves of an editable install: the folder on the path, and the distribution's metadata."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("".join(lines))


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(folder), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )


def command(name: str, every: int, *ops: str) -> list[str]:
    of_ops = [word for op in ops for word in ("--op", op)]
    return ["-m", "sagellm_kernel_fusion", "selfcheck", "--backend", name, "--every", str(every), *of_ops]


def selfcheck(folder: Path, name: str, every: int, *ops: str) -> dict:
    result = run(folder, *command(name, every, *ops), "--json", "r.json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every kernel is right" in result.stdout
    report = json.loads((folder / "r.json").read_text())
    assert report["ok"] and report["backend"] == name
    return {r["kernel"]: r for r in report["rows"]}


@pytest.fixture
def first(tmp_path) -> Path:
    (tmp_path / "pyproject.toml").write_text(block("toml"))
    (tmp_path / "first_kf.py").write_text(block("python"))
    return tmp_path


def test_the_page_leads_from_an_empty_folder_to_a_passing_selfcheck(first):
    install(first)
    row = selfcheck(first, "first", 4, "rms_norm")["first::rms_norm"]
    assert row["served"] and row["level"] == "contract"
    assert any("residual is given" in reason for reason in row["declined"])


def test_a_row_that_computes_something_else_is_found(first):
    path = first / "first_kf.py"
    path.write_text(path.read_text().replace("* weight.float()", "* (1 + weight.float())"))
    install(first)
    result = run(first, *command("first", 9, "rms_norm"))
    assert result.returncode == 1 and "on first::rms_norm" in result.stdout


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('name="first"', 'name="second"', "expected a Vendor of this name, got one of the name second"),
        ('plug_in="torch"', 'plug_in="torch_first"', "torch_first is not installed: pip install torch"),
        ("def rms_norm(x, weight,", "def rms_norm(x, w,", "parameter w: expected a name among"),
        ('{"rsqrt": ()}', '{"rsqrt_of": ()}', "no kernel served any case"),
    ],
)
def test_mistakes_are_errors_that_say_what_to_do(first, before, after, said):
    path = first / "first_kf.py"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    install(first)
    result = run(first, *command("first", 60, "rms_norm"))
    assert result.returncode != 0 or "no kernel served" in result.stdout
    assert said in " ".join((result.stdout + result.stderr).split()), result.stdout + result.stderr


USE = """
import torch, sagellm_kernel_fusion as kf
x, w = torch.randn(3, 8), torch.randn(8)
m = kf.KernelFusionManager(kf.KernelFusionConfig(backend="acme"))
torch.testing.assert_close(m.fuse_rmsnorm(x, w), kf.ops.rms_norm(x, w), rtol=1e-5, atol=1e-6)
alone = kf.KernelFusionBackendRegistry.get("acme")
rows = alone.explain("rms_norm", x=x, weight=w)
assert [r["kernel"] for r in rows if r["selected"]] == ["acme::rms_norm"], rows
try:
    alone.fuse_softmax(x)
except kf.KernelFusionError as error:
    print(error)
"""


def test_the_example(tmp_path):
    for path in EXAMPLE.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    install(tmp_path)
    rows = selfcheck(tmp_path, "acme", 40, "rms_norm", "activation", "linear")
    assert all(rows[f"acme::{op}"]["served"] for op in ("rms_norm", "relu", "linear"))
    result = run(tmp_path, "-c", USE)
    assert result.returncode == 0 and "acme" in result.stdout, result.stdout + result.stderr
