"""The program `kf`: every command, its output, its files, and how it fails."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from typer.testing import CliRunner

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import _kf
from sagellm_kernel_fusion.adapters import LIBRARIES
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
    assert "cpu:0" in output and all(k["name"] in output for k in kf.list_kernels())
    assert all(r["name"] in output for r in _kf.rules())
    values = json.loads(run("info", "--json").stdout)
    assert len(values["kernels"]) == len(kf.list_kernels()) and values["environment"]["threads"] >= 1
    assert {k["backend"] for k in values["kernels"]} == {b["name"] for b in values["backends"]} | set(LIBRARIES)
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
    failing("shape: expected sizes of at least 0 and less than 2^63", "explain", "rms_norm", "-s", f"x={10**20}x576")


def test_explain_model_draws_both_graphs(tiny_gguf, tmp_path):
    output = run("explain", "model", tiny_gguf, "--tokens", 4, "--context", 8, "--svg", tmp_path / "g.svg").stdout
    assert "Before fusion" in output and "As it runs" in output
    for name in ("g.svg", "g-fused.svg", "g-both.svg"):
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
    failing("num_threads must be 0 to", "generate", tiny_gguf, "ab", "--threads", 100_000)
    failing("device: expected cpu", "generate", tiny_gguf, "ab", "--device", "gpu")
    run("generate", tiny_gguf, "ab", "-n", 2, "--fusion", "qkv_merge,attention_causal")


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


def test_bench_op_against_another_baseline():
    args = ["bench", "op", "rms_norm/f32/1x576", "--seconds", 0.01]
    for baseline in ("reference", "cpu::rms_norm_reference"):
        values = json.loads(run(*args, "--json", "--baseline", baseline).stdout)
        assert {c["baseline_name"] for c in values["comparisons"]} == {"cpu::rms_norm_reference"}
    failing("--baseline: expected one of reference, vanilla", *args, "--baseline", "eager")


def test_the_package_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "sagellm_kernel_fusion", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("kf "), done.stderr


def test_bench_model(tiny_gguf, tmp_path):
    # Every rule: which of them win on so small a model is chance.
    args = ["bench", "model", tiny_gguf, "--quick", "--prompts", "4,9", "--fusion", "all", "--out", tmp_path / "out"]
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


def test_bench_model_of_named_rules(tiny_gguf):
    args = ["--quick", "--prompts", "4", "--weights", "file", "--no-rules", "--fusion", "qkv_merge,attention_causal"]
    values = json.loads(run("bench", "model", tiny_gguf, *args, "--json").stdout)
    assert values["fusion"] == "qkv_merge,attention_causal" and values["precisions"] == ["q4_1"]
    unfused, fused = (r["kernel_calls_token"] for r in values["rows"])
    assert unfused - fused == 2 * (2 + 3)  # a layer: three linear layers to one, and four kernels of attention


def test_the_benchmark_of_python_is_that_of_the_command(tiny_gguf):
    """The same model, forms and counts; times are of two runs."""
    args = ["--quick", "--prompts", "4", "--weights", "file", "--no-rules", "--fusion", "all", "--json"]
    command = json.loads(run("bench", "model", tiny_gguf, *args).stdout)["comparisons"][0]
    config = kf.KernelFusionConfig(fusion="all")
    got = kf.benchmark_kernel_fusion(tiny_gguf, config, [[1, 2, 3, 4]], decode_tokens=4, rounds=1)
    # The command's last kernel picks a token; here logits are compared: one call of 45 less, without fusion.
    assert got["kernel_calls_reduction"] == pytest.approx(command["kernel_calls_reduction"], abs=0.01)
    assert set(got) == {"attention_speedup", "ffn_speedup", "memory_saving", "kernel_calls_reduction", "e2e_speedup"}


def test_bench_model_of_a_shape():
    args = ["--quick", "--prompts", "4", "--weights", "file", "--no-rules", "--fusion", "all"]
    values = json.loads(run("bench", "model", "--shape", "smollm2-135m", *args, "--json").stdout)
    assert values["precisions"] == ["bfloat16"] and all(c["results_agree"] for c in values["comparisons"])
    failing("--shape: expected one of smollm2-135m, llama-3.2-1b", "bench", "model", "--shape", "gpt-2")
    failing("expected either MODEL or --shape NAME", "bench", "model")


def test_bench_model_on_a_device(tiny_gguf):
    refused = run("bench", "model", tiny_gguf, "--device", "acme", code=1)
    assert refused.stderr == "kf: backend acme: this build has none\n"
    refused = run("bench", "model", tiny_gguf, "--device", "npu", code=1)
    assert refused.stderr.startswith("kf: backend ascend: torch_npu is not installed")
    failing("expected --batch, --context", "bench", "model", tiny_gguf, "--device", "cuda", "--prompts", "4")
    failing("--batch: expected numbers of at least 1", "bench", "model", tiny_gguf, "--device", "cuda", "--batch", "x")


def test_steps_of_a_model(tiny_gguf):
    """What `kf bench model --device` measures, on the CPU, where nothing is recorded."""
    from sagellm_kernel_fusion.bench.environment import environment
    from sagellm_kernel_fusion.bench.step_bench import StepEffort, measure_steps
    from sagellm_kernel_fusion.reports import step_document, step_json
    from sagellm_kernel_fusion.weights import open_model

    effort = StepEffort(batch=2, context=7, tokens=2, rounds=2)
    result = measure_steps(open_model(tiny_gguf), device="cpu", effort=effort)
    assert [f.form for f in result.forms] == ["unfused", "fused", "replayed"] and all(f.ok for f in result.forms)
    assert result.forms[0].launches > result.forms[1].launches == result.forms[2].launches
    assert not result.forms[2].replayed and result.label == "f32"
    rows = step_json("tiny", [result], {}, "all")["rows"]
    assert rows[1]["batch_size"] == 2 and rows[1]["tbt_ms"] > 0 and rows[1]["steps"] == 4
    [table] = step_document("tiny", [result], environment()).sections[0].tables
    assert [row[1] for row in table.rows] == ["unfused", "fused", "not replayed"]
    with pytest.raises(kf.InvalidArgumentError, match="batch: expected at least 1, got 0"):
        StepEffort(batch=0)
    with pytest.raises(kf.InvalidArgumentError, match="context: 100000 tokens"):
        measure_steps(open_model(tiny_gguf), device="cpu", effort=StepEffort(context=100000))


def test_bench_model_refuses_before_it_measures(tiny_gguf, monkeypatch):
    monkeypatch.setattr("sagellm_kernel_fusion.bench.model_bench.measure_precision", lambda *_: pytest.fail("measured"))
    bench = ("bench", "model", tiny_gguf)
    failing("--prompts: expected lengths", *bench, "--prompts", "0,a")
    failing("prompts: 250 tokens and those generated after them are 298; the model takes 256", *bench, "--prompts", 250)
    failing("weights: expected f32 or file, got 'int8'", *bench, "--weights", "int8")
    failing("weights: expected each form once", *bench, "--weights", "f32", "--weights", "f32")
    failing("fusion: expected measured", *bench, "--fusion", "some")
    failing("fusion: expected measured, all or rules", *bench, "--fusion", "none")
    result = run(*bench, "--prompts", "4", "--out", tiny_gguf / "folder", code=1)
    assert "the report cannot be written" in result.stderr


def test_a_report_that_cannot_be_written(tiny_gguf, tmp_path):
    (tmp_path / "file").write_text("")
    args = ["bench", "op", next(c["name"] for c in _kf.cases() if c["bench"]), "--seconds", 0.01]
    result = run(*args, "--out", tmp_path / "file", code=1)
    assert "the report cannot be written" in result.stderr


# Stands for a disk without room: files may not grow beyond this many bytes.
_FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
from sagellm_kernel_fusion.errors import ResourceExhaustedError
from sagellm_kernel_fusion.reports import Document, Section, write_report

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
document = Document("new", ["x" * 9000], [], [], [Section("s")])
try:
    write_report(document, {"new": "x" * 100_000}, folder)
except ResourceExhaustedError as error:
    sys.exit(f"{error.code}: {error.message}")
"""


