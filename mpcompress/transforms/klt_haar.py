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
    _split(x, y_low, x_low, low, d0, d1, d2, _spare(x.shape[2])[0])


def merge(low: Array, d0: Array, d1: Array, d2: Array, y_low: Array, x_low: Array, x: Array) -> None:
    """Inverse of `split`."""
    _merge(low, d0, d1, d2, y_low, x_low, x, *_spare(x.shape[2]))


@njit(types.void(F3R, F2R, F2R, F3, F3, F3, F3, F1), fastmath={"contract"})
def _split(x: Array, y_low: Array, x_low: Array, low: Array, d0: Array, d1: Array, d2: Array, none: Array) -> None:
    h, w, depth = x.shape
    for i in range(u64(low.shape[0])):
        a, b = y_low[0, i], y_low[1, i]
        i0 = u64(2) * i if h > 1 else u64(0)
        i1 = i0 + u64(1) if b > 0 else i0
        for j in range(u64(low.shape[1])):
            c, d = x_low[0, j], x_low[1, j]
            j0 = u64(2) * j if w > 1 else u64(0)
            j1 = j0 + u64(1) if d > 0 else j0
            to0 = d0[i, j] if d > 0 else none
            to1 = d1[i, j] if b > 0 else none
            to2 = d2[i, j] if d > 0 and b > 0 else none
            for k in range(u64(depth)):
                top, bottom = c * x[i0, j0, k] + d * x[i0, j1, k], c * x[i1, j0, k] + d * x[i1, j1, k]
                top_x, bottom_x = d * x[i0, j0, k] - c * x[i0, j1, k], d * x[i1, j0, k] - c * x[i1, j1, k]
                low[i, j, k] = a * top + b * bottom
                to0[k] = a * top_x + b * bottom_x
                to1[k] = b * top - a * bottom
                to2[k] = b * top_x - a * bottom_x


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


@njit(types.void(F3R, F3R, F3R, F3R, F2R, F2R, F3, F1, F1R), fastmath={"contract"})
def _merge(
    low: Array, d0: Array, d1: Array, d2: Array, y_low: Array, x_low: Array, x: Array, none: Array, zeros: Array
) -> None:
    h, w, depth = x.shape
    for i in range(u64(low.shape[0])):
        a, b = y_low[0, i], y_low[1, i]
        i0 = u64(2) * i if h > 1 else u64(0)
        i1 = i0 + u64(1)
        for j in range(u64(low.shape[1])):
            c, d = x_low[0, j], x_low[1, j]
            j0 = u64(2) * j if w > 1 else u64(0)
            j1 = j0 + u64(1)
            from0 = d0[i, j] if d > 0 else zeros
            from1 = d1[i, j] if b > 0 else zeros
            from2 = d2[i, j] if d > 0 and b > 0 else zeros
            right = x[i0, j1] if d > 0 else none
            below = x[i1, j0] if b > 0 else none
            both = x[i1, j1] if d > 0 and b > 0 else none
            for k in range(u64(depth)):
                top, bottom = a * low[i, j, k] + b * from1[k], b * low[i, j, k] - a * from1[k]
                top_x, bottom_x = a * from0[k] + b * from2[k], b * from0[k] - a * from2[k]
                x[i0, j0, k] = c * top + d * top_x
                right[k] = d * top - c * top_x
                below[k] = c * bottom + d * bottom_x
                both[k] = d * bottom - c * bottom_x
