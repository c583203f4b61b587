"""Accelerators that PaddlePaddle reaches itself: arrays are Paddle's, by DLPack, and so are memory and queues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .. import _kf
from ..adapters.library import Library
from .vendor import Vendor

ONE_API = 14  # DLPack's kDLOneAPI, as which Paddle exports an XPU's tensors


@dataclass(frozen=True)
class PaddleVendor(Vendor):
    """distribution: Paddle's build for the device. generation: what its devices' version is called
    (`paddle.base.core.XPUVersion`)."""

    distribution: str = ""
    generation: str = ""

    def unusable(self) -> str | None:
        """Paddle's other builds are not imported for this: what is installed says enough."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            version(self.distribution)
        except PackageNotFoundError:
            return f"{self.distribution} is not installed: {self.install}"
        return self.import_problem() or self._device_problem()

    def _device_problem(self) -> str | None:
        try:
            core = _core()
            if core.get_xpu_device_count() == 0:
                return f"{self.distribution} is there, but finds no device: {self.advice}"
            got, wanted = core.get_xpu_device_version(0), getattr(core.XPUVersion, self.generation)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            return f"{self.distribution} cannot look for devices: {problem}; {self.advice}"
        if got != wanted:
            return f"{self.device}:0 is {got}: this backend is for {self.generation}"
        return None

    def is_shown(self) -> bool:
        return self.unusable() is None

    def capabilities(self, index: int) -> dict:
        import paddle

        self.require_device(index, _core().get_xpu_device_count())
        _kf.set_dlpack_device(self.dlpack, self.kind)
        memory = int(paddle.device.xpu.memory_total(index))
        return {"name": self.generation, "isa": self.isa(index), "memory_bytes": memory}

    def memory(self):
        return PaddleMemory(lambda index: _core().XPUPlace(index))


def _core():
    from paddle.base import core

    return core


class PaddleMemory:
    """allocate, free, copy and synchronize of a device, through Paddle's allocator and copies, in its current queue."""

    def __init__(self, place: Callable[[int], object]):
        self._place = place
        self._held: dict[int, object] = {}

    def allocate(self, index: int, size: int, stream: int) -> int:
        import paddle

        memory = paddle.empty([size], dtype="uint8", device=self._place(index))
        address = memory.data_ptr()
        self._held[address] = memory
        return address

    def free(self, index: int, address: int, stream: int) -> None:
        self._held.pop(address)

    def copy(self, to, source, stream: int) -> None:
        import paddle

        paddle.from_dlpack(to.dlpack()).copy_(paddle.from_dlpack(source.dlpack()), True)

    def synchronize(self, index: int, stream: int) -> None:
        import paddle

        paddle.device.synchronize(self._place(index))


@dataclass(frozen=True)
class PaddleFunctions(Library):
    """Functions of Paddle, which a row calls, with the kernels that they need of a device.

    kernels: by function, the names that its kernel has in Paddle's list of the device's kernels, any of which is
    enough, and the dtypes that the row asks of it. What is not in the list Paddle runs on the host, silently."""

    vendor: Callable[[], PaddleVendor | None] = lambda: None  # None: functions of the host, whose kernels all are there
    kernels: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)

    def missing(self) -> str | None:
        vendor = self.vendor()
        return super().missing() if vendor is None else vendor.unusable()

    @cached_property
    def problem(self) -> str | None:
        if (problem := super().problem) or (vendor := self.vendor()) is None:
            return problem
        core = _core()
        generation = getattr(core.XPUVersion, vendor.generation)
        for function, (names, dtypes) in self.kernels.items():
            served = {_name(t) for n in names for t in core.get_xpu_device_op_support_types(n, generation)}
            if lacking := [d for d in dtypes if d not in served]:
                kernel = f"{' or '.join(names)} of {', '.join(lacking)}"
                return f"this Paddle has no {kernel} for {vendor.generation}: {function} needs it"
        return None


def _name(dtype) -> str:
    """float32 of paddle.float32 and of VarType.FP32, as which versions of Paddle have it."""
    return str(dtype).rpartition(".")[2].lower().replace("fp", "float")
