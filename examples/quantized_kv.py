"""A K/V cache in 8 and 4 bits: quantized as it is appended, dequantized in registers by attention."""

import numpy as np

import sagellm_kernel_fusion as kf

HEADS, KV_HEADS, WIDTH, PAGE, LENGTH = 8, 2, 64, 16, 200
rng = np.random.default_rng(0)
m = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_quant=True))
k, v = (rng.standard_normal((LENGTH, KV_HEADS, WIDTH), dtype=np.float32) for _ in range(2))
q = rng.standard_normal((1, HEADS, WIDTH), dtype=np.float32)
pages = rng.permutation(13).astype(np.int32)
slots = pages[np.arange(LENGTH) // PAGE] * PAGE + np.arange(LENGTH) % PAGE
where = {"block_tables": pages[None], "context_lens": np.array([LENGTH], np.int32)}

exact = kf.ops.attention(q[None], k[None], v[None])[0]
plain_bytes = 2 * 13 * PAGE * KV_HEADS * WIDTH * 4
for dtype, options, most in (
    ("int8", {}, 0.01),
    ("fp8", {}, 0.05),
    ("int4", {"group_size": 32}, 0.2),  # two a byte, a scale for every 32 of head_dim
):
    caches = [kf.quantized_cache((13, KV_HEADS, PAGE, WIDTH), dtype, **options) for _ in range(2)]
    m.append_kv(k, v, *caches, slots)
    out = m.fuse_attention(q, *caches, **where)
    error = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    assert 0 < error < most, (dtype, error)
    smaller = plain_bytes / sum(c.nbytes for c in caches)
    print(f"{dtype}: {smaller:.1f} times less memory than f32, {error:.4f} from exact")

# Keys and values that are there already, quantized as a whole.
k4, v4 = (kf.quantize_kv(x[None], "int4", group_size=32) for x in (k, v))
out = m.fuse_attention(q[None], k4, v4)
dequantized = kf.ops.attention(q[None], *(x.dequantize().astype(np.float32) for x in (k4, v4)))
np.testing.assert_allclose(out, dequantized, rtol=1e-4, atol=1e-4)
print("dense int4: as attention over what the codes stand for")
