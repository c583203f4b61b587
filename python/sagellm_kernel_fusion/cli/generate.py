"""kf generate"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def generate(
    path: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A GGUF file, or a folder with config.json and safetensors.")
    ],
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="At most as many tokens.")] = 128,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt into the model's chat template, as a user's turn.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: the system message.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: the likeliest token; more is livelier.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among the k likeliest (0: all).")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest that make up this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Draw among those with this share of the largest probability.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same tokens.")] = 0,
    weights: Annotated[str, typer.Option(help="file: as stored; f32: dequantized first.")] = "file",
    fusion: Annotated[str, typer.Option(help="measured, all, none (the unfused baseline), or RULE,RULE.")] = "measured",
    threads: Annotated[int, typer.Option(min=0, help="0: all cores.")] = 0,
    device: Annotated[str, typer.Option(help="cpu; of a build with that backend cuda, or cuda:1.")] = "cpu",
    stats: Annotated[bool, typer.Option("--stats/--no-stats", help="Times on standard error at the end.")] = True,
) -> None:
    """Continue a prompt, printing text as it comes."""
    from ..errors import refusing
    from ..models import load_model

    if prompt == "-":
        prompt = sys.stdin.read()
    model = load_model(path, weights=weights, fusion=fusion, threads=threads, device=device, max_batch_size=1)
    if chat:
        messages = [{"role": "system", "content": system}] if system else []
        prompt = model.tokenizer.chat([*messages, {"role": "user", "content": prompt}])
    elif system is not None:
        raise refusing("--system: only with --chat")

    def show(_: int, piece: str) -> None:
        print(piece, end="", flush=True)

    result = model.generate(
        prompt, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, on_text=show
    )
    print()
    if stats:
        rest = result.seconds - result.seconds_to_first_token
        rate = f", then {(len(result.tokens) - 1) / rest:.1f} tokens/s" if len(result.tokens) > 1 and rest > 0 else ""
        print(
            f"[{len(result.tokens)} tokens; first after {result.seconds_to_first_token * 1e3:.0f} ms{rate}; "
            f"{'end of text' if result.reason == 'stop' else 'length reached'}]",
            file=sys.stderr,
        )
