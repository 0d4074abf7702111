"""The symbol loops of family `klt`: quantise, decode, dequantise. See `klt_context` for the contexts.

Symbols travel as three lists, in the order of the stream: index = row * K + k, class, and q. A group is consecutive
rows of one kind, `first`, `first` + 1, ...; `field` (n + 1, depth) holds a group's values as the decoder has them, row
0 standing for "none", and a value is predicted from its left and upper neighbours in the group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpcompress._numba import njit, types
from mpcompress.entropy.primitives import TABLES_TYPE, rans_get
from mpcompress.transforms.klt_context import (
    BLOCK,
    FEATURES,
    I32_1R,
    I64_1,
    MAGNITUDES,
    MAX_SYMBOL,
    MEMORY_TYPE,
    STATISTICS_TYPE,
    class_of,
    evidence_of,
    mean_evidence,
    row_context,
)

__all__ = ["decode_rows", "dequantise_rows", "quantise_rows"]

Array = Any
Int = Any
i64: Any = np.int64

_F32_2 = types.Array(types.float32, 2, "C")
_F32_2R = types.Array(types.float32, 2, "C", readonly=True)
_I32_2R = types.Array(types.int32, 2, "C", readonly=True)
_I32_1 = types.Array(types.int32, 1, "C")
_U16_1 = types.Array(types.uint16, 1, "C")
_U16_1R = types.Array(types.uint16, 1, "C", readonly=True)
_U8_1R = types.Array(types.uint8, 1, "C", readonly=True)

_RUN = FEATURES - 1


@njit(forceinline=True)
def _predict(row: Int, first: Int, neighbours: Array, left_weight: Any, up_weight: Any, field: Array) -> None:
    """Field of a row from its left and upper neighbours in the group."""
    left = max(i64(neighbours[row, 0]) - first + 1, 0)
    up = max(i64(neighbours[row, 1]) - first + 1, 0)
    at = row - first + 1
    for k in range(field.shape[1]):
        field[at, k] = left_weight * field[left, k] + up_weight * field[up, k]


@njit(forceinline=True)
def _chosen(size: Any, q: Int, c: Int, rate: Any, cost: Array, centroid: Array) -> Int:
    """|q| for |x| / step = `size`, which rounds to `q` >= 1: the cheapest of q, q - 1 and 0."""
    if rate < 0:
        return i64(size + np.float32(0.4))
    best, chosen = np.float32(np.inf), q
    for candidate in range(q - 1, q + 1):
        m = min(candidate, MAGNITUDES - 1)
        gap = size - (centroid[c, m] + np.float32(candidate - m))
        price = gap * gap + rate * cost[c, m]
        if price < best:
            best, chosen = price, candidate
    if q > 1 and size * size + rate * cost[c, 0] < best:
        return i64(0)
    return chosen


@njit(forceinline=True)
def _chosen_ahead(
    size: Any, q: Int, c: Int, rate: Any, cost: Array, centroid: Array, pull: Any, evidence: Array
) -> Int:
    """As `_chosen`, with `pull` times a symbol's evidence in the price; candidates are q + 1, q, q - 1 and 0 too."""
    best, chosen = size * size + rate * cost[c, 0] + pull * evidence[0], i64(0)
    for candidate in range(max(q - 1, 1), q + 2):
        m = min(candidate, MAGNITUDES - 1)
        gap = size - (centroid[c, m] + np.float32(candidate - m))
        price = gap * gap + rate * cost[c, m] + pull * evidence[m]
        if price < best:
            best, chosen = price, i64(candidate)
    return chosen


@njit(
    types.int64(
        *(_F32_2R, types.int64, types.int64, _I32_2R, STATISTICS_TYPE, MEMORY_TYPE),
        *(_F32_2R, _F32_2R, types.UniTuple(types.float32, 2), types.float32, types.float32),
        *(_F32_2R, _F32_2, _I32_1, _U16_1, _I32_1, types.int64),
    )
)
def quantise_rows(
    x: Array,
    first: Int,
    kind: Int,
    neighbours: Array,
    statistics: Any,
    memory: Any,
    cost: Array,
    centroid: Array,
    feedback: Any,
    step: Any,
    rate: Any,
    price: Array,
    field: Array,
    index: Array,
    classes: Array,
    symbols: Array,
    count: Int,
) -> Int:
    """Choose the symbols of a group: x (n, depth) is what is left after the prediction from coarser levels.

    `rate` weighs bits against squared steps; below 0: a dead zone, no search. `price` (rows + 1, K) is what a unit of
    evidence costs later symbols, see `klt_lookahead`; (0, 0): nobody knows. Fills `field` and the lists from `count`
    on, and returns the new count; -1 when a value is not finite or takes a symbol beyond `MAX_SYMBOL`.
    """
    level, weight, own, last, evidence, worth, log2, cutoff = statistics
    said, sums, worths, total = memory
    depth = x.shape[1]
    components = said.shape[1]
    end = min(i64(last[kind]), depth)
    part = np.empty(depth, np.int32)
    inverse = np.float32(1.0) / step
    field[0] = 0
    for i in range(x.shape[0]):
        row = first + i
        _predict(row, first, neighbours, feedback[0], feedback[1], field)
        said[row] = 0
        row_context(row, kind, end, neighbours, statistics, memory, part)
        row_said, row_worth, run_said, run_worth = 0, 0, 0, 0
        for begin in range(0, end, BLOCK):
            run = mean_evidence(run_said, run_worth)
            run_said -= run_said >> 2
            run_worth -= run_worth >> 2
            for k in range(begin, min(begin + BLOCK, end)):
                c = class_of(part[k], weight[kind, _RUN, k], run)
                if c < 0:
                    continue
                value = x[i, k] - field[i + 1, k]
                size = abs(value) * inverse
                if not size < MAX_SYMBOL - 1:
                    return -1
                q = i64(size + np.float32(0.5))
                if q > 0:
                    if price.shape[0] > 0:
                        pull = rate * price[row, k]
                        q = _chosen_ahead(size, q, c, rate, cost, centroid, pull, evidence[i64(own[kind, k])])
                    else:
                        q = _chosen(size, q, c, rate, cost, centroid)
                    m = min(q, MAGNITUDES - 1)
                    decoded = (centroid[c, m] + np.float32(q - m)) * step if q > 0 else np.float32(0)
                    if value < 0:
                        q, decoded = -q, -decoded
                    field[i + 1, k] += decoded
                index[count], classes[count], symbols[count] = row * components + k, c, q
                count += 1
                mine = i64(own[kind, k])
                e = evidence_of(q, mine, i64(level[kind, k]) + cutoff, evidence, log2)
                said[row, k] = e
                run_said += e
                run_worth += worth[mine]
                row_said += e
                row_worth += worth[mine]
        sums[row] = row_said
        worths[row] = row_worth
        total[0] += row_said
        total[1] += row_worth
    return count


