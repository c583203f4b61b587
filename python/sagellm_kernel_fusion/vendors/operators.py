"""Operators of a PyTorch plug-in: whether those that a row calls are there, as they are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .vendor import Vendor


@dataclass(frozen=True)
class Operators:
    """What a row calls of `torch.ops.<namespace>`: a row's library, as adapters have one.

    names: operators by name, with the parameters that they are given. lacking: why the SDK below has none of the
    kernels of an operator, by its name. source: where the schemas were read."""

    vendor: Callable[[], Vendor]
    namespace: str
    source: str
    names: Mapping[str, tuple[str, ...]]
    lacking: Callable[[str], str | None] = field(default=lambda name: None)

    @property
    def module(self) -> str:
        return self.vendor().plug_in

    def missing(self) -> str | None:
        return self.vendor().unusable()

    @property
    def problem(self) -> str | None:
        """Why they cannot be called: an operator that is not there, a parameter that it has not, no kernel for it."""
        for name, parameters in self.names.items():
            if (schema := schema_of(self.namespace, name)) is None:
                return f"{self.module} has no {name}; this kernel is written for {self.source}"
            known = [a.name for a in schema.arguments]
            if unknown := [p for p in parameters if p not in known]:
                return f"{self.module}.{name} takes no {', '.join(unknown)}; this kernel is written for {self.source}"
            if reason := self.lacking(name):
                return reason
        return None

    def __call__(self, name: str) -> Callable:
        import torch

        return getattr(getattr(torch.ops, self.namespace), name)


def schema_of(namespace: str, name: str):
    """The schema of an operator's default overload; None: there is no such operator."""
    import torch

    packet = getattr(getattr(torch.ops, namespace), name, None)
    overload = getattr(packet, "default", None)
    return None if overload is None else overload._schema
