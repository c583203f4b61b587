"""Every row of the backend, op by op, best first."""

from __future__ import annotations

from ..plain import plain_rows
from . import MLU, attention, layers

ROWS = (*attention.ROWS, *layers.ROWS, *plain_rows(MLU))
