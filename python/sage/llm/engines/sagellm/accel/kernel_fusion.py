"""`sagellm_kernel_fusion` under the name that sageLLM's engines import it by."""

from typing import TYPE_CHECKING

import sagellm_kernel_fusion as _package
from sagellm_kernel_fusion import __all__  # noqa: F401

if TYPE_CHECKING:
    from sagellm_kernel_fusion import *  # noqa: F403


def __getattr__(name: str):
    # Asked for one by one: what a name needs is loaded with it, as in the package itself.
    if name not in _package.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_package, name)


def __dir__() -> list[str]:
    return list(_package.__all__)
