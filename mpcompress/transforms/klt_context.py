"""What symbols say about symbols: integer contexts, the same in every encoder and decoder.

In units of 1/48 octave, for each coefficient::

    s = (level[kind, k] << 8) + sum over 7 features of weight[kind, feature, k] * feature
    class = s >> 11, at most the last; below 0 the coefficient is 0 and not coded

    level    log2 of (calibrated E|x| over step), less the cutoff, plus a bias
    features of the row    0 like-oriented neighbours   1 other orientations of the node   2 parent   3 all before
    of the coefficient     4 left + up                  5 other orientations               6 earlier ones in this row

A symbol q of a coefficient whose calibrated class is c says evidence[c, |q|] about its surroundings (log2 of |x| over
what was expected, times how much that is worth) with weight worth[c]; the feature of a group of coefficients is
sum(evidence) / (sum(worth) + 1). Feature 6 moves at every `BLOCK` coefficients; then its sums fade to three quarters.

Everything fits int32: |level| <= `LEVEL_LIMIT`, |weight| <= `WEIGHT_LIMIT`, |feature| <= `FEATURE_LIMIT`, whatever the
symbols are, as tests/mpcompress/transforms/test_klt_context.py works out. Modelling scales of coefficients from
decoded neighbours: Mallat and Falzon 1998, doi 10.1109/78.668544; Wu 1997, doi 10.1109/ACSSC.1997.679183.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress._numba import njit, types

__all__ = [
    "BLOCK",
    "CLASSES",
    "CLASS_SHIFT",
    "EVIDENCE_LIMIT",
    "FEATURES",
    "FEATURE_LIMIT",
    "LEVEL_LIMIT",
    "MAGNITUDES",
    "MAX_SYMBOL",
    "MEMORY_TYPE",
    "STATISTICS_TYPE",
    "UNITS",
    "WEIGHT_LIMIT",
    "WEIGHT_SHIFT",
    "log2_table",
    "new_memory",
]

UNITS = 48
"""To the octave: one is an eighth of a qp step."""

CLASSES = 96
CLASS_SHIFT = 3
WEIGHT_SHIFT = 8
FEATURES = 7
BLOCK = 16
MAGNITUDES = 17
"""|q| up to 16 has an entry of its own among evidence, centroids and costs."""

PRIOR = 64
LEVEL_LIMIT = 8000
WEIGHT_LIMIT = 2047
FEATURE_LIMIT = 2046
EVIDENCE_LIMIT = 1023
MAX_SYMBOL = 1 << 28
"""Largest |q| of a healthy stream."""

_LOG_ENTRIES = 4096

Array = Any
Int = Any

I16_2R = types.Array(types.int16, 2, "C", readonly=True)
I32_1R = types.Array(types.int32, 1, "C", readonly=True)
I64_1 = types.Array(types.int64, 1, "C")

STATISTICS_TYPE = types.Tuple(
    (
        I16_2R,  # level (kinds, K)
        types.Array(types.int16, 3, "C", readonly=True),  # weight (kinds, FEATURES, K)
        I16_2R,  # own (kinds, K): calibrated class
        I32_1R,  # last (kinds,): coefficients from here on are certainly 0
        I16_2R,  # evidence (CLASSES, MAGNITUDES)
        types.Array(types.int16, 1, "C", readonly=True),  # worth (CLASSES,)
        types.Array(types.int16, 1, "C", readonly=True),  # log2_table()
        types.int64,  # cutoff, with which level + cutoff is log2(E|x| / step)
    )
)
MEMORY_TYPE = types.Tuple(
    (
        types.Array(types.int16, 2, "C"),  # evidence of each coefficient (rows + 1, K); row 0 stays 0
        I64_1,  # sum of the evidence of each row (rows + 1,)
        I64_1,  # sum of its worth
        I64_1,  # [evidence, worth] of all rows so far
    )
)

Memory = tuple[NDArray[np.int16], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def new_memory(rows: int, components: int) -> Memory:
    """What nothing has been said to yet. Pages are touched when rows are coded, not here."""
    return (
        np.zeros((rows + 1, components), np.int16),
        np.zeros(rows + 1, np.int64),
        np.zeros(rows + 1, np.int64),
        np.zeros(2, np.int64),
    )


@cache
def log2_table() -> NDArray[np.int16]:
    """(4096,) log2 of the index, rounded to 1/48 octave; 0 for 0. In integers: the same on every machine."""
    table = [0] + [((n ** (2 * UNITS)).bit_length() - 1 + 1) // 2 for n in range(1, _LOG_ENTRIES)]
    array = np.array(table, np.int16)
    array.flags.writeable = False
    return array


@njit(forceinline=True)
def mean_evidence(total: Int, worth: Int) -> Int:
    """Feature of a group: clipped, floor division."""
    mean = (total << 6) // (worth + PRIOR)
    return np.int32(min(max(mean, -FEATURE_LIMIT), FEATURE_LIMIT))


@njit(forceinline=True)
def row_features(row: Int, neighbours: Array, memory: Any) -> tuple[Int, Int, Int, Int]:
    """Features 0 to 3."""
    _, sums, worths, total = memory
    n = neighbours[row]
    near = mean_evidence(
        sums[n[0]] + sums[n[1]] + sums[n[2]] + sums[n[3]], worths[n[0]] + worths[n[1]] + worths[n[2]] + worths[n[3]]
    )
    node = mean_evidence(sums[n[4]] + sums[n[5]], worths[n[4]] + worths[n[5]])
    above = mean_evidence(sums[n[6]] + sums[n[7]] + sums[n[8]], worths[n[6]] + worths[n[7]] + worths[n[8]])
    return near, node, above, mean_evidence(total[0], total[1])


@njit(forceinline=True)
def row_context(row: Int, kind: Int, end: Int, neighbours: Array, statistics: Any, memory: Any, part: Array) -> None:
    """part[k] = (level << 8) + all but feature 6, of the first `end` coefficients."""
    level, weight = statistics[0], statistics[1]
    said = memory[0]
    near, node, above, before = row_features(row, neighbours, memory)
    n = neighbours[row]
    left, up, first, second = said[n[0]], said[n[1]], said[n[4]], said[n[5]]
    w = weight[kind]
    for k in range(end):
        part[k] = (
            (np.int32(level[kind, k]) << WEIGHT_SHIFT)
            + np.int32(w[0, k]) * near
            + np.int32(w[1, k]) * node
            + np.int32(w[2, k]) * above
            + np.int32(w[3, k]) * before
            + np.int32(w[4, k]) * (np.int32(left[k]) + np.int32(up[k]))
            + np.int32(w[5, k]) * (np.int32(first[k]) + np.int32(second[k]))
        )


@njit(forceinline=True)
def class_of(part: Int, weight: Int, run: Int) -> Int:
    """Class of a coefficient, or something below 0."""
    found = np.int64((part + np.int32(weight) * run) >> (WEIGHT_SHIFT + CLASS_SHIFT))
    return min(found, CLASSES - 1)


@njit(forceinline=True)
def evidence_of(q: Int, own: Int, level: Int, evidence: Array, log2: Array) -> Int:
    """What symbol q says; `level` is its log2(E|x| / step)."""
    size = abs(q)
    if size < MAGNITUDES:
        return np.int64(evidence[own, size])
    return min(max(np.int64(log2[min(size, _LOG_ENTRIES - 1)]) - level, -EVIDENCE_LIMIT), EVIDENCE_LIMIT)
