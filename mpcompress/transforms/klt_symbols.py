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

from mpcompress.entropy.tables import CdfTables
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
        depth: no component from this one on is coded anywhere.
        index: int64 (n,), into (positions, depth).
        rows: uint16 (n,).
        positions: tokens of the sample.
        prefix_symbols: the first so many symbols are the prefix tokens'.
        prefix_step: quantiser step of those.
        patch_step: of the others.
        least_bits: that the symbols cost, whatever they are.
    """

    depth: int
    index: NDArray[np.int64]
    rows: NDArray[np.uint16]
    positions: int
    prefix_symbols: int
    prefix_step: float
    patch_step: float
    least_bits: float

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return self.index.nbytes + self.rows.nbytes


@dataclass(frozen=True)
class _Coded:
    """What is coded of one tile, in order: position in the tile, component and table row.

    `depth` counts components up to the last that is coded; `least_bits` is what the symbols cost at least.
    """

    position: NDArray[np.int64]
    component: NDArray[np.int64]
    rows: NDArray[np.uint16]
    depth: int
    least_bits: float


class SymbolPlanner:
    """Makes the plans of one codec and keeps the latest. Not thread-safe, like the codec that owns it."""

    def __init__(self, model: KltModel) -> None:
        self._model = model
        self._shifts = _shift_offsets(*model.tile)
        self._least_bits = _least_bits(model.tables)
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

    def least_bytes(self, layout: Layout, steps: Steps, samples: int) -> int:
        """A stream of `samples` samples is at least this long, whatever its symbols are. Allocates a few tiles only."""
        kept = self._plans.get((layout, steps))
        # A little less: the coder's rounding and its first state may save that much.
        return int(samples * (self._bits(layout, steps) if kept is None else kept.least_bits) * 0.999 / 8) - 16

    def _bits(self, layout: Layout, steps: Steps) -> float:
        prefix, tiles = self._parts(layout, steps)
        return prefix.least_bits + sum(count * tiles[size].least_bits for size, count in layout.sizes().items())

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
        prefix, by_size = self._parts(layout, steps)
        parts, begins = [prefix], [0]
        begin = layout.prefix
        for tile in layout.tiles():
            parts.append(by_size[tile.height, tile.width])
            begins.append(begin)
            begin += tile.height * tile.width
        # Rounded up: matrix products and copies of rows of 383 components take half as long again as those of 384.
        depth = min(self._model.components, -(-max(part.depth for part in parts) // 16) * 16)
        index = [(begin + part.position) * depth + part.component for begin, part in zip(begins, parts, strict=True)]
        return SymbolPlan(
            depth=depth,
            index=np.concatenate(index),
            rows=np.concatenate([part.rows for part in parts]),
            positions=layout.positions,
            prefix_symbols=prefix.rows.size,
            prefix_step=step_size(steps.prefix),
            patch_step=step_size(steps.patch),
            least_bits=sum(part.least_bits for part in parts),
        )

    def _parts(self, layout: Layout, steps: Steps) -> tuple[_Coded, dict[tuple[int, int], _Coded]]:
        """What is coded of the prefix tokens, and of a tile of each size."""
        K = self._model.components
        prefix = self._coded(self.prefix_scales(layout.prefix) - steps.prefix, steps.gain)
        scales = {size: self.scales(*size).reshape(-1, K) for size in layout.sizes()}
        return prefix, {size: self._coded(scale - steps.patch, steps.gain) for size, scale in scales.items()}

    def _coded(self, level: NDArray[np.int32], gain: int) -> _Coded:
        """What is coded of some positions: `level` is log2(scale / step) without the gain, (positions, K)."""
        model = self._model
        above = (level + (gain - model.row_cutoff)).ravel()
        coded = np.flatnonzero(above >= 0)
        position, component = np.divmod(coded, model.components)
        rows = np.minimum(above[coded] >> model.row_shift, model.tables.count - 1)
        depth = int(component.max()) + 1 if component.size else 0
        return _Coded(position, component, rows.astype(np.uint16), depth, float(self._least_bits[rows].sum()))


def step_size(units: int) -> float:
    """2^(units / 48)."""
    return float(2.0 ** (units / UNITS_PER_OCTAVE))


def interpolate(scale_tile: NDArray[np.int16], height: int, width: int) -> NDArray[np.int32]:
    """The largest tile's scales (h, w, K) at the frequencies of a (height, width) tile, rounded down: linear, exact."""
    return _along(_along(scale_tile.astype(np.int32), height, 0), width, 1)


def _least_bits(tables: CdfTables) -> NDArray[np.float64]:
    """Cost of the likeliest symbol of each table, bits."""
    begins = np.cumsum(tables.lengths) - tables.lengths
    likeliest: NDArray[np.float64] = np.maximum.reduceat(tables.freqs, begins) / (1 << tables.precision)
    return -np.log2(likeliest)


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
