"""CompressAI's stream format, byte for byte, without lists, without the GIL and without trusting the bytes.

Streams equal those of `compressai.ans` 1.2.8 (`RansEncoder.encode_with_indexes`, `RansDecoder.decode_with_indexes`):
F. Giesen's rans64 (arXiv 1402.3392, public domain `rans64.h`): one 64-bit state in [2^31, 2^63), 32-bit little-endian
words, 16-bit frequencies. A stream is the encoder's last state, low word first, and its words in decoding order, so 8
bytes at least. A value outside its table is the table's last symbol and the 4-bit digits of u = 2 (v - max) above the
range, -2 v - 1 below it (v counts from the offset): their number, then the digits, lowest first.

`compressai.ans` hangs on u >= 2^28 and reads wherever damaged streams lead it. Here u may have all 32 bits, and a
stream that no encoder writes for these indexes raises CorruptBitstreamError.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcompress._numba import njit, types
from mpcompress.entropy.indexed_tables import PRECISION, IndexedTables
from mpcompress.entropy.primitives import TABLES_TYPE, Array, Int
from mpcompress.entropy.tables import CDF_BEGIN, LUT_BITS
from mpcompress.errors import CorruptBitstreamError, InvalidInputError, OutOfRangeError

__all__ = [
    "IndexedTables",
    "decode_many",
    "decode_rows",
    "decode_with_indexes",
    "encode_many",
    "encode_rows",
    "encode_with_indexes",
]

Int32 = npt.NDArray[np.int32]

_STATE_LOW = 1 << 31
_SLOT_MASK = (1 << PRECISION) - 1
_DIGIT_BITS = 4
_MAX_DIGITS = 8

_U32 = types.Array(types.uint32, 1, "C", readonly=True)
_I64 = types.Array(types.int64, 1, "C", readonly=True)
_I32_2D = types.Array(types.int32, 2, "C", readonly=True)


def encode_with_indexes(symbols: npt.ArrayLike, indexes: npt.ArrayLike, tables: IndexedTables) -> bytes:
    """Code n int32 symbols, each with the table its index names. Any shape, read in C order.

    Raises:
        InvalidInputError: wrong dtypes or sizes, or an index outside the tables.
        OutOfRangeError: a symbol so far outside its table that its escape needs more than 32 bits.
    """
    return encode_many(np.reshape(symbols, (1, -1)), np.reshape(indexes, (1, -1)), tables)[0]


def decode_with_indexes(
    data: bytes, indexes: npt.ArrayLike, tables: IndexedTables, *, strict: bool = True
) -> npt.NDArray[np.int32]:
    """Decode one int32 symbol per index, in the shape of `indexes`.

    Args:
        data: a stream of `encode_with_indexes` or of CompressAI's encoder.
        indexes: integers in [0, tables.count).
        tables: the tables of the encoder.
        strict: also refuse bytes that remain and a last state that no encoder starts from; without it only a stream
            too short or an impossible escape is an error, and a longer stream's first symbols can be read.

    Raises:
        CorruptBitstreamError: no encoder writes these bytes for these indexes. Altered bytes may also decode to other
            symbols: only a checksum outside the stream tells.
        InvalidInputError: indexes of a wrong dtype or outside the tables.
    """
    return decode_many([data], np.reshape(indexes, (1, -1)), tables, strict=strict).reshape(np.shape(indexes))


def encode_many(symbols: npt.ArrayLike, indexes: npt.ArrayLike, tables: IndexedTables) -> list[bytes]:
    """Code B rows of n symbols, (B, n) with indexes (B, n), into B streams: one call costs less than B."""
    values = _matrix(symbols, "symbols")
    chosen = _indexes(indexes, tables.count)
    if values.shape != chosen.shape:
        raise InvalidInputError(f"symbols {values.shape} with indexes {chosen.shape}", field="indexes")
    return encode_rows(values, chosen, tables)


def encode_rows(values: Int32, chosen: Int32, tables: IndexedTables) -> list[bytes]:
    """As `encode_many` of int32 arrays (B, n) in C order whose indexes are known to be in [0, tables.count)."""
    room = _room(values, chosen, tables.packed)
    if room < 0:
        row, column = divmod(-1 - room, values.shape[1])
        message = f"symbols[{row}, {column}] = {values[row, column]} is too far outside its table"
        raise OutOfRangeError(message, field="symbols")
    words = np.empty(room, np.uint32)
    bounds = np.empty(len(values) + 1, np.int64)
    _encode(values, chosen, tables.packed, words, bounds)
    stream = words[bounds[0] :].astype("<u4", copy=False).tobytes()
    return [stream[begin:end] for begin, end in pairwise(((bounds - bounds[0]) * 4).tolist())]


def decode_many(
    strings: Sequence[bytes], indexes: npt.ArrayLike, tables: IndexedTables, *, strict: bool = True
) -> npt.NDArray[np.int32]:
    """Decode B streams with indexes (B, n) into int32 (B, n). An error's field names the first bad ``strings[i]``."""
    return decode_rows(strings, _indexes(indexes, tables.count), tables, strict=strict)


