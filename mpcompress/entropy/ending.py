"""How a rANS stream ends: with all of a state (`LONG`), or with hardly more bits than the symbols need (`SHORT`).

    LONG    the encoder starts at state 2^16, where the decoder must end; the last state takes four bytes: some 3 bytes
            more than the ideal code length
    SHORT   16-bit precision only. The last state takes as many bytes as it has, from 0 to 4, the highest first, and the
            decoder may end at any of 256 states, `END`: half as much

States below 2^16 do not grow with the symbols, as others do: they are points of [0, 2^16), as in an arithmetic coder.
For a symbol with interval [start, start + freq) the freq points floor(k 2^16 / freq) make way: the k-th becomes
start + k. A point that is none of these, but the m-th of the others, counts as freq + m and becomes an ordinary state:
`rans_put` takes that to 2^16 or more. Both steps can be undone, and a state tells which it was.

Where an encoder starts the decoder ends, which may be anywhere in `END`. So the encoder keeps an interval: all points
that decode to the symbols it has so far. When a symbol leaves none, it goes on from the lowest. The last symbols, some
100, thus cost nothing but that start. A decoder is there when it wants a word and has no more. It tells the state it
found from two neighbours, so no other bytes decode to the same symbols. If more than `MAX_TAIL` intervals leave a
point, the encoder starts at 2^16 after all: decoders must not go on for ever without a word.

The eight bits of the start that nothing uses are a check: of damaged streams a few in 1000 end as an encoder's do.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mpcompress._numba import njit, types

__all__ = [
    "END",
    "LONG",
    "MAX_TAIL",
    "READER_TYPE",
    "SHORT",
    "STATE_LOW",
    "Ending",
    "is_closed",
    "next_low",
    "open_stream",
    "put_low",
    "shortened",
]

Ending = Literal["long", "short"]
LONG: Final = "long"
SHORT: Final = "short"

STATE_LOW = 1 << 16
"""Lower end of the ordinary states' interval; with the long ending encoders start and decoders end there."""

END = range(1 << 14, (1 << 14) + (1 << 8))
"""Where decoders may end with the short ending. Not at 0: a damaged stream that gets there stays there."""

MAX_TAIL = 1 << 12
"""Most intervals that may be coded below 2^16."""

READER_TYPE = types.int64[::1]
"""Type of what `open_stream` returns: position, state, how many intervals may yet come without a word, -1 with the long
ending, and two states to be told from it."""

_LEFT, _BELOW, _ABOVE = 2, 3, 4
_NONE = -1

Array = Any
Int = Any


def open_stream(data: bytes, size: int, ending: Ending) -> NDArray[np.int64]:
    """Begin to read a stream of `size` bytes whose first ones, up to four, are `data`.

    The position is past the end when no encoder writes such a beginning.
    """
    if ending == LONG:
        state = int.from_bytes(data, "little")
        if size == 0:
            return np.array([0, STATE_LOW, -1, _NONE, _NONE], np.int64)
        return np.array([4 if state >= STATE_LOW else size + 2, state, -1, _NONE, _NONE], np.int64)
    pos = size if size < 3 else 4 - size % 2
    state = int.from_bytes(data[:pos], "big")
    below = _NONE
    if size < 3:
        state = (state + END.start) % STATE_LOW
        below = state - 1
    return np.array([pos if size == 0 or data[0] else size + 2, state, MAX_TAIL, below, _NONE], np.int64)


def shortened(stream: bytes) -> bytes:
    """A stream whose encoder began in `END`, or at 2^16, and wrote its last state as for a long ending."""
    state = int.from_bytes(stream[:4], "little")
    if stream and state < STATE_LOW:
        state = (state - END.start) % STATE_LOW
    return state.to_bytes((state.bit_length() + 7) // 8, "big") + stream[4:]


def is_closed(size: int, reader: NDArray[np.int64]) -> bool:
    """Whether the decoder of `size` bytes stands where an encoder began, with every byte consumed."""
    pos, state, left, *others = reader.tolist()
    at_end = state in END and left >= 0 and not any(other in END for other in others)
    return bool(pos == size and (at_end or state == STATE_LOW))


@njit()
def next_low(data: Array, pos: Int, state: Int, last: Int, start: Int, freq: Int, reader: Array) -> tuple[Int, Int]:
    """A decoder's state, now below 2^16 as `rans_advance` made it from `last`, when there is no word to add to it.

    With the long ending, or when something was wrong before: past the end.
    """
    if pos != data.size or reader[_LEFT] <= 0:
        return data.size + 2, np.int64(STATE_LOW)
    if last >= STATE_LOW:
        number = state - freq  # among the points that do not make way; `found` - `number` do before it
        found = (((number + 1) << 16) - 1) // (STATE_LOW - freq)
        reader[_BELOW] = found - 1
        reader[_ABOVE] = ((found - number) << 16) // freq  # 2^16, which is no point, when there is none
        return pos, found
    reader[_LEFT] -= 1
    for slot in range(_BELOW, _ABOVE + 1):
        other = reader[slot] - start
        reader[slot] = (other << 16) // freq if 0 <= other < freq else _NONE
    return pos, (state << 16) // freq


@njit(forceinline=True)
def put_low(low: Int, high: Int, start: Int, freq: Int) -> tuple[Int, Int]:
    """Code one interval below 2^16: the states [low, high) that now decode to all symbols.

    When there are none, `high` becomes 0 and `low` what is to be coded as an ordinary state.
    """
    first, end = (low * freq + 0xFFFF) >> 16, (high * freq + 0xFFFF) >> 16
    if first < end:
        return start + first, start + end
    return freq + low - first, np.int64(0)
