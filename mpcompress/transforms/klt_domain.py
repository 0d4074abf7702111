"""How far a tensor is from those that a codec was calibrated on, from the energies of its finest details.

For each kind of row of the two finest levels and each octave of components, |log2| of the energy over the expected one;
the mean of all. Rotated channels, another layer or another model show in the distribution over the components, which a
scale alone would not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpcompress.transforms.klt_encoder import Group
from mpcompress.transforms.klt_model import BANDS, KltModel

__all__ = ["Domain", "bands_of"]

_LEVELS = 2
_LEAST_ROWS = 48  # energies of fewer rows say little

Double = NDArray[np.float64]


def bands_of(components: int) -> list[int]:
    """Where the bands of components begin, and the end: octaves, the last band with all the rest."""
    return [*(min(2**band - 1, components) for band in range(BANDS)), components]


class Domain:
    """Gathers energies while a tensor is coded; its `__call__` is an `Observer`."""

    def __init__(self, model: KltModel) -> None:
        self._model = model
        self._bands = bands_of(model.components)
        self._spent: Double = np.zeros((model.kinds, BANDS))
        self._known = np.full(model.kinds, model.components)
        self._rows = np.zeros(model.kinds, np.int64)
        first = 1 + model.prefix_tokens
        self._kinds = range(first, first + 3 * min(_LEVELS, model.depth))

    def __call__(self, group: Group) -> None:
        """Adds the energies of a group, when it is of the two finest levels."""
        if group.kind not in self._kinds:
            return
        spent = np.einsum("nk,nk->k", group.x, group.x)
        depth = spent.size
        sums = np.concatenate([[0.0], np.cumsum(spent, dtype=np.float64)])
        ends = np.minimum(self._bands, depth)
        by_band = np.diff(sums[ends])
        last = int(np.searchsorted(self._bands, depth, side="right")) - 1
        if last < BANDS:  # what was not transformed counts with the band where it begins
            by_band[last] = max(group.energy - float(by_band[:last].sum()), 0.0)
        self._spent[group.kind] += by_band
        self._known[group.kind] = min(self._known[group.kind], last + 1)
        self._rows[group.kind] += len(group.x)

    @property
    def energy(self) -> Double:
        """(N, BANDS) mean square of a coefficient; 0 where nothing was seen."""
        sizes = np.diff(self._bands) * np.maximum(self._rows, 1)[:, None]
        return np.asarray(np.where(sizes > 0, self._spent / np.maximum(sizes, 1), 0))

    def distance(self) -> float | None:
        """Distance from the calibration set, 1 is typical; None when there are too few rows to tell."""
        found = self._ratios()
        return None if found is None else float(np.abs(found).mean()) / self._model.domain_typical

    def gain(self) -> int:
        """By how much the tensor is larger than the calibration set, 1/48 octave: the median over the bands."""
        found = self._ratios()
        return 0 if found is None else round(24 * float(np.median(found)))

    def _ratios(self) -> Double | None:
        """log2 of energies over expected ones, of all bands that both know."""
        widths = np.diff(self._bands)
        found = []
        for kind in self._kinds:
            expected = self._model.energy[kind].astype(np.float64) * widths
            known = min(int(self._known[kind]), BANDS)
            if self._rows[kind] == 0 or not expected.any():
                continue
            rows = float(self._rows[kind])
            seen = self._spent[kind] / rows
            # The last band that is known stands for all the rest.
            expected[known - 1 : known] = expected[known - 1 :].sum()
            seen[known - 1 : known] = seen[known - 1 :].sum()
            ok = expected[:known] > 0
            found.append(np.log2(np.clip(seen[:known][ok] / expected[:known][ok], 1e-12, 1e12)))
        if not found or int(self._rows.sum()) < _LEAST_ROWS:
            return None
        ratios: Double = np.concatenate(found)
        return ratios
