"""A stand-in for the KV pool: pages of a request are handed out as it grows, block tables asked for by request."""

from __future__ import annotations

import torch


class KVPool:
    def __init__(self, max_blocks: int, block_size: int):
        self.block_size = block_size
        self._free = list(range(max_blocks - 1, -1, -1))
        self._blocks: dict[int, list[int]] = {}

    def grow(self, request_id: int, tokens: int) -> list[int]:
        """Blocks of the request once it has so many tokens."""
        blocks = self._blocks.setdefault(request_id, [])
        while len(blocks) * self.block_size < tokens:
            blocks.append(self._free.pop())
        return blocks

    def get_block_tables(self, request_ids: list[int]) -> torch.Tensor:
        """int32 [len(request_ids), max_blocks], -1 pads."""
        rows = [self._blocks[r] for r in request_ids]
        tables = torch.full((len(rows), max(map(len, rows))), -1, dtype=torch.int32)
        for table, row in zip(tables, rows, strict=True):
            table[: len(row)] = torch.tensor(row)
        return tables
