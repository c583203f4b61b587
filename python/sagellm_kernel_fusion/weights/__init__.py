"""Model files: GGUF and safetensors folders, memory-mapped, each tensor kept in its own element type."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import refusing
from .common import Metadata, ModelFile
from .gguf_file import read_gguf
from .random_model import random_model
from .safetensors_folder import read_safetensors
from .transformers_model import is_transformers_model, read_transformers

__all__ = ["Metadata", "ModelFile", "open_model", "random_model", "read_gguf", "read_safetensors", "read_transformers"]


def open_model(path) -> ModelFile:
    """Opens a GGUF file or a folder with config.json and *.safetensors; or a model of transformers that is in memory.

    Raises InvalidArgumentError with the file and what is wrong, NotServedError for what is whole but not served.
    """
    if is_transformers_model(path):
        return read_transformers(path)
    if not isinstance(path, (str, os.PathLike)):
        raise refusing(
            "path: expected a GGUF file, a folder with config.json or a model of transformers, got "
            f"{type(path).__name__}"
        )
    path = Path(path)
    if path.is_dir():
        return read_safetensors(path)
    if path.is_file():
        return read_gguf(path)
    raise refusing(f"{path}: expected a GGUF file or a folder with config.json, found nothing there", file=path)
