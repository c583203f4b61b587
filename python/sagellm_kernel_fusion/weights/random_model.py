"""Models of known shapes with random weights, for benchmarks of what is too large to carry."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

from .. import _kf
from .common import ModelFile

_BLOCK = 2**23 + 64  # elements; every weight begins at a place of its own in it


def random_model(shape: str) -> ModelFile:
    """A model of this shape ("llama-3.2-1b") in bf16: norms of ones, other weights uniform with the variance 1 /
    hidden_size. The same each time. Raises InvalidArgumentError with the shapes that there are."""
    config = _kf.model_shape(shape)
    bound = (3 / config["hidden_size"]) ** 0.5
    block = np.random.default_rng(1).uniform(-bound, bound, _BLOCK).astype(ml_dtypes.bfloat16)
    tensors: dict[str, np.ndarray] = {}
    for i, (name, dims) in enumerate(_kf.expected_weights(config).items()):
        if len(dims) == 1:
            tensors[name] = np.ones(dims, ml_dtypes.bfloat16)
        else:
            tensors[name] = np.resize(np.roll(block, -12345 * i), dims)
    return ModelFile(Path(shape), "random", config, tensors, {}, lambda name: tensors[name].astype(np.float32))
