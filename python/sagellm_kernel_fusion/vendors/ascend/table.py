"""Every row of the backend, op by op, best first."""

from __future__ import annotations

from ..plain import plain_rows
from . import ASCEND, attention, elementwise, linear, norms

ROWS = (*attention.ROWS, *linear.ROWS, *norms.ROWS, *elementwise.ROWS, *plain_rows(ASCEND))
