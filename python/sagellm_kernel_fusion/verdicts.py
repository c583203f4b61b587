"""Measured fusions on disk, and the backends of the build: the extension's own, their arguments said in words."""

from __future__ import annotations

import os

from . import _kf
from .checks import text
from .errors import refusing


class VerdictStore(_kf.VerdictStore):
    """Measured fusions on disk, in the file `path`. Without a path: in memory only."""

    def __init__(self, path: str | os.PathLike = ""):
        super().__init__(text("VerdictStore: path", os.fspath(path) if isinstance(path, os.PathLike) else path))

    def find(self, rule: str, signature: str, device: str) -> dict | None:
        """The verdict that counts in this build; None: it would be measured."""
        given = {"rule": rule, "signature": signature, "device": device}
        return super().find(*(text(f"VerdictStore.find: {name}", value) for name, value in given.items()))

    def put(self, verdict: dict) -> None:
        """Overrules the verdict of the same rule, signature, device and version."""
        if not isinstance(verdict, dict):
            raise refusing(f"VerdictStore.put: verdict: expected one as find() gives it, got {type(verdict).__name__}")
        super().put(verdict)


def backends(only: str = "") -> list[dict]:
    """Every backend, or the one of this name: its devices, or why it cannot be used here."""
    return _kf.backends(text("backends: only", only))
