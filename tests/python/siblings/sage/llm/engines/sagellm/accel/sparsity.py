"""A stand-in for the sparsity module: weights stay dense, masked n:m along the reduction dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class SparsityConfig:
    pattern: str = "n:m"
    n: int = 2
    m: int = 4


class SparsityManager:
    def __init__(self, config: SparsityConfig):
        self.config = config

    def sparsify(self, weight: torch.Tensor) -> torch.Tensor:
        """weight [in, out] as x @ W has it: of every m neighbours of a column the n largest stay."""
        columns = weight.T.reshape(weight.shape[1], -1, self.config.m)
        kept = columns.abs().topk(self.config.n, -1).indices
        return torch.zeros_like(columns).scatter(-1, kept, columns.gather(-1, kept)).flatten(1).T.contiguous()
