"""The installed wheel in an environment of its own, without torch: one op, and where its libraries come from."""

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

import sagellm_kernel_fusion as kf
from sage.llm.engines.sagellm.accel import kernel_fusion

assert importlib.util.find_spec("torch") is None, "this environment is meant to have no torch"
x = np.full((1, 4), 2.0, np.float32)
out = kf.ops.rms_norm(x=x, weight=np.full(4, 3.0, np.float32))
np.testing.assert_allclose(out, 3.0, rtol=1e-5)

assert kernel_fusion.KernelFusionManager is kf.KernelFusionManager
assert kf.__version__ == version("sagellm-kernel-fusion")

# The wheel brings what not every Linux has: nothing of it is taken from the system.
mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
carried = {name: {p for p in mapped if Path(p).name.startswith(name)} for name in ("libdnnl", "libhwy", "libgomp")}
assert all(paths and all(p.startswith(sys.prefix) for p in paths) for paths in carried.values()), carried
print("sagellm_kernel_fusion in a clean environment: ok")