@pytest.mark.parametrize("limit", [0, 60_000])  # not even the first; all but the last
def test_a_full_disk_leaves_the_older_report_whole(tmp_path, limit):
    names = ("report.html", "report.md", "report.json")
    for name in names:
        (tmp_path / name).write_text("old")
    command = [sys.executable, "-B", "-c", _FULL_DISK, str(tmp_path), str(limit)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.startswith("resource_exhausted: "), result.stderr
    assert "the report cannot be written: File too large" in result.stderr
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(names, "old")


def test_a_folder_in_a_reports_place_leaves_the_older_report_whole(tmp_path):
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "report.json").mkdir()
    args = ["bench", "op", next(c["name"] for c in _kf.cases() if c["bench"]), "--seconds", 0.01]
    assert "a folder is where the file should be" in run(*args, "--out", tmp_path, code=1).stderr
    assert (tmp_path / "report.html").read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_overruling_measured_fusions(tiny_gguf):
    failing("no measured fusion is remembered", "fusion", "drop", "qkv_merge")
    failing("rule: expected one of", "fusion", "drop", "some")
    run("generate", tiny_gguf, "ab", "-n", 2)
    before = json.loads(run("fusion", "list", "--json").stdout)
    rule = next(v["rule"] for v in before if v["keep"])
    places = [v["signature"] for v in before if v["rule"] == rule]
    failing(f"{rule}: no measured fusion at shapes with f32[999", "fusion", "keep", rule, "f32[999")
    assert f"{rule}: dropped in {len(places)} places" in run("fusion", "drop", rule).stdout
    after = json.loads(run("fusion", "list", "--json").stdout)
    assert [v for v in after if v["rule"] != rule] == [v for v in before if v["rule"] != rule]
    dropped = [v for v in after if v["rule"] == rule]
    assert [v["signature"] for v in dropped] == places
    assert all(not v["keep"] and v["reason"] == "dropped by hand" and v["unfused_ms"] > 0 for v in dropped)
    # What is remembered is what runs.
    run("generate", tiny_gguf, "ab", "-n", 2)
    assert json.loads(run("fusion", "list", "--json").stdout) == after
    args = ["explain", "model", tiny_gguf, "--tokens", 1, "--fusion", "measured", "--json"]
    applied = json.loads(run(*args).stdout)["applied"]
    assert not any(a["kept"] for a in applied if a["reason"] == "dropped by hand")
    assert "kept in 1 places" in run("fusion", "keep", rule, places[0]).stdout


