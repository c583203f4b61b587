"""Calls on a CUDA device, recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable

from .errors import UnavailableError, refusing


class Recorded:
    """What a function enqueued, as one CUDA graph; made by `KernelFusionManager.record`.

    `result` is what the function returned; its tensors are written anew by each replay(). Operands are read where they
    lay: copy new values into them."""

    def __init__(self, function: Callable, device=None):
        torch = _torch()
        self._graph, self._torch = torch.cuda.CUDAGraph(), torch
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(stream.device), torch.cuda.stream(stream):
            function()  # plans, compiles, checks; what may not be recorded is refused here
            function()
        stream.synchronize()
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self.result = function()
        torch.cuda.current_stream(device).wait_stream(stream)

    def replay(self):
        """Everything again, on torch's current stream; the result, which is always the same tensors."""
        self._graph.replay()
        return self.result


def _torch():
    try:
        import torch
    except ImportError:
        raise UnavailableError("record: expected PyTorch, whose memory a recording uses; it is not installed") from None
    if not torch.cuda.is_available():
        raise UnavailableError("record: expected a CUDA device, got none that PyTorch can use")
    return torch


def recordable(function) -> Callable:
    if not callable(function):
        raise refusing(f"record: function: expected a callable without arguments, got {type(function).__name__}")
    return function
