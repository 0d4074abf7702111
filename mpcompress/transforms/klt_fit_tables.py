"""Base step, tables and centroids of family `klt`, from sampled coefficients and their scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpcompress.entropy.tables import CdfTables, quantize_pmf
from mpcompress.transforms.klt_fit import Double, Progress, Scales, log_scale
from mpcompress.transforms.klt_model import UNITS_PER_OCTAVE
from mpcompress.transforms.tiling import FloatArray, dct2

ROWS = 48
ROW_SHIFT = 4
ROW_CUTOFF = (
    -5 * UNITS_PER_OCTAVE // 2
)  # finer coding of what is below a sixth of a step costs more bits than it is worth
CENTROIDS = 6
ROUNDING = (0.33, 0.42)
LARGEST_SYMBOL = 511

_PRIOR_COUNT = 64.0  # symbols that the Laplace prior of a table is worth
_CENTROID_PRIOR = 200.0
_WIDEST = 4095  # histograms hold |q| up to here
_TABLE_TENSORS = 96
_TARGET_BPFP = 0.2
_TARGET_NMSE = 0.085
_DEFAULT_QP_UNITS = 192
_LN2 = float(np.log(2))


@dataclass(frozen=True, kw_only=True)
class RowStatistics:
    """Histograms over tensors and steps, by table row.

    Args:
        counts: (R, 4096) of |q|, the last column of all above.
        error_sum: (R, Q) of |q| - |x| / step, by |q| - 1, the last column of all above.
        error_count: (R, Q) how many were summed.
    """

    counts: NDArray[np.int64]
    error_sum: Double
    error_count: Double


def fit_base_step(scales: Scales, variance: float) -> int:
    """log2 of the step at qp 0, 1/48 octave, such that qp 24 gives `_TARGET_BPFP`, or `_TARGET_NMSE` if that is finer.

    Args:
        scales: of the calibration set.
        variance: of the features about their one mean, the NMSE's denominator.
    """
    chosen = scales.sample[:: max(1, len(scales.sample) // 16)]
    magnitude = np.stack([np.abs(dct2(tile)) for tile in chosen])
    mean = (scales.tile / scales.tiles).astype(np.float32)
    low, high = -40.0, 40.0
    while high - low > 1 / UNITS_PER_OCTAVE:
        middle = (low + high) / 2
        bits, error = _laplace_cost(magnitude, mean, 2.0**middle)
        fine_enough = bits >= _TARGET_BPFP and error <= _TARGET_NMSE * variance
        low, high = (middle, high) if fine_enough else (low, middle)
    return round(low * UNITS_PER_OCTAVE) - _DEFAULT_QP_UNITS


def _laplace_cost(magnitude: FloatArray, mean: FloatArray, step: float) -> tuple[float, float]:
    """Ideal code length with Laplace tables, bits, and squared error, per coefficient."""
    q = np.floor(magnitude / step + ROUNDING[0])
    ratio = np.maximum(mean / step, 1e-2)
    # P(0) = 1 - exp(-edge / ratio); each further |q| is exp(-1 / ratio) times as likely; one bit for the sign.
    not_zero = -(1 - ROUNDING[0]) / ratio
    bits = np.where(q > 0, 1 - (not_zero - (q - 1) / ratio) / _LN2, 0.0)
    bits -= np.where(q > 0, np.log1p(-np.exp(-1 / ratio)), np.log1p(-np.exp(not_zero))) / _LN2
    return float(bits.mean()), float(np.square(magnitude - q * step).mean())


def row_statistics(
    scales: Scales, steps: Sequence[int], prefix_offset: int, progress: Progress | None = None
) -> RowStatistics:
    """Quantises the sampled tensors at `steps` (log2, 1/48 octave), their prefix tokens at steps + `prefix_offset`."""
    counts = np.zeros((ROWS, _WIDEST + 1), np.int64)
    error_sum, error_count = np.zeros((ROWS, CENTROIDS)), np.zeros((ROWS, CENTROIDS))
    chosen = range(0, len(scales.sample), max(1, len(scales.sample) // _TABLE_TENSORS))
    for done, number in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen), "tables")
        for magnitude, scale, offset in _left_out(scales, number, prefix_offset):
            for step in steps:
                above = scale - (step + offset + ROW_CUTOFF)
                coded = above >= 0
                row = np.minimum(above[coded] >> ROW_SHIFT, ROWS - 1)
                x = magnitude[coded] * np.float32(2.0 ** (-(step + offset) / UNITS_PER_OCTAVE))
                q = np.floor(x + np.where(x < 1, np.float32(ROUNDING[0]), np.float32(ROUNDING[1]))).astype(np.int64)
                cell = row * (_WIDEST + 1) + np.minimum(q, _WIDEST)
                counts += np.bincount(cell, minlength=counts.size).reshape(counts.shape)
                some = q > 0
                cell = row[some] * CENTROIDS + np.minimum(q[some], CENTROIDS) - 1
                error_sum += np.bincount(cell, q[some] - x[some], ROWS * CENTROIDS).reshape(error_sum.shape)
                error_count += np.bincount(cell, minlength=ROWS * CENTROIDS).reshape(error_sum.shape)
    if progress is not None:
        progress(len(chosen), len(chosen), "tables")
    return RowStatistics(counts=counts, error_sum=error_sum, error_count=error_count)


def _left_out(scales: Scales, number: int, prefix_offset: int) -> Iterator[tuple[FloatArray, NDArray[np.int32], int]]:
    """|x|, log2 scales and step offset of a sampled tensor, the scales as they were without that tensor.

    With it, the tables would believe that scales fit better than they do: few tensors would give overconfident tables.
    """
    tile, prefix = np.abs(dct2(scales.sample[number])), np.abs(scales.sample_prefix[number])
    without = np.maximum(scales.tile - tile, 0) / max(scales.tiles - 1, 1)
    yield tile.ravel(), log_scale(without).astype(np.int32).ravel(), 0
    without = np.maximum(scales.prefix - prefix, 0) / max(scales.tensors - 1, 1)
    yield prefix.ravel(), log_scale(without).astype(np.int32).ravel(), prefix_offset


def fit_tables(counts: NDArray[np.int64]) -> CdfTables:
    """Symmetric tables from the histograms of |q|, with a Laplace prior where there are few counts."""
    pmfs, offsets = [], []
    for row, count in enumerate(counts):
        # The prior's mean |x| / step: the middle of the row.
        mean = 2.0 ** ((ROW_CUTOFF + (row + 0.5) * (1 << ROW_SHIFT)) / UNITS_PER_OCTAVE)
        largest = int(np.clip(np.ceil(10 * mean) + 2, 3, LARGEST_SYMBOL))
        prior = _laplace(mean, largest)
        seen = np.append(count[: largest + 1], count[largest + 1 :].sum()).astype(np.float64)
        share = (_smooth(seen) + _PRIOR_COUNT * prior) / (seen.sum() + _PRIOR_COUNT)
        sides = share[1:-1] / 2
        pmfs.append(np.concatenate([sides[::-1], share[:1], sides, share[-1:]]))
        offsets.append(-largest)
    shares = [pmf / pmf.sum() for pmf in pmfs]
    freqs = [quantize_pmf(share, 16) for share in shares]
    lengths = np.array([len(freq) for freq in freqs], np.int32)
    return CdfTables(np.concatenate(freqs), lengths, np.array(offsets, np.int32), 16)


def _laplace(mean: float, largest: int) -> Double:
    """Shares of |q| = 0..largest and of all above, for a Laplace density of mean magnitude `mean` steps."""
    edges = np.concatenate([[0.0, 1 - ROUNDING[0]], np.arange(2, largest + 2) - ROUNDING[1]])
    survival = np.exp(-edges / mean)
    return np.append(survival[:-1] - survival[1:], survival[-1])


def _smooth(seen: Double) -> Double:
    """Counts of |q| = 0, 1, ... and of the escape, averaged over +-12 % of |q|: wide tables have few of each."""
    inner = seen[:-1]
    sums = np.concatenate([[0.0], np.cumsum(inner)])
    symbol = np.arange(inner.size)
    reach = (symbol * 0.12).astype(int)
    low, high = symbol - reach, np.minimum(symbol + reach, inner.size - 1)
    return np.append((sums[high + 1] - sums[low]) / (high + 1 - low), seen[-1])


def fit_centroids(statistics: RowStatistics) -> NDArray[np.float32]:
    """(R, Q) mean of |q| - |x| / step, drawn towards the column's mean where counts are few."""
    error_sum, error_count = statistics.error_sum, statistics.error_count
    overall = error_sum.sum(axis=0) / np.maximum(error_count.sum(axis=0), 1)
    centroid = (error_sum + _CENTROID_PRIOR * overall) / (error_count + _CENTROID_PRIOR)
    clipped: NDArray[np.float32] = np.clip(centroid, -0.5, 0.5).astype(np.float32)
    return clipped
