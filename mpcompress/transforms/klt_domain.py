"""How far a tensor is from those that a codec was calibrated on, from the energies of its coefficients.

Details    for each kind of row of the two finest levels and each octave of components, log2 of the energy over the
           expected one. What counts is how these differ from each other: another layer or another model distributes
           its energy otherwise over the components. That all are larger or smaller, as those of smooth or busy
           pictures are, counts less. Texts of a few tokens have no details that say anything.
Middle     the root and the prefix tokens are what is left after the means and the predictors, and vary least in their
           last components: log2 of what is more there than expected. Another layer has other means.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mpcompress.transforms.klt_limits import BANDS
from mpcompress.transforms.klt_model import KltModel
from mpcompress.transforms.klt_sample import Group

__all__ = ["Domain", "bands_of"]

_LEVELS = 2
_SCALE_SHARE = 0.3
_LEAST_ROWS = 48  # energies of fewer rows say little

Double = NDArray[np.float64]


def bands_of(components: int) -> list[int]:
    """Where the bands of components begin, and the end: octaves, the last band with all the rest."""
    return [*(min(2**band - 1, components) for band in range(BANDS)), components]


class Domain:
    """Gathers energies while a tensor is coded; its `__call__` is an `Observer`."""

    def __init__(self, model: KltModel) -> None:
        self._model = model
        self._middle: list[float] = []
        self._bands = bands_of(model.components)
        self._spent = [[0.0] * BANDS for _ in range(model.kinds)]
        self._known = [BANDS] * model.kinds
        self._rows = [0] * model.kinds
        self._first = 1 + model.prefix_tokens
        self._end = self._first + 3 * min(_LEVELS, model.depth)

    def __call__(self, group: Group) -> None:
        """Adds the energies of a group, when it is of the two finest levels or in the middle of all."""
        kind = group.kind
        if kind < self._first:
            self._middle.append(self._surprise(group))
        if not self._first <= kind < self._end:
            return
        last = bisect_right(self._bands, group.x.shape[1]) - 1  # what is not known whole
        spent = self._spent[kind]
        for band in range(last):
            spent[band] += group.bands[band]
        if last < BANDS:  # what was not transformed counts with the band where it begins
            spent[last] += max(group.energy - sum(group.bands[:last]), 0.0)
        self._known[kind] = min(self._known[kind], last + 1)
        self._rows[kind] += len(group.x)

    def _surprise(self, group: Group) -> float:
        """log2 of the energy over the expected one, of the last octaves that have half of a row's components."""
        components, depth = self._model.components, group.x.shape[1]
        band = bisect_right(self._bands, min(components // 2, depth)) - 1
        beyond = max(group.energy - sum(group.bands), 0.0) if depth < components else 0.0
        seen = beyond + sum(group.bands[band:])
        return _log_ratio(seen, len(group.x) * float(self._model.usual_rest[group.kind, self._bands[band]]))

    @property
    def energy(self) -> Double:
        """(N, BANDS) mean square of a coefficient; 0 where nothing was seen."""
        sizes = np.diff(self._bands) * np.maximum(self._rows, 1)[:, None]
        return np.asarray(np.where(sizes > 0, np.array(self._spent) / np.maximum(sizes, 1), 0))

    def summary(self) -> tuple[float | None, int]:
        """Distance from the calibration set, and by how much the tensor is larger than it, 1/48 octave.

        A distance of 1 is typical; None, and 0, when there are too few rows to tell, unless their middle alone does.
        """
        distance = max(sum(self._middle) / max(len(self._middle), 1), 0.0) / self._model.domain_typical
        found = self._ratios()
        if not found:
            return (distance if distance > self._model.domain_bound else None), 0
        found.sort()
        median = found[len(found) // 2]
        spread = sum(abs(ratio - median) for ratio in found) / len(found) + _SCALE_SHARE * abs(median)
        return distance + spread / self._model.domain_typical, round(24 * median)

    def _ratios(self) -> list[float]:
        """log2 of energies over expected ones, of all bands that both know."""
        if sum(self._rows[self._first : self._end]) < _LEAST_ROWS:
            return []
        sizes = [float(end - begin) for begin, end in pairwise(self._bands)]
        ratios = []
        for kind in range(self._first, self._end):
            rows, last = self._rows[kind], self._known[kind] - 1
            if not rows:
                continue
            spent = self._spent[kind].copy()
            expected = [mean * size for mean, size in zip(self._model.energy[kind].tolist(), sizes, strict=True)]
            # The last band that is known stands for all the rest.
            spent[last:], expected[last:] = [sum(spent[last:])], [sum(expected[last:])]
            for seen, usual in zip(spent, expected, strict=True):
                if usual > 0:
                    ratios.append(_log_ratio(seen / rows, usual))
        return ratios


def _log_ratio(seen: float, usual: float) -> float:
    return math.log2(min(max(seen / usual, 1e-12), 1e12))
