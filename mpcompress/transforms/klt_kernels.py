"""The symbol loops of family `klt`: quantise, decode. See `klt_context` for the contexts.

Symbols travel as three lists, in the order of the stream: index = row * K + k, class, and q. A group is consecutive
rows of one kind, `first`, `first` + 1, ...; `field` (n + 1, depth) holds a group's values as the decoder has them, row
0 standing for "none", and a value is predicted from its left and upper neighbours in the group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpcompress._numba import njit, types
from mpcompress.entropy.ending import READER_TYPE
from mpcompress.entropy.primitives import TABLES_TYPE, rans_advance, rans_get
from mpcompress.transforms.klt_context import (
    BLOCK,
    FEATURES,
    I16_2R,
    I32_1R,
    I64_1,
    KNOWN_TYPE,
    LEVEL,
    MAGNITUDES,
    MAX_SYMBOL,
    OWN,
    WORTH,
    ZERO_SAYS,
    class_of,
    evidence_of,
    mean_evidence,
    row_context,
    u64,
)

__all__ = ["decode_rows", "quantise_rows"]

Array = Any
Int = Any
i64: Any = np.int64

_F32_1R = types.Array(types.float32, 1, "C", readonly=True)
_F32_2 = types.Array(types.float32, 2, "C")
_F32_2R = types.Array(types.float32, 2, "C", readonly=True)
_I32_2R = types.Array(types.int32, 2, "C", readonly=True)
_I32_1 = types.Array(types.int32, 1, "C")
_U16_1 = types.Array(types.uint16, 1, "C")
_U8_1R = types.Array(types.uint8, 1, "C", readonly=True)
_I16_1R = types.Array(types.int16, 1, "C", readonly=True)
_CONTEXT = (
    *(_I32_2R, KNOWN_TYPE, I16_2R, _I16_1R, types.int64),  # neighbours, known, evidence, log2, cutoff
    *(types.Array(types.int16, 2, "C"), I64_1, I64_1, I64_1, _I32_1),  # said, sums, worths, total, part
)

_RUN = FEATURES - 1


@njit(fastmath={"reassoc", "nsz", "contract"})
def _add_energies(x: Array, decoded: Array, bounds: Array, energies: Array) -> None:
    bands = u64(energies.size - 1)
    left = np.float32(0)
    end = u64(bounds[0])
    for band in range(bands):
        begin, end = end, u64(bounds[band + u64(1)])
        energy = np.float32(0)
        for k in range(begin, end if end < x.size else u64(x.size)):
            energy += x[k] * x[k]
            gap = x[k] - decoded[k]
            left += gap * gap
        energies[band] += energy
    energies[bands] += left


@njit(
    types.int64(
        *(_F32_2R, types.int64, types.int64, *_CONTEXT, _F32_2R, _F32_2R, types.float32, types.float32),
        *(types.float32, types.float32, _F32_1R, _F32_2R, _F32_2, _I32_1, _U16_1, _I32_1, I64_1),
        *(I64_1, types.Array(types.float64, 1, "C"), types.int64),
    )
)
def quantise_rows(
    x: Array,
    first: Int,
    kind: Int,
    neighbours: Array,
    known: Array,
    evidence: Array,
    log2: Array,
    cutoff: Int,
    said: Array,
    sums: Array,
    worths: Array,
    total: Array,
    part: Array,
    cost: Array,
    centroid: Array,
    left: Any,
    up: Any,
    step: Any,
    rate: Any,
    dead: Array,
    price: Array,
    field: Array,
    index: Array,
    classes: Array,
    symbols: Array,
    begins: Array,
    bounds: Array,
    energies: Array,
    count: Int,
) -> Int:
    """Choose the symbols of a group: x (n, depth) is what is left after the prediction from coarser levels.

    `rate` weighs bits against squared steps; below 0: a dead zone, no search. What is smaller than dead[class] steps
    is certainly 0. `price` (rows + 1, K) is what a unit of
    evidence costs later symbols, see `klt_lookahead`; (0, 0): nobody knows. `part` (K,) is room to work in. Fills
    `field` and the lists from `count` on, says in `begins` where those of each row begin and end, and returns the new
    count; -1 when a value is not finite or takes a symbol beyond `MAX_SYMBOL`. Adds to `energies` (bands + 1,) those of
    x from bounds[band] on, and last that of what the symbols leave of it.
    """
    depth = x.shape[1]
    components = said.shape[1]
    inverse = np.float32(1.0) / step
    ahead = i64(1) if price.shape[0] > 0 else i64(0)
    for k in range(u64(depth)):
        field[0, k] = 0
    kind, at = u64(kind), u64(count)
    for i in range(x.shape[0]):
        row = first + i
        i, r, begin_of_row = u64(i), u64(row), u64(row * components)
        below = i + u64(1)
        begins[r] = at
        one, other = neighbours[r, 0] - first + 1, neighbours[r, 1] - first + 1
        one, other = u64(one if one > 0 else 0), u64(other if other > 0 else 0)
        for k in range(u64(depth)):
            field[below, k] = left * field[one, k] + up * field[other, k]
        row_context(row, kind, depth, neighbours, known, said, sums, worths, total, part)
        row_said, row_worth = i64(0), i64(0)
        run_said, run_worth = i64(0), i64(0)
        for begin in range(0, depth, BLOCK):
            run = mean_evidence(run_said, run_worth)
            block_said, block_worth = i64(0), i64(0)
            end = begin + BLOCK
            for k in range(u64(begin), u64(end if end < depth else depth)):
                found = class_of(part[k], known[kind, _RUN, k], run)
                if found < 0:
                    said[r, k] = 0
                    continue
                c = u64(found)
                value = x[i, k] - field[below, k]
                size = abs(value) * inverse
                index[at] = begin_of_row + k
                classes[at] = c
                e = i64(known[kind, ZERO_SAYS, k])
                q = i64(0)
                if not size < dead[c]:
                    if not size < MAX_SYMBOL - 1:
                        return -1
                    own = u64(known[kind, OWN, k])
                    if rate < 0:
                        q = i64(size + np.float32(0.4))
                    else:
                        # The cheapest of 0 and what is next to the nearest, in squared steps.
                        near = i64(size + np.float32(0.5))
                        pull = rate * price[r, k] if ahead else np.float32(0)
                        best = np.float32(np.inf)
                        for candidate in range(near - 1, near + 1 + ahead):
                            m = candidate if candidate < MAGNITUDES - 1 else i64(MAGNITUDES - 1)
                            gap = size - (centroid[c, u64(m)] + np.float32(candidate - m))
                            cost_of = gap * gap + rate * cost[c, u64(m)] + pull * np.float32(evidence[own, u64(m)])
                            if cost_of < best:
                                best, q = cost_of, candidate
                        if size * size + rate * cost[c, 0] + pull * np.float32(evidence[own, 0]) < best:
                            q = i64(0)
                    if q > 0:
                        m = q if q < MAGNITUDES - 1 else i64(MAGNITUDES - 1)
                        decoded = (centroid[c, u64(m)] + np.float32(q - m)) * step
                        if value < 0:
                            q, decoded = -q, -decoded
                        field[below, k] += decoded
                        e = evidence_of(q, own, known[kind, LEVEL, k] + cutoff, evidence, log2)
                symbols[at] = q
                at += u64(1)
                said[r, k] = e
                block_said += e
                block_worth += known[kind, WORTH, k]
            run_said += block_said - (run_said >> 2)
            run_worth += block_worth - (run_worth >> 2)
            row_said += block_said
            row_worth += block_worth
        for k in range(u64(depth), u64(components)):
            said[r, k] = 0
        sums[r] = row_said
        worths[r] = row_worth
        total[0] += row_said
        total[1] += row_worth
        begins[r + u64(1)] = at
        _add_energies(x[i], field[below], bounds, energies)
    return i64(at)


@njit(
    types.int64(
        *(_U8_1R, READER_TYPE, I32_1R, I32_1R, *_CONTEXT, TABLES_TYPE, _I32_2R),
        *(_I32_1, _U16_1, _I32_1, I64_1, _I32_1),
    )
)
def decode_rows(
    data: Array,
    reader: Array,
    kinds: Array,
    last: Array,
    neighbours: Array,
    known: Array,
    evidence: Array,
    log2: Array,
    cutoff: Int,
    said: Array,
    sums: Array,
    worths: Array,
    total: Array,
    part: Array,
    tables: Array,
    zeros: Array,
    index: Array,
    classes: Array,
    symbols: Array,
    begins: Array,
    depths: Array,
) -> Int:
    """Decode the rows of one sample; returns how many symbols are not 0, or -1 when the bytes are no stream.

    `reader` is that of `open_stream`, and is moved on. `zeros` (CLASSES, 2) holds where the interval of
    symbol 0 begins in each table, and its width: most symbols are 0. The lists receive only symbols that are not 0:
    row r has those from begins[r] up to begins[r + 1], in components below depths[r]. Lists that are too short for
    what the bytes say end in -1 as well.
    """
    components = said.shape[1]
    precision = i64(tables[0])
    mask = (i64(1) << precision) - 1
    pos, state = reader[0], reader[1]
    room = u64(symbols.size)
    count = u64(0)
    for row in range(1, kinds.size):
        r, begin_of_row = u64(row), u64(row * components)
        kind = u64(kinds[r])
        depth = i64(last[kind])
        begins[r] = count
        deepest = u64(0)
        row_context(row, kind, depth, neighbours, known, said, sums, worths, total, part)
        row_said, row_worth = i64(0), i64(0)
        run_said, run_worth = i64(0), i64(0)
        for begin in range(0, depth, BLOCK):
            run = mean_evidence(run_said, run_worth)
            block_said, block_worth = i64(0), i64(0)
            end = begin + BLOCK
            for k in range(u64(begin), u64(end if end < depth else depth)):
                c = class_of(part[k], known[kind, _RUN, k], run)
                if c < 0:
                    said[r, k] = 0
                    continue
                e = i64(known[kind, ZERO_SAYS, k])
                start, freq = i64(zeros[u64(c), 0]), i64(zeros[u64(c), 1])
                at = (state & mask) - start
                if at >= 0 and at < freq:
                    pos, state = rans_advance(data, pos, state, start, freq, precision, reader)
                else:
                    q, pos, state = rans_get(data, pos, state, tables, c, reader)
                    size = abs(q)
                    if count == room or size > MAX_SYMBOL or size == 0:
                        return -1
                    e = evidence_of(q, u64(known[kind, OWN, k]), known[kind, LEVEL, k] + cutoff, evidence, log2)
                    index[count] = begin_of_row + k
                    classes[count] = c
                    symbols[count] = q
                    count += u64(1)
                    deepest = k + u64(1)
                said[r, k] = e
                block_said += e
                block_worth += known[kind, WORTH, k]
            run_said += block_said - (run_said >> 2)
            run_worth += block_worth - (run_worth >> 2)
            row_said += block_said
            row_worth += block_worth
        if pos > data.size:
            return -1
        for k in range(u64(depth), u64(components)):
            said[r, k] = 0
        depths[r] = deepest
        sums[r] = row_said
        worths[r] = row_worth
        total[0] += row_said
        total[1] += row_worth
    begins[kinds.size] = count
    reader[0] = pos
    reader[1] = state
    return i64(count)
