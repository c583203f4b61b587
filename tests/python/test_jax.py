"""JAX's arrays: in without a copy, out as JAX's, never written."""

from __future__ import annotations

import numpy as np
import pytest

import sagellm_kernel_fusion as kf

jax = pytest.importorskip("jax")
jnp = jax.numpy


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_in_and_out(rng, dtype):
    m = kf.KernelFusionManager()
    q, k = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((1, 9, 4, 16), (1, 9, 2, 16)))
    out, lse = m.fuse_attention(q, k, k, return_lse=True)
    assert isinstance(out, jax.Array) and out.dtype == dtype and isinstance(lse, jax.Array)
    expected = jax.nn.dot_product_attention(*(x.astype("float32") for x in (q, k, k)), is_causal=True)
    np.testing.assert_allclose(out.astype("float32"), expected, atol={"float32": 1e-5}.get(dtype, 2e-2))
    x, w = jnp.asarray(rng.standard_normal((2, 3, 16)), dtype), jnp.ones(16, dtype)
    got = m.fuse_rmsnorm(x, w)
    assert isinstance(got, jax.Array) and got.shape == x.shape
    got = m.fuse_silu_linear(x, jnp.ones((16, 8), dtype))
    assert isinstance(got, jax.Array) and got.shape == (2, 3, 8)


def test_they_are_not_written():
    m = kf.KernelFusionManager()
    x = jnp.ones((2, 8))
    with pytest.raises(kf.InvalidArgumentError, match=r"out: .*read-only one \(JAX's always are"):
        m.fuse_softmax(x, out=jnp.zeros((2, 8)))
    pool, kv = jnp.zeros((2, 2, 16, 8)), jnp.ones((3, 2, 8))
    with pytest.raises(kf.InvalidArgumentError, match=r"k_cache: .*read-only"):
        m.append_kv(kv, kv, pool, pool, np.arange(3))
    assert (pool == 0).all()
    out = np.empty((2, 8), np.float32)
    assert m.fuse_softmax(x, out=out) is out and (out == 0.125).all()


def test_tracers_are_refused_with_advice():
    m = kf.KernelFusionManager()
    for transform in (jax.jit, jax.vmap, lambda f: jax.grad(lambda x: f(x).sum())):
        with pytest.raises(kf.InvalidArgumentError, match=r"call it outside jax\.jit"):
            transform(m.fuse_softmax)(jnp.ones((2, 3)))