def test_a_fusion_with_wrong_results_cannot_be_kept():
    store = _kf.VerdictStore(_kf.VerdictStore.default_path())
    store.put({"rule": "qkv_merge", "signature": "x", "device": "d", "max_error": 0.5, "reason": "results differ"})
    store.save()
    failing("qkv_merge: the fused results were wrong at x", "fusion", "keep", "qkv_merge")
    with pytest.raises(ValueError, match="verdict: expected fields among rule, signature"):
        store.put({"rule": "qkv_merge", "kept": True})


def test_remembered_fusions(tiny_gguf):
    run("generate", tiny_gguf, "ab", "-n", 2, "--fusion", "measured")
    assert json.loads(run("fusion", "list", "--json").stdout)
    assert "forgotten" in run("fusion", "clear").stdout
    assert json.loads(run("fusion", "list", "--json").stdout) == []


def test_help_and_version():
    for args in ([], ["info"], ["explain"], ["bench"], ["bench", "op"], ["bench", "model"], ["generate"], ["fusion"]):
        assert "Usage: " in run(*args, "--help").stdout
    assert run("--version").stdout.startswith("kf ")


def program(*args: object) -> list[str]:
    return [sys.executable, "-c", "from sagellm_kernel_fusion.cli import main; main()", *map(str, args)]


def test_as_a_program():
    result = subprocess.run(program("explain", "conv"), capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("kf: op: expected one of")


# Progress


def on_a_terminal(*command: str, columns: int = 100) -> tuple[str, str]:
    """A program's standard output, and what a terminal on its standard error shows."""
    terminal, end = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "24"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, env=environment)
    os.close(end)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side has closed
            piece = b""
        if not piece:
            break
        shown += piece
    output, _ = process.communicate()
    os.close(terminal)
    assert process.returncode == 0, shown.decode()
    return output.decode(), shown.decode()


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(tiny_gguf):
    command = program("bench", "model", tiny_gguf, "--quick", "--prompts", "4,9", "--no-rules", "--json")
    output, shown = on_a_terminal(*command)
    assert json.loads(output)["kind"] == "e2e"
    assert "\x1b[" in shown and "━" in shown and re.search(r"\d:\d\d:\d\d", shown)  # colour, a bar, the time
    assert all(what in shown for what in ("f32 weights: loading", "file weights: prompt of 9, then 17 tokens"))
    assert "\x1b[2K" in shown  # drawn over itself, and gone at the end
    plain = subprocess.run(command, capture_output=True, text=True)
    assert json.loads(plain.stdout)["kind"] == "e2e" and "\x1b" not in plain.stderr + plain.stdout
    steps = ("loading", "comparing logits", "prompt of 4, then 17 tokens", "prompt of 9, then 17 tokens")
    assert plain.stderr.splitlines() == [f"{kind} weights: {what}" for kind in ("f32", "file") for what in steps]


def test_progress_of_cases_counts_them():
    name = next(c["name"] for c in _kf.cases() if c["bench"])
    command = program("bench", "op", name, "--seconds", 0.01)
    count = sum(c["bench"] and c["name"].startswith(name) for c in _kf.cases())
    _, shown = on_a_terminal(*command)
    assert f"{count}/{count}" in shown
    plain = subprocess.run(command, capture_output=True, text=True)
    assert len(plain.stderr.splitlines()) == count and "\x1b" not in plain.stderr


def test_json_stands_alone_on_standard_output(tiny_gguf, tmp_path):
    """Whatever is logged meanwhile: here, that remembered fusions cannot be read."""
    commands = (
        ["fusion", "list", "--json"],
        ["bench", "model", tiny_gguf, "--quick", "--prompts", "4", "--no-rules", "--json"],
        ["explain", "model", tiny_gguf, "--fusion", "measured", "--tokens", 1, "--json"],
    )
    for i, arguments in enumerate(commands):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "fusion_verdicts.json").write_text("{")
        environment = os.environ | {"KF_CACHE_DIR": str(folder)}
        result = subprocess.run(program(*arguments), capture_output=True, text=True, env=environment)
        assert result.returncode == 0 and "set aside" in result.stderr, result.stderr
        json.loads(result.stdout)
