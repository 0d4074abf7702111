"""Far tokens: a few with massive activations, which would ruin the low-pass of their neighbours.

They are coded on their own, about a mean of their own, and replaced on the grid by what is around them. Massive
activations: Sun et al. 2024, arXiv 2402.17762; Darcet et al. 2024, arXiv 2309.16588.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["fill", "find_far", "most_far", "subtract_means"]

_OVER_MEDIAN = 40.0
_OVER_TYPICAL = 16.0

FloatArray = NDArray[np.float32]
Ints = NDArray[np.int64]


def most_far(tokens: int) -> int:
    """At most so many of `tokens` are far."""
    return max(1, tokens // 20)


def subtract_means(x: FloatArray, means: FloatArray, out: FloatArray, energy: FloatArray) -> None:
    """Tokens (n, C) less means (n, C), or (1, C) for all, to out (n, C); energy (n,): squares of each, summed."""
    np.subtract(x, means, out=out)
    with np.errstate(over="ignore"):
        np.einsum("nc,nc->n", out, out, out=energy)


def find_far(energy: FloatArray, typical: float) -> Ints:
    """Indices of tokens whose energy (n,), means subtracted, is far beyond the others'; none when they are many.

    It must be far beyond the median of this tensor and beyond `typical`, which few tokens of the calibration set
    exceed: what is unusual in a tensor of nearly equal tokens only is not far.
    """
    largest = float(energy.max(initial=0))
    if len(energy) < 2 or not largest > _OVER_TYPICAL * typical:
        return np.zeros(0, np.int64)
    limit = max(_OVER_MEDIAN * float(np.median(energy)), _OVER_TYPICAL * typical)
    if not largest > limit:
        return np.zeros(0, np.int64)
    found = np.flatnonzero(energy > limit)
    return found if found.size <= most_far(len(energy)) else np.zeros(0, np.int64)


def fill(grid: FloatArray, far: Ints) -> None:
    """Replaces tokens of an (h, w, C) grid, in place, by the mean of their neighbours that are not far."""
    h, w = grid.shape[:2]
    near = np.ones((h, w), bool)
    near.flat[far] = False
    if not near.any():
        return
    everywhere = grid[near].mean(axis=0)
    for index in far:
        i, j = divmod(int(index), w)
        window = slice(max(i - 1, 0), i + 2), slice(max(j - 1, 0), j + 2)
        around = near[window]
        grid[i, j] = grid[window][around].mean(axis=0) if around.any() else everywhere
