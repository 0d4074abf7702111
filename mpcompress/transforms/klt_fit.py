"""Fits a `KltModel` to feature tensors, streamed: floats and histograms live here, and only here.

pass 1   moments ──► means, KLT
pass 2   E|x| of every coefficient of the largest tile; a sample of tiles is kept
then     from the sample: scales of the smaller tiles, base step, histograms ──► tables, centroids
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import InvalidInputError
from mpcompress.transforms.klt_model import UNITS_PER_OCTAVE
from mpcompress.transforms.klt_symbols import interpolate
from mpcompress.transforms.tiling import FloatArray, dct2, dct_matrix, split_side

Double = NDArray[np.float64]
Progress = Callable[[int, int, str], None]

_SAMPLE_BYTES = 256 << 20
_SAMPLE_TILES = 192
_SHIFT_TILES = 96


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Means and the KLT. C channels, P prefix tokens.

    Args:
        mean: (C,) of the patch tokens.
        prefix_mean: (P, C).
        basis: (K, C), orthonormal rows by falling variance.
        energy: (K,) variances, at least a thousandth of their mean.
        others: for each fold, the basis of the tensors that are not in it; tensor n is in fold n % folds.
    """

    mean: Double
    prefix_mean: Double
    basis: Double
    energy: Double
    others: list[Double]


@dataclass(frozen=True, kw_only=True)
class Scales:
    """What pass 2 gathers.

    Args:
        tile: (h, w, K) sums of |x| of the largest tile's coefficients.
        tiles: how many tiles were summed.
        prefix: (P, K) sums of |x|.
        tensors: how many tensors were summed.
        sample: float32 (N, h, w, K): components of some tiles' tokens, before the DCT.
        sample_prefix: float32 (N, P, K), of the tensors those tiles are from.
    """

    tile: Double
    tiles: int
    prefix: Double
    tensors: int
    sample: FloatArray
    sample_prefix: FloatArray


@dataclass
class _Sums:
    """Running sums over patch tokens, less `shift`: sums of tensors add up, so that a share can be taken out again."""

    total: Double
    products: Double
    count: int = 0

    @classmethod
    def none(cls, channels: int) -> _Sums:
        return cls(np.zeros(channels), np.zeros((channels, channels)))

    def add(self, patches: Double) -> None:
        self.total += patches.sum(axis=0)
        centred = patches.astype(np.float32)
        self.products += centred.T @ centred
        self.count += len(patches)

    def plus(self, other: _Sums, sign: int = 1) -> _Sums:
        total, products = self.total + sign * other.total, self.products + sign * other.products
        return _Sums(total, products, self.count + sign * other.count)

    def klt(self) -> tuple[Double, Double]:
        """(K,) variances, falling, and (K, C) basis."""
        mean = self.total / self.count
        variances, vectors = np.linalg.eigh(self.products / self.count - np.outer(mean, mean))
        order = np.argsort(variances)[::-1]
        basis = vectors[:, order].T
        # An eigenvector's sign is free: fixed here, so that a codec does not depend on the linear algebra library.
        largest = basis[np.arange(len(basis)), np.abs(basis).argmax(axis=1)]
        return variances[order], basis * np.sign(largest)[:, None]


def fit_moments(tensors: Iterable[FloatArray], prefix: int, folds: int = 1) -> Moments:
    """Means and KLT of tensors (L, C), in float64 about the first tensor's mean, so that large means cost no digits."""
    shift: Double | None = None
    for number, x in enumerate(tensors):
        patches = x[prefix:].astype(np.float64)
        if shift is None:
            shift = patches.mean(axis=0)
            sums = [_Sums.none(shift.size) for _ in range(folds)]
            prefix_total = np.zeros((prefix, shift.size))
        sums[number % folds].add(patches - shift)
        prefix_total += x[:prefix]
    if shift is None:
        raise InvalidInputError("no tensors to calibrate on", field="sources")
    whole = reduce(_Sums.plus, sums)
    variances, basis = whole.klt()
    mean = whole.total / whole.count + shift
    energy = np.maximum(variances, 1e-3 * variances.mean())  # null directions hold rounding noise
    if not energy[0] > 1e-20 + 1e-12 * float(np.square(mean).max()):
        raise InvalidInputError("the features are constant: there is nothing to calibrate", field="sources")
    return Moments(
        mean=mean,
        prefix_mean=prefix_total / (number + 1),
        basis=basis,
        energy=energy,
        others=[whole.plus(part, -1).klt()[1] for part in sums] if folds > 1 else [basis],
    )


