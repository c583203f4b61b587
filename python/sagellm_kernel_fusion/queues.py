"""Queues (streams) of devices, as torch has them."""

from __future__ import annotations

# Their handles, as torch's and its plug-ins' streams name them.
_HANDLES = ("cuda_stream", "npu_stream", "mlu_stream")


def handle_of(stream) -> int | None:
    """The handle of a torch stream, or an integer as it is; None of anything else."""
    named = (getattr(stream, name, None) for name in _HANDLES)
    handle = next((h for h in named if h is not None), stream)
    return handle if isinstance(handle, int) and not isinstance(handle, bool) else None


def current_queue(array) -> int:
    """torch's current queue on the device of a tensor of its, CuPy's of an array of its; 0, which is a device's default
    one, for any other array."""
    if type(array).__module__.partition(".")[0] == "cupy":
        import cupy

        with array.device:
            return cupy.cuda.get_current_stream().ptr
    if not type(array).__module__.startswith("torch") or array.is_cpu:
        return 0
    import torch

    space = torch.cuda if array.is_cuda else torch.get_device_module(array.device)
    return handle_of(space.current_stream(array.device)) or 0


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
