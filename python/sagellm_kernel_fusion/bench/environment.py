"""What a measurement says beside its numbers: the machine, the versions, the date."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import PackageNotFoundError, version

from .. import _kf
from ..errors import UnavailableError


def environment(backend: str = "cpu") -> dict:
    found = next((b for b in _kf.backends() if b["name"] == backend), {"reason": "this build has none"})
    if not found.get("available"):
        raise UnavailableError(f"backend {backend}: {found['reason']}", {"backend": backend})
    device = found["devices"][0]
    return {
        "device": device["name"],
        "isa": device["isa"],
        "threads": _kf.num_threads(),
        "l3_mb": round(device["l3_bytes"] / 2**20, 1),
        "memory_gb": round(device["memory_bytes"] / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "version": _kf.__version__,
        "packages": {name: _version(name) for name in ("numpy", "gguf", "safetensors", "tokenizers")},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
