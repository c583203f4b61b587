"""A device's memory as the core asks for it, through PyTorch's allocator and copies."""

from __future__ import annotations

from ..queues import on_queue, queue_of


class TorchMemory:
    """allocate, free, copy and synchronize of a device that torch calls `device`."""

    def __init__(self, device: str):
        self._device = device
        self._held: dict[int, object] = {}

    def allocate(self, index: int, size: int, stream: int) -> int:
        import torch

        with on_queue(self._device, index, stream):
            memory = torch.empty(size, dtype=torch.uint8, device=f"{self._device}:{index}")
        address = memory.data_ptr()
        self._held[address] = memory
        return address

    def free(self, index: int, address: int, stream: int) -> None:
        self._held.pop(address)  # the allocator keeps the order of the queue that it was allocated on

    def copy(self, to, source, stream: int) -> None:
        there = to if to.device.startswith("cpu") else source
        index = int((to if there is source else source).device.partition(":")[2])
        with on_queue(self._device, index, stream):
            to.torch().copy_(source.torch())

    def synchronize(self, index: int, stream: int) -> None:
        queue_of(self._device, index, stream).synchronize()
