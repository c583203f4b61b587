"""A row of a vendor's table."""

from __future__ import annotations

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
