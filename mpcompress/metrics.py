"""How good and how small: the figures in every table of this project. numpy only, sums in float64.

All of them take arrays of any shape and dtype numpy can turn into float64, and raise InvalidInputError when two
arrays that are compared differ in shape, or when there is nothing to measure.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mpcompress.errors import InvalidInputError

__all__ = ["bpfp", "cosine", "mse", "nmse", "psnr"]

Array = npt.NDArray[np.float64]


def _pair(reference: npt.ArrayLike, decoded: npt.ArrayLike) -> tuple[Array, Array]:
    """Return both as float64, checked to be comparable."""
    x, x_hat = np.asarray(reference, dtype=np.float64), np.asarray(decoded, dtype=np.float64)
    if x.shape != x_hat.shape:
        raise InvalidInputError(f"shapes differ: {x.shape} and {x_hat.shape}", field="decoded")
    if x.size == 0:
        raise InvalidInputError(f"nothing to compare in shape {x.shape}", field="reference")
    return x, x_hat


def mse(reference: npt.ArrayLike, decoded: npt.ArrayLike) -> float:
    """Mean squared error, in squared units of the features."""
    x, x_hat = _pair(reference, decoded)
    return float(np.mean(np.square(x - x_hat)))


def nmse(reference: npt.ArrayLike, decoded: npt.ArrayLike) -> float:
    """Squared error over variance: 0 is perfect, 1 is as good as sending the mean, and more is worse than that.

    The variance is that of the whole `reference` about its one mean, so the figure is comparable between layers
    whose features differ in scale. ``inf`` when the reference is constant and `decoded` differs from it.
    """
    x, x_hat = _pair(reference, decoded)
    error, variance = np.mean(np.square(x - x_hat)), np.var(x)
    if variance == 0:
        return 0.0 if error == 0 else math.inf
    return float(error / variance)


def psnr(reference: npt.ArrayLike, decoded: npt.ArrayLike, *, peak: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB; ``inf`` when equal.

    Args:
        reference: what was sent.
        decoded: what arrived, same shape.
        peak: largest possible value, such as 1023 for 10-bit pictures; default: the range of `reference`.

    Raises:
        InvalidInputError: shapes differ, nothing to compare, or a peak that is not positive.
    """
    x, x_hat = _pair(reference, decoded)
    span = float(np.ptp(x)) if peak is None else float(peak)
    if peak is not None and not span > 0:
        raise InvalidInputError(f"peak must be positive, not {peak}", field="peak")
    error = float(np.mean(np.square(x - x_hat)))
    if error == 0:
        return math.inf
    return 10 * math.log10(span * span / error) if span > 0 else -math.inf


def cosine(reference: npt.ArrayLike, decoded: npt.ArrayLike) -> float:
    """Cosine of the angle between two tensors taken as vectors, in -1..1; two zero vectors count as 1, one as 0."""
    x, x_hat = _pair(reference, decoded)
    norms = float(np.linalg.norm(x.ravel())), float(np.linalg.norm(x_hat.ravel()))
    if 0.0 in norms:
        return 1.0 if norms == (0.0, 0.0) else 0.0
    # Scaled before the product: the product of two tiny norms would vanish. Clipped: rounding goes past 1.
    return float(np.clip(np.dot(x.ravel() / norms[0], x_hat.ravel() / norms[1]), -1.0, 1.0))


def bpfp(nbytes: int, elements: int) -> float:
    """Bits per feature point: 8 times the bytes of the complete coded unit over the elements of its tensors.

    Raises:
        InvalidInputError: `elements` is not positive, or `nbytes` is negative.
    """
    if elements <= 0:
        raise InvalidInputError(f"elements must be positive, not {elements}", field="elements")
    if nbytes < 0:
        raise InvalidInputError(f"nbytes must not be negative, not {nbytes}", field="nbytes")
    return 8 * nbytes / elements
