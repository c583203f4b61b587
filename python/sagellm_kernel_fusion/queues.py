"""Queues (streams) of devices, as torch has them."""

from __future__ import annotations


def current_queue(array) -> int:
    """torch's current queue on the CUDA device of a tensor of its; 0, which is a device's default one, for any other
    array."""
    if not type(array).__module__.startswith("torch") or not array.is_cuda:
        return 0
    import torch

    return torch.cuda.current_stream(array.device).cuda_stream


def queue_of(device: str, index: int, stream: int):
    """The device's queue of this handle as torch has it; 0: the default one."""
    import torch

    space = torch.cuda if device == "cuda" else torch.get_device_module(device)
    where = torch.device(device, index)
    return space.ExternalStream(stream, device=where) if stream else space.default_stream(where)


def on_queue(device: str, index: int, stream: int):
    """Makes it torch's current queue."""
    import torch

    space = torch.cuda if device == "cuda" else torch.get_device_module(device)
    return space.stream(queue_of(device, index, stream))
