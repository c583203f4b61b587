"""NVIDIA's wheels beside this package: where libraries lie that are opened at run time."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from . import _kf


@cache
def find_libraries() -> None:
    """Makes their folders known. Before the first use of a device, since a library is looked for once."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for folder in sorted(Path(root).glob("*/lib")):
            _kf.add_library_folder(str(folder))
