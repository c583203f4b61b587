"""Every row of the backend, op by op, best first."""

from __future__ import annotations

from . import attention, elementwise, linear, norms

ROWS = (*attention.ROWS, *linear.ROWS, *norms.ROWS, *elementwise.ROWS)