@njit(
    types.int64(
        *(_U8_1R, I64_1, I32_1R, _I32_2R, STATISTICS_TYPE, MEMORY_TYPE, TABLES_TYPE),
        *(_I32_1, _U16_1, _I32_1, I64_1, _I32_1),
    )
)
def decode_rows(
    data: Array,
    reader: Array,
    kinds: Array,
    neighbours: Array,
    statistics: Any,
    memory: Any,
    tables: Array,
    index: Array,
    classes: Array,
    symbols: Array,
    begins: Array,
    depths: Array,
) -> Int:
    """Decode the rows of one sample; returns how many symbols are not 0, or -1 when the bytes are no stream.

    `reader` is [position, state] of `rans_open`, and is moved on. The lists receive only symbols that are not 0:
    row r has those from begins[r] up to begins[r + 1], in components below depths[r]. Lists that are too short for
    what the bytes say end in -1 as well.
    """
    level, weight, own, last, evidence, worth, log2, cutoff = statistics
    said, sums, worths, total = memory
    components = said.shape[1]
    part = np.empty(components, np.int32)
    pos, state = reader[0], reader[1]
    count = 0
    for row in range(1, kinds.size):
        kind = kinds[row]
        end = i64(last[kind])
        begins[row] = count
        depth = 0
        said[row] = 0
        row_context(row, kind, end, neighbours, statistics, memory, part)
        row_said, row_worth, run_said, run_worth = 0, 0, 0, 0
        for begin in range(0, end, BLOCK):
            run = mean_evidence(run_said, run_worth)
            run_said -= run_said >> 2
            run_worth -= run_worth >> 2
            for k in range(begin, min(begin + BLOCK, end)):
                c = class_of(part[k], weight[kind, _RUN, k], run)
                if c < 0:
                    continue
                q, pos, state = rans_get(data, pos, state, tables, c)
                mine = i64(own[kind, k])
                e = evidence_of(q, mine, i64(level[kind, k]) + cutoff, evidence, log2)
                said[row, k] = e
                run_said += e
                run_worth += worth[mine]
                row_said += e
                row_worth += worth[mine]
                if q != 0:
                    if count == symbols.size or abs(q) > MAX_SYMBOL:
                        return -1
                    index[count], classes[count], symbols[count] = row * components + k, c, q
                    count += 1
                    depth = k + 1
        if pos > data.size:
            return -1
        depths[row] = depth
        sums[row] = row_said
        worths[row] = row_worth
        total[0] += row_said
        total[1] += row_worth
    begins[kinds.size] = count
    reader[0], reader[1] = pos, state
    return count


@njit(
    types.void(
        *(types.Array(types.int32, 1, "C", readonly=True), _U16_1R, types.Array(types.int32, 1, "C", readonly=True)),
        *(types.Array(types.int64, 1, "C", readonly=True), types.int64, types.int64, types.int64, _I32_2R, _F32_2R),
        *(types.UniTuple(types.float32, 2), types.float32, _F32_2),
    )
)
def dequantise_rows(
    index: Array,
    classes: Array,
    symbols: Array,
    begins: Array,
    first: Int,
    rows: Int,
    components: Int,
    neighbours: Array,
    centroid: Array,
    feedback: Any,
    step: Any,
    field: Array,
) -> None:
    """Field (rows + 1, depth) of a group: prediction from left and up plus the decoded values."""
    field[0] = 0
    for row in range(first, first + rows):
        _predict(row, first, neighbours, feedback[0], feedback[1], field)
        at = row - first + 1
        for i in range(begins[row], begins[row + 1]):
            q = i64(symbols[i])
            size = abs(q)
            m = min(size, MAGNITUDES - 1)
            value = (centroid[classes[i], m] + np.float32(size - m)) * step
            field[at, i64(index[i]) - row * components] += value if q > 0 else -value