def fit_scales(
    tensors: Iterable[tuple[FloatArray, tuple[int, int]]],
    count: int,
    moments: Moments,
    tile: tuple[int, int],
) -> Scales:
    """Pass 2 over `count` tensors and their grids, each in the basis of the others.

    In a basis fitted to it, a tensor has less in the last components than a new tensor has: with few tensors several
    times less, and a codec that believed it would code new tensors badly.
    """
    prefix, (h, w) = len(moments.prefix_mean), tile
    bases = [basis.astype(np.float16).astype(np.float32) for basis in moments.others]  # as the codec file holds it
    K = len(bases[0])
    rng = np.random.default_rng(0)
    kept_most = max(1, min(_SAMPLE_TILES, count, _SAMPLE_BYTES // (4 * h * w * K)))
    keep = set(np.linspace(0, count - 1, kept_most).astype(int).tolist())
    tile_sum, prefix_sum = np.zeros((h, w, K)), np.zeros((prefix, K))
    tiles = 0
    sample, sample_prefix = [], []
    mean, prefix_mean = moments.mean.astype(np.float32), moments.prefix_mean.astype(np.float32)
    for number, (x, (height, width)) in enumerate(tensors):
        basis = bases[number % len(bases)]
        y = (x[prefix:] - mean) @ basis.T
        y_prefix = (x[:prefix] - prefix_mean) @ basis.T
        prefix_sum += np.abs(y_prefix)
        grid = y.reshape(height, width, -1)
        for top in _starts(height, h):
            for left in _starts(width, w):
                tile_sum += np.abs(dct2(grid[top : top + h, left : left + w]))
                tiles += 1
        if number in keep and height >= h and width >= w:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            sample.append(grid[top : top + h, left : left + w])
            sample_prefix.append(y_prefix)
    if not sample:
        raise InvalidInputError(f"no tensor has a whole tile of {h} x {w} tokens", field="sources")
    return Scales(
        tile=tile_sum,
        tiles=tiles,
        prefix=prefix_sum,
        tensors=number + 1,
        sample=np.stack(sample),
        sample_prefix=np.stack(sample_prefix),
    )


def _starts(side: int, size: int) -> list[int]:
    """First tokens of the fewest windows of `size` that cover a side, evenly placed; none when it is shorter."""
    if side < size:
        return []
    return sorted({int(start) for start in np.linspace(0, side - size, len(split_side(side, size)))})


def log_scale(mean_magnitude: Double | FloatArray) -> NDArray[np.int16]:
    """log2 in 1/48 octave, rounded; zero counts as 2^-40."""
    units = np.rint(UNITS_PER_OCTAVE * np.log2(np.maximum(mean_magnitude, 2.0**-40)))
    clipped: NDArray[np.int16] = np.clip(units, -1920, 8000).astype(np.int16)
    return clipped


def fit_smaller_tiles(
    scale_tile: NDArray[np.int16], sample: FloatArray, progress: Progress | None = None
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """`scale_dc` (h, w, K) and `scale_shift` of `KltModel`, from crops of sampled tiles (N, h, w, K)."""
    _, h, w, K = sample.shape
    rng = np.random.default_rng(1)
    scale_dc = np.empty((h, w, K), np.int16)
    shifts = []
    for height in range(1, h + 1):
        for width in range(1, w + 1):
            if progress is not None:
                progress((height - 1) * w + width - 1, h * w, "tiles")
            magnitude = _mean_magnitude(sample, height, width, rng)
            guess = interpolate(scale_tile, height, width)
            scale_dc[height - 1, width - 1] = log_scale(magnitude[0, 0])
            # Where most of the magnitude is, an error of the scale costs most bits: weighted by it.
            errors = (log_scale(magnitude).astype(np.float64) - guess) * magnitude
            shift = np.rint(errors.sum(axis=2) / np.maximum(magnitude.sum(axis=2), 1e-30))
            if (height, width) == (h, w):
                shift[...] = 0
                scale_dc[-1, -1] = scale_tile[0, 0]
            shifts.append(np.clip(shift, -4000, 4000).astype(np.int16).ravel())
    if progress is not None:
        progress(h * w, h * w, "tiles")
    return scale_dc, np.concatenate(shifts)


def _mean_magnitude(sample: FloatArray, height: int, width: int, rng: np.random.Generator) -> FloatArray:
    """E|x| of the coefficients of a (height, width) tile: (height, width, K)."""
    _, h, w, K = sample.shape
    chosen = sample[:: max(1, len(sample) // _SHIFT_TILES)]
    crops_each = 4 if height * width <= 16 else 1
    rows, columns = dct_matrix(height), dct_matrix(width)
    total = np.zeros((height, width, K), np.float64)
    for _ in range(crops_each):
        top, left = rng.integers(h - height + 1), rng.integers(w - width + 1)
        crops = chosen[:, top : top + height, left : left + width]
        coefficients = np.matmul(columns, crops) if width > 1 else crops
        if height > 1:
            coefficients = np.matmul(rows, coefficients.reshape(len(chosen), height, width * K))
        total += np.abs(coefficients).reshape(len(chosen), height, width, K).sum(axis=0)
    return (total / (crops_each * len(chosen))).astype(np.float32)
