"""Operands on the device, the same call on the CPU, and how far apart the two may be."""

from __future__ import annotations

import torch

import sagellm_kernel_fusion as kf

# Half a unit in the last place, relative.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
CPU = kf.KernelFusionManager(kf.KernelFusionConfig(libraries=[], attention_backend="flash2"))


def random(*shape, dtype=torch.bfloat16, scale=1.0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale
    return values.to(dtype).cuda()


def on_the_cpu(operands: dict) -> dict:
    """The same values in f32 on the CPU; integers as they are."""
    return {
        name: (x.float() if x.is_floating_point() else x).cpu() if isinstance(x, torch.Tensor) else x
        for name, x in operands.items()
    }


def attention_agrees(got, lse, operands: dict, options: dict) -> None:
    """Against f32 attention over the same 16-bit values. A probability is rounded before it is multiplied, and the
    result once more: two roundings of at most the probabilities' sum over |v|. exp and tanh are the hardware's
    approximations, 2^-10 of a score's own size where there is a soft cap."""
    plain = on_the_cpu(operands)
    options = {n: x.cpu() if isinstance(x, torch.Tensor) else x for n, x in options.items()}
    expected, expected_lse = CPU.fuse_attention(**plain, **options, return_lse=True)
    sizes = CPU.fuse_attention(**(plain | {"v": plain["v"].abs()}), **options)
    of_cap = options.get("softcap", 0.0) * 2.0**-10
    bound = (2.5 * ROUNDING[got.dtype] + of_cap) * sizes + 1e-6
    difference = (got.float().cpu() - expected).abs()
    assert bool((difference <= bound).all()), float((difference / bound).max())
    if lse is not None:
        torch.testing.assert_close(lse.cpu(), expected_lse, rtol=1e-4, atol=1e-4 + of_cap)


def rows_agree(got, expected, roundings: float, scale: float | None = None) -> None:
    """Within so many roundings of got's dtype of the largest value (or of `scale`)."""
    scale = float(expected.abs().max()) if scale is None else scale
    difference = float((got.float().cpu() - expected.float().cpu()).abs().max())
    assert difference <= roundings * ROUNDING[got.dtype] * scale, (difference, scale)
