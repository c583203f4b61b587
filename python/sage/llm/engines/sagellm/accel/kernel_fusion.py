"""`sagellm_kernel_fusion` under the name that sageLLM's engines import it by."""

from sagellm_kernel_fusion import *  # noqa: F403
from sagellm_kernel_fusion import __all__, __version__  # noqa: F401
