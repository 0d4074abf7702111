"""What each symbol costs those after it: the second thoughts of `effort` 2.

A symbol is evidence for the scales of later coefficients. Two thirds of all symbols are zeros and say "small": that
makes zeros cheaper that come later, and dearer what is not zero. `price_evidence` sums over all later symbols how their
code lengths change with the evidence of each coefficient, to first order; the quantiser then weighs a symbol's own bits
plus those.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpcompress._numba import njit, types
from mpcompress.transforms.klt_context import (
    BLOCK,
    CLASS_SHIFT,
    CLASSES,
    FEATURES,
    I32_1R,
    MAGNITUDES,
    MEMORY_TYPE,
    PRIOR,
    STATISTICS_TYPE,
    WEIGHT_SHIFT,
    Array,
    Int,
)

__all__ = ["price_evidence"]

_RUN = FEATURES - 1
_PER_CLASS = np.float32(1.0 / (1 << (WEIGHT_SHIFT + CLASS_SHIFT)))
_FADE = np.float32(0.75)


@njit(forceinline=True)
def _per_unit(bits: Any, worth: Int) -> Any:
    """Bits by the mean of a group to bits by the evidence of one in it."""
    return bits * np.float32(PRIOR) / np.float32(worth + PRIOR)


@njit(forceinline=True)
def _add_run(slope: Array, known: Array, price: Array) -> None:
    """What the coefficients of a row say to those of its later blocks: slope and worth are of its blocks."""
    worth = 0
    for block in range(slope.size):
        slope[block] = _per_unit(slope[block], worth)
        worth += known[block] - (worth >> 2)
    later = np.float32(0)
    for block in range(slope.size - 1, -1, -1):
        for k in range(block * BLOCK, min((block + 1) * BLOCK, price.size)):
            price[k] += later
        later = later * _FADE + slope[block]


@njit(
    types.void(
        *(I32_1R, types.Array(types.int32, 2, "C", readonly=True), STATISTICS_TYPE, MEMORY_TYPE),
        *(I32_1R, types.Array(types.uint16, 1, "C", readonly=True), I32_1R),
        *(types.Array(types.float32, 2, "C", readonly=True), types.Array(types.float32, 2, "C")),
    ),
    allocates=True,
)
def price_evidence(
    kinds: Array,
    neighbours: Array,
    statistics: Any,
    memory: Any,
    index: Array,
    classes: Array,
    symbols: Array,
    cost: Array,
    price: Array,
) -> None:
    """Fill price (rows + 1, K): bits of all later symbols per unit of evidence of a coefficient.

    `index`, `classes` and `symbols` are those of a sample just coded, and `memory` what was said in it.
    """
    weight, own, worth = statistics[1], statistics[2], statistics[5]
    worths = memory[2]
    components = price.shape[1]
    blocks = (components + BLOCK - 1) // BLOCK
    slope, known = np.zeros(blocks, np.float32), np.zeros(blocks, np.int64)
    whole = np.zeros(kinds.size, np.float32)  # what all coefficients of a row share
    since = np.zeros(kinds.size, np.float32)  # what all rows before a row share
    price[:] = 0
    at = 0
    everything = 0
    for row in range(1, kinds.size):
        w, n = weight[kinds[row]], neighbours[row]
        slope[:] = 0
        known[:] = 0
        near, node, above, before = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        while at < index.size and index[at] // components == row:
            k = index[at] - row * components
            c: Int = np.int64(classes[at])
            m = min(abs(symbols[at]), MAGNITUDES - 1)
            high: Int = min(c + 1, CLASSES - 1)
            low: Int = max(c - 1, 0)
            bits = (cost[high, m] - cost[low, m]) / np.float32(high - low) * _PER_CLASS
            near += w[0, k] * bits
            node += w[1, k] * bits
            above += w[2, k] * bits
            before += w[3, k] * bits
            price[n[0], k] += w[4, k] * bits
            price[n[1], k] += w[4, k] * bits
            price[n[4], k] += w[5, k] * bits
            price[n[5], k] += w[5, k] * bits
            slope[k // BLOCK] += w[_RUN, k] * bits
            known[k // BLOCK] += worth[own[kinds[row], k]]
            at += 1
        near = _per_unit(near, worths[n[0]] + worths[n[1]] + worths[n[2]] + worths[n[3]])
        node = _per_unit(node, worths[n[4]] + worths[n[5]])
        above = _per_unit(above, worths[n[6]] + worths[n[7]] + worths[n[8]])
        for slot in range(4):
            whole[n[slot]] += near
        for slot in range(4, 6):
            whole[n[slot]] += node
        for slot in range(6, 9):
            whole[n[slot]] += above
        since[row] = _per_unit(before, everything)
        everything += worths[row]
        _add_run(slope, known, price[row])
    later = np.float32(0)
    for row in range(kinds.size - 1, 0, -1):
        price[row] += whole[row] + later
        later += since[row]
