"""float16 to float32 and back, three and ten times as fast as numpy does it where it has no instruction for it.

The bits of a float16 at the places of a float32's are its value times 2^-112; subnormal ones too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress._numba import njit, types

__all__ = ["narrow", "widen"]

_F32_1R = types.Array(types.float32, 1, "C", readonly=True)
_UP = np.float32(2.0**112)
_BEYOND = np.float32(65536)  # where infinity and NaN come out
_SUBNORMAL = np.float32(2.0**24)
_INTEGERS = np.float32(2.0**23)  # from here on float32 are integers: a sum is rounded to nearest even

_SMALLEST_NORMAL = 113 << 23  # 2^-14 as a float32
_LARGEST_BITS = (142 << 23) + (1023 << 13)  # 65504


def widen(h: NDArray[np.float16], out: NDArray[np.float32]) -> bool:
    """Write `h` to `out`, of the same shape. False when it holds infinity or NaN; `out` then holds anything."""
    bits = out.view(np.int32)
    bits[...] = np.ascontiguousarray(h).view(np.int16)
    bits <<= 13
    bits &= np.int32(-0x70002000)  # the copies of the sign above the exponent
    out *= _UP
    return bool(out.max(initial=0) < _BEYOND and out.min(initial=0) > -_BEYOND)


def narrow(x: NDArray[np.float32], out: NDArray[np.float16]) -> None:
    """Write finite `x` to `out`, of the same shape, both contiguous: rounded to nearest even, clipped to +-65504."""
    flat = np.ascontiguousarray(x).reshape(-1)
    _narrow(flat, flat.view(np.int32), out.view(np.int16).reshape(-1))


@njit(types.void(_F32_1R, types.Array(types.int32, 1, "C", readonly=True), types.int16[::1]))
def _narrow(x: Any, bits: Any, out: Any) -> None:
    for i in range(np.uint64(x.size)):
        size = bits[i] & 0x7FFFFFFF
        size = size if size < _LARGEST_BITS else _LARGEST_BITS
        half = (size - (112 << 23) + 0xFFF + ((size >> 13) & 1)) >> 13
        if size < _SMALLEST_NORMAL:
            half = np.int64(abs(x[i]) * _SUBNORMAL + _INTEGERS) - (1 << 23)
        out[i] = half | ((bits[i] >> 16) & 0x8000)
