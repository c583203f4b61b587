"""One kernel of another project as a row of the table: its conditions in words, and why it declines a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..custom.adapter import Adapter
from ..custom.served import Served
from .library import Library


@dataclass(frozen=True)
class Row:
    """A function of an op's operands over a library's.

    function: is given what its parameters name, as torch tensors, and returns the result or writes the outputs that
    its parameters name (as a custom kernel does). A call with anything that no parameter names is declined. declines:
    what else it does not take, of the operands' layouts. family: which configurations it belongs to
    (docs/adapters.md). devices: the types of the devices whose memory it reads. graph_safe: it only enqueues work.
    launches: kernels that one call launches, as far as is known."""

    name: str
    op: str
    family: str
    library: Library
    condition: str
    function: Callable
    declines: Callable[..., str | None] = lambda **fields: None
    fixed: Mapping[str, tuple] = field(default_factory=dict)  # the values of attributes that it serves
    transposed: tuple[str, ...] = ()  # weights that it is given as x @ W has them
    devices: tuple[str, ...] = ("cuda",)
    graph_safe: bool = False
    launches: int = 1
    arrays: str = "torch"

    @property
    def project(self) -> str:
        return self.name.partition("::")[0]

    @property
    def words(self) -> str:
        return f"{self.library.module.partition('.')[0]}, on {' and '.join(self.devices)}: {self.condition}"

    @cached_property
    def adapter(self) -> Adapter:
        form = Served(self.op, transposed=self.transposed, fixed=self.fixed)
        return Adapter(
            self.name, self.function, form, named=f"kernel {self.name}", declines=self.declines, kind=self.arrays
        )

    def supports(self, fields: Mapping) -> str | None:
        """Why it does not serve a call, its operands given as layouts; the cheapest reasons first."""
        reason = self.elsewhere(fields) or self.library.missing()
        return reason or self.adapter.supports(fields) or self.library.problem

    def elsewhere(self, fields: Mapping) -> str | None:
        """Which operand's memory it does not read."""
        for name, value in fields.items():
            device = getattr(value, "device", None)
            if device is not None and device.partition(":")[0] not in self.devices:
                return f"{name} is on {device}: this kernel runs on {' and '.join(self.devices)}"
        return None

    def run(self, fields: Mapping, stream: int, tf32: bool = False) -> None:
        self.adapter.run(fields, stream, tf32)