def decode_rows(strings: Sequence[bytes], chosen: Int32, tables: IndexedTables, *, strict: bool = True) -> Int32:
    """As `decode_many` of an int32 array (B, n) in C order whose indexes are known to be in [0, tables.count)."""
    if len(strings) != len(chosen):
        raise InvalidInputError(f"{len(strings)} strings with indexes {chosen.shape}", field="strings")
    sizes = [len(string) for string in strings]
    for i, size in enumerate(sizes):
        if size < 8 or size % 4:
            raise CorruptBitstreamError(f"{size} bytes are no stream", field=f"strings[{i}]")
    ends = np.array(list(accumulate(sizes)), np.int64) // 4
    words = np.frombuffer(b"".join(strings), "<u4").astype(np.uint32, copy=False)
    out = np.empty(chosen.shape, np.int32)
    bad = _decode(words, ends, chosen, tables.packed, strict, out)
    if bad >= 0:
        message = f"{sizes[bad]} bytes are not the code of {chosen.shape[1]} symbols"
        raise CorruptBitstreamError(message, field=f"strings[{bad}]")
    return out


def _matrix(values: npt.ArrayLike, name: str) -> npt.NDArray[np.int32]:
    array = np.asarray(values)
    if array.ndim != 2:
        raise InvalidInputError(f"{name} must be (B, n), not {array.shape}", field=name)
    if array.size == 0:
        return np.empty(array.shape, np.int32)
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"{name} are {array.dtype}, not integers", field=name)
    if not np.can_cast(array.dtype, np.int32):
        limits = np.iinfo(np.int32)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InvalidInputError(f"{name} are outside the int32 range", field=name)
    return np.ascontiguousarray(array, np.int32)


def _indexes(values: npt.ArrayLike, count: int) -> npt.NDArray[np.int32]:
    array = _matrix(values, "indexes")
    if array.size and (int(array.min()) < 0 or int(array.max()) >= count):
        raise InvalidInputError(f"an index is outside [0, {count})", field="indexes")
    return array


