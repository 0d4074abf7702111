"""How far a tensor is from those that a codec was calibrated on, from the energies of its finest details.

For each kind of row of the two finest levels and each octave of components, log2 of the energy over the expected one.
What counts is how these differ from each other: another layer or another model distributes its energy otherwise over
the components. That all are larger or smaller, as those of smooth or busy pictures are, counts less.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpcompress.transforms.klt_encoder import Group
from mpcompress.transforms.klt_model import BANDS, KltModel

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
        self._bands = np.array(bands_of(model.components))
        self._spent: Double = np.zeros((model.kinds, BANDS))
        self._known = np.full(model.kinds, BANDS)
        self._rows = np.zeros(model.kinds, np.int64)
        self._first = 1 + model.prefix_tokens
        self._end = self._first + 3 * min(_LEVELS, model.depth)

    def __call__(self, group: Group) -> None:
        """Adds the energies of a group, when it is of the two finest levels."""
        kind = group.kind
        if not self._first <= kind < self._end:
            return
        depth = group.x.shape[1]
        spent = np.einsum("nk,nk->k", group.x, group.x)
        starts = self._bands[: int(np.searchsorted(self._bands, depth))]
        by_band = np.add.reduceat(spent, starts, dtype=np.float64) if starts.size else np.zeros(0)
        last = int(np.searchsorted(self._bands, depth, side="right")) - 1
        if last < BANDS:  # what was not transformed counts with the band where it begins
            by_band = by_band[:last]
            self._spent[kind, last] += max(group.energy - float(by_band.sum()), 0.0)
        self._spent[kind, : by_band.size] += by_band
        self._known[kind] = min(int(self._known[kind]), last + 1)
        self._rows[kind] += len(group.x)

    @property
    def energy(self) -> Double:
        """(N, BANDS) mean square of a coefficient; 0 where nothing was seen."""
        sizes = np.diff(self._bands) * np.maximum(self._rows, 1)[:, None]
        return np.asarray(np.where(sizes > 0, self._spent / np.maximum(sizes, 1), 0))

    def summary(self) -> tuple[float | None, int]:
        """Distance from the calibration set, and by how much the tensor is larger than it, 1/48 octave.

        A distance of 1 is typical; None, and 0, when there are too few rows to tell.
        """
        found = self._ratios()
        if found is None:
            return None, 0
        found.sort()
        median = float(found[found.size // 2])
        distance = float(np.abs(found - median).mean()) + _SCALE_SHARE * abs(median)
        return distance / self._model.domain_typical, round(24 * median)

    def _ratios(self) -> Double | None:
        """log2 of energies over expected ones, of all bands that both know."""
        kinds = slice(self._first, self._end)
        rows = self._rows[kinds]
        if int(rows.sum()) < _LEAST_ROWS:
            return None
        seen = self._spent[kinds] / np.maximum(rows, 1)[:, None]
        expected = self._model.energy[kinds].astype(np.float64) * np.diff(self._bands)
        # The last band that is known stands for all the rest.
        last = self._known[kinds, None] - 1
        at = np.arange(BANDS)
        both = np.stack([seen, expected])
        both = np.where(at == last, both[..., ::-1].cumsum(axis=-1)[..., ::-1], both)
        usable = (at <= last) & (rows[:, None] > 0) & (both[1] > 0)
        if not usable.any():
            return None
        ratios: Double = np.log2(np.minimum(np.maximum(both[0, usable] / both[1, usable], 1e-12), 1e12))
        return ratios
