"""What is made of a caller's weight once, and again only where the weight has changed."""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Sequence
from numbers import Number

import numpy as np

_PROBES = 4096
_made: dict[tuple, tuple] = {}  # (id of the weight, purpose) -> the weight, the parts' states, what was made


def made_once(weight, purpose: str, parts: Sequence, make: Callable):
    """make(), or what it gave for this very object while its `parts` (arrays, numbers or None) are the same objects
    with the same content.

    torch counts the changes of a tensor, but for those through `.data` and NumPy's views, of which some elements tell
    where much was written. What is not counted (NumPy's arrays, tensors of inference mode) is read whole: a checksum is
    a tenth of the work of packing. Nothing is kept of a weight that is gone.
    """
    key = (id(weight), purpose)
    states = [_state(part) for part in parts]
    if None in states:
        return make()
    if (kept := _made.get(key)) is not None:
        owner, old, made = kept
        if owner() is weight and len(old) == len(states) and all(map(_same, old, states)):
            return made
    made = make()
    try:
        owner = weakref.ref(weight, lambda owner: _forget(key, owner))
    except TypeError:  # it cannot be watched
        return made
    _made[key] = owner, states, made
    return made


def _forget(key: tuple, owner: weakref.ref) -> None:
    if (kept := _made.get(key)) is not None and kept[0] is owner:  # not that of a later object with the same id
        _made.pop(key, None)


def _state(part) -> tuple | None:
    """An array by a weak reference and what says whether it has changed; None: that cannot be said."""
    if part is None or isinstance(part, (Number, str)):
        return None, part
    try:
        return weakref.ref(part), _content(part)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None


def _content(array) -> tuple:
    form = str(array.dtype), tuple(array.shape)
    if hasattr(array, "data_ptr"):
        place = *form, array.data_ptr(), tuple(array.stride())
        counted, on_host = not array.is_inference(), array.device.type == "cpu"
        if not on_host:
            if not counted:
                raise ValueError("on a device, and not counted")
            return *place, array._version
        import torch  # it is there: the tensor is one of its

        flat = array.detach().reshape(-1)
        if counted:
            flat = flat[:: max(1, flat.numel() // _PROBES)]
        checksum = zlib.crc32(flat.contiguous().view(torch.uint8).numpy())
        return *place, array._version if counted else None, checksum
    if type(array).__module__.partition(".")[0] in ("jax", "jaxlib"):  # cannot be written
        return form
    array = np.asarray(array)
    return *form, array.ctypes.data, array.strides, zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _same(old: tuple, new: tuple) -> bool:
    (was, content), (now, other) = old, new
    if content != other:
        return False
    return was is now if was is None or now is None else was() is not None and was() is now()
