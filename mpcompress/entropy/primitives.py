"""rANS inside compiled code: the steps that a kernel with its own loop calls, state passed in and out.

The coder (Duda 2013, arXiv 1311.2540; range variant) has one 32-bit state in [2^16, 2^32) and 16-bit little-endian
words. A symbol is an interval [start, start + freq) of [0, 2^precision), 8 <= precision <= 16. A stream is the
encoder's last state and its words in the order in which a decoder wants them:

    encoder   forward: `collect` intervals   ->   backward: `rans_put` each   ->   state, words
    decoder   `rans_open`  ->  `rans_get` symbol by symbol, forward           ->   `rans_closed`

So a decoder may compute the table row of a symbol from the symbols before it. It starts from the encoder's last state
and must end in the encoder's first, 2^16, with no byte left: `rans_closed`. A cut or extended stream never does.

That is the long ending, where the last state has four bytes. Kernels that know the short one as well, see `ending`,
begin with `open_stream`, which Python calls, and give the steps its array.

A symbol outside its table's range is the table's last symbol, one bit for the side (1 above), and the distance to the
range as an Exp-Golomb code of order 0, all as intervals of power-of-two width.

Errors are sticky: a read past the end or an impossible escape moves `pos` past the end for good, which `rans_closed`
reports. Every loop and index is bounded whatever the bytes are, so a kernel needs no check of its own before the end.

`tables` is `CdfTables.packed`, of the numba type `TABLES_TYPE`; rows must lie in [0, number of tables).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpcompress._numba import njit, types
from mpcompress.entropy.ending import STATE_LOW, next_low
from mpcompress.entropy.tables import CDF_BEGIN, LUT_BITS

__all__ = [
    "MAX_ESCAPE_INTERVALS",
    "STATE_LOW",
    "TABLES_TYPE",
    "collect",
    "rans_advance",
    "rans_closed",
    "rans_get",
    "rans_get_bits",
    "rans_open",
    "rans_put",
]

MAX_ESCAPE_INTERVALS = 1 + 1 + 32 + 4
"""Most intervals of one symbol: escape, side, unary prefix, suffix of at most 31 bits in pieces of 8."""


TABLES_TYPE = types.Array(types.int32, 1, "C", readonly=True)
"""Type of `CdfTables.packed` in signatures; one array, as taking a tuple apart would count references per symbol."""

Array = Any  # inside compiled code the signature of the kernel says what a numpy array is,
Int = Any  # and integers have 64 bits
u64: Any = np.uint64  # of an index: a signed one may be negative and count from the end, which takes time to find out


@njit(forceinline=True)
def rans_put(words: Array, pos: Int, state: Int, start: Int, freq: Int, precision: Int) -> tuple[Int, Int]:
    """Code one interval. `words` (uint16) fills from its end; returns the new `pos` (last word written) and `state`."""
    # state // freq from a reciprocal, which does not wait for the state: exact, as state < freq << (32 - precision).
    shift = u64(32 + precision)
    reciprocal = (u64(1) << shift) // u64(freq) + u64(1)
    if state >= freq << (32 - precision):
        pos -= 1
        words[u64(pos)] = state & 0xFFFF
        state >>= 16
    quotient = np.int64((u64(state) * reciprocal) >> shift)
    return pos, state + start + quotient * ((np.int64(1) << precision) - freq)


@njit(forceinline=True)
def rans_open(data: Array) -> tuple[Int, Int]:
    """Begin to read `data` (uint8): returns `pos` and `state`."""
    if data.size < 4:
        return data.size + 2, STATE_LOW
    state = np.int64(data[0]) | np.int64(data[1]) << 8 | np.int64(data[2]) << 16 | np.int64(data[3]) << 24
    if state < STATE_LOW:
        return data.size + 2, STATE_LOW
    return 4, state


@njit(forceinline=True)
def rans_closed(data: Array, pos: Int, state: Int) -> Any:
    """Whether the decoder stands where the encoder began, with every byte consumed."""
    return pos == data.size and state == STATE_LOW


@njit(forceinline=True)
def rans_advance(
    data: Array, pos: Int, state: Int, start: Int, freq: Int, precision: Int, reader: Array = None
) -> tuple[Int, Int]:
    """Take the interval that the state points to off it: returns `pos`, `state`."""
    last = state
    state = freq * (state >> precision) + (state & ((1 << precision) - 1)) - start
    if state < STATE_LOW:
        if pos + 2 <= data.size:
            state = state << 16 | np.int64(data[u64(pos)]) | np.int64(data[u64(pos + 1)]) << 8
            pos += 2
        elif reader is None:
            state = STATE_LOW
            pos = data.size + 2
        else:
            pos, state = next_low(data, pos, state, last, start, freq, reader)
    return pos, state


@njit(forceinline=True)
def rans_get_bits(
    data: Array, pos: Int, state: Int, bits: Int, precision: Int, reader: Array = None
) -> tuple[Int, Int, Int]:
    """Decode 1 <= `bits` <= precision equiprobable bits: returns their value, `pos`, `state`."""
    shift = precision - bits
    value = (state & ((1 << precision) - 1)) >> shift
    pos, state = rans_advance(data, pos, state, value << shift, 1 << shift, precision, reader)
    return value, pos, state


@njit()
def _get_escaped(
    data: Array, pos: Int, state: Int, low: Int, high: Int, precision: Int, reader: Array
) -> tuple[Int, Int, Int]:
    value, length, above, bits = np.int64(1), np.int64(-1), np.int64(0), np.int64(1)
    prefix = True
    while prefix or length > 0:
        piece, pos, state = rans_get_bits(data, pos, state, bits, precision, reader)
        if not prefix:
            value = value << bits | piece
            length -= bits
        elif length < 0:
            above, length = piece, np.int64(0)
        elif piece:
            prefix = False
        else:
            length += 1
            if length == 32:
                return np.int64(0), data.size + 2, state
        if not prefix:
            bits = np.int64(8) if length > 8 else length
    symbol = high + value - 1 if above else low - value
    if symbol < -(1 << 31) or symbol >= 1 << 31:
        return np.int64(0), data.size + 2, state
    return symbol, pos, state


@njit(forceinline=True)
def rans_get(data: Array, pos: Int, state: Int, tables: Array, row: Int, reader: Array = None) -> tuple[Int, Int, Int]:
    """Decode one symbol of table `row`: returns it (within int32), `pos` and `state`."""
    precision = np.int64(tables[0])
    block = np.int64(tables[u64(1 + row)])
    low = np.int64(tables[u64(block)])
    size = np.int64(tables[u64(block + 1)])
    slot = state & ((1 << precision) - 1)
    index = np.int64(tables[u64(block + 2 + (slot >> (precision - LUT_BITS)))])
    cdf = block + CDF_BEGIN
    while tables[u64(cdf + index + 1)] <= slot:  # ends: a table's last entry is 2^precision
        index += 1
    start = np.int64(tables[u64(cdf + index)])
    freq = np.int64(tables[u64(cdf + index + 1)]) - start
    pos, state = rans_advance(data, pos, state, start, freq, precision, reader)
    if index < size:
        return low + index, pos, state
    return _get_escaped(data, pos, state, low, low + size, precision, reader)


@njit(forceinline=True)
def _add_bits(starts: Array, freqs: Array, count: Int, value: Int, bits: Int, precision: Int) -> Int:
    starts[count] = value << (precision - bits)
    freqs[count] = 1 << (precision - bits)
    return count + 1


@njit()
def _add_escaped(starts: Array, freqs: Array, count: Int, above: Int, distance: Int, precision: Int) -> Int:
    count = _add_bits(starts, freqs, count, above, 1, precision)
    value = distance + 1
    length = 0
    while value >> (length + 1):
        count = _add_bits(starts, freqs, count, 0, 1, precision)
        length += 1
    count = _add_bits(starts, freqs, count, 1, 1, precision)
    while length > 0:
        bits = 8 if length > 8 else length
        length -= bits
        count = _add_bits(starts, freqs, count, (value >> length) & ((1 << bits) - 1), bits, precision)
    return count


@njit(forceinline=True)
def collect(starts: Array, freqs: Array, count: Int, tables: Array, row: Int, symbol: Int) -> Int:
    """Append a symbol's intervals to `starts` and `freqs` (uint32) at `count`; returns the new count.

    They must have room for `MAX_ESCAPE_INTERVALS` more, or for one when the symbol is known to be in range.
    """
    precision = np.int64(tables[0])
    block = np.int64(tables[1 + row])
    size = np.int64(tables[block + 1])
    index = symbol - np.int64(tables[block])
    inside = 0 <= index < size
    entry = block + CDF_BEGIN + (index if inside else size)
    starts[count] = tables[entry]
    freqs[count] = tables[entry + 1] - tables[entry]
    count += 1
    if inside:
        return count
    above = np.int64(index >= size)
    return _add_escaped(starts, freqs, count, above, index - size if above else -1 - index, precision)
