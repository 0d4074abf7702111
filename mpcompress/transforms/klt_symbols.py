"""Which coefficients a unit codes and with which table: integers only, the same in every encoder and decoder.

scale (1/48 octave) + gain - step = d        d < cutoff: not coded, it is 0
                                             else: row = min((d - cutoff) >> shift, rows - 1)
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.transforms.klt_model import UNITS_PER_OCTAVE, KltModel
from mpcompress.transforms.tiling import Layout

_CACHED_PLANS = 16
_CACHED_BYTES = 64 << 20


@dataclass(frozen=True)
class Steps:
    """Quantiser of a unit, in 1/48 octave: log2 of the patches' and the prefix tokens' step, and the gain."""

    patch: int
    prefix: int
    gain: int

    @classmethod
    def of(cls, model: KltModel, qp_eighths: int, prefix_qp_offset_eighths: int, gain_eighths: int) -> Steps:
        """The steps of a unit with this state."""
        patch = model.base_log2 + qp_eighths
        return cls(patch, patch + prefix_qp_offset_eighths, gain_eighths)


@dataclass(frozen=True)
class SymbolPlan:
    """What one sample codes, n symbols in the order of the stream.

    Args:
        depth: components that are coded anywhere, from the first on.
        index: int64 (n,), into (positions, depth).
        rows: uint16 (n,).
        step: float32 (positions, 1).
    """

    depth: int
    index: NDArray[np.int64]
    rows: NDArray[np.uint16]
    step: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return self.index.nbytes + self.rows.nbytes + self.step.nbytes


class SymbolPlanner:
    """Makes the plans of one codec and keeps the latest. Not thread-safe, like the codec that owns it."""

    def __init__(self, model: KltModel) -> None:
        self._model = model
        self._shifts = _shift_offsets(*model.tile)
        self._plans: OrderedDict[tuple[Layout, Steps], SymbolPlan] = OrderedDict()

    def plan(self, layout: Layout, steps: Steps) -> SymbolPlan:
        """The plan of a layout at these steps."""
        key = (layout, steps)
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        plan = self._make(layout, steps)
        self._plans[key] = plan
        while len(self._plans) > 1 and (
            len(self._plans) > _CACHED_PLANS or sum(kept.nbytes for kept in self._plans.values()) > _CACHED_BYTES
        ):
            self._plans.popitem(last=False)
        return plan

    def scales(self, height: int, width: int) -> NDArray[np.int32]:
        """log2 E|x| of the coefficients of a (height, width) tile: (height, width, K)."""
        model = self._model
        scales = interpolate(model.scale_tile, height, width)
        begin = self._shifts[height, width]
        shift = model.scale_shift[begin : begin + height * width].reshape(height, width, 1)
        scales += shift
        scales[0, 0] = model.scale_dc[height - 1, width - 1]
        return scales

    def prefix_scales(self, count: int) -> NDArray[np.int32]:
        """log2 E|x| of `count` prefix tokens: those the codec does not know are coded like tiles of one token."""
        model = self._model
        known = model.scale_prefix[:count].astype(np.int32)
        unknown = np.broadcast_to(model.scale_dc[0, 0].astype(np.int32), (count - len(known), model.components))
        return np.concatenate([known, unknown])

    def _make(self, layout: Layout, steps: Steps) -> SymbolPlan:
        model = self._model
        by_size: dict[tuple[int, int], NDArray[np.int32]] = {}
        parts = [self.prefix_scales(layout.prefix) - steps.prefix]
        for tile in layout.tiles():
            size = tile.height, tile.width
            if size not in by_size:
                by_size[size] = self.scales(*size).reshape(-1, model.components) - steps.patch
            parts.append(by_size[size])
        above = np.concatenate(parts) + (steps.gain - model.row_cutoff)
        coded = above >= 0
        any_coded = np.flatnonzero(coded.any(axis=0))
        depth = int(any_coded[-1]) + 1 if any_coded.size else 0
        above, coded = above[:, :depth], coded[:, :depth]
        rows = np.minimum(above[coded] >> model.row_shift, model.tables.count - 1).astype(np.uint16)
        step = np.full((layout.positions, 1), step_size(steps.patch), np.float32)
        step[: layout.prefix] = step_size(steps.prefix)
        return SymbolPlan(depth, np.flatnonzero(coded), rows, step)


def step_size(units: int) -> float:
    """2^(units / 48)."""
    return float(2.0 ** (units / UNITS_PER_OCTAVE))


def interpolate(scale_tile: NDArray[np.int16], height: int, width: int) -> NDArray[np.int32]:
    """The largest tile's scales (h, w, K) at the frequencies of a (height, width) tile, rounded down: linear, exact."""
    return _along(_along(scale_tile.astype(np.int32), height, 0), width, 1)


def _along(scales: NDArray[np.int32], side: int, axis: int) -> NDArray[np.int32]:
    largest = scales.shape[axis]
    if side == largest:
        return scales.copy()
    whole, part = np.divmod(np.arange(side) * largest, side)
    shape: list[Any] = [1] * scales.ndim
    shape[axis] = side
    weight = part.astype(np.int32).reshape(shape)
    low = np.take(scales, whole, axis)
    high = np.take(scales, np.minimum(whole + 1, largest - 1), axis)  # its weight is 0 where it is beyond the end
    return (low * (side - weight) + high * weight) // side


@lru_cache(maxsize=8)
def _shift_offsets(height: int, width: int) -> dict[tuple[int, int], int]:
    """Where the shifts of each tile size begin in `scale_shift`."""
    offsets = {}
    begin = 0
    for h in range(1, height + 1):
        for w in range(1, width + 1):
            offsets[h, w] = begin
            begin += h * w
    return offsets
