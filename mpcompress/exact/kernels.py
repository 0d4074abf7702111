"""Compiled steps of exact coding on a CPU: bytes of activations, requantisation, decoding in instalments."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpcompress._numba import njit, types
from mpcompress.entropy.primitives import TABLES_TYPE, Array, rans_get, rans_open

__all__ = [
    "combine",
    "decode_step",
    "dequantise",
    "open_streams",
    "quantise",
    "requantise_int16",
    "requantise_int32",
    "split",
]

_F64 = types.Array(types.float64, 1, "C", readonly=True)
_U8 = types.Array(types.uint8, 1, "C", readonly=True)
_I64 = types.Array(types.int64, 1, "C", readonly=True)
_I64_3D = types.Array(types.int64, 3, "C", readonly=True)
_I32_2D = types.Array(types.int32, 2, "C", readonly=True)
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


@njit(types.void(_I64_3D, _I64, types.int64, _I64_3D, types.int64, types.int32[:, ::1], types.int64[:, :, ::1]))
def quantise(y: Array, squares: Array, first: Any, means: Array, bits: Any, symbols: Array, values: Array) -> None:
    """Write symbols = round(y - means), halves up, and values = symbols + means, (B, n, C) at some squares.

    Args:
        y: (B, H * W, all channels), with `bits` fractional bits, as means and values.
        squares: (n,) in [0, H * W).
        first: of the C channels.
        means: (B, n, C).
        bits: fractional bits, at least 1.
        symbols: (B, n * C).
        values: (B, n, C).
    """
    samples, count, channels = means.shape
    half = 1 << (bits - 1)
    for b in range(samples):
        for i in range(count):
            for c in range(channels):
                symbol = (y[b, squares[i], first + c] - means[b, i, c] + half) >> bits
                symbols[b, i * channels + c] = symbol
                values[b, i, c] = (symbol << bits) + means[b, i, c]


@njit(types.void(_I32_2D, _I64_3D, types.int64, types.int64[:, :, ::1]))
def dequantise(symbols: Array, means: Array, bits: Any, values: Array) -> None:
    """Values = symbols (B, n * C) + means (B, n, C), both with `bits` fractional bits."""
    samples, count, channels = means.shape
    for b in range(samples):
        for i in range(count):
            for c in range(channels):
                values[b, i, c] = (np.int64(symbols[b, i * channels + c]) << bits) + means[b, i, c]


@njit(types.void(_U8, _I64, types.int64[:, ::1]))
def open_streams(data: Array, bounds: Array, states: Array) -> None:
    """Begin to read stream b, data[bounds[b]:bounds[b + 1]]: states[b] becomes (position in it, coder state)."""
    for b in range(states.shape[0]):
        pos, state = rans_open(data[bounds[b] : bounds[b + 1]])
        states[b, 0] = pos
        states[b, 1] = state


@njit(types.int64(_U8, _I64, types.int64[:, ::1], _I32_2D, TABLES_TYPE, types.int32[:, ::1]))
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
