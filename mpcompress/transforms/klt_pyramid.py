"""Tokens on a grid as a pyramid: an unbalanced Haar transform, and which rows of coefficients see which.

    (H, W, C) ──split──► low (H/2, W/2, C) ──split──► ... ──► root (1, 1, C)
                 │ details: 0 left - right, 1 top - bottom, 2 both

Sides are halved and rounded up; a token without a partner passes through. Weighting by the tokens that a node stands
for keeps the transform orthonormal, and details of constant features zero, on every H x W; a sequence is a grid of one
row. (Unbalanced Haar: Girardi and Sweldens 1997, doi 10.1007/BF02649101.)

One row is one vector of coefficients. Rows are coded in this order: root, prefix tokens, then the levels from coarse to
fine, in each the three orientations, in each the nodes in raster order; last the far tokens. Rows count from 1: row 0
stands for "none". A row's kind says which statistics it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEIGHBOURS", "Level", "Plan", "kind_count", "kind_of", "make_plan", "with_far"]

NEIGHBOURS = 10
"""Slots of `Plan.neighbours`: left, up, up-left, up-right; orientations 0 and 1 of the node; the parent's three; 0."""

_LEFT, _PARENT = 0, 6
_CACHED_ROWS = 1 << 14

Ints = NDArray[np.int64]


def kind_count(prefix: int, depth: int) -> int:
    """Kinds of rows of a codec calibrated with `prefix` prefix tokens and `depth` levels."""
    return 2 + prefix + 3 * depth


