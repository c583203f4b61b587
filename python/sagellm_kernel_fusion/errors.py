"""Errors: one class with a code, and a subclass for each code that is also the built-in error Python people expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

ErrorCode = Literal["invalid_argument", "resource_exhausted", "unavailable", "deadline_exceeded", "not_implemented"]


class KernelFusionError(Exception):
    """A failure of the library: what was expected, what came.

    `code` is one of `ErrorCode`; `context` holds the details as strings ("op", "operand", "expected", "got", "file").
    """

    code: ErrorCode = "invalid_argument"

    def __init__(self, message: str, context: Mapping[str, str] | None = None):
        super().__init__(message)
        self.message = message
        self.context = dict(context or {})

    def is_retryable(self) -> bool:
        """Whether the same call may succeed later, when a resource or device is back."""
        return self.code in ("resource_exhausted", "unavailable", "deadline_exceeded")

    def to_dict(self) -> dict:
        """code, message, context and retryable: what a service writes to its clients or its log."""
        return {
            "code": self.code,
            "message": self.message,
            "context": self.context,
            "retryable": self.is_retryable(),
        }

    def __reduce__(self):
        return type(self), (self.message, self.context)


class InvalidArgumentError(KernelFusionError, ValueError):
    """The caller's input is wrong: a shape, dtype, layout, index or file."""

    code = "invalid_argument"


class ResourceExhaustedError(KernelFusionError, RuntimeError):
    """Memory, disk or a cache's capacity ran out."""

    code = "resource_exhausted"


class UnavailableError(KernelFusionError, RuntimeError):
    """The device, library or backend is not here."""

    code = "unavailable"


class DeadlineExceededError(KernelFusionError, TimeoutError, RuntimeError):
    """A time budget ran out."""

    code = "deadline_exceeded"


class NotServedError(KernelFusionError, NotImplementedError):
    """Nothing in the configured kernel family serves the call; the message lists every kernel's reason."""

    code = "not_implemented"


_BY_CODE = {cls.code: cls for cls in KernelFusionError.__subclasses__()}


def make_error(code: ErrorCode, message: str, context: Mapping[str, str] | None = None) -> KernelFusionError:
    """The error of this code; how failures of the C++ library arrive."""
    return _BY_CODE[code](message, context)


def refusing(message: str, **context: object) -> InvalidArgumentError:
    """An invalid_argument error, for `raise refusing("...", file=path)`."""
    return InvalidArgumentError(message, {k: str(v) for k, v in context.items()})
