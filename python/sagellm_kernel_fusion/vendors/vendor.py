"""What there is to know of an accelerator that PyTorch reaches through a plug-in, and why it cannot be used here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from .. import _kf

EXTENSION, CUDA = 12, 2  # DLPack's kDLExtDev, which PyTorch's one device of plug-ins (PrivateUse1) has, and kDLCUDA
REGISTERED: dict[str, Vendor] = {}  # by name: those of this package, and other distributions' that were asked for
_import_errors: dict[str, str] = {}  # of plug-ins that were tried: what cannot be imported is not tried again


@dataclass(frozen=True)
class Vendor:
    """A backend whose operators are functions of Python.

    device: its tensors' `device.type`. plug_in: the module that gives PyTorch that device. install: how it comes.
    advice: what to look at where no device is found. kv_layout, page_size: how its operators have a paged cache; a
    cache of another layout is refused, never converted. table: its rows, best first, made when a call comes. isa:
    what a device is, of its index. dlpack: the device type that its tensors have in DLPack. device_type: the core's,
    where that is not the name: "cpu" for operators over the host's memory, which are used only where the backend is
    named."""

    name: str
    device: str
    plug_in: str
    install: str
    advice: str
    kv_layout: str = "NHD"
    page_size: int = 16
    table: Callable[[], tuple] = tuple
    isa: Callable[[int], str] = lambda index: ""
    dlpack: int = EXTENSION
    device_type: str = ""

    @property
    def page(self) -> str:
        """Of docs/backends/."""
        return {"mlu": "cambricon"}.get(self.name, self.name)

    def unusable(self) -> str | None:
        """Why it cannot be used on this machine; None: it can. Imports the plug-in where it is installed."""
        if not _installed(self.plug_in):
            return f"{self.plug_in} is not installed: {self.install}"
        if problem := self.import_problem():
            return problem
        if self.on_host:
            return None
        if self.dlpack == EXTENSION and (owner := device_of_plug_ins()) != self.device:
            if owner == "privateuseone":
                return f"{self.plug_in} registers no device {self.device} with PyTorch: too old, or not whole"
            return f"PyTorch's one device of plug-ins is {owner} in this process: {self.device} needs one of its own"
        try:
            if self.space().is_available():
                return None
        except Exception as error:
            return f"{self.plug_in} cannot look for devices: {type(error).__name__}: {error}; {self.advice}"
        return f"{self.plug_in} is there, but finds no device: {self.advice}"

    def import_problem(self) -> str | None:
        return _import_problem(self.plug_in)

    @property
    def kind(self) -> str:
        """The core's name for its devices."""
        return self.device_type or self.name

    @property
    def on_host(self) -> bool:
        return self.device_type == "cpu"

    def is_shown(self) -> bool:
        """Whether tensors of its device type are its own in this process."""
        if self.dlpack == EXTENSION:
            return device_of_plug_ins() == self.device
        return self.unusable() is None

    def space(self):
        """torch.npu and its like."""
        import torch

        return getattr(importlib.import_module(self.plug_in), self.device, None) or getattr(torch, self.device)

    def capabilities(self, index: int) -> dict:
        """What the core keeps of a device."""
        space = None if self.on_host else self.space()
        self.require_device(index, 1 if space is None else space.device_count())
        if space is None:
            return {"name": "the host", "isa": self.isa(index), "memory_bytes": 0}
        _kf.set_dlpack_device(self.dlpack, self.kind)
        properties = space.get_device_properties(index)
        memory = int(getattr(properties, "total_memory", 0))
        return {"name": str(properties.name), "isa": self.isa(index), "memory_bytes": memory}

    def require_device(self, index: int, count: int) -> None:
        if index >= count:
            from ..errors import UnavailableError

            raise UnavailableError(f"{self.device}:{index}: there are {count} devices", {"backend": self.name})

    def memory(self):
        """What allocates and copies on its devices; None: they are the host."""
        from .memory import TorchMemory

        return None if self.on_host else TorchMemory(self.device)

    def register(self) -> None:
        """Makes it one of the core's backends."""
        _kf.register_backend(self.name, self.kind, self.unusable, self.capabilities, self.table, self.memory())
        REGISTERED[self.name] = self


def device_of_plug_ins() -> str:
    """What PyTorch's PrivateUse1 is called: "privateuseone" before a plug-in has named it."""
    import torch

    return torch._C._get_privateuse1_backend_name()


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # loaded, but by something that gives no spec
        return True


def _import_problem(module: str) -> str | None:
    if module not in _import_errors:
        try:
            importlib.import_module(module)
        except Exception as error:  # a plug-in without its driver fails in ways of its own
            text = str(error).strip().partition("\n")[0]
            _import_errors[module] = f"{module} cannot be imported: {type(error).__name__}: {text}"
    return _import_errors.get(module)
