"""A device that computes on the CPU: its tensors say `npu:0`, `mlu:0` or `cuda:0`, the host's functions refuse them,
and every operator is PyTorch's own on the same memory. One a process: PyTorch's device of plug-ins (PrivateUse1), or
CUDA's place, which some vendors take."""

from __future__ import annotations

import ctypes
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_CPU, _CUDA, _EXTENSION = 1, 2, 12  # DLPack's kDLCPU, kDLCUDA and kDLExtDev
_own = SimpleNamespace(code=_EXTENSION)  # of the device's tensors
_kept: list = []  # registrations last as long as these


class _DLTensor(ctypes.Structure):  # as far as the device's type
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _as(tensor: torch.Tensor, device_type: int) -> torch.Tensor:
    """The same memory as a tensor of another device."""
    capsule = torch.utils.dlpack.to_dlpack(tensor)
    _DLTensor.from_address(_pointer(capsule, b"dltensor")).device_type = device_type
    return torch.utils.dlpack.from_dlpack(capsule)


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    return _as(tensor.detach(), _CPU)


class Queue:
    """What a stream is here: everything was done when it was enqueued."""

    def __init__(self, stream: int = 0, device=None):
        self.handle = self.cuda_stream = stream

    def synchronize(self) -> None:
        counts.synchronisations += 1


counts = SimpleNamespace(calls={}, synchronisations=0)


def install(name: str) -> SimpleNamespace:
    """Gives PyTorch the device; returns what a plug-in has as `torch.<name>`."""
    space = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        is_initialized=lambda: True,
        get_device_name=lambda index=0: "Simulated",
        get_device_properties=lambda index=0: SimpleNamespace(name="Simulated", total_memory=64 << 30),
        synchronize=lambda device=None: None,
        default_stream=lambda device=None: Queue(),
        current_stream=lambda device=None: Queue(),
        ExternalStream=Queue,
        stream=lambda queue: nullcontext(),
        _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None,
    )
    _setup_privateuseone_for_python_backend(name, backend_module=space)
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run, "PrivateUse1")
    _kept.append(library)
    return space


def install_as_cuda() -> SimpleNamespace:
    """The device in CUDA's place: every operator that PyTorch has for CUDA is the CPU's; returns torch.cuda."""
    _own.code = _CUDA
    space = torch.cuda
    space._lazy_init = lambda: None
    space.is_available = lambda: True
    space.device_count = lambda: 1
    space.current_device = lambda: 0
    space.get_device_name = lambda index=0: "Simulated"
    space.get_device_properties = lambda index=0: SimpleNamespace(name="Simulated", total_memory=64 << 30)
    space.synchronize = lambda device=None: None
    space.default_stream = lambda device=None: Queue()
    space.current_stream = lambda device=None: Queue()
    space.ExternalStream = Queue
    space.stream = lambda queue: nullcontext()
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that kernels are replaced
        for name in (*torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"), "aten::copy_", "aten::_to_copy"):
            if name.startswith("aten::") and name not in _VIEWS:
                function = _of_cuda(_operator(name)) if name != "aten::_softmax" else _softmax
                library.impl(name.removeprefix("aten::"), function, "CUDA")
        library.impl("_to_copy", _from_host, "CPU")
    _kept.append(library)
    return space


_VIEWS = ("aten::as_strided", "aten::view", "aten::_reshape_alias", "aten::unfold")  # which touch no memory


def _operator(name: str):
    name, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(torch.ops.aten, name), overload or "default")


def _of_cuda(op):
    return lambda *args, **kwargs: _run(op, *args, **kwargs)


def _softmax(x, dim, half_to_float):
    """The CPU's does not convert."""
    return _run(torch.ops.aten._softmax.default, x.float() if half_to_float else x, dim, False)


def _from_host(x, *, dtype=None, device=None, **options):
    x = x if isinstance(x, torch.Tensor) else torch.scalar_tensor(x)  # a number that PyTorch has as a tensor
    made = torch.empty_like(x, dtype=dtype or x.dtype, memory_format=options.get("memory_format")).copy_(x)
    return made if device is None or device.type == "cpu" else _as(made, _own.code)


def name() -> str:
    """The device's, for tensors to be made on it."""
    return "cuda:0" if _own.code == _CUDA else torch._C._get_privateuse1_backend_name()


def _is_there(value) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type not in ("cpu", "meta")


def _each(function, value):
    """Of each value of what an operator takes or gives, in lists, tuples and dicts. PyTorch's own trees take longer."""
    if isinstance(value, (list, tuple)):
        return type(value)([_each(function, v) for v in value])
    return {n: _each(function, v) for n, v in value.items()} if isinstance(value, dict) else function(value)


def _leaves(value) -> list:
    found: list = []
    _each(found.append, value)
    return found


def _copy(to, source):
    counts.calls["aten::copy_"] = counts.calls.get("aten::copy_", 0) + 1
    if to.numel():
        (on_host(to) if _is_there(to) else to).copy_(on_host(source) if _is_there(source) else source)
    return to


def _gelu(x, *, out=None, **options):
    """Not by PyTorch's kernel for the CPU, which doubles x before it halves it: 3e38 becomes infinite, infinity NaN."""
    y = torch.ops.aten.gelu(x.double(), **options).to(x.dtype)
    return y if out is None else out.resize_(y.shape).copy_(y)


def _run(op, *args, **kwargs):
    """The operator on the CPU, over the same memory; what it gives lies on the device."""
    if op.name() == "aten::copy_":
        return _copy(*args[:2])
    if op.name() == "aten::_copy_from":  # what copy_ comes to between devices
        return _copy(args[1], args[0])
    counts.calls[op.name()] = counts.calls.get(op.name(), 0) + 1
    mapped: list[tuple[torch.Tensor, torch.Tensor]] = []

    def lower(value):
        if _is_there(value):
            # What has no elements may be given some, which a view of other memory cannot.
            host = on_host(value) if value.numel() else torch.empty(value.shape, dtype=value.dtype)
            mapped.append((host, value))
            return mapped[-1][0]
        if isinstance(value, torch.device) and value.type != "cpu":
            return torch.device("cpu")
        return value

    def lift(value):
        if not isinstance(value, torch.Tensor):
            return value
        for lowered, original in mapped:
            if value is lowered:
                return original
        return value if any(value is a for a in given) or to_host else _as(value, _own.code)

    given = _leaves((args, kwargs))
    devices = [a.type for a in given if isinstance(a, torch.device)]
    to_host = devices == ["cpu"] or not (any(_is_there(a) for a in given) or devices)
    args, kwargs = _each(lower, (args, kwargs))
    results = (_gelu if op.name() in ("aten::gelu", "aten::gelu.out") else op)(*args, **kwargs)
    for lowered, original in mapped:
        if lowered.shape != original.shape:
            original.data = _as(lowered, _own.code)
    return _each(lift, results)
