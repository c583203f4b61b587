"""Imports the installed package without torch, runs one op, and leaves."""

import importlib.util

import numpy as np

import sagellm_kernel_fusion as kf

assert importlib.util.find_spec("torch") is None, "this environment is meant to have no torch"
x = np.full((1, 4), 2.0, np.float32)
out = kf.ops.rms_norm(x=x, weight=np.full(4, 3.0, np.float32))
np.testing.assert_allclose(out, 3.0, rtol=1e-5)
print("sagellm_kernel_fusion in a clean environment: ok")
