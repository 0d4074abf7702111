"""Tables, centroids and evidence of family `klt`, from histograms of what was coded, or from Laplace without any.

A class is an octave's sixth of E|x| / step; its middle is `class_scales`. Histograms are (96, 17) by |q|.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpcompress.entropy.tables import CdfTables
from mpcompress.transforms.klt_context import (
    CLASS_SHIFT,
    CLASSES,
    EVIDENCE_LIMIT,
    MAGNITUDES,
    UNITS,
)

__all__ = ["ZERO_BELOW", "Histogram", "class_scales", "fit_centroid", "fit_evidence", "fit_tables"]

ZERO_BELOW = 0.6
"""|x| / step below which a quantiser gives 0, about: what the Laplace model of a table assumes."""

_PRECISION = 16
_ESCAPE_MASS = 2e-5
_PSEUDO_COUNT = 30.0  # the Laplace model counts as so many symbols of each class
_PSEUDO_ESCAPES = 0.3
_WORTH = 1.5  # of a symbol as evidence: 1.5 E|x| / step, at most 1
_FULL_WORTH = 64
_RDO_SHIFT = 0.06  # about how much below its symbol a value is in the mean

Double = NDArray[np.float64]


@dataclass
class Histogram:
    """Of |q| by class, and the sums of |x| / step less the excess of |q| over 16."""

    counts: Double
    sums: Double

    @classmethod
    def empty(cls) -> Histogram:
        """Nothing counted."""
        return cls(np.zeros((CLASSES, MAGNITUDES)), np.zeros((CLASSES, MAGNITUDES)))

    def add(self, classes: NDArray[np.uint16], symbols: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        """Symbols with their classes, and what they stand for, in steps."""
        size = np.abs(symbols.astype(np.int64))
        column = np.minimum(size, MAGNITUDES - 1)
        cell = classes.astype(np.int64) * MAGNITUDES + column
        shape = self.counts.shape
        self.counts += np.bincount(cell, minlength=self.counts.size).reshape(shape)
        magnitude = np.where(symbols == 0, np.abs(values), values * np.sign(symbols)) - (size - column)
        self.sums += np.bincount(cell, weights=magnitude, minlength=self.sums.size).reshape(shape)


def class_scales(cutoff: int) -> Double:
    """(96,) E|x| / step in the middle of each class."""
    scales: Double = 2.0 ** ((cutoff + (1 << CLASS_SHIFT) * (np.arange(CLASSES) + 0.5)) / UNITS)
    return scales


def fit_tables(histogram: Histogram, cutoff: int) -> CdfTables:
    """Frequencies of q in [-n, n], n about nine times the scale, the rest by escape."""
    masses, offsets = [], []
    last = MAGNITUDES - 1
    for scale, counts in zip(class_scales(cutoff), histogram.counts, strict=True):
        n = int(np.clip(np.ceil(9 * scale), 6, 250))
        model = _laplace(scale, n)
        seen = np.zeros(n + 1)
        if n <= last:
            seen[:] = counts[: n + 1]
            escapes = float(counts[n + 1 :].sum())
        else:
            tail = model[last:]
            seen[:last] = counts[:last]
            seen[last:] = counts[last] * tail / tail.sum()
            escapes = 0.0
        total = float(counts.sum()) + _PSEUDO_COUNT
        mass = (seen + _PSEUDO_COUNT * model) / total
        mass *= (1 - (escapes + _PSEUDO_ESCAPES) / total) / mass.sum()
        masses.append(np.concatenate([mass[:0:-1] / 2, mass[:1], mass[1:] / 2]))
        offsets.append(-n)
    return CdfTables.from_pmfs(masses, np.array(offsets, np.int32), precision=_PRECISION, escape_mass=_ESCAPE_MASS)


def fit_centroid(histogram: Histogram) -> NDArray[np.float32]:
    """(96, 17) means of |x| / step by |q|, at most half a step from it; 0 for 0."""
    size = np.arange(MAGNITUDES)
    mean = (histogram.sums + _PSEUDO_COUNT * (size - _RDO_SHIFT)) / (histogram.counts + _PSEUDO_COUNT)
    centroid: NDArray[np.float32] = np.clip(mean, size - 0.5, size + 0.5).astype(np.float32)
    centroid[:, 0] = 0
    return centroid


def fit_evidence(cutoff: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """(96, 17) evidence and (96,) worth: log2 of E(|x| given |q|) over the scale, times what that is worth."""
    scale = class_scales(cutoff)
    # E(|x| given 0) of an exponential cut off at ZERO_BELOW; half of that where the scale is far above it.
    tail = np.exp(-ZERO_BELOW / scale)
    zero = np.where(scale < 20, scale - ZERO_BELOW * tail / np.maximum(1 - tail, 1e-12), ZERO_BELOW / 2)
    said = np.empty((CLASSES, MAGNITUDES))
    said[:, 0] = np.log2(np.maximum(zero, 1e-9) / scale)
    said[:, 1:] = np.log2(np.maximum(np.arange(1, MAGNITUDES), 0.8)[None] / scale[:, None])
    worth = np.minimum(1, _WORTH * scale)
    evidence = np.clip(np.rint(said * worth[:, None] * UNITS), -EVIDENCE_LIMIT, EVIDENCE_LIMIT).astype(np.int16)
    return evidence, np.rint(worth * _FULL_WORTH).astype(np.int16)


def _laplace(scale: float, n: int) -> Double:
    """Probabilities of |q| = 0 ... n."""
    beyond, ratio = np.exp(-ZERO_BELOW / scale), np.exp(-1 / scale)
    mass = np.concatenate([[1 - beyond], beyond * (1 - ratio) * ratio ** np.arange(n)])
    return np.asarray(mass / mass.sum())
