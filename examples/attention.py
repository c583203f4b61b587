"""A first Python program: grouped-query attention on NumPy arrays, and why this kernel."""

import numpy as np

import sagellm_kernel_fusion as kf

rng = np.random.default_rng(0)
q = rng.standard_normal((2, 128, 8, 64), dtype=np.float32)  # [batch, seqlen, num_heads, head_dim]
k = rng.standard_normal((2, 128, 2, 64), dtype=np.float32)  # two K/V heads for eight query heads
v = rng.standard_normal((2, 128, 2, 64), dtype=np.float32)

out = kf.ops.attention(q=q, k=k, v=v, causal=True)
print(type(out).__name__, out.shape, out.dtype)
