"""Accelerators whose operators are functions of Python: which is chosen and why not the others, half-installed SDKs,
two at once, what another distribution registers; and the backends over stand-ins of the vendors' packages, on devices
that PyTorch simulates, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import sagellm_kernel_fusion as kf
from repository import ROOT
from sagellm_kernel_fusion.cli.app import app
from sagellm_kernel_fusion.registry import device_named
from sagellm_kernel_fusion.vendors import VENDORS, detect, detection, native_cache, vendor

pytest.importorskip("torch")
Registry = kf.KernelFusionBackendRegistry
STAND_INS = Path(__file__).parent / "vendor_stand_ins"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(vendor, "_import_errors", {})
    monkeypatch.delenv(detection.VARIABLE, raising=False)


@pytest.fixture
def plug_in(monkeypatch):
    """Installs a module that gives torch a device."""

    def install(name, device, available=True, owner=None):
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace()
        setattr(module, device, SimpleNamespace(is_available=available if callable(available) else lambda: available))
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(vendor, "device_of_plug_ins", lambda: owner or device)

    return install


def cause(backend: str) -> str | None:
    return {f.backend: f.cause for f in detect()}[backend]


# Which is chosen


def test_without_a_plug_in_every_cause_says_what_to_install():
    assert Registry.detect_backend() == "cpu"
    assert cause("ascend").startswith("torch_npu is not installed: pip install torch-npu")
    assert "torch_mlu is not installed" in cause("mlu") and "torch_xmlir is not installed" in cause("kunlun")
    assert "paddlepaddle-xpu is not installed" in cause("kunlun2") and "paddle" not in sys.modules
    assert cause("cpu") is None
    assert [f.backend for f in detect()] == ["ascend", "mlu", "kunlun", "kunlun2", "rocm", "cuda", "cpu"]


def test_a_device_is_chosen_and_what_comes_after_it_is_not_looked_at(plug_in):
    plug_in("torch_npu", "npu")
    assert Registry.detect_backend() == "ascend"
    assert cause("cuda") == cause("mlu") == "ascend comes before it"


def test_kunlun_comes_before_cuda_which_its_devices_say_they_are(plug_in, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plug_in("torch_xmlir", "cuda")
    assert Registry.detect_backend() == "kunlun" and cause("cuda") == "kunlun comes before it"


def test_a_cuda_device_without_kunluns_plug_in_is_cudas(plug_in, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Registry.detect_backend() == "cuda" and "torch_xmlir is not installed" in cause("kunlun")
    plug_in("torch_xmlir", "cuda", available=False)
    assert Registry.detect_backend() == "cuda"
    assert cause("kunlun") == "torch_xmlir is there, but finds no device: look at xpu_smi"


def test_of_kunlun_and_a_plug_in_of_pytorchs_the_first_in_order_is_chosen(plug_in):
    plug_in("torch_xmlir", "cuda")
    plug_in("torch_npu", "npu")
    assert Registry.detect_backend() == "ascend" and cause("kunlun") == "ascend comes before it"


@pytest.mark.parametrize("name", ["ascend", "npu", "mlu", "cambricon", "kunlun", "xpu", "kunlun2", "r300"])
def test_a_backend_whose_plug_in_is_not_here_says_so(name):
    with pytest.raises(kf.UnavailableError, match="is not installed") as caught:
        Registry.get(name)
    assert caught.value.is_retryable()


def test_devices_go_by_the_names_and_aliases_of_backends(monkeypatch):
    assert [device_named(d) for d in ("npu:1", "cambricon", "cuda:1", "cpu")] == ["ascend:1", "mlu", "cuda:1", "cpu"]
    with pytest.raises(kf.UnavailableError, match="backend kunlun2: paddlepaddle-xpu is not installed"):
        device_named("r300")
    monkeypatch.setattr(vendor.Vendor, "unusable", lambda self: None)
    monkeypatch.setattr(type(VENDORS[3]), "unusable", lambda self: None)
    assert device_named("r300:1") == "kunlun:1" and native_cache("kunlun:1") == {"page_size": 64, "layout": "HND"}
    assert native_cache("npu") == {} == native_cache("cuda:0")


def test_a_plug_in_without_a_device_says_where_to_look(plug_in):
    plug_in("torch_npu", "npu", available=False)
    assert Registry.detect_backend() == "cpu"
    assert cause("ascend") == (
        "torch_npu is there, but finds no device: look at npu-smi info, and source CANN's set_env.sh"
    )


def test_a_plug_in_that_fails_when_it_looks_is_a_cause(plug_in):
    def broken():
        raise RuntimeError("aclInit failed, error code 507008")

    plug_in("torch_npu", "npu", available=broken)
    assert "torch_npu cannot look for devices: RuntimeError: aclInit failed" in cause("ascend")


def test_a_plug_in_that_cannot_be_imported_is_a_cause_and_not_tried_again(monkeypatch, tmp_path):
    (tmp_path / "torch_npu.py").write_text(
        "import os\nopen(os.environ['TRIED'], 'a').write('.')\n"
        "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory\\nmore')\n"
    )
    monkeypatch.setenv("TRIED", str(tmp_path / "tried"))
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(3):
        assert cause("ascend") == (
            "torch_npu cannot be imported: ImportError: libhccl.so: cannot open shared object file: No such file or "
            "directory"
        )
    assert Registry.detect_backend() == "cpu" and (tmp_path / "tried").read_text() == "."
    with pytest.raises(kf.UnavailableError, match="backend ascend: torch_npu cannot be imported: ImportError: libhccl"):
        Registry.get("npu")


def test_a_plug_in_that_is_too_old_names_no_device(plug_in):
    plug_in("torch_npu", "npu", owner="privateuseone")
    assert cause("ascend") == "torch_npu registers no device npu with PyTorch: too old, or not whole"


def test_a_paddle_that_is_too_old_or_half_there_is_a_cause(monkeypatch, tmp_path):
    """Paddle's builds are one package: another installed over that for XPUs, or what is left of one."""
    (tmp_path / "paddle").mkdir()
    (tmp_path / "paddle/__init__.py").write_text("")
    info = tmp_path / "paddlepaddle_xpu-2.4.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paddlepaddle-xpu\nVersion: 2.4.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert cause("kunlun2").startswith(
            "paddlepaddle-xpu cannot look for devices: ModuleNotFoundError: No module named 'paddle.base'; "
        )
        assert Registry.detect_backend() == "cpu"
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "paddle"]:
            del sys.modules[name]


