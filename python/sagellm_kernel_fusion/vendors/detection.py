"""Which accelerator PyTorch has here, and why not the others."""

from __future__ import annotations

import importlib
import os
from typing import NamedTuple

from ..errors import UnavailableError, refusing

VENDORS: tuple = ()  # set when they are registered
VARIABLE = "KF_BACKEND"


class Found(NamedTuple):
    backend: str
    cause: str | None  # why it is not the one; None: it is


def detect() -> list[Found]:
    """Every backend in the order in which they are looked for: plug-ins first, since some of them show their devices as
    CUDA's too. KF_BACKEND names the one to take, and nothing else is looked at."""
    if wanted := os.environ.get(VARIABLE):
        return _named(wanted)
    found: list[Found] = []
    for name in (*(v.name for v in VENDORS), "rocm", "cuda", "cpu"):
        taken = next((f.backend for f in found if f.cause is None), None)
        if taken is None:
            found.append(Found(name, _cause(name)))
        else:
            found.append(Found(name, f"{taken} comes before it"))
    return found


def _named(wanted: str) -> list[Found]:
    from ..registry import ALIASES

    names = (*(v.name for v in VENDORS), "rocm", "cuda", "cpu")
    name = ALIASES.get(wanted, wanted)
    if name not in names:
        raise refusing(f"{VARIABLE}: expected one of {', '.join(names)}, got {wanted}")
    if cause := _cause(name):
        raise UnavailableError(f"{VARIABLE}={wanted}: {cause}", {"backend": name})
    return [Found(n, None if n == name else f"{VARIABLE} is {wanted}") for n in names]


def _cause(name: str) -> str | None:
    for vendor in VENDORS:
        if vendor.name == name:
            return vendor.unusable()
    return None if name == "cpu" else _of_cuda(name)


def _of_cuda(name: str) -> str | None:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:
        return f"PyTorch cannot be imported: {type(error).__name__}: {error}"
    is_rocm = getattr(torch.version, "hip", None) is not None
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    if (name == "rocm") != is_rocm:
        return f"PyTorch is built for {'ROCm' if is_rocm else 'CUDA'}"
    return None
