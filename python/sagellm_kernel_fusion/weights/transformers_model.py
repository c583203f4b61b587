"""A model of transformers that is in memory: its configuration, and views of its weights."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

from ..errors import refusing
from .common import Metadata, ModelFile, aligned, split_merged
from .safetensors_folder import config_of


def is_transformers_model(model: object) -> bool:
    return hasattr(model, "state_dict") and hasattr(getattr(model, "config", None), "to_dict")


def read_transformers(model) -> ModelFile:
    """The weights are the model's own memory. A tokenizer is looked for where the model was loaded from."""
    path = Path(getattr(model, "name_or_path", "") or type(model).__name__)
    values = model.config.to_dict()
    config = config_of(Metadata(values, path))
    if not any(name.startswith("model.") for name in model.state_dict()):
        raise refusing(f"{path}: expected a model with its last layer, as ...ForCausalLM, got {type(model).__name__}")
    tensors, doubles = {}, {}
    for name, tensor in model.state_dict().items():
        array = _as_numpy(name, tensor)
        (doubles if array.dtype == np.float64 else tensors)[name] = aligned(array)

    tensors, doubles = split_merged(config, tensors), split_merged(config, doubles)

    def values_of(name: str) -> np.ndarray:
        return (tensors if name in tensors else doubles)[name].astype(np.float32)

    return ModelFile(path, "safetensors", config, tensors, values, values_of, dict.fromkeys(doubles, "f64"))


def _as_numpy(name: str, tensor) -> np.ndarray:
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.device.type != "cpu" or kind not in ("float64", "float32", "float16", "bfloat16"):
        raise refusing(
            f"{name}: expected weights on the CPU in float32, float16 or bfloat16, got {kind} on {tensor.device}: "
            'model.to("cpu"), and before it was quantized'
        )
    tensor = tensor.detach().contiguous()
    if kind != "bfloat16":
        return tensor.numpy()
    import torch  # it is there: the tensor is one of its

    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