def kind_of(prefix: int, depth: int, orientation: int) -> int:
    """Kind of a detail row, `depth` 0 at the finest level. 0 is the root, 1 + p prefix token p, the last far tokens."""
    return 1 + prefix + 3 * depth + orientation


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """One split of (h, w) nodes into (ph, pw).

    Args:
        depth: 0 at the finest level.
        kind: of orientation 0; the others follow.
        y_low: (2, ph), factors of the upper and lower child in the low-pass; (1, 0) for a child without a partner.
        x_low: (2, pw), the same across.
        norm: (ph, pw), root of the tokens that a parent stands for.
        first: rows where orientation 0, 1, 2 and the next level begin.
    """

    depth: int
    kind: int
    h: int
    w: int
    ph: int
    pw: int
    y_low: NDArray[np.float32]
    x_low: NDArray[np.float32]
    norm: NDArray[np.float32]
    first: tuple[int, int, int, int]

    def shape(self, orientation: int) -> tuple[int, int]:
        """Nodes down and across that have this orientation."""
        return _nodes(self.h, self.w, self.ph, self.pw, orientation)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Rows of one sample.

    Args:
        prefix: prefix tokens.
        h: rows of the grid.
        w: columns of the grid.
        levels: coarse to fine.
        rows: how many, without row 0.
        kind: int32 (rows + 1,).
        neighbours: int32 (rows + 1, NEIGHBOURS), earlier rows; 0 where there is none.
    """

    prefix: int
    h: int
    w: int
    levels: tuple[Level, ...]
    rows: int
    kind: NDArray[np.int32]
    neighbours: NDArray[np.int32]


def make_plan(prefix: int, h: int, w: int, known_prefix: int, depth: int) -> Plan:
    """Lay out `prefix` tokens and an (h, w) grid for a codec that knows `known_prefix` tokens and `depth` levels.

    Coarser levels than the codec has take the statistics of its coarsest; more prefix tokens those of far tokens.
    """
    if prefix + h * w <= _CACHED_ROWS:
        return _cached(prefix, h, w, known_prefix, depth)
    return _make(prefix, h, w, known_prefix, depth)


def with_far(plan: Plan, far: int, known_prefix: int, depth: int) -> Plan:
    """The plan with rows for `far` tokens at its end, each seeing the one before."""
    if far == 0:
        return plan
    neighbours = np.zeros((far, NEIGHBOURS), np.int32)
    neighbours[1:, _LEFT] = np.arange(plan.rows + 1, plan.rows + far)
    kind = np.full(far, kind_count(known_prefix, depth) - 1, np.int32)
    return Plan(
        prefix=plan.prefix,
        h=plan.h,
        w=plan.w,
        levels=plan.levels,
        rows=plan.rows + far,
        kind=np.concatenate([plan.kind, kind]),
        neighbours=np.concatenate([plan.neighbours, neighbours]),
    )


def _nodes(h: int, w: int, ph: int, pw: int, orientation: int) -> tuple[int, int]:
    return (h // 2 if orientation else ph), (w // 2 if orientation != 1 else pw)


@lru_cache(maxsize=64)
def _cached(prefix: int, h: int, w: int, known_prefix: int, depth: int) -> Plan:
    return _make(prefix, h, w, known_prefix, depth)


def _make(prefix: int, h: int, w: int, known_prefix: int, depth: int) -> Plan:
    splits = _splits(h, w)
    far = kind_count(known_prefix, depth) - 1
    kinds = [np.array([0, 0], np.int32)]  # nothing, and the root
    kinds += [np.array([1 + p if p < known_prefix else far for p in range(prefix)], np.int32)]
    heads = np.zeros((2 + prefix, NEIGHBOURS), np.int32)
    heads[2:, _PARENT] = 1
    heads[3:, _LEFT] = np.arange(2, 1 + prefix)
    neighbours: list[NDArray[Any]] = [heads]
    levels: list[Level] = []
    row = 2 + prefix
    parents: list[Ints] = [np.ones((1, 1), np.int64), np.zeros((0, 0), np.int64), np.zeros((0, 0), np.int64)]
    for number in range(len(splits) - 1, -1, -1):
        y, x = splits[number]
        shape = y.before, x.before, y.after, x.after
        kind = kind_of(known_prefix, min(number, depth - 1), 0) if depth else far
        grids, first = [], [row]
        for orientation in range(3):
            down, across = _nodes(*shape, orientation)
            grids.append(np.arange(row, row + down * across).reshape(down, across))
            kinds.append(np.full(down * across, kind + orientation if depth else far, np.int32))
            row += down * across
            first.append(row)
        neighbours += [_seen(grids, orientation, parents, shape) for orientation in range(3)]
        parents = grids
        norm = np.sqrt(y.tokens[:, None] * x.tokens).astype(np.float32)
        levels.append(
            Level(
                depth=number,
                kind=kind,
                h=y.before,
                w=x.before,
                ph=y.after,
                pw=x.after,
                y_low=y.low,
                x_low=x.low,
                norm=norm,
                first=(first[0], first[1], first[2], first[3]),
            )
        )
    seen = np.concatenate(neighbours).astype(np.int32)
    seen.flags.writeable = False
    return Plan(
        prefix=prefix, h=h, w=w, levels=tuple(levels), rows=row - 1, kind=np.concatenate(kinds), neighbours=seen
    )


@dataclass(frozen=True)
class _Halving:
    """One side halved: nodes before and after, factors (2, after), and the tokens of each node after (after,)."""

    before: int
    after: int
    low: NDArray[np.float32]
    tokens: Ints


def _splits(h: int, w: int) -> list[tuple[_Halving, _Halving]]:
    """Fine to coarse, until one node is left."""
    y, x = np.ones(h, np.int64), np.ones(w, np.int64)
    found = []
    while y.size > 1 or x.size > 1:
        down, across = _halve(y), _halve(x)
        found.append((down, across))
        y, x = down.tokens, across.tokens
    return found


def _halve(tokens: Ints) -> _Halving:
    if tokens.size == 1:
        return _Halving(1, 1, np.array([[1.0], [0.0]], np.float32), tokens)
    pairs = np.append(tokens, np.zeros(tokens.size % 2, np.int64)).reshape(-1, 2)
    total = pairs.sum(1)
    return _Halving(tokens.size, total.size, np.ascontiguousarray(np.sqrt(pairs / total[:, None]).T, np.float32), total)


def _seen(grids: list[Ints], orientation: int, parents: list[Ints], shape: tuple[int, int, int, int]) -> Ints:
    """Neighbours of the rows of one orientation: (nodes, NEIGHBOURS)."""
    own = grids[orientation]
    h, w = own.shape
    padded = np.zeros((h + 1, w + 2), np.int64)
    padded[1:, 1:-1] = own
    found = np.zeros((h, w, NEIGHBOURS), np.int64)
    found[..., 0], found[..., 1] = padded[1:, :-2], padded[:-1, 1:-1]
    found[..., 2], found[..., 3] = padded[:-1, :-2], padded[:-1, 2:]
    for other in range(orientation):
        _paste(found[..., 4 + other], grids[other], np.arange(h), np.arange(w))
    # A side of one node is not halved: its parent has the same index. Elsewhere two nodes share a parent.
    i = np.arange(h) // 2 if shape[2] > 1 else np.zeros(h, np.int64)
    j = np.arange(w) // 2 if shape[3] > 1 else np.zeros(w, np.int64)
    for slot, grid in enumerate(parents):
        _paste(found[..., _PARENT + slot], grid, i, j)
    return found.reshape(-1, NEIGHBOURS)


def _paste(target: Ints, grid: Ints, i: Ints, j: Ints) -> None:
    """target[a, b] = grid[i[a], j[b]] where there is one."""
    down, across = int(np.searchsorted(i, grid.shape[0])), int(np.searchsorted(j, grid.shape[1]))
    target[:down, :across] = grid[np.ix_(i[:down], j[:across])]
