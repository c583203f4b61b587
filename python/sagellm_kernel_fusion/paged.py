"""Block tables of paged K/V caches, from whatever a pool gives."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import refusing

_log = logging.getLogger("sagellm_kernel_fusion")
_said_full = False


@dataclass(frozen=True, eq=False)
class BlockTables:
    """Which pages of a cache hold each sequence, and how many of its tokens.

    tables: int32 [batch, max_blocks], -1 pads; or a list of page numbers for each sequence. context_lens: int32
    [batch], the keys of each sequence, those of the query tokens included; None: every listed page is full."""

    tables: object
    context_lens: object | None = None

    @classmethod
    def from_pool(cls, pool, request_ids: Sequence) -> BlockTables:
        """Of a K/V pool: one with `get_block_tables(request_ids)`, or with `get_sequence_blocks(request_id)`, whose
        blocks are page numbers or have an `id` or `block_id`."""
        if hasattr(pool, "get_block_tables"):
            tables = pool.get_block_tables(request_ids)
            return tables if isinstance(tables, cls) else cls(tables)
        if hasattr(pool, "get_sequence_blocks"):
            if not isinstance(request_ids, Iterable) or getattr(request_ids, "ndim", 1) == 0:
                raise refusing(f"BlockTables: request_ids: expected a sequence, got {type(request_ids).__name__}")
            return cls([[_number(block) for block in pool.get_sequence_blocks(r)] for r in request_ids])
        raise refusing(
            "BlockTables: expected a pool with get_block_tables(request_ids) or get_sequence_blocks(request_id), got "
            f"{type(pool).__name__}"
        )


def _number(block) -> int:
    number = getattr(block, "block_id", getattr(block, "id", block))
    try:
        return operator.index(number)
    except TypeError:
        raise refusing(
            f"BlockTables: expected blocks that are page numbers or have an id or block_id, got {type(block).__name__}"
        ) from None


def tables_and_lengths(block_tables, context_lens, pool, page_axis: int) -> tuple[object, object]:
    """The two operands that attention has: block_tables [batch, max_blocks] and context_lens [batch]. page_axis: where
    the pool's shape has the tokens of a page."""
    if isinstance(block_tables, BlockTables):
        given = block_tables.context_lens
        block_tables, context_lens = block_tables.tables, given if context_lens is None else context_lens
    if isinstance(block_tables, (list, tuple)):
        block_tables = _padded(block_tables)
    if context_lens is None:
        if (rank := len(pool.shape)) != 4:
            raise refusing(f"attention: k: expected a page pool of 4 dimensions with block_tables, got {rank}")
        context_lens = _full_pages(block_tables, int(pool.shape[page_axis]))
    elif isinstance(context_lens, (list, tuple)):
        context_lens = _numbers("context_lens", context_lens)
    return block_tables, context_lens


def _padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
    if not all(isinstance(row, Sequence) or getattr(row, "ndim", 0) == 1 for row in rows):
        raise refusing(f"block_tables: expected a list of page numbers for each sequence, got {rows!r}")
    tables = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int32)
    for table, row in zip(tables, rows, strict=True):
        table[: len(row)] = _numbers("block_tables", row)
    return tables


def _numbers(what: str, values: Sequence[int]) -> np.ndarray:
    try:
        return np.asarray([operator.index(value) for value in values], np.int32)
    except (TypeError, OverflowError) as error:
        raise refusing(f"{what}: expected integers of 32 bits, got {values!r}: {error}") from error


def _full_pages(block_tables, page_size: int):
    global _said_full
    if not _said_full:
        _said_full = True
        _log.warning(
            "block_tables without context_lens: every listed page is taken to be full (%d tokens); "
            "give context_lens, or BlockTables(tables, context_lens)",
            page_size,
        )
    try:
        # By its own library, on its own device.
        table = block_tables if hasattr(block_tables, "sum") else np.from_dlpack(block_tables)
        if table.ndim != 2:
            raise refusing(f"block_tables: expected int32 [batch, max_blocks], got shape {list(table.shape)}")
        lengths = (table >= 0).sum(1) * page_size
        return lengths.astype("int32") if hasattr(lengths, "astype") else lengths.int()
    except (AttributeError, TypeError, RuntimeError, BufferError) as error:
        raise refusing(f"block_tables: expected an int32 array [batch, max_blocks] or BlockTables: {error}") from error