def test_of_two_plug_ins_the_one_that_pytorch_took_is_chosen(plug_in):
    plug_in("torch_npu", "npu")
    plug_in("torch_mlu", "mlu")  # PyTorch's device of plug-ins is mlu now
    assert cause("ascend") == ("PyTorch's one device of plug-ins is mlu in this process: npu needs one of its own")
    assert Registry.detect_backend() == "mlu"


def test_the_environment_names_the_backend(plug_in, monkeypatch):
    plug_in("torch_npu", "npu")
    monkeypatch.setenv(detection.VARIABLE, "cpu")
    assert Registry.detect_backend() == "cpu" and cause("ascend") == "KF_BACKEND is cpu"
    monkeypatch.setenv(detection.VARIABLE, "npu")
    assert Registry.detect_backend() == "ascend"
    monkeypatch.setenv(detection.VARIABLE, "cambricon")
    with pytest.raises(kf.UnavailableError, match="KF_BACKEND=cambricon: torch_mlu is not installed"):
        Registry.detect_backend()
    monkeypatch.setenv(detection.VARIABLE, "gaudi")
    with pytest.raises(
        kf.InvalidArgumentError, match="KF_BACKEND: expected one of ascend, mlu, kunlun, kunlun2, rocm, cuda, cpu"
    ):
        Registry.detect_backend()


def test_kf_info_says_what_was_detected_and_why_not_the_others():
    result = CliRunner().invoke(app, ["info", "--brief"])
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert "detected for PyTorch: cpu (not ascend: torch_npu is not installed" in text
    values = json.loads(CliRunner().invoke(app, ["info", "--json"]).output)
    assert {f["backend"]: f["cause"] for f in values["detected"]}["cpu"] is None
    assert {"cpu", "ascend", "mlu", "kunlun", "kunlun2"} <= {b["name"] for b in values["backends"]}
    for name in ("ascend::attention", "mlu::attention", "kunlun::attention", "kunlun2::attention"):
        assert any(k["name"] == name and "(contract)" in k["condition"] for k in values["kernels"])


def test_every_vendor_has_a_native_cache():
    natives = {v.name: (v.kv_layout, v.page_size) for v in VENDORS}
    assert natives == {"ascend": ("NHD", 128), "mlu": ("HND", 16), "kunlun": ("HND", 64), "kunlun2": ("HND", 64)}


def test_the_tables_of_the_pages_are_those_of_the_rows():
    command = [sys.executable, str(ROOT / "scripts/vendor_tables.py"), "--check"]
    path = os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert result.returncode == 0, result.stderr


# kf selfcheck


