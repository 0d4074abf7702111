"""Symbols back to tokens, one basis vector for each symbol that is not 0.

One coefficient in ten is not 0, and predictions from the left and from above are linear, so they are made from the
tokens instead of from the components: a tenth of the arithmetic of a matrix product.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpcompress._numba import njit, types
from mpcompress.transforms.klt_context import I32_1R, MAGNITUDES, Array, Int, u64

__all__ = ["invert_rows"]

_F32_2 = types.Array(types.float32, 2, "C")
_F32_2R = types.Array(types.float32, 2, "C", readonly=True)
_I32_2R = types.Array(types.int32, 2, "C", readonly=True)
_U16_1R = types.Array(types.uint16, 1, "C", readonly=True)
_I64_1R = types.Array(types.int64, 1, "C", readonly=True)


@njit(fastmath={"contract"})
def _add_four(
    token: Array,
    start: Int,
    size: Int,
    basis: Array,
    row0: Int,
    row1: Int,
    row2: Int,
    row3: Int,
    value0: Any,
    value1: Any,
    value2: Any,
    value3: Any,
) -> None:
    for c in range(size):
        pair = value0 * basis[row0, c] + value1 * basis[row1, c]
        token[start + c] += pair + (value2 * basis[row2, c] + value3 * basis[row3, c])


@njit(
    types.void(
        *(I32_1R, _U16_1R, I32_1R, _I64_1R, types.int64, types.int64, I32_1R, _I32_2R),
        *(_F32_2R, _F32_2R, types.float32, types.float32, types.int64),
        *(I32_1R, _F32_2, _I32_2R, _I32_2R, _I64_1R, _F32_2),
    )
)
def invert_rows(
    index: Array,
    classes: Array,
    symbols: Array,
    begins: Array,
    first: Int,
    end: Int,
    kinds: Array,
    neighbours: Array,
    feedback: Array,
    centroid: Array,
    step: Any,
    prefix_step: Any,
    prefix: Int,
    slot: Array,
    basis: Array,
    place: Array,
    group: Array,
    starts: Array,
    tokens: Array,
) -> None:
    """Fill rows `first` to `end` - 1 of tokens (rows + 1, C), whose row 0 is zero and whose earlier rows are filled.

    The lists hold symbols in the order of the stream, those of row r from begins[r] to begins[r + 1]; kinds 1 to
    `prefix` have a step of their own. `slot`, `basis` (S * K, G), `place`, `group` and `starts` are those of `Bases`.
    """
    components = place.shape[1]
    none = np.float32(0)
    for row in range(first, end):
        r, kind = u64(row), u64(kinds[u64(row)])
        one, other = u64(neighbours[r, 0]), u64(neighbours[r, 1])
        left, up = feedback[kind, 0], feedback[kind, 1]
        token = tokens[r]
        for c in range(u64(tokens.shape[1])):
            token[c] = left * tokens[one, c] + up * tokens[other, c]
        size = prefix_step if kind > u64(0) and kind <= u64(prefix) else step
        own = u64(slot[kind])
        begin, stop = u64(begins[r]), u64(begins[r + u64(1)])
        for part in range(starts.size - 1):
            start = u64(starts[part])
            width = u64(starts[part + 1]) - start
            at0, at1, at2 = u64(0), u64(0), u64(0)
            value0, value1, value2 = none, none, none
            waiting = 0
            for i in range(begin, stop):
                q = np.int64(symbols[i])
                k = u64(index[i] - row * components)
                if q == 0 or group[own, k] != part:
                    continue
                m = abs(q) if abs(q) < MAGNITUDES - 1 else np.int64(MAGNITUDES - 1)
                value = (centroid[u64(classes[i]), u64(m)] + np.float32(abs(q) - m)) * size
                value = value if q > 0 else -value
                at = own * u64(components) + u64(place[own, k])
                if waiting == 3:
                    _add_four(token, start, width, basis, at0, at1, at2, at, value0, value1, value2, value)
                    value0, value1, value2, waiting = none, none, none, 0
                elif waiting == 2:
                    at2, value2, waiting = at, value, 3
                elif waiting == 1:
                    at1, value1, waiting = at, value, 2
                else:
                    at0, value0, waiting = at, value, 1
            if waiting:
                _add_four(token, start, width, basis, at0, at1, at2, at0, value0, value1, value2, none)
