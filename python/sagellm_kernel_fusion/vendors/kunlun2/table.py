"""Every row of the backend, op by op, best first."""

from __future__ import annotations

from . import attention, layers, plain

ROWS = (*attention.ROWS, *layers.ROWS, *plain.ROWS)
