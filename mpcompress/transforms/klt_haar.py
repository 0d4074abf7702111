"""Compiled steps of the pyramid: split, predict, merge. float32, contiguous over channels."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from mpcompress._numba import njit, types

F3 = types.Array(types.float32, 3, "C")
F2 = types.Array(types.float32, 2, "C")
F1 = types.Array(types.float32, 1, "C")
F1R = types.Array(types.float32, 1, "C", readonly=True)
F2R = types.Array(types.float32, 2, "C", readonly=True)
F3R = types.Array(types.float32, 3, "C", readonly=True)

Array = Any
Int = Any
u64: Any = np.uint64  # of an index: a signed one may be negative and count from the end, which takes time to find out


@cache
def _spare(channels: int) -> tuple[Any, Any]:
    """(C,) that is written and never read, by any number of threads, and (C,) zeros."""
    return np.empty(channels, np.float32), np.zeros(channels, np.float32)


def split(x: Array, y_low: Array, x_low: Array, low: Array, d0: Array, d1: Array, d2: Array) -> None:
    """(h, w, C) to low (ph, pw, C) and details d0 (ph, w//2, C), d1 (h//2, pw, C), d2 (h//2, w//2, C)."""
    _turn(x, low, d0, d1, d2, y_low, x_low, *_spare(x.shape[2]), True)


def merge(low: Array, d0: Array, d1: Array, d2: Array, y_low: Array, x_low: Array, x: Array) -> None:
    """Inverse of `split`."""
    _turn(x, low, d0, d1, d2, y_low, x_low, *_spare(x.shape[2]), False)


@njit(fastmath={"contract"})
def _butterfly(
    from0: Array,
    from1: Array,
    from2: Array,
    from3: Array,
    to0: Array,
    to1: Array,
    to2: Array,
    to3: Array,
    a: Any,
    b: Any,
    c: Any,
    d: Any,
) -> None:
    """Turn the pairs (0, 1) and (2, 3) by (a, b), then their first and their second ones by (c, d)."""
    for k in range(u64(to0.size)):
        u, v = a * from0[k] + b * from1[k], a * from2[k] + b * from3[k]
        u_less, v_less = b * from0[k] - a * from1[k], b * from2[k] - a * from3[k]
        to0[k] = c * u + d * v
        to1[k] = d * u - c * v
        to2[k] = c * u_less + d * v_less
        to3[k] = d * u_less - c * v_less


@njit(types.void(F3, F3, F3, F3, F3, F2R, F2R, F1, F1, types.boolean), fastmath={"contract"})
def _turn(
    x: Array,
    low: Array,
    d0: Array,
    d1: Array,
    d2: Array,
    y_low: Array,
    x_low: Array,
    none: Array,
    zeros: Array,
    forward: Any,
) -> None:
    """Split x if `forward`, otherwise merge into it: a turn is its own inverse, across first or down first.

    Of a child without a partner the missing ones are `zeros` where they are read, and `none` where they are written.
    """
    one = u64(1)
    for i in range(u64(low.shape[0])):
        a, b = y_low[0, i], y_low[1, i]
        i0 = i + i if x.shape[0] > 1 else i
        for j in range(u64(low.shape[1])):
            c, d = x_low[0, j], x_low[1, j]
            j0 = j + j if x.shape[1] > 1 else j
            spare = zeros if forward else none
            x0, x1 = x[i0, j0], spare
            x2, x3 = spare, spare
            spare = none if forward else zeros
            y0, y1 = low[i, j], spare
            y2, y3 = spare, spare
            if d > 0:
                x1, y2 = x[i0, j0 + one], d0[i, j]
            if b > 0:
                x2, y1 = x[i0 + one, j0], d1[i, j]
                if d > 0:
                    x3, y3 = x[i0 + one, j0 + one], d2[i, j]
            if forward:
                _butterfly(x0, x1, x2, x3, y0, y1, y2, y3, c, d, a, b)
            else:
                _butterfly(y0, y1, y2, y3, x0, x1, x2, x3, a, b, c, d)


@njit(fastmath={"contract"})
def _add(target: Array, a: Any, x: Array, b: Any, y: Array) -> None:
    for k in range(u64(target.size)):
        target[k] += a * x[k] - b * y[k]


@njit(types.void(F3R, F2R, types.float32, types.float32, F3, F3, types.float32), fastmath={"contract"})
def predict(low: Array, norm: Array, across: Int, down: Int, d0: Array, d1: Array, sign: Int) -> None:
    """Add `sign` times what the slope of the low-pass says about the details: d0 += across * (left - right)."""
    ph, pw = u64(low.shape[0]), u64(low.shape[1])
    one = u64(1)
    for i in range(ph):
        for j in range(pw):
            scale = norm[i, j] * sign
            if j < u64(d0.shape[1]):
                left, right = j - one if j else j, j + one if j + one < pw else j
                a, b = across * scale / norm[i, left], across * scale / norm[i, right]
                _add(d0[i, j], a, low[i, left], b, low[i, right])
            if i < u64(d1.shape[0]):
                up, below = i - one if i else i, i + one if i + one < ph else i
                a, b = down * scale / norm[up, j], down * scale / norm[below, j]
                _add(d1[i, j], a, low[up, j], b, low[below, j])
