"""The program `kf`: every command, its output, its files, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from typer.testing import CliRunner

from sagellm_kernel_fusion import _kf
from sagellm_kernel_fusion.cli import app

runner = CliRunner()


def run(*args: object, code: int = 0):
    result = runner.invoke(app, [str(a) for a in args])
    assert result.exit_code == code, result.output + result.stderr + repr(result.exception)
    return result


def failing(words: str, *args: object) -> None:
    """One line on stderr, exit code 2."""
    result = run(*args, code=2)
    lines = result.stderr.strip().splitlines()
    assert words in result.stderr and len(lines) == 1 and lines[0].startswith("kf: "), result.stderr


def test_info_lists_every_kernel():
    output = run("info").stdout
    assert "cpu:0" in output and all(k["name"] in output for k in _kf.kernels())
    assert all(r["name"] in output for r in _kf.rules())
    values = json.loads(run("info", "--json").stdout)
    assert len(values["kernels"]) == len(_kf.kernels()) and values["environment"]["threads"] >= 1
    assert "cpu::" not in run("info", "--brief").stdout
    failing("--op: expected one of linear", "info", "--op", "conv")


def test_explain_op():
    args = ["explain", "rms_norm", "-s", "x=512x576", "-s", "weight=576", "-a", "eps=1e-5"]
    assert "runs" in run(*args).stdout
    rows = json.loads(run(*args, "--json").stdout)
    assert sum(r["selected"] for r in rows) == 1
    low_bit = run("explain", "linear", "-s", "x=1x576", "-s", "weight=q4_1:1536x576", "--family", "reference")
    assert "configured is reference" in low_bit.stdout
    failing("op: expected one of", "explain", "conv")
    failing("--shape: expected NAME=", "explain", "rms_norm", "-s", "512x576")
    failing("--attr eps: expected a float", "explain", "rms_norm", "-a", "eps=small")
    failing("weight: expected 576", "explain", "rms_norm", "-s", "x=512x576", "-s", "weight=5")
    failing("x: expected an array, got none", "explain", "rms_norm")


def test_explain_model_draws_both_graphs(tiny_gguf, tmp_path):
    output = run("explain", "model", tiny_gguf, "--tokens", 4, "--context", 8, "--svg", tmp_path / "g.svg").stdout
    assert "Before fusion" in output and "As it runs" in output
    for name in ("g.svg", "g-fused.svg"):
        assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")
    values = json.loads(run("explain", "model", tiny_gguf, "--tokens", 1, "--json").stdout)
    assert {"before", "after", "applied", "steps"} <= set(values)
    failing("found nothing there", "explain", "model", tmp_path / "none.gguf")
    failing("expected a GGUF file", "explain", "model")
    assert run("explain", "model", tiny_gguf, "--svg", tmp_path / "no/g.svg", code=1).stderr.count("\n") == 1


def test_generate(tiny_gguf):
    result = run("generate", tiny_gguf, "ab", "-n", 5, "--temperature", 1)
    assert "5 tokens; first after" in result.stderr or "end of text" in result.stderr
    assert result.stdout.endswith("\n")
    failing("no chat template", "generate", tiny_gguf, "ab", "--chat")
    failing("--system: only with --chat", "generate", tiny_gguf, "ab", "--system", "x")
    failing("found nothing there", "generate", "none.gguf", "ab")
    failing("fusion: expected", "generate", tiny_gguf, "ab", "--fusion", "some")


def test_bench_op(tmp_path):
    first = next(c["name"] for c in _kf.cases() if c["bench"])
    assert first in run("bench", "op", "--list").stdout
    values = json.loads(run("bench", "op", first, "--seconds", 0.01, "--json", "--out", tmp_path).stdout)
    assert values["kind"] == "operator" and values["warmup"] == 1
    for row in values["comparisons"]:
        assert row["results_agree"] and row["speedup"] == pytest.approx(
            row["baseline_time_ms"] / row["optimized_time_ms"]
        )
    assert json.loads((tmp_path / "report.json").read_text()) == values
    failing("no benchmark case is named conv", "bench", "op", "conv")


def test_bench_model(tiny_gguf, tmp_path):
    args = ["bench", "model", tiny_gguf, "--quick", "--prompts", "4,9", "--out", tmp_path / "out"]
    result = run(*args)
    assert "time to first token, prompt 9" in result.stdout and "report.html" in result.stderr
    values = json.loads((tmp_path / "out/report.json").read_text())
    assert values["kind"] == "e2e" and values["simulate"] is False
    assert values["summary"]["total_rows"] == len(values["rows"]) == 2 * 2 * 2
    assert {r["mode"] for r in values["rows"]} == {"unfused", "fused"} and values["precisions"] == ["f32", "q4_1"]
    assert all(c["results_agree"] and c["kernel_calls_reduction"] >= 0.5 for c in values["comparisons"])
    assert {r["rule"] for r in values["rules"]} <= {r["name"] for r in _kf.rules()} and values["rules"]
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<svg") >= 6 and "http" not in page.replace("http://www.w3.org/", "")
    assert "| weights |" in (tmp_path / "out/report.md").read_text()
    failing("--prompts: expected lengths", "bench", "model", tiny_gguf, "--prompts", "0,a")


def test_a_report_that_cannot_be_written(tiny_gguf, tmp_path):
    (tmp_path / "file").write_text("")
    args = ["bench", "op", next(c["name"] for c in _kf.cases() if c["bench"]), "--seconds", 0.01]
    result = run(*args, "--out", tmp_path / "file", code=1)
    assert "the report cannot be written" in result.stderr


def test_remembered_fusions(tiny_gguf):
    run("generate", tiny_gguf, "ab", "-n", 2, "--fusion", "measured")
    assert json.loads(run("fusion", "list", "--json").stdout)
    assert "forgotten" in run("fusion", "clear").stdout
    assert json.loads(run("fusion", "list", "--json").stdout) == []


def test_help_and_version():
    for args in ([], ["info"], ["explain"], ["bench"], ["bench", "op"], ["bench", "model"], ["generate"], ["fusion"]):
        assert "Usage: " in run(*args, "--help").stdout
    assert run("--version").stdout.startswith("kf ")


def test_as_a_program():
    command = [sys.executable, "-c", "from sagellm_kernel_fusion.cli import main; main()", "explain", "conv"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("kf: op: expected one of")
