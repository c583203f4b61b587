"""What the fuzz tests draw: arrays of hostile values, strides and offsets."""

from __future__ import annotations

import math
import os

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# The same few examples every time, or with KF_FUZZ_EXAMPLES as many, drawn anew (scripts/fuzz.py).
EXAMPLES = os.environ.get("KF_FUZZ_EXAMPLES")
FUZZ = settings(
    max_examples=int(EXAMPLES or 25),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
HOSTILE = [0.0, -0.0, 1e-40, -1e-30, 65504.0, -65504.0, 1e19, -1e19, math.inf, -math.inf, math.nan, 88.8, -104.0]

dtypes = st.sampled_from(list(DTYPES.values()))
seeds = st.integers(0, 2**31 - 1)
sizes = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]), st.integers(0, 300)
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def array(draw, g, dtype, *shape, scale=1.0, hostile=True):
    """Normal values, some of them hostile, in memory that may begin anywhere and whose rows may lie apart."""
    padding = draw(st.integers(0, 9))
    memory = torch.full((*shape[:-1], shape[-1] + padding), math.nan, dtype=dtype)
    lead = draw(st.integers(0, padding))
    t = memory[..., lead : lead + shape[-1]]
    t.copy_(torch.randn(*shape, generator=g) * scale)
    if hostile and t.numel():
        for _ in range(draw(st.integers(0, 2))):
            at = tuple(draw(st.integers(0, n - 1)) for n in shape)
            t[at] = draw(st.sampled_from(HOSTILE))
    return t


def assert_near(got, exact, relative, absolute=0.0):
    """|got - exact| <= relative * (the row's largest finite |exact|) + absolute, and NaN where `exact` has it.
    `relative` may be one a row."""
    got, exact = got.double(), exact.double()
    # What overflows in float32 or in the dtype is its infinity.
    finite = exact.isfinite() & got.isfinite()
    assert torch.equal(got.isnan(), exact.isnan()), (got, exact)
    rows = exact.abs().nan_to_num(0, 0, 0)
    largest = rows.amax(-1, keepdim=True) if exact.numel() and exact.dim() else rows
    excess = (got - exact).abs() - relative * largest - absolute
    assert not (finite & (excess > 0)).any(), (got, exact, float(excess[finite].max()))
    return finite
