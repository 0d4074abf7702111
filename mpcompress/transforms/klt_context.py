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
    "KNOWN",
    "KNOWN_TYPE",
    "LEVEL",
    "LEVEL_LIMIT",
    "MAGNITUDES",
    "MAX_SYMBOL",
    "MEMORY_TYPE",
    "OWN",
    "STATISTICS_TYPE",
    "UNITS",
    "WEIGHT_LIMIT",
    "WEIGHT_SHIFT",
    "WORTH",
    "ZERO_SAYS",
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
i32: Any = np.int32
u64: Any = np.uint64  # of an index: a signed one may be negative and count from the end, which takes time to find out

KNOWN = 11
"""Rows of what is known of the coefficients of a kind: seven weights, then these."""

LEVEL, OWN, ZERO_SAYS, WORTH = 7, 8, 9, 10
"""Level; calibrated class c; evidence[c, 0]; worth[c]."""

KNOWN_TYPE = types.Array(types.int16, 3, "C", readonly=True)
I16_2R = types.Array(types.int16, 2, "C", readonly=True)
I32_1R = types.Array(types.int32, 1, "C", readonly=True)
I64_1 = types.Array(types.int64, 1, "C")

STATISTICS_TYPE = types.Tuple(
    (
        I16_2R,  # level (kinds, K)
        KNOWN_TYPE,  # weight (kinds, FEATURES, K)
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
    part, whole = total << 6, worth + PRIOR
    if part <= -FEATURE_LIMIT * whole:
        return np.int64(-FEATURE_LIMIT)
    # Unsigned: a signed division comes with checks and takes twice as long.
    mean = np.int64(u64(part + FEATURE_LIMIT * whole) // u64(whole)) - FEATURE_LIMIT
    return mean if mean < FEATURE_LIMIT else np.int64(FEATURE_LIMIT)


@njit(forceinline=True)
def row_features(row: Int, neighbours: Array, sums: Array, worths: Array, total: Array) -> tuple[Int, Int, Int, Int]:
    """Features 0 to 3."""
    near, node = np.int64(0), np.int64(0)
    said, worth = np.int64(0), np.int64(0)
    for slot in range(9):
        if slot == 4:
            near = mean_evidence(said, worth)
            said, worth = np.int64(0), np.int64(0)
        if slot == 6:
            node = mean_evidence(said, worth)
            said, worth = np.int64(0), np.int64(0)
        n = u64(neighbours[u64(row), u64(slot)])
        said += sums[n]
        worth += worths[n]
    return near, node, mean_evidence(said, worth), mean_evidence(total[0], total[1])


@njit()
def row_context(
    row: Int,
    kind: Int,
    end: Int,
    neighbours: Array,
    known: Array,
    said: Array,
    sums: Array,
    worths: Array,
    total: Array,
    part: Array,
) -> None:
    """part[k] = (level << 8) + all but feature 6, of the first `end` coefficients."""
    features = row_features(row, neighbours, sums, worths, total)
    near, node = i32(features[0]), i32(features[1])
    above, before = i32(features[2]), i32(features[3])
    row, kind = u64(row), u64(kind)
    left, up = u64(neighbours[row, 0]), u64(neighbours[row, 1])
    first, second = u64(neighbours[row, 4]), u64(neighbours[row, 5])
    for k in range(u64(end)):
        # In 64 bits, of which the store keeps 32: casts in between cost more than they save.
        part[k] = (
            (known[kind, LEVEL, k] << WEIGHT_SHIFT)
            + known[kind, 0, k] * near
            + known[kind, 1, k] * node
            + known[kind, 2, k] * above
            + known[kind, 3, k] * before
            + known[kind, 4, k] * (said[left, k] + said[up, k])
            + known[kind, 5, k] * (said[first, k] + said[second, k])
        )


@njit(forceinline=True)
def class_of(part: Int, weight: Int, run: Int) -> Int:
    """Class of a coefficient, or something below 0."""
    found = (part + weight * run) >> (WEIGHT_SHIFT + CLASS_SHIFT)
    return found if found < CLASSES else np.int64(CLASSES - 1)


@njit(forceinline=True)
def evidence_of(q: Int, own: Int, level: Int, evidence: Array, log2: Array) -> Int:
    """What symbol q says; `level` is its log2(E|x| / step)."""
    size = abs(q)
    if size < MAGNITUDES:
        return np.int64(evidence[u64(own), u64(size)])
    said = np.int64(log2[u64(size if size < _LOG_ENTRIES else _LOG_ENTRIES - 1)]) - level
    if said > EVIDENCE_LIMIT:
        return np.int64(EVIDENCE_LIMIT)
    return said if said > -EVIDENCE_LIMIT else np.int64(-EVIDENCE_LIMIT)
