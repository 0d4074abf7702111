"""Covariances and their eigenvectors, in groups of channels: see `klt_basis`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.transforms.klt_basis import group_starts, to_bytes

__all__ = ["Covariances", "Eigenbasis", "blend"]

_FLUSH_ROWS = 4096
_DOUBLE_CHANNELS = 1024
_DIAGONAL_ROWS = (
    0.25  # per channel of a group: so many rows count as much as the assumption that channels are unrelated
)

FloatArray = NDArray[np.float32]
Matrices = list[NDArray[np.floating[Any]]]  # one (g, g) per group of channels


class Covariances:
    """Running sums of products of rows, for several slots.

    Float64 for up to 1024 channels, float32 beyond: then 8192 channels take 16 MB per slot.
    """

    def __init__(self, slots: int, channels: int) -> None:
        self._starts = group_starts(channels)
        dtype = np.float64 if channels <= _DOUBLE_CHANNELS else np.float32
        sizes = np.diff(self._starts)
        self.sums: list[Matrices] = [[np.zeros((size, size), dtype) for size in sizes] for _ in range(slots)]
        self.rows = np.zeros(slots)
        self._waiting: list[list[FloatArray]] = [[] for _ in range(slots)]
        self._counts = [0] * slots

    def add(self, slot: int, rows: FloatArray) -> None:
        """Rows (n, C), which are kept until there are enough for a product."""
        self._waiting[slot].append(rows.copy())
        self._counts[slot] += len(rows)
        self.rows[slot] += len(rows)
        if self._counts[slot] >= _FLUSH_ROWS:
            self._flush(slot)

    def finish(self) -> None:
        """Adds what waits."""
        for slot in range(len(self.sums)):
            self._flush(slot)

    def _flush(self, slot: int) -> None:
        if not self._counts[slot]:
            return
        rows = np.concatenate(self._waiting[slot])
        for group, total in enumerate(self.sums[slot]):
            part = rows[:, self._starts[group] : self._starts[group + 1]]
            total += part.T @ part
        self._waiting[slot].clear()
        self._counts[slot] = 0


def blend(sums: Matrices, rows: float, target: Matrices, weight: float) -> Matrices:
    """Covariances from sums over `rows` rows, shrunk towards the shape of `target` as if that were `weight` rows.

    Without rows: the target.
    """
    if rows <= 0:
        return [part.copy() for part in target]
    share = rows / (rows + weight)
    found = []
    for part, other in zip(sums, target, strict=True):
        scale = float(np.trace(part)) / rows / max(float(np.trace(other)), 1e-30)
        found.append(share * part / rows + (1 - share) * scale * other)
    return found


def with_diagonal(sums: Matrices, rows: float) -> Matrices:
    """Sums as covariances, shrunk towards their diagonal: few rows say little about how channels are related."""
    return [
        part for group in sums for part in blend([group], rows, [np.diag(np.diag(group))], _DIAGONAL_ROWS * len(group))
    ]


@dataclass(frozen=True)
class Eigenbasis:
    """Eigenvectors of covariances in the order of falling variance over all groups.

    Args:
        rows: int8 (K, G), as `klt_basis` stores it.
        group: uint8 (K,).
        variance: (K,).
    """

    rows: NDArray[np.int8]
    group: NDArray[np.uint8]
    variance: NDArray[np.float64]

    @classmethod
    def of(cls, covariance: Matrices) -> Eigenbasis:
        """Of covariances by group."""
        width = max(len(part) for part in covariance)
        rows, groups, variances = [], [], []
        for number, part in enumerate(covariance):
            values, vectors = np.linalg.eigh(part)
            basis = vectors.T
            # An eigenvector's sign is free: fixed here, so that a codec does not depend on the linear algebra library.
            largest = basis[np.arange(len(basis)), np.abs(basis).argmax(axis=1)]
            basis = basis * np.where(largest < 0, -1, 1)[:, None]
            rows.append(np.pad(to_bytes(basis), ((0, 0), (0, width - len(part)))))
            groups.append(np.full(len(part), number, np.uint8))
            variances.append(np.maximum(values, 0))
        variance = np.concatenate(variances).astype(np.float64)
        order = np.argsort(-variance, kind="stable")
        return cls(np.concatenate(rows)[order], np.concatenate(groups)[order], variance[order])

    @classmethod
    def identity(cls, variance: NDArray[np.float64]) -> Eigenbasis:
        """The channels themselves, by falling variance."""
        starts = group_starts(variance.size)
        return cls.of([np.diag(variance[a:b]) for a, b in pairwise(starts)])