@njit(forceinline=True)
def _put(words: Array, pos: Int, state: Int, start: Int, freq: Int, bits: Int) -> tuple[Int, Int]:
    """Code [start, start + freq) of [0, 2^bits); state, start and freq are uint64."""
    if state >= freq << np.uint64(63 - bits):
        pos -= 1
        words[pos] = state & np.uint64(0xFFFFFFFF)
        state >>= np.uint64(32)
    return pos, ((state // freq) << np.uint64(bits)) + state % freq + start


@njit(forceinline=True)
def _escape(value: Int, top: Int) -> Int:
    """The escaped form u of a value outside [0, top)."""
    return 2 * (value - top) if value >= 0 else -2 * value - 1


@njit(types.int64(_I32_2D, _I32_2D, TABLES_TYPE))
def _room(symbols: Array, indexes: Array, tables: Array) -> Any:
    """Words that the streams may take, or -1 - the flat index of a symbol that cannot be coded."""
    batch, n = symbols.shape
    room = batch * (n + 2)  # a put pushes out one word at most; the last state takes two
    for b in range(batch):
        for i in range(n):
            block = np.int64(tables[1 + indexes[b, i]])
            top = np.int64(tables[block + 1])
            value = np.int64(symbols[b, i]) - np.int64(tables[block])
            if value < 0 or value >= top:
                escaped = _escape(value, top)
                if escaped >> 32:
                    return -1 - (b * n + i)
                room += 1 + _MAX_DIGITS
    return room


@njit(types.void(_I32_2D, _I32_2D, TABLES_TYPE, types.uint32[::1], types.int64[::1]))
def _encode(symbols: Array, indexes: Array, tables: Array, words: Array, bounds: Array) -> None:
    """Write stream b to words[bounds[b]:bounds[b + 1]], all of them at the end of `words`."""
    batch, n = symbols.shape
    pos = words.size
    bounds[batch] = pos
    for b in range(batch - 1, -1, -1):
        state = np.uint64(_STATE_LOW)
        for i in range(n - 1, -1, -1):
            block = np.int64(tables[1 + indexes[b, i]])
            top = np.int64(tables[block + 1])
            value = np.int64(symbols[b, i]) - np.int64(tables[block])
            if value < 0 or value >= top:
                escaped = _escape(value, top)
                value = top
                count = 0
                while escaped >> (count * _DIGIT_BITS):
                    count += 1
                for j in range(count, -1, -1):  # decoders read their number first, then the lowest
                    digit = (escaped >> ((j - 1) * _DIGIT_BITS)) & 15 if j else count
                    pos, state = _put(words, pos, state, np.uint64(digit), np.uint64(1), _DIGIT_BITS)
            entry = block + CDF_BEGIN + value
            start = np.uint64(tables[entry])
            pos, state = _put(words, pos, state, start, np.uint64(tables[entry + 1]) - start, PRECISION)
        pos -= 2
        words[pos] = state & np.uint64(0xFFFFFFFF)
        words[pos + 1] = state >> np.uint64(32)
        bounds[b] = pos


@njit(forceinline=True)
def _renormalise(words: Array, pos: Int, end: Int, state: Int) -> tuple[Int, Int]:
    """Refill the state; past the end, set `pos` beyond it for good."""
    if state >= np.uint64(_STATE_LOW):
        return pos, state
    if pos < end:
        return pos + 1, state << np.uint64(32) | np.uint64(words[pos])
    return end + 1, np.uint64(_STATE_LOW)


@njit(forceinline=True)
def _get_digit(words: Array, pos: Int, end: Int, state: Int) -> tuple[Int, Int, Int]:
    digit = np.int64(state & np.uint64(15))
    pos, state = _renormalise(words, pos, end, state >> np.uint64(_DIGIT_BITS))
    return digit, pos, state


@njit()
def _get_escaped(words: Array, pos: Int, end: Int, state: Int, top: Int) -> tuple[Int, Int, Int]:
    count, pos, state = _get_digit(words, pos, end, state)
    if count > _MAX_DIGITS:
        return 0, end + 1, state
    escaped = 0
    digit = 1
    for j in range(count):
        digit, pos, state = _get_digit(words, pos, end, state)
        escaped |= digit << (j * _DIGIT_BITS)
    if digit == 0:  # encoders write no leading zeros
        return 0, end + 1, state
    value = -(escaped >> 1) - 1 if escaped & 1 else (escaped >> 1) + top
    return value, pos, state


@njit(types.int64(_U32, _I64, _I32_2D, TABLES_TYPE, types.boolean, types.int32[:, ::1]))
def _decode(words: Array, ends: Array, indexes: Array, tables: Array, strict: bool, out: Array) -> Int:
    """Fill `out`; returns the number of the first bad stream, or -1. Each stream has two words at least."""
    batch, n = indexes.shape
    end = 0
    for b in range(batch):
        pos = end + 2
        state = np.uint64(words[end]) | np.uint64(words[end + 1]) << np.uint64(32)
        end = ends[b]
        if state < np.uint64(_STATE_LOW) or state >> np.uint64(63):
            return b
        for i in range(n):
            block = np.int64(tables[1 + indexes[b, i]])
            cdf = block + CDF_BEGIN
            slot = np.int64(state & np.uint64(_SLOT_MASK))
            value = np.int64(tables[block + 2 + (slot >> (PRECISION - LUT_BITS))])
            while tables[cdf + value + 1] <= slot:  # ends: a table's last entry is 2^16
                value += 1
            start = np.int64(tables[cdf + value])
            freq = np.uint64(tables[cdf + value + 1] - start)
            pos, state = _renormalise(words, pos, end, freq * (state >> np.uint64(PRECISION)) + np.uint64(slot - start))
            top = np.int64(tables[block + 1])
            if value == top:
                value, pos, state = _get_escaped(words, pos, end, state, top)
            value += np.int64(tables[block])
            if pos > end or value < -(1 << 31) or value >= 1 << 31:
                return b
            out[b, i] = value
        if strict and (pos != end or state != np.uint64(_STATE_LOW)):
            return b
    return -1
