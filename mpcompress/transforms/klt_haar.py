"""Compiled steps of the pyramid: split, predict, merge. float32, contiguous over channels."""

from __future__ import annotations

from typing import Any

from mpcompress._numba import njit, types

F3 = types.Array(types.float32, 3, "C")
F2 = types.Array(types.float32, 2, "C")
F2R = types.Array(types.float32, 2, "C", readonly=True)
F3R = types.Array(types.float32, 3, "C", readonly=True)

Array = Any
Int = Any


@njit(types.void(F3R, F2R, F2R, F3, F3, F3, F3), fastmath={"contract"})
def split(x: Array, y_low: Array, x_low: Array, low: Array, d0: Array, d1: Array, d2: Array) -> None:
    """(h, w, C) to low (ph, pw, C) and details d0 (ph, w//2, C), d1 (h//2, pw, C), d2 (h//2, w//2, C)."""
    h, w, depth = x.shape
    for i in range(low.shape[0]):
        a, b = y_low[0, i], y_low[1, i]
        i0 = 2 * i if h > 1 else 0
        i1 = min(i0 + 1, h - 1)
        for j in range(low.shape[1]):
            c, d = x_low[0, j], x_low[1, j]
            j0 = 2 * j if w > 1 else 0
            j1 = min(j0 + 1, w - 1)
            pair_y, pair_x = b > 0, d > 0
            for k in range(depth):
                low[i, j, k] = a * (c * x[i0, j0, k] + d * x[i0, j1, k]) + b * (c * x[i1, j0, k] + d * x[i1, j1, k])
            if pair_x:
                for k in range(depth):
                    d0[i, j, k] = a * (d * x[i0, j0, k] - c * x[i0, j1, k]) + b * (d * x[i1, j0, k] - c * x[i1, j1, k])
            if pair_y:
                for k in range(depth):
                    d1[i, j, k] = b * (c * x[i0, j0, k] + d * x[i0, j1, k]) - a * (c * x[i1, j0, k] + d * x[i1, j1, k])
            if pair_x and pair_y:
                for k in range(depth):
                    d2[i, j, k] = b * (d * x[i0, j0, k] - c * x[i0, j1, k]) - a * (d * x[i1, j0, k] - c * x[i1, j1, k])


@njit(types.void(F3R, F2R, types.float32, types.float32, F3, F3, types.float32), fastmath={"contract"})
def predict(low: Array, norm: Array, across: Int, down: Int, d0: Array, d1: Array, sign: Int) -> None:
    """Add `sign` times what the slope of the low-pass says about the details: d0 += across * (left - right)."""
    ph, pw, depth = low.shape
    for i in range(ph):
        for j in range(pw):
            scale = norm[i, j] * sign
            if j < d0.shape[1]:
                left, right = max(j - 1, 0), min(j + 1, pw - 1)
                a, b = across * scale / norm[i, left], across * scale / norm[i, right]
                for k in range(depth):
                    d0[i, j, k] += a * low[i, left, k] - b * low[i, right, k]
            if i < d1.shape[0]:
                up, below = max(i - 1, 0), min(i + 1, ph - 1)
                a, b = down * scale / norm[up, j], down * scale / norm[below, j]
                for k in range(depth):
                    d1[i, j, k] += a * low[up, j, k] - b * low[below, j, k]


@njit(types.void(F3R, F3R, F3R, F3R, F2R, F2R, F3), fastmath={"contract"})
def merge(low: Array, d0: Array, d1: Array, d2: Array, y_low: Array, x_low: Array, x: Array) -> None:
    """Inverse of `split`."""
    h, w, depth = x.shape
    for i in range(low.shape[0]):
        a, b = y_low[0, i], y_low[1, i]
        i0 = 2 * i if h > 1 else 0
        for j in range(low.shape[1]):
            c, d = x_low[0, j], x_low[1, j]
            j0 = 2 * j if w > 1 else 0
            pair_y, pair_x = b > 0, d > 0
            if pair_x and pair_y:
                for k in range(depth):
                    top = a * low[i, j, k] + b * d1[i, j, k]
                    bottom = b * low[i, j, k] - a * d1[i, j, k]
                    top_x = a * d0[i, j, k] + b * d2[i, j, k]
                    bottom_x = b * d0[i, j, k] - a * d2[i, j, k]
                    x[i0, j0, k] = c * top + d * top_x
                    x[i0, j0 + 1, k] = d * top - c * top_x
                    x[i0 + 1, j0, k] = c * bottom + d * bottom_x
                    x[i0 + 1, j0 + 1, k] = d * bottom - c * bottom_x
            elif pair_x:
                for k in range(depth):
                    x[i0, j0, k] = c * low[i, j, k] + d * d0[i, j, k]
                    x[i0, j0 + 1, k] = d * low[i, j, k] - c * d0[i, j, k]
            elif pair_y:
                for k in range(depth):
                    x[i0, j0, k] = a * low[i, j, k] + b * d1[i, j, k]
                    x[i0 + 1, j0, k] = b * low[i, j, k] - a * d1[i, j, k]
            else:
                for k in range(depth):
                    x[i0, j0, k] = low[i, j, k]
