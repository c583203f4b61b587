"""A Llama-family GGUF file as a transformers model and tokenizer, without the hub.

transformers reads configuration, tokenizer and weights from the file itself. It dequantizes every weight
and undoes the row permutation that GGUF applies to q and k for interleaved rotary embeddings, so what
comes out is the usual half-split layout.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")


def load_model(path: Path, dtype: str = "float32", attention: str = "eager"):
    """The model with its weights dequantized to `dtype`; `attention` is "eager" or "sdpa"."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
    )
    found = {p.dtype for p in model.parameters()}
    if found != {getattr(torch, dtype)}:
        raise RuntimeError(f"expected every weight as {dtype}, got {found}")
    return model.eval()


def load_tokenizer(path: Path):
    """The file's tokenizer as transformers reads it. It does not know the "smollm" pre-tokenizer, which cuts off
    each digit before anything else: white space in front of a digit comes out otherwise than in llama.cpp."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def ordinary_tokens(path: Path) -> list[int]:
    """The ids of the vocabulary's ordinary tokens (no control tokens)."""
    from gguf import GGUFReader, TokenType

    types = GGUFReader(path).fields["tokenizer.ggml.token_type"].contents()
    return [i for i, kind in enumerate(types) if kind == TokenType.NORMAL]
