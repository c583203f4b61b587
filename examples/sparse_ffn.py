"""A gated FFN with sparse weights, kept compressed: 2:4, unstructured, and 2:4 with int8 values."""

import numpy as np

import sagellm_kernel_fusion as kf

HIDDEN, INTERMEDIATE = 256, 640
rng = np.random.default_rng(0)
m = kf.KernelFusionManager(kf.KernelFusionConfig(fuse_with_sparse=True, fuse_with_quant=True, fuse_ffn=True))
x = rng.standard_normal((4, HIDDEN), dtype=np.float32)
shapes = ((INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))  # [out, in]: gate, up, down
weights = [rng.standard_normal(shape, dtype=np.float32) / 16 for shape in shapes]


def silu_ffn(gate, up, down):
    h = x @ gate.T
    return (h / (1 + np.exp(-h)) * (x @ up.T)) @ down.T


for name, options in (
    ("2:4", {"pattern": "n:m", "n": 2, "m": 4}),
    ("unstructured, 70 % zeros", {"pattern": "unstructured", "sparsity": 0.7}),
    ("2:4 of int8", {"pattern": "n:m", "n": 2, "m": 4, "dtype": "int8"}),
):
    sparse = [kf.sparsify(w, **options) for w in weights]
    out = m.fuse_ffn(x, *sparse)
    expected = silu_ffn(*(kf.densify(w) for w in sparse))  # the same weights with their zeros
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)
    size = sum(w.nbytes for w in sparse) / sum(w.nbytes for w in weights)
    print(f"{name}: {size:.2f} of the dense f32 weights' memory, as the dense product with their zeros")

print("served by", *m.get_stats()["ops"]["gated_ffn"]["kernels"])
