"""kf bench"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .console import Steps, finish, make_folder

app = typer.Typer(
    help="Measure fused against unfused, with the results compared in the same run.", no_args_is_help=True
)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
_Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Also write report.html, report.md and report.json into this folder.")
]


@app.command("op")
def bench_op(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Ops, or beginnings of case names; all without.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for each case.")] = 1.0,
    baseline: Annotated[
        str, typer.Option(metavar="FAMILY|KERNEL", help="What to compare with: a kernel family, or a kernel by name.")
    ] = "vanilla",
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="Whose kernels, on its device: cpu, or another that kf info lists.")
    ] = "cpu",
    list_only: Annotated[bool, typer.Option("--list", help="List the cases and stop.")] = False,
    as_json: _Json = False,
    out: _Out = None,
) -> None:
    """Operators: the kernel that the library chooses against the unfused one, or another."""
    from ..bench.environment import environment
    from ..bench.op_bench import baseline_of, run_cases, select_cases
    from ..bench.selfcheck import usable_backend
    from ..reports import op_document, op_json

    cases = select_cases(names or [])
    if list_only:
        for case in cases:
            print(case["name"])
        return
    there = usable_backend(backend, "bench op")["name"]
    compared_with = baseline_of(baseline)
    make_folder(out)
    with Steps(len(cases)) as steps:
        results = run_cases(cases, seconds, lambda r: steps.next(r.case), compared_with, there)
    here = environment(there)
    finish(op_document(results, here, baseline), op_json(results, here, seconds), as_json, out)
    if any(r.timing and not r.timing["ok"] for r in results):
        raise typer.Exit(1)


@app.command("model")
def bench_model(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="A GGUF file, or a folder with config.json and safetensors."),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Instead of MODEL, random bf16 weights in the shape of llama-3.2-1b, for one.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: a couple of minutes.")] = False,
    prompts: Annotated[str | None, typer.Option(help="Prompt lengths, as in 128,512,2048.")] = None,
    weights: Annotated[list[str] | None, typer.Option(help="f32 or file (as stored); both without.")] = None,
    fusion: Annotated[
        str, typer.Option(help="The fused form: measured (what wins here), all, or RULE,RULE.")
    ] = "measured",
    rules: Annotated[bool, typer.Option("--rules/--no-rules", help="Measure each fusion rule by itself too.")] = True,
    threads: Annotated[int, typer.Option(min=0, help="0: all cores.")] = 0,
    device: Annotated[str, typer.Option(help="Where: cpu, or another that kf info lists, as in cuda:1.")] = "cpu",
    batch: Annotated[str, typer.Option(help="On a device: sequences at once, as in 1,16.")] = "1",
    context: Annotated[int, typer.Option(help="On a device: tokens in the cache of each sequence.")] = 512,
    as_json: _Json = False,
    out: _Out = None,
) -> None:
    """A whole model: time to first token, time per token, memory, kernel calls, error, gain of every rule. On a
    device: a step of one token a sequence, unfused, fused, and replayed from a recording where the device makes one."""
    from ..bench.environment import environment
    from ..bench.model_bench import QUICK, Effort, measure_model
    from ..bench.step_bench import StepEffort
    from ..errors import refusing
    from ..reports import model_document, model_json
    from ..weights import open_model, random_model

    if (path is None) == (shape is None):
        raise refusing("expected either MODEL or --shape NAME")
    if device != "cpu":
        if prompts is not None or (weights and len(weights) > 1):
            raise refusing(f"--device {device}: expected --batch, --context and at most one --weights, no --prompts")
        kind = weights[0] if weights else "file"
        file = open_model(path) if path else random_model(shape)
        effort = StepEffort(context=context, rounds=3 if quick else 5)
        efforts = [replace(effort, batch=b) for b in _lengths(batch, "--batch", "numbers")]
        _bench_steps(file, shape or path, device, efforts, kind, fusion, as_json, out)
        return
    effort = replace(QUICK if quick else Effort(), measure_rules=rules)
    if prompts is not None:
        effort = replace(effort, prompts=_lengths(prompts))
    make_folder(out)
    with Steps(None) as steps:
        results = measure_model(
            open_model(path) if path else random_model(shape),
            effort=effort,
            precisions=tuple(weights or ("f32", "file")),
            threads=threads,
            fusion=fusion,
            say=steps.next,
        )
    here = environment() | ({"threads": threads} if threads else {})
    name = shape or (path.resolve().stem if path.is_file() else path.resolve().name)
    finish(model_document(name, results, here, fusion), model_json(name, results, here, fusion), as_json, out)
    if not all(r.ok and all(g.ok for g in r.rules) for r in results):
        raise typer.Exit(1)


def _bench_steps(file, named, device, efforts, weights, fusion, as_json, out) -> None:
    from ..bench.environment import environment
    from ..bench.step_bench import measure_steps
    from ..registry import device_named
    from ..reports import step_document, step_json

    here = environment(device_named(device).partition(":")[0])
    make_folder(out)
    with Steps(None) as steps:
        results = [
            measure_steps(file, device=device, effort=effort, weights=weights, fusion=fusion, say=steps.next)
            for effort in efforts
        ]
    name = named if isinstance(named, str) else named.resolve().stem if named.is_file() else named.resolve().name
    finish(step_document(name, results, here), step_json(name, results, here, fusion), as_json, out)
    if not all(f.ok for r in results for f in r.forms):
        raise typer.Exit(1)


def _lengths(text: str, option: str = "--prompts", what: str = "lengths") -> tuple[int, ...]:
    from ..errors import refusing

    try:
        lengths = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        lengths = ()
    if not lengths or lengths[0] < 1:
        raise refusing(f"{option}: expected {what} of at least 1 separated by commas, got {text}")
    return lengths
