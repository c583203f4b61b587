"""Golden answers of SmolLM2-135M-Instruct, from transformers in float32 on the GGUF file's own weights.

For a fixed 256-token English text: the logits of every position (a .npz outside git), and in a JSON in git the top
tokens and the logits' projections onto 16 fixed directions; for a fixed prompt: 64 greedy tokens. The margins say how
far the second-best token is behind. The same projections of a forward pass in float64 (llama_float64.py) say what the
file's weights give exactly, and so how far float32 itself is off. A test may demand no more than these allow.

    python bench/peers/smollm2_golden.py [--model FILE] [--logits FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import report
import torch
from gguf_llama import load_model, load_tokenizer
from llama_float64 import Llama

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/python"))
from projections import errors, project  # noqa: E402

NUM_TOKENS, NUM_GREEDY = 256, 64

# Lewis Carroll, Alice's Adventures in Wonderland (1865), in the public domain.
TEXT = """Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: \
once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, \
"and what is the use of a book," thought Alice "without pictures or conversations?"

So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy and \
stupid), whether the pleasure of making a daisy-chain would be worth the trouble of getting up and picking the \
daisies, when suddenly a White Rabbit with pink eyes ran close by her.

There was nothing so very remarkable in that; nor did Alice think it so very much out of the way to hear the \
Rabbit say to itself, "Oh dear! Oh dear! I shall be late!" (when she thought it over afterwards, it occurred to \
her that she ought to have wondered at this, but at the time it all seemed quite natural); but when the Rabbit \
actually took a watch out of its waistcoat-pocket, and looked at it, and then hurried on, Alice started to her \
feet, for it flashed across her mind that she had never before seen a rabbit with either a waistcoat-pocket, or a \
watch to take out of it, and burning with curiosity, she ran across the field after it."""

PROMPT = "Once upon a time, in a small village by the sea, there lived"


def margins(logits: torch.Tensor) -> torch.Tensor:
    """How far the second-best token is behind the best, at each position."""
    best = logits.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


@torch.inference_mode()
def greedy(model, tokens: list[int]) -> tuple[list[int], list[float]]:
    """Greedy continuation (no end-of-text stop) and its margins, one forward a token over the cache."""
    ids, cache, chosen, gaps = torch.tensor([tokens]), None, [], []
    for _ in range(NUM_GREEDY):
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[0, -1]
        chosen.append(int(logits.argmax()))
        gaps.append(float(margins(logits)))
        ids = torch.tensor([[chosen[-1]]])
    return chosen, gaps


def rounded(projections: np.ndarray) -> list[list[float]]:
    """To eight digits, which is more than any check asks."""
    return [[float(f"{x:.8g}") for x in row] for row in projections]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--logits", type=Path, default=ROOT / ".cache/golden/smollm2.npz")
    parser.add_argument("--json", type=Path, default=ROOT / "tests/data/smollm2_golden.json")
    args = parser.parse_args()

    tokenizer, model = load_tokenizer(args.model), load_model(args.model, attention="eager")
    tokens = tokenizer(TEXT).input_ids[:NUM_TOKENS]
    prompt = tokenizer(PROMPT).input_ids
    assert len(tokens) == NUM_TOKENS, f"the text has only {len(tokens)} tokens"

    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0]
        continuation, gaps = greedy(model, prompt)
        exact_continuation, _ = greedy(model.double(), prompt)
    exact = Llama(args.model).logits(tokens)
    error = errors(logits.numpy(), exact).max()
    top = logits.argmax(-1)
    if not np.array_equal(top, exact.argmax(-1)) or continuation != exact_continuation:
        raise RuntimeError("float32 and float64 disagree on a top token: choose another text")

    args.logits.parent.mkdir(parents=True, exist_ok=True)
    np.savez(args.logits, tokens=np.array(tokens, np.int32), logits=logits.numpy())
    golden = {
        "model": args.model.name,
        "sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "versions": report.versions(),
        "precision": "float32 arithmetic on weights dequantized to float32, eager attention",
        "text": tokenizer.decode(tokens),
        "tokens": tokens,
        "top_tokens": top.tolist(),
        "top_logits": [round(x, 5) for x in logits.max(-1).values.tolist()],
        "min_margin": round(float(margins(logits).min()), 5),
        "relative_error_to_float64": float(f"{error:.2e}"),
        "projections": rounded(project(logits.numpy())),
        "float64_projections": rounded(project(exact)),
        "prompt": PROMPT,
        "prompt_tokens": prompt,
        "greedy_tokens": continuation,
        "greedy_text": tokenizer.decode(continuation),
        "greedy_min_margin": round(min(gaps), 5),
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    # One line a key: short enough to read, stable enough to diff.
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    args.json.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print({k: golden[k] for k in ("min_margin", "relative_error_to_float64", "greedy_min_margin", "greedy_text")})


if __name__ == "__main__":
    main()
