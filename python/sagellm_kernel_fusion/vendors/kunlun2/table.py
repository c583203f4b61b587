"""Every row of the backend, op by op, best first."""

from __future__ import annotations

from . import attention, layers

ROWS = (*attention.ROWS, *layers.ROWS)
