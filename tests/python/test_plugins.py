"""Backends in shared libraries: loaded, named, and asked. What is loaded stays: each by a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from repository import ROOT

SOURCES = ROOT / "examples/plugin_backend"


def compile_library(target: Path, *sources: object) -> Path:
    options = ["-std=c99", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wpedantic", "-Werror"]
    subprocess.run(["cc", *options, f"-I{ROOT}/include", *map(str, sources), "-o", str(target), "-lm"], check=True)
    return target


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return compile_library(tmp_path_factory.mktemp("plugins") / "toy.so", *SOURCES.glob("*.c"))


def python(program: str, **environment: object) -> subprocess.CompletedProcess:
    paths = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    env = os.environ | paths | {name: str(value) for name, value in environment.items()}
    result = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_a_plugin_is_a_backend_of_the_registry(toy):
    python(f"""
import numpy as np, pytest, sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import _kf
Registry = kf.KernelFusionBackendRegistry
assert Registry.load_plugin({str(toy)!r}) == "toy" == Registry.load_plugin({str(toy)!r})
assert "toy" in Registry.names() and "toy" in [b["name"] for b in kf.backends()]
assert [r["name"] for r in kf.list_kernels() if r["backend"] == "toy"][0] == "toy::rms_norm"

rng = np.random.default_rng(0)
x, residual = rng.standard_normal((2, 3, 8), np.float32)
w = rng.standard_normal(8, np.float32)
m = kf.KernelFusionManager(kf.KernelFusionConfig(backend="toy"))
for got, expected in zip(m.fuse_rmsnorm(x, w, residual=residual), kf.ops.rms_norm(x, w, residual, residual_out=True)):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
with pytest.raises(kf.NotServedError, match="backend toy has no kernel for softmax"):
    m.fuse_softmax(x)
with pytest.raises(kf.NotServedError, match="x of f16: this row takes f32"):
    m.fuse_rmsnorm(x.astype(np.float16), w.astype(np.float16))

own = Registry.get("toy")
own.fuse_activation(x, kind="gelu")
assert list(own.get_stats()["ops"]["activation"]["kernels"]) == ["toy::activation"]
rows = own.explain("rms_norm", x=x, weight=w, residual=residual, out=np.empty_like(x))
said = {{row["kernel"]: row["reason"] for row in rows}}
assert said["toy::rms_norm"] == "residual: this row takes calls without it", said
assert all(k["name"].startswith("toy::") for k in own.kernels() if k["device"] == "cpu" and k["families"] != "custom")

checks = [k for c in _kf.cases() if c["op"] == "rms_norm" and not c["bench"] for k in _kf.check_case(c["name"], "toy")]
assert any(k["supported"] for k in checks) and all(k["ok"] for k in checks if k["supported"])
# Who does not name it gets the library's own.
assert kf.explain("rms_norm", x=x, weight=w)[0]["kernel"].startswith("cpu::")
""")


def test_the_environment_names_plugins(toy, tmp_path):
    missing, text = tmp_path / "missing.so", tmp_path / "text.so"
    text.write_text("text")
    named = os.pathsep.join(map(str, (missing, toy, text)))
    result = python(
        "import json, sys; from sagellm_kernel_fusion import _kf, KernelFusionBackendRegistry as R; R.get('toy');"
        "print(json.dumps(_kf.plugins()))",
        KF_PLUGINS=named,
    )
    plugins = json.loads(result.stdout)
    assert [(p["path"], p["backend"]) for p in plugins] == [(str(missing), ""), (str(toy), "toy"), (str(text), "")]
    assert "got no such file" in plugins[0]["error"] and plugins[1]["version"] == "1.0"
    assert "expected a shared library for this machine" in plugins[2]["error"]
    assert result.stderr.count("going on without it") == 2
    program = "import sys; sys.argv[1:] = ['info', '--brief']; from sagellm_kernel_fusion.cli import main; main()"
    shown = python(program, KF_PLUGINS=named).stdout
    assert "plug-in toy: loaded, version 1.0" in shown and "not loaded: plug-in" in shown


def test_a_file_that_cannot_be_loaded_is_an_error_with_advice(tmp_path):
    sources = ROOT / "tests/plugins"
    faults = {
        "other_abi": "expected ABI version 1, got 2; compile it against the kf/kf_c.h of this kf",
        "no_open": "expected a function kf_plugin_open, got a library without it",
        "no_table": "install 7.2",
        "taken_name": "got 'cpu'; load one of the two",
    }
    paths = {str(compile_library(tmp_path / f"{n}.so", sources / f"{n}.c")): said for n, said in faults.items()}
    python(f"""
import numpy as np, pytest, re, sagellm_kernel_fusion as kf
for path, said in {paths | {"/nowhere.so": "got no such file"}!r}.items():
    with pytest.raises(kf.UnavailableError, match=re.escape(said)):
        kf.KernelFusionBackendRegistry.load_plugin(path)
assert [b["name"] for b in kf.backends()][0] == "cpu"
kf.ops.rms_norm(np.ones((1, 4), np.float32), np.ones(4, np.float32))
""")
