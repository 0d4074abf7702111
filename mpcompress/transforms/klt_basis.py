"""Orthonormal bases over the channels, stored as bytes.

A basis has C rows, one per component. Codecs of up to `LARGEST_GROUP` channels have one group of all of them; more
channels are cut into groups of equal size (the last may be smaller) with a basis each, so that a codec of 8192 channels
stays a few megabytes and its calibration a few minutes. The components of all groups share one order, by falling
variance.

    stored   int8 (K, G): row k is component k over the channels of its group, largest entry 127
    used     float32, made orthonormal again: the rounding to bytes then costs below 0.1 % of the rate
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.transforms.klt_products import multiply, multiply_rows, new_tile, to_panels

__all__ = ["LARGEST_GROUP", "Bases", "Predictor", "group_starts", "orthonormal", "to_bytes"]

LARGEST_GROUP = 1024
_SPLIT_GROUP = 512
_NEWTON_STEPS = 3

FloatArray = NDArray[np.float32]


def group_starts(channels: int) -> list[int]:
    """Where the groups of channels begin, and the end: [0, C] for one group."""
    if channels <= LARGEST_GROUP:
        return [0, channels]
    size = -(-channels // -(-channels // _SPLIT_GROUP))
    return [*range(0, channels, size), channels]


def to_bytes(rows: NDArray[Any]) -> NDArray[np.int8]:
    """(n, G) rows of a basis, each scaled to its largest entry."""
    largest = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-30)
    return np.asarray(np.rint(rows / largest * 127), np.int8)


def orthonormal(rows: NDArray[np.int8]) -> FloatArray:
    """The orthonormal rows nearest to some that are almost so: their polar factor.

    Newton and Schulz (Higham 2008, Functions of Matrices, 8.3): starts within a few per cent, and errors square. BLAS,
    whose bits differ from machine to machine, has no part in it.
    """
    x = rows.astype(np.float32)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)
    for _ in range(_NEWTON_STEPS):
        gram = multiply(x, to_panels(x), len(x))
        x = np.float32(1.5) * x - np.float32(0.5) * multiply(gram, to_panels(x.T), x.shape[1])
    return x


class Bases:
    """All bases of a codec ready for use.

    Args:
        stored: int8 (S, K, G).
        group: uint8 (S, K), group of each component.
        starts: of the groups, and the end.

    Attributes:
        rows: float32 (S * K, G), those of a basis after one another, in it those of a group of channels.
        place: int32 (S, K), where among the rows of its basis each component is.
        group: int32 (S, K).
        starts: int64, of the groups, and the end.
    """

    def __init__(self, stored: NDArray[np.int8], group: NDArray[np.uint8], starts: list[int]) -> None:
        slots, self._components, width = stored.shape
        self.rows = np.zeros((slots * self._components, width), np.float32)
        self.place = np.empty((slots, self._components), np.int32)
        self.group = group.astype(np.int32)
        self.starts = np.array(starts, np.int64)
        self._members: list[list[NDArray[np.int64]]] = []
        self._panels: dict[int, list[FloatArray]] = {}
        for slot in range(slots):
            begin = 0
            self._members.append([np.flatnonzero(group[slot] == number) for number in range(len(starts) - 1)])
            for members, (start, end) in zip(self._members[slot], pairwise(starts), strict=True):
                at = slot * self._components + begin
                self.rows[at : at + members.size, : end - start] = orthonormal(stored[slot, members, : end - start])
                self.place[slot, members] = np.arange(begin, begin + members.size)
                begin += members.size

    def forward(self, slot: int, x: FloatArray, depth: int) -> FloatArray:
        """Tokens (n, C) to their first `depth` components (n, depth) in one basis."""
        return self._multiply(slot, x, np.full(len(x), depth))

    def forward_few(self, slot: int, rows: Sequence[FloatArray], depths: Sequence[int]) -> list[FloatArray]:
        """`forward` of some in one product: the bits are those of one product each."""
        if len(rows) == 1:
            return [self.forward(slot, rows[0], depths[0])]
        order = sorted(range(len(rows)), key=lambda number: -depths[number])
        x = np.concatenate([rows[number] for number in order])
        y = self._multiply(slot, x, np.repeat([depths[number] for number in order], [len(rows[n]) for n in order]))
        found, begin = {}, 0
        for number in order:
            end = begin + len(rows[number])
            found[number] = np.ascontiguousarray(y[begin:end, : depths[number]])
            begin = end
        return [found[number] for number in range(len(rows))]

    def _multiply(self, slot: int, x: FloatArray, depths: NDArray[np.int64]) -> FloatArray:
        """Tokens (n, C), deepest first, to components (n, depths[0]); those beyond a token's depth mean nothing."""
        y = np.empty((len(x), depths[0]), np.float32)
        sums = new_tile()
        panels = self._panels.get(slot) or self._in_panels(slot)
        for members, part, start in zip(self._members[slot], panels, self.starts.tolist(), strict=False):
            used = members[: members.searchsorted(depths[0])]
            multiply_rows(x, depths, start, part, used, y, sums)
        return y

    def _in_panels(self, slot: int) -> list[FloatArray]:
        """A basis as products want it, kept from the first one on: who only decodes does without."""
        found, at = [], slot * self._components
        for members, width in zip(self._members[slot], np.diff(self.starts), strict=True):
            found.append(to_panels(self.rows[at : at + members.size, :width]))
            at += members.size
        self._panels[slot] = found
        return found


class Predictor:
    """Predicts a prefix token from the components of the root; like a basis, but not orthonormal.

    Args:
        rows: int8 (K, G).
        scale: float32 (K,), of each row.
        group: uint8 (K,), group of each component of the root.
        starts: of the groups, and the end.
    """

    def __init__(
        self, rows: NDArray[np.int8], scale: NDArray[np.float32], group: NDArray[np.uint8], starts: list[int]
    ) -> None:
        self._parts = []
        for number, (start, end) in enumerate(pairwise(starts)):
            members = np.flatnonzero(group == number)
            part = rows[members, : end - start] * scale[members, None]
            self._parts.append((slice(start, end), members, np.ascontiguousarray(part, np.float32)))
        self._channels = starts[-1]

    def __call__(self, root: FloatArray) -> FloatArray:
        """Components (K,) of the root to a token (C,)."""
        x = np.zeros(self._channels, np.float32)
        for channels, members, part in self._parts:
            used = members[: members.searchsorted(root.size)]
            x[channels] = root[used] @ part[: used.size]
        return x
