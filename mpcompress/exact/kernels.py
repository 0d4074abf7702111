"""Compiled steps of exact coding on a CPU: bytes of activations, requantisation, decoding in instalments."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpcompress._numba import njit, types
from mpcompress.entropy.primitives import TABLES_TYPE, Array, rans_get, rans_open

__all__ = ["combine", "decode_step", "open_streams", "requantise_int16", "requantise_int32", "split"]

_F64 = types.Array(types.float64, 1, "C", readonly=True)
_U8 = types.Array(types.uint8, 1, "C", readonly=True)
_I64 = types.Array(types.int64, 1, "C", readonly=True)
_U16_2D = types.Array(types.uint16, 2, "C", readonly=True)
_I16_2D = types.Array(types.int16, 2, "C", readonly=True)


@njit(types.void(_I16_2D, types.int8[:, :, ::1]))
def split(values: Array, out: Array) -> None:
    """Write values (M, C) to out (2, M, C): 256 * out[0] + out[1], both signed bytes."""
    rows, columns = values.shape
    for i in range(rows):
        for j in range(columns):
            value = np.int32(values[i, j])
            high = (value + 128) >> 8
            out[0, i, j] = high
            out[1, i, j] = value - (high << 8)


@njit(types.void(types.int32[:, ::1], types.float64[:, ::1]))
def combine(products: Array, out: Array) -> None:
    """Products (2M, 2N) of [high; low] rows and [high | low] columns to accumulators (M, N)."""
    rows, columns = out.shape
    for i in range(rows):
        for j in range(columns):
            top = np.float64(products[i, j]) * 32768.0 + np.float64(products[i, columns + j]) * 256.0
            bottom = np.float64(products[rows + i, j]) * 128.0 + np.float64(products[rows + i, columns + j])
            out[i, j] = top + bottom


@njit(types.void(types.float64[:, ::1], _F64, types.float64, types.float64, types.float64, types.int16[:, ::1]))
def requantise_int16(acc: Array, bias: Array, scale: Any, lowest: Any, highest: Any, out: Array) -> None:
    """clamp(floor((acc + bias) * scale + 1/2)) of (M, N)."""
    rows, columns = acc.shape
    for i in range(rows):
        for j in range(columns):
            value = np.floor((acc[i, j] + bias[j]) * scale + 0.5)
            out[i, j] = np.int32(min(max(value, lowest), highest))


@njit(types.void(types.float64[:, ::1], _F64, types.float64, types.float64, types.float64, types.int32[:, ::1]))
def requantise_int32(acc: Array, bias: Array, scale: Any, lowest: Any, highest: Any, out: Array) -> None:
    """clamp(floor((acc + bias) * scale + 1/2)) of (M, N)."""
    rows, columns = acc.shape
    for i in range(rows):
        for j in range(columns):
            value = np.floor((acc[i, j] + bias[j]) * scale + 0.5)
            out[i, j] = np.int32(min(max(value, lowest), highest))


@njit(types.void(_U8, _I64, types.int64[:, ::1]))
def open_streams(data: Array, bounds: Array, states: Array) -> None:
    """Begin to read stream b, data[bounds[b]:bounds[b + 1]]: states[b] becomes (position in it, coder state)."""
    for b in range(states.shape[0]):
        pos, state = rans_open(data[bounds[b] : bounds[b + 1]])
        states[b, 0] = pos
        states[b, 1] = state


@njit(types.int64(_U8, _I64, types.int64[:, ::1], _U16_2D, TABLES_TYPE, types.int32[:, ::1]))
def decode_step(data: Array, bounds: Array, states: Array, rows: Array, tables: Array, out: Array) -> Any:
    """Decode the next symbols of every stream, (B, n) for rows (B, n); returns the first stream that ended, or -1."""
    samples, count = rows.shape
    for b in range(samples):
        stream = data[bounds[b] : bounds[b + 1]]
        pos, state = states[b, 0], states[b, 1]
        for i in range(count):
            symbol, pos, state = rans_get(stream, pos, state, tables, np.int64(rows[b, i]))
            out[b, i] = symbol
        states[b, 0] = pos
        states[b, 1] = state
        if pos > stream.size:
            return b
    return -1
