"""Whole models on the device: the CPU's tokens in f32, bf16 near it, and `kf bench model --device cuda`."""

from __future__ import annotations

import json

import numpy as np
from typer.testing import CliRunner

import sagellm_kernel_fusion as kf
from model_files import TINY, write_gguf
from sagellm_kernel_fusion.bench.step_bench import StepEffort, measure_steps, tolerance
from sagellm_kernel_fusion.cli import app
from sagellm_kernel_fusion.reports import step_json
from sagellm_kernel_fusion.weights import open_model, random_model


def test_the_cpus_tokens(tmp_path):
    """Of 4-bit weights dequantized, in the unfused form too."""
    path = write_gguf(tmp_path / "tiny.gguf", TINY)
    prompts = [[5, 9, 14, 3], [7, 2, 21]]

    def tokens(device: str, fuse_kernels: bool = True) -> list:
        model = kf.load_model(path, weights="f32", device=device, fuse_kernels=fuse_kernels)
        return [g.tokens for g in model.generate(prompts, 24, stop=False)]

    assert tokens("cuda") == tokens("cpu") == tokens("cuda", fuse_kernels=False)


def test_bf16_weights_compute_in_bf16():
    file, tokens = random_model("smollm2-135m"), np.arange(40) * 7 % 49152
    expected = kf.load_model(file, weights="f32", context=64).logits(tokens)
    got = kf.load_model(file, device="cuda", context=64).logits(tokens)
    difference = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    assert difference <= tolerance("bf16", file.config["num_layers"])


def test_steps_are_measured_and_counted():
    file = random_model("smollm2-135m")
    result = measure_steps(file, device="cuda", effort=StepEffort(batch=3, context=40, tokens=4, rounds=2))
    unfused, fused, replayed = result.forms
    assert all(f.ok for f in result.forms) and replayed.replayed and not fused.replayed
    assert unfused.launches > 3 * fused.launches
    if not result.not_counted:  # a row may be several kernels to CUPTI; a recording's are counted by the library, too
        assert fused.kernels >= fused.launches and replayed.kernels == replayed.launches
    values = step_json("smollm2-135m", [result], {}, "all")
    assert json.loads(json.dumps(values))["rows"][2]["tbt_ms"] < values["rows"][0]["tbt_ms"]


def test_steps_of_a_file(tmp_path):
    """4-bit weights dequantized: what `make demo` measures."""
    file = open_model(write_gguf(tmp_path / "tiny.gguf", TINY))
    result = measure_steps(file, device="cuda", weights="f32", effort=StepEffort(context=9, tokens=2, rounds=2))
    assert result.label == "f32" and all(f.ok for f in result.forms)


def test_the_command():
    args = ["--shape", "smollm2-135m", "--device", "cuda", "--batch", "1,2", "--context", "16", "--quick", "--json"]
    result = CliRunner().invoke(app, ["bench", "model", *args])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["batch_sizes"] == [1, 2] and len(values["rows"]) == 6 and values["precisions"] == ["bf16"]
    assert "NVIDIA" in values["environment"]["device"]
