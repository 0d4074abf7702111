"""Symbols and table rows in, bytes out, and back: the coder of the calibrated codecs.

One stream per call, described in `mpcompress.entropy.primitives`; no length, table or row is stored in it, so decoding
needs the same rows, the same tables and the same ending. It costs about 3 bytes more than the ideal code length of its
symbols, and half of that with the short `ending`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpcompress._numba import njit, types
from mpcompress.entropy.ending import (
    END,
    LONG,
    MAX_TAIL,
    READER_TYPE,
    SHORT,
    STATE_LOW,
    Ending,
    is_closed,
    open_stream,
    put_low,
    shortened,
)
from mpcompress.entropy.primitives import (
    MAX_ESCAPE_INTERVALS,
    TABLES_TYPE,
    Array,
    Int,
    rans_get,
    rans_put,
    u64,
)
from mpcompress.entropy.tables import CDF_BEGIN, CdfTables
from mpcompress.errors import CorruptBitstreamError, InvalidInputError

__all__ = ["decode", "encode", "encode_intervals"]

Buffer = bytes | bytearray | memoryview | npt.NDArray[np.uint8]

_FIRST, _END = END.start, END.stop
_U8 = types.Array(types.uint8, 1, "C", readonly=True)
_U16 = types.Array(types.uint16, 1, "C", readonly=True)
_U32 = types.Array(types.uint32, 1, "C", readonly=True)
_I32 = types.Array(types.int32, 1, "C", readonly=True)


def encode(symbols: npt.ArrayLike, rows: npt.ArrayLike, tables: CdfTables, ending: Ending = LONG) -> bytes:
    """Code n symbols, each with its row of the tables.

    Args:
        symbols: integers in the int32 range, any shape, read in C order.
        rows: integers in [0, tables.count), same number of elements.
        tables: the frequencies.
        ending: of the stream; short ones take tables of 16-bit precision.

    Returns:
        The stream; empty when there are no symbols.

    Raises:
        InvalidInputError: wrong dtypes or sizes, a symbol beyond int32, a row outside the tables, another ending.
    """
    short = _is_short(ending, tables)
    values = _symbols(symbols)
    checked = _rows(rows, tables.count)
    if values.size != checked.size:
        raise InvalidInputError(f"{values.size} symbols with {checked.size} rows", field="rows")
    if short:
        stream = _encoded(values, checked, tables, END.start, END.stop)
        return shortened(stream or _encoded(values, checked, tables, STATE_LOW, 0))
    return _encoded(values, checked, tables, STATE_LOW, 0)


def decode(data: Buffer, rows: npt.ArrayLike, tables: CdfTables, ending: Ending = LONG) -> npt.NDArray[np.int32]:
    """Decode the symbols of a stream, one per row.

    Args:
        data: what `encode` returned.
        rows: the rows it was given, integers, any shape.
        tables: the tables it was given.
        ending: the ending it was given.

    Returns:
        int32 symbols in the shape of `rows`.

    Raises:
        CorruptBitstreamError: no encoder writes these bytes for these rows. Altered bytes may also decode to other
            symbols: only a checksum outside the stream tells.
        InvalidInputError: rows of a wrong dtype or outside the tables, another ending.
    """
    _is_short(ending, tables)
    checked = _rows(rows, tables.count)
    buffer = np.frombuffer(data, np.uint8)
    reader = open_stream(buffer[:4].tobytes(), buffer.size, ending)
    out = np.empty(checked.size, np.int32)
    _decode(buffer, reader, checked, tables.packed, out)
    if not is_closed(buffer.size, reader) or (buffer.size and not checked.size):
        raise CorruptBitstreamError(f"{buffer.size} bytes are not the code of {checked.size} symbols", field="data")
    return out.reshape(np.shape(rows))


def encode_intervals(starts: npt.ArrayLike, freqs: npt.ArrayLike, precision: int) -> bytes:
    """Code n intervals [start, start + freq) of [0, 2^precision): for encoders that collect their own.

    Args:
        starts: integers, any shape.
        freqs: integers >= 1, same number of elements, start + freq <= 2^precision.
        precision: bits, 8 to 16.

    Raises:
        InvalidInputError: an interval outside its range, or sizes that differ.
    """
    if not 8 <= precision <= 16:
        raise InvalidInputError(f"precision is {precision}, not 8 to 16 bits", field="precision")
    first = _integers(starts, "starts").astype(np.int64).ravel()
    width = _integers(freqs, "freqs").astype(np.int64).ravel()
    if first.size != width.size:
        raise InvalidInputError(f"{first.size} starts with {width.size} freqs", field="freqs")
    total = 1 << precision
    if np.any((first < 0) | (first >= total) | (width < 1) | (width > total - first)):
        raise InvalidInputError(f"an interval is empty or outside [0, {total})", field="starts")
    words = np.empty(first.size + 2, np.uint16)
    begin = _encode_intervals(first.astype(np.uint32), width.astype(np.uint32), precision, words)
    return words[begin:].astype("<u2", copy=False).tobytes()


def _encoded(
    symbols: npt.NDArray[np.int32], rows: npt.NDArray[np.uint16], tables: CdfTables, state: int, high: int
) -> bytes:
    """From the states [state, high), or from `state` if that is 0; nothing when `MAX_TAIL` forbids it."""
    if symbols.size == 0:
        return b""
    low = np.array([high, 0], np.int64)
    words = np.empty(symbols.size + 2 + MAX_ESCAPE_INTERVALS, np.uint16)  # an interval pushes out one word at most
    begin = _encode(symbols, rows, tables.packed, low, state, words)
    if begin == -1:  # many escapes
        low[:] = high, 0
        words = np.empty(symbols.size * MAX_ESCAPE_INTERVALS + 2, np.uint16)
        begin = _encode(symbols, rows, tables.packed, low, state, words)
    return b"" if begin < 0 else words[begin:].astype("<u2", copy=False).tobytes()


def _is_short(ending: Ending, tables: CdfTables) -> bool:
    if ending not in (LONG, SHORT):
        raise InvalidInputError(f"an ending is {LONG!r} or {SHORT!r}, not {ending!r}", field="ending")
    if ending == SHORT and tables.precision != 16:
        raise InvalidInputError(f"a short ending with a precision of {tables.precision} bits, not 16", field="ending")
    return ending == SHORT


def _integers(values: npt.ArrayLike, name: str) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(array.shape, np.int32)  # np.asarray([]) is float64
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"{name} are {array.dtype}, not integers", field=name)
    return array


def _symbols(values: npt.ArrayLike) -> npt.NDArray[np.int32]:
    array = _integers(values, "symbols")
    if array.size and not np.can_cast(array.dtype, np.int32):
        limits = np.iinfo(np.int32)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InvalidInputError("a symbol is outside the int32 range", field="symbols")
    return np.ascontiguousarray(array, np.int32).ravel()


def _rows(values: npt.ArrayLike, count: int) -> npt.NDArray[np.uint16]:
    array = _integers(values, "rows")
    if array.size and (int(array.max()) >= count or (array.dtype.kind == "i" and int(array.min()) < 0)):
        raise InvalidInputError(f"a row is outside [0, {count})", field="rows")
    return np.ascontiguousarray(array, np.uint16).ravel()


@njit(types.int64(_U32, _U32, types.int64, types.uint16[::1]), lazy=True)
def _encode_intervals(starts: Array, freqs: Array, precision: int, words: Array) -> Any:
    """Write the stream to the end of `words`, which has room for all intervals and 2; returns where it begins."""
    pos = words.size
    if starts.size == 0:
        return pos
    state = np.int64(STATE_LOW)
    for i in range(starts.size - 1, -1, -1):
        pos, state = rans_put(words, pos, state, np.int64(starts[i]), np.int64(freqs[i]), precision)
    return _close(words, pos, state)


@njit(forceinline=True)
def _close(words: Array, pos: Int, state: Int) -> Any:
    words[u64(pos - 1)] = state >> 16
    words[u64(pos - 2)] = state & 0xFFFF
    return pos - 2


@njit()
def _put(words: Array, pos: Int, state: Int, low: Array, start: Int, freq: Int, precision: Int) -> Any:
    """`rans_put`, or while low[0] is not 0 the step of a short ending; low[1] counts these."""
    if low[0] > 0:
        state, low[0] = put_low(state, low[0], start, freq)
        if low[0] > 0:
            low[1] += 1
            return pos, state
    return rans_put(words, pos, state, start, freq, precision)


@njit()
def _put_distance(words: Array, pos: Int, state: Int, low: Array, above: Int, distance: Int, precision: Int) -> Any:
    """What follows an escape, from its end: the side, and the distance as an Exp-Golomb code."""
    value = distance + 1
    length = np.int64(0)
    while value >> (length + 1):
        length += 1
    done, bits = np.int64(0), (length - 1) % 8 + 1
    half = np.int64(1) << (precision - 1)
    while done < 2 * length + 2:
        if done < length:
            start, freq = ((value >> done) & ((1 << bits) - 1)) << (precision - bits), np.int64(1) << (precision - bits)
            done += bits
            bits = np.int64(8)
        else:
            start = half if done == length or (done > 2 * length and above) else np.int64(0)
            freq = half
            done += 1
        pos, state = _put(words, pos, state, low, start, freq, precision)
    return pos, state


@njit(types.int64(_I32, _U16, TABLES_TYPE, types.int64[::1], types.int64, types.uint16[::1]))
def _encode(symbols: Array, rows: Array, tables: Array, low: Array, state: int, words: Array) -> Any:
    """Write the stream to the end of `words`, the state in four bytes; returns where it begins.

    -1 when there may be too little room, -2 when too many intervals are coded below 2^16: `low` is that of `_put`.
    """
    pos = np.int64(words.size)
    precision = np.int64(tables[0])
    below = low[0] > 0
    for i in range(symbols.size - 1, -1, -1):
        block = np.int64(tables[u64(1 + np.int64(rows[u64(i)]))])
        size = np.int64(tables[u64(block + 1)])
        index = symbols[u64(i)] - np.int64(tables[u64(block)])
        if index < 0 or index >= size:
            if pos < i + 2 + MAX_ESCAPE_INTERVALS:
                return np.int64(-1)
            above = np.int64(index >= size)
            pos, state = _put_distance(words, pos, state, low, above, index - size if above else -1 - index, precision)
            index = size
        entry = block + CDF_BEGIN + index
        start = np.int64(tables[u64(entry)])
        freq = tables[u64(entry + 1)] - start
        if below:
            pos, state = _put(words, pos, state, low, start, freq, precision)
            below = low[0] > 0
            if low[1] > MAX_TAIL:
                return np.int64(-2)
        else:
            pos, state = rans_put(words, pos, state, start, freq, precision)
    return _close(words, pos, state)


@njit(types.void(_U8, READER_TYPE, _U16, TABLES_TYPE, types.int32[::1]), lazy=True)
def _decode(data: Array, reader: Array, rows: Array, tables: Array, out: Array) -> None:
    pos, state = reader[0], reader[1]
    for i in range(rows.size):
        if pos > data.size:
            break
        symbol, pos, state = rans_get(data, pos, state, tables, np.int64(rows[i]), reader)
        out[i] = symbol
    reader[0] = pos
    reader[1] = state
