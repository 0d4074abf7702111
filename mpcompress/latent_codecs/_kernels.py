"""Compiled steps between entropy parameters and coder: one pass each, instead of a tensor operation per sign and check.

They are element by element, so neither batch nor layout changes a result; float32 stays float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpcompress._numba import njit, types

__all__ = ["dequantise", "quantise", "scale_rows"]

_BLOCK = 1024  # stays in the first cache

Array = Any  # inside compiled code the signature of the kernel says what a numpy array is

_I32 = types.Array(types.int32, 1, "C", readonly=True)
_F32 = types.Array(types.float32, 1, "C", readonly=True)
_F64 = types.Array(types.float64, 1, "C", readonly=True)


@njit(
    types.int64(_F32, _F32, types.float32, types.int32[::1], types.float32[::1]),
    types.int64(_F64, _F64, types.float64, types.int32[::1], types.float64[::1]),
)
def quantise(values: Array, means: Array, limit: Any, symbols: Array, hats: Array) -> Any:
    """Symbols = round(values - means), ties to even, hats = symbols + means; all (n,).

    Returns:
        The first index whose symbol is beyond +-limit or not a number, or -1.
    """
    for i in range(values.size):
        rounded = np.rint(values[i] - means[i])
        if not abs(rounded) <= limit:
            return i
        symbols[i] = np.int32(rounded)
        hats[i] = symbols[i]  # two steps: the sum of an int32 and a float32 would be a float64
        hats[i] += means[i]
    return -1


@njit(
    types.void(_I32, _F32, types.float32[::1]),
    types.void(_I32, _F64, types.float64[::1]),
)
def dequantise(symbols: Array, means: Array, hats: Array) -> None:
    """Hats = symbols + means, (n,)."""
    for i in range(symbols.size):
        hats[i] = symbols[i]
        hats[i] += means[i]


@njit(
    types.void(_F32, _F32, types.int32[::1]),
    types.void(_F64, _F64, types.int32[::1]),
)
def scale_rows(scales: Array, edges: Array, rows: Array) -> None:
    """Number of edges below each scale, (n,). A scale of NaN is above all, an edge of NaN below all.

    Written so that it compiles to vector instructions: comparing with all of 63 edges takes a quarter of a search.
    """
    for first in range(0, scales.size, _BLOCK):
        part = scales[first : first + _BLOCK]
        counts = rows[first : first + _BLOCK]
        for i in range(part.size):
            counts[i] = 0
        for edge in edges:
            for i in range(part.size):
                counts[i] += np.int32(1) if not edge >= part[i] else np.int32(0)