def test_selfcheck_of_the_cpu_writes_a_report(tmp_path):
    report = tmp_path / "report.json"
    result = CliRunner().invoke(app, ["selfcheck", "--op", "rope", "--every", "9", "--json", str(report)])
    assert result.exit_code == 0, result.output
    assert "cases: every kernel is right" in result.output
    values = json.loads(report.read_text())
    assert values["ok"] and values["backend"] == "cpu" and values["kind"] == "selfcheck" and not values["failures"]
    rows = {r["kernel"]: r for r in values["rows"]}
    assert all(r["level"] == "runs" for r in rows.values()) and any(r["served"] for r in rows.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "npu"], "backend ascend: torch_npu is not installed"),
        (["--backend", "gaudi"], "selfcheck: backend: expected one of cpu, "),
        (["--op", "convolution"], "selfcheck: op: expected some of linear"),
        (["--op", "rope", "--every", "0"], "selfcheck: every: expected at least 1, got 0"),
    ],
)
def test_selfcheck_of_what_is_not_there_says_why(arguments, said):
    result = CliRunner().invoke(app, ["selfcheck", *arguments])
    assert result.exit_code in (1, 2) and said in result.stderr


# Backends of other distributions


PLUG_IN = '''
import sagellm_kernel_fusion as kf

class Acme(kf.KernelFusionManager):
    """A backend of another distribution: the CPU's, as it happens."""
'''


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """A small installed distribution with an entry point."""
    (tmp_path / "acme_kf.py").write_text(PLUG_IN)
    info = tmp_path / "acme_kf-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-kf\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sagellm.backends]\nacme = acme_kf:Acme\nbroken = acme_kf:Missing\nwrong = json:JSONDecoder\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    if "acme" in Registry._backends:
        Registry.unregister("acme")
    sys.modules.pop("acme_kf", None)


def test_a_backend_is_found_by_its_entry_point(distribution, rng):
    assert {"acme", "broken", "cpu"} <= set(Registry.names())
    assert "acme_kf" not in sys.modules  # loaded when it is asked for
    backend = Registry.get("acme")
    x = rng.standard_normal((3, 8)).astype(np.float32)
    weight = np.ones(8, np.float32)
    np.testing.assert_array_equal(backend.fuse_rmsnorm(x, weight), kf.ops.rms_norm(x, weight))
    m = kf.KernelFusionManager(kf.KernelFusionConfig(backend="acme"))
    np.testing.assert_array_equal(m.fuse_rmsnorm(x, weight), kf.ops.rms_norm(x, weight))


def test_an_entry_point_that_is_wrong_is_an_error_that_names_its_package(distribution):
    with pytest.raises(kf.UnavailableError, match=r"backend broken of acme-kf \(acme_kf:Missing\): AttributeError"):
        Registry.get("broken")
    with pytest.raises(
        kf.UnavailableError, match=r"backend wrong of acme-kf .*: InvalidArgumentError: .*KernelFusionProtocol"
    ):
        Registry.get("wrong")


# The backends, over stand-ins, each in a process of its own: PyTorch has one device of plug-ins


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    library = (
        tmp_path_factory.mktemp("driver") / "no_driver.so"
    )  # what torch's CUDA libraries ask for around every call
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(STAND_INS / "kunlun/no_driver.c")], check=True)
    command = [sys.executable, str(Path(__file__).parent / "simulated/runner.py")]
    with subprocess.Popen(
        command, env=os.environ | {"LD_PRELOAD": str(library)}, cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield process


@pytest.fixture
def in_a_process(runner):
    def run(script: str, *options: str, **environment: str) -> None:
        folders = [str(STAND_INS), str(STAND_INS / script.removesuffix(".py"))]  # one vendor's alone
        request = {"script": script, "options": options, "environment": os.environ | environment, "folders": folders}
        print(json.dumps(request), file=runner.stdin, flush=True)
        answer = json.loads(runner.stdout.readline() or '{"status": "no answer", "printed": ""}')
        assert answer["status"] == 0, (answer["status"], answer["printed"][-8000:])
        assert " passed" in answer["printed"]

    return run


# What depends on the CANN; the rest is asked once.
BY_VERSION = "dense_attention or norms or linear_layers or managers_layers or lacks or need_is_said or inputs_in_eight"


@pytest.mark.parametrize(("version", "tests"), [("7.0.0", BY_VERSION), ("8.0.0", BY_VERSION), ("8.3.RC1", "test")])
def test_ascend(in_a_process, version, tests):
    assert (ROOT / ".cache/vendors/torch_npu-2.14.0.json").is_file(), "run scripts/get_vendor_schemas.py"
    in_a_process("ascend.py", "-k", tests, STAND_IN_CANN=version)


def test_cambricon(in_a_process):
    in_a_process("cambricon.py")


def test_kunlun_p800(in_a_process):
    in_a_process("kunlun.py")


def test_kunlun_r300_through_paddles_cpu_build(in_a_process):
    in_a_process("kunlun2.py")
