"""Model files: GGUF and safetensors folders, memory-mapped, each tensor kept in its own element type."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import refusing
from .common import Metadata, ModelFile
from .gguf_file import read_gguf
from .random_model import random_model
from .safetensors_folder import read_safetensors

__all__ = ["Metadata", "ModelFile", "open_model", "random_model", "read_gguf", "read_safetensors"]


def open_model(path: str | Path) -> ModelFile:
    """Opens a GGUF file or a folder with config.json and *.safetensors.

    Raises InvalidArgumentError with the file and what is wrong, NotServedError for what is whole but not served.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise refusing(f"path: expected a GGUF file or a folder with config.json, got {type(path).__name__}")
    path = Path(path)
    if path.is_dir():
        return read_safetensors(path)
    if path.is_file():
        return read_gguf(path)
    raise refusing(f"{path}: expected a GGUF file or a folder with config.json, found nothing there", file=path)
