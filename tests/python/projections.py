"""Logits of a whole vocabulary at every position, small enough to keep: projections onto a few fixed directions.

A random projection keeps lengths: an error's is found again, from 16 signs a logit, to within a factor of 2 at all
but one position in a hundred (its square is a chi-square of 16 degrees of freedom). No logit is left out.
"""

from __future__ import annotations

import numpy as np

DIRECTIONS = 16


def _signs(size: int) -> np.ndarray:
    """float64 [size, DIRECTIONS] of equal length and random sign: by a hash (splitmix64), so that they are the same for
    good."""
    x = np.arange(1, size * DIRECTIONS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    return (1.0 - 2.0 * (x & np.uint64(1)).astype(np.float64)).reshape(size, DIRECTIONS) / np.sqrt(DIRECTIONS)


def project(logits: np.ndarray) -> np.ndarray:
    """float64 [positions, DIRECTIONS] of logits [positions, vocab]."""
    return logits.astype(np.float64) @ _signs(logits.shape[-1])


def projected_errors(logits: np.ndarray, projections: np.ndarray) -> np.ndarray:
    """At each position the relative error (2-norm) of `logits` against those that `projections` were made of."""
    return np.linalg.norm(project(logits) - projections, axis=-1) / np.linalg.norm(logits.astype(np.float64), axis=-1)


def errors(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The same, of whole logits."""
    expected = expected.astype(np.float64)
    return np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
