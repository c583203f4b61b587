"""A row of a vendor's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..adapters.row import Row

# How far a row was checked: on the hardware; by the vendor's compiler; against the vendor's own signatures, with
# stand-ins that compute; by reading alone.
Level = Literal["runs", "compiles", "contract", "paper"]


@dataclass(frozen=True)
class VendorRow(Row):
    """A vendor's operator, or several, as a kernel of an op.

    level: how far it was checked. saves: what it saves on paper over the plain operators one after another."""

    level: Level = "contract"
    saves: str = ""

    @property
    def words(self) -> str:
        return f"{self.condition} ({self.level})"

    def supports(self, fields: Mapping) -> str | None:
        if self._writes_nothing(fields):
            return self.elsewhere(fields) or self.library.missing() or self.library.problem
        return super().supports(fields)

    def run(self, fields: Mapping, stream: int, tf32: bool = False) -> None:
        if not self._writes_nothing(fields):
            super().run(fields, stream, tf32)

    def _writes_nothing(self, fields: Mapping) -> bool:
        """Whether a call has no elements of results, as steps of an engine without tokens, or without logits that
        anybody wants, have. Operators are not asked: few say what they do then."""
        written = ("k", "v") if self.op == "append_kv" else self.adapter.outputs
        return all(0 in fields[name].shape for name in written if fields[name] is not None)
