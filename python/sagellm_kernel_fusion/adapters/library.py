"""Other projects' packages: whether they are there, and whether their functions are those that an adapter is written
for.

Nothing is imported until a call passes every other condition of a row."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec


@dataclass(frozen=True)
class Library:
    """A module with the functions that an adapter calls.

    functions: by dotted name within the module, the parameters that it is given. install: what puts it there. source:
    where the signatures were read, with the version. lacking: why it has functions, but no kernels."""

    module: str
    install: str
    source: str
    functions: Mapping[str, tuple[str, ...]]
    lacking: Callable[[], str | None] = lambda: None

    def missing(self) -> str | None:
        """Why there is no such module; nothing is imported but its parent packages."""
        package = self.module.partition(".")[0]
        try:
            there = find_spec(package) is not None
        except (ImportError, ValueError):  # loaded, but by something that gives no spec
            there = True
        return None if there else f"{package} is not installed: {self.install}"

    @cached_property
    def problem(self) -> str | None:
        """Why its functions cannot be called; imports it. Asked once: what cannot be imported is not tried again."""
        try:
            module = importlib.import_module(self.module)
        except Exception as error:  # compiled modules fail in ways of their own
            return f"{self.module} cannot be imported: {type(error).__name__}: {error}"
        for name, parameters in self.functions.items():
            function = _member(module, name)
            if function is None:
                return f"{self.module} has no {name}; this adapter is written for {self.source}"
            known = _parameters(function)
            if lacking := [p for p in parameters if known is not None and p not in known]:
                return f"{self.module}.{name} takes no {', '.join(lacking)}; this adapter is written for {self.source}"
        return self.lacking()

    def __call__(self, name: str) -> Callable:
        """The function of this name. Only after `problem` was None."""
        return _member(importlib.import_module(self.module), name)


def _member(module, name: str):
    value = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _parameters(function: Callable) -> set[str] | None:
    """None: it does not tell."""
    try:
        return set(inspect.signature(function.__init__ if isinstance(function, type) else function).parameters)
    except ValueError:
        return None
