"""The own format: round trips, rate, exact bytes, an independent decoder, kernels with contexts, refusals."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompress._numba import njit, types
from mpcompress.entropy import CdfTables, decode, encode, encode_intervals, rans
from mpcompress.entropy.ending import MAX_TAIL, Ending
from mpcompress.entropy.primitives import (
    MAX_ESCAPE_INTERVALS,
    TABLES_TYPE,
    collect,
    rans_closed,
    rans_get,
    rans_get_bits,
    rans_open,
)
from mpcompress.errors import CorruptBitstreamError, InvalidInputError

INT32 = np.iinfo(np.int32)

GOLDEN = "42207b00f0ef1523fe3fc0ff000eff1fdfff56ff00303f07f9ffc13f"
GOLDEN_INTERVALS = "000002006410"
GOLDEN_SHORT = {
    1: "2000",
    2: "1dc4",
    3: "1578ffe4c065ff7f92ff",
    5: "0201fb880000f83ffd7f78ffe4ffc065ff7f92ff",
    15: "6b1ca58bf8bf1a0f887b0000f83ffd7f78ffe4ffc065ff7f92ff",
}
"""By how many of the last symbols."""


def sample(tables: CdfTables, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw n rows, and symbols with the frequencies of their tables (escapes just outside the range)."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, tables.count, n).astype(np.uint8)
    ends = np.cumsum(tables.lengths)
    slots = rng.integers(0, 1 << tables.precision, n)
    symbols = np.empty(n, np.int32)
    for t in range(tables.count):
        freqs = tables.freqs[ends[t] - tables.lengths[t] : ends[t]].astype(np.int64)
        symbols[rows == t] = tables.offsets[t] + np.searchsorted(np.cumsum(freqs), slots[rows == t], side="right")
    return symbols, rows


def ideal_bits(tables: CdfTables, symbols: np.ndarray, rows: np.ndarray) -> float:
    begins = np.cumsum(tables.lengths) - tables.lengths
    index = symbols.astype(np.int64) - tables.offsets[rows]
    assert np.all((index >= 0) & (index < tables.lengths[rows] - 1))
    return float((tables.precision - np.log2(tables.freqs[begins[rows] + index])).sum())


def plain_decode(data: bytes, rows: np.ndarray, tables: CdfTables, ending: str = "long") -> list[int]:
    """The format again, from its description, in plain Python integers."""
    short = ending == "short"
    if len(rows) == 0:
        assert data == b""
        return []
    begin = 4 if not short else len(data) if len(data) < 3 else 4 - len(data) % 2
    words = [int.from_bytes(data[i : i + 2], "little") for i in range(begin, len(data), 2)]
    state = int.from_bytes(data[:begin], "big" if short else "little")
    if short and len(data) < 3:
        state = (state + 16384) % 65536
    precision = tables.precision

    def take(start: int, freq: int) -> None:
        nonlocal state
        last, state = state, freq * (state >> precision) + state % (1 << precision) - start
        if state >= 1 << 16:
            return
        if words:
            state = state << 16 | words.pop(0)
            return
        assert short
        if last < 1 << 16:
            state = state * 65536 // freq
        else:
            making_way = {k * 65536 // freq for k in range(freq)}
            state = [n for n in range(65536) if n not in making_way][state - freq]

    def bits(count: int) -> int:
        value = state % (1 << precision) >> (precision - count)
        take(value << (precision - count), 1 << (precision - count))
        return value

    symbols = []
    for row in rows.tolist():
        begin = int(tables.lengths[:row].sum())
        freqs = tables.freqs[begin : begin + int(tables.lengths[row])].tolist()
        slot, index, start = state % (1 << precision), 0, 0
        while start + freqs[index] <= slot:
            start += freqs[index]
            index += 1
        take(start, freqs[index])
        low, high = int(tables.offsets[row]), int(tables.offsets[row]) + len(freqs) - 1
        symbol = low + index
        if symbol == high:
            above = bits(1)
            length = 0
            while not bits(1):
                length += 1
            value = 1
            while length:
                count = min(length, 8)
                value = value << count | bits(count)
                length -= count
            symbol = high + value - 1 if above else low - value
        symbols.append(symbol)
    assert not words
    assert state == 1 << 16 or (short and 16384 <= state < 16640)
    return symbols


@st.composite
def cases(draw: st.DrawFn, precisions: st.SearchStrategy[int]) -> tuple[CdfTables, np.ndarray, np.ndarray]:
    precision = draw(precisions)
    weights = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40).filter(lambda p: sum(p) > 0)
    pmfs = draw(st.lists(weights, min_size=1, max_size=5))
    limits = st.integers(-(1 << 30), 1 << 30)
    offsets = [draw(st.one_of(st.integers(-50, 50), limits)) for _ in pmfs]
    tables = CdfTables.from_pmfs(pmfs, offsets, precision=precision, escape_mass=draw(st.floats(0, 0.3)))
    near = st.integers(-60, 60)
    items = draw(
        st.lists(
            st.tuples(st.integers(0, len(pmfs) - 1), near, st.one_of(st.none(), st.integers(INT32.min, INT32.max))),
            max_size=120,
        )
    )
    rows = np.array([row for row, _, _ in items], np.int8)
    symbols = np.array([offsets[row] + step if far is None else far for row, step, far in items], np.int64)
    return tables, symbols.astype(np.int32), rows


@given(cases(st.integers(8, 16)))
@settings(max_examples=200, deadline=None)
def test_round_trip_and_an_independent_decoder(case: tuple[CdfTables, np.ndarray, np.ndarray]) -> None:
    tables, symbols, rows = case
    data = encode(symbols, rows, tables)
    assert np.array_equal(decode(data, rows, tables), symbols)
    assert plain_decode(data, rows, tables) == symbols.tolist()


@given(cases(st.just(16)), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_the_short_ending(case: tuple[CdfTables, np.ndarray, np.ndarray], times: int) -> None:
    """Repeated symbols, too: runs of the same interval cost nothing for a long time."""
    tables, symbols, rows = case
    for last in (1, times):
        values, of = np.tile(symbols, last), np.tile(rows, last)
        data = encode(values, of, tables, "short")
        assert np.array_equal(decode(data, of, tables, "short"), values)
        assert len(data) <= len(encode(values, of, tables))
        assert len(values) or not data
    assert plain_decode(encode(symbols, rows, tables, "short"), rows, tables, "short") == symbols.tolist()


@pytest.mark.parametrize("precision", [8, 12, 16])
@pytest.mark.parametrize("offset", [-(1 << 30), 0, 1 << 30])
def test_extreme_symbols(precision: int, offset: int) -> None:
    tables = CdfTables.from_pmfs([[1.0, 1.0]], [offset], precision=precision)
    around = [offset + d for d in range(-20, 21)]
    powers = [s * ((1 << k) + d) for k in range(31) for s in (1, -1) for d in (-1, 0, 1)]
    symbols = np.array([*around, *powers, INT32.min, INT32.min + 1, INT32.max, INT32.max - 1], np.int32)
    rows = np.zeros(symbols.size, np.int16)
    data = encode(symbols, rows, tables)
    assert np.array_equal(decode(data, rows, tables), symbols)
    assert plain_decode(data, rows, tables) == symbols.tolist()


def test_real_sizes_and_buffers(laplace_tables: CdfTables) -> None:
    symbols, rows = sample(laplace_tables, 98_688)
    data = encode(symbols, rows, laplace_tables)
    assert plain_decode(data, rows, laplace_tables) == symbols.tolist()
    writable = bytearray(data)
    shaped = rows.reshape(257, 384)
    for buffer in (data, writable, memoryview(data), np.frombuffer(data, np.uint8), b"??" + data):
        view = memoryview(buffer)[2:] if len(buffer) > len(data) else buffer
        assert np.array_equal(decode(view, shaped, laplace_tables), symbols.reshape(257, 384))
    strided = np.repeat(symbols, 2)[::2]
    for dtype in (np.int8, np.uint16, np.int64):
        assert encode(strided.astype(np.int64), rows.astype(dtype), laplace_tables) == data
    assert writable == data


@pytest.mark.parametrize("ending", ["long", "short"])
@pytest.mark.parametrize(("n", "extra_bytes"), [(1, 4), (100, 5), (2500, 6), (98_688, 100)])
def test_rate_is_within_a_few_bytes_of_the_ideal(
    laplace_tables: CdfTables, fine_tables: CdfTables, n: int, extra_bytes: int, ending: Ending
) -> None:
    tables = laplace_tables if ending == "long" else fine_tables
    excess = []
    for seed in range(40 if n < 10_000 else 5):
        symbols, rows = sample(tables, n, seed)
        inside = symbols - tables.offsets[rows] < tables.lengths[rows] - 1
        symbols, rows = symbols[inside], rows[inside]
        excess.append(len(encode(symbols, rows, tables, ending)) - ideal_bits(tables, symbols, rows) / 8)
    assert max(excess) <= extra_bytes
    if ending == "short" and n <= 100:
        assert np.mean(excess) < 1.8


def test_a_long_run_without_bits_ends_as_a_long_stream_does(fine_tables: CdfTables) -> None:
    """Decoders go no further than MAX_TAIL intervals without a word."""
    tables = CdfTables.from_pmfs([[1.0, 1e-6]], [0], precision=16, escape_mass=1e-9)
    for n in (1, MAX_TAIL, MAX_TAIL + 1, 10 * MAX_TAIL):
        rows, symbols = np.zeros(n, np.uint8), np.zeros(n, np.int32)
        data = encode(symbols, rows, tables, "short")
        assert len(data) == (0 if n <= MAX_TAIL else 3)
        assert np.array_equal(decode(data, rows, tables, "short"), symbols)
        assert plain_decode(data, rows, tables, "short") == symbols.tolist()
    for n in (MAX_TAIL + 1, 10 * MAX_TAIL):
        with pytest.raises(CorruptBitstreamError):
            decode(b"", np.zeros(n, np.uint8), tables, "short")


def test_exact_bytes() -> None:
    """The format for ever: these literals must never change."""
    tables = CdfTables(
        np.array([4096, 8192, 4000, 96, 1, 16000, 383]), np.array([4, 3]), np.array([-1, 5]), precision=14
    )
    symbols = np.array([0, 0, -1, 1, 6, 6, 5, 0, 100, -3, 7, INT32.min, INT32.max, 6, 0])
    rows = np.array([0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0])
    data = bytes.fromhex(GOLDEN)
    assert encode(symbols, rows, tables).hex() == GOLDEN
    assert decode(data, rows, tables).tolist() == symbols.tolist()
    assert plain_decode(data, rows, tables) == symbols.tolist()
    assert encode_intervals([0, 4096, 100], [4096, 8192, 1], 14).hex() == GOLDEN_INTERVALS
    fine = CdfTables(tables.freqs * 4, tables.lengths, tables.offsets, precision=16)
    for count, expected in GOLDEN_SHORT.items():
        data = bytes.fromhex(expected)
        assert encode(symbols[-count:], rows[-count:], fine, "short").hex() == expected
        assert decode(data, rows[-count:], fine, "short").tolist() == symbols[-count:].tolist()
        assert plain_decode(data, rows[-count:], fine, "short") == symbols[-count:].tolist()


def test_no_symbols_no_bytes(laplace_tables: CdfTables, fine_tables: CdfTables) -> None:
    assert encode([], [], laplace_tables) == b""
    assert decode(b"", np.empty((0, 3), np.uint8), laplace_tables).shape == (0, 3)
    with pytest.raises(CorruptBitstreamError):
        decode(b"\0\0\1\0", [], laplace_tables)
    with pytest.raises(CorruptBitstreamError):
        decode(b"", [0], laplace_tables)
    assert encode([], [], fine_tables, "short") == b""
    assert decode(b"", [], fine_tables, "short").size == 0
    for size in (1, 2, 3, 4, 5):
        for first in range(256):
            with pytest.raises(CorruptBitstreamError):
                decode(bytes([first]) + b"\0" * (size - 1), [], fine_tables, "short")


def test_bad_arguments(laplace_tables: CdfTables) -> None:
    for rows in ([-1], [40], [255], np.array([300]), np.array([-40], np.int8), [0.0], ["a"], [True]):
        with pytest.raises(InvalidInputError):
            encode([0], rows, laplace_tables)
        with pytest.raises(InvalidInputError):
            decode(b"\0\0\1\0", rows, laplace_tables)
    for symbols in ([1 << 31], [-(1 << 31) - 1], [0.5], np.array([2**63], np.uint64), [0, 0], []):
        with pytest.raises(InvalidInputError):
            encode(symbols, [0], laplace_tables)
    for starts, freqs, precision in (
        ([0], [0], 14),
        ([0], [1], 7),
        ([0], [1], 17),
        ([-1], [2], 14),
        ([1 << 14], [1], 14),
        ([9], [1 << 14], 14),
        ([0, 1], [1], 14),
        ([0.0], [1], 14),
    ):
        with pytest.raises(InvalidInputError):
            encode_intervals(starts, freqs, precision)


def test_other_endings_are_refused(laplace_tables: CdfTables, fine_tables: CdfTables) -> None:
    for tables, ending in ((laplace_tables, "short"), (fine_tables, "tiny"), (fine_tables, "")):
        with pytest.raises(InvalidInputError, match="ending"):
            encode([0], [0], tables, ending)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="ending"):
            decode(b"", [0], tables, ending)  # type: ignore[arg-type]


@njit(types.int64(types.int32[::1], TABLES_TYPE, types.uint32[::1], types.uint32[::1]))
def _collect_in_context(symbols: Any, tables: Any, starts: Any, freqs: Any) -> Any:
    count = 0
    row = 0
    for i in range(symbols.size):
        count = collect(starts, freqs, count, tables, row, np.int64(symbols[i]))
        row = min(39, abs(np.int64(symbols[i])))
    return count


@njit(types.boolean(types.Array(types.uint8, 1, "C", readonly=True), TABLES_TYPE, types.int32[::1]))
def _decode_in_context(data: Any, tables: Any, out: Any) -> Any:
    pos, state = rans_open(data)
    row = 0
    for i in range(out.size):
        symbol, pos, state = rans_get(data, pos, state, tables, row)
        out[i] = symbol
        row = min(39, abs(symbol))
    return rans_closed(data, pos, state)


def test_kernels_whose_rows_depend_on_decoded_symbols(laplace_tables: CdfTables) -> None:
    symbols = np.rint(np.random.default_rng(3).laplace(0, 6, 4000)).astype(np.int32)
    starts, freqs = np.empty((2, symbols.size * MAX_ESCAPE_INTERVALS), np.uint32)
    count = _collect_in_context(symbols, laplace_tables.packed, starts, freqs)
    data = encode_intervals(starts[:count], freqs[:count], laplace_tables.precision)
    out = np.empty_like(symbols)
    assert _decode_in_context(np.frombuffer(data, np.uint8), laplace_tables.packed, out)
    assert np.array_equal(out, symbols)
    assert not _decode_in_context(np.frombuffer(data[:-2], np.uint8), laplace_tables.packed, out)
    rows = np.minimum(39, np.abs(np.concatenate([[0], symbols[:-1]])))
    assert encode(symbols, rows, laplace_tables) == data


@njit(types.int64(types.Array(types.uint8, 1, "C", readonly=True), types.int64))
def _three_nibbles(data: Any, precision: Any) -> Any:
    pos, state = rans_open(data)
    total = 0
    for _ in range(3):
        value, pos, state = rans_get_bits(data, pos, state, 4, precision)
        total = total << 4 | value
    return total if rans_closed(data, pos, state) else -1


def test_raw_bits() -> None:
    data = encode_intervals([v << 8 for v in (1, 15, 6)], [256] * 3, 12)
    assert _three_nibbles(np.frombuffer(data, np.uint8), 12) == 0x1F6


def test_kernels_release_the_gil() -> None:
    for kernel in (rans._encode, rans._encode_intervals.compiled(), rans._decode.compiled()):  # type: ignore[attr-defined]
        assert kernel.targetoptions["nogil"]  # type: ignore[attr-defined]


def test_a_helper_called_from_python_is_refused() -> None:
    with pytest.raises(TypeError, match="compiled code only"):
        rans_open(np.zeros(8, np.uint8))


def test_threads_get_their_own_answers(laplace_tables: CdfTables) -> None:
    """Kernels keep no state between calls: many threads, each with its own stream."""
    failures: list[int] = []

    def work(seed: int) -> None:
        symbols, rows = sample(laplace_tables, 5000, seed)
        for _ in range(20):
            if not np.array_equal(decode(encode(symbols, rows, laplace_tables), rows, laplace_tables), symbols):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
