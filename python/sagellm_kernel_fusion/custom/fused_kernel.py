"""Kernels as objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar


class FusedKernel(ABC):
    """A kernel with what there is to know of it; `KernelFusionManager.register_custom_kernel(name, MyKernel())`.

        class Swish(FusedKernel):
            op = "activation"

            def apply(self, input):
                return input * torch.sigmoid(input)

    op: the operator that it serves, where the name that it is registered under is not one. `apply` is given the first
    operand as `input`, and further ones by the names of its other parameters. `supports`, where defined, is asked with
    the operands' layouts (dtype, shape, strides) and the attributes, and returns why a call is declined, or None.
    `reference`, where defined, is what results are checked against instead of the op's own reference. graph_safe:
    `apply` only enqueues work, so that its launches may be recorded and replayed."""

    op: ClassVar[str | None] = None
    graph_safe: ClassVar[bool] = False
    supports = None
    reference = None

    @abstractmethod
    def apply(self, input):
        """The result for these operands."""
