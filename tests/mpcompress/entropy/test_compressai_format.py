"""CompressAI's format: the same bytes both ways, exact bytes kept here, and every refusal its own coder lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpcompress.entropy import IndexedTables, compressai_format
from mpcompress.entropy.compressai_format import decode_many, decode_with_indexes, encode_many, encode_with_indexes
from mpcompress.errors import CorruptBitstreamError, InvalidInputError, OutOfRangeError

# CompressAI's encoder hangs from 2^28 on in the escaped form, and writes outside its buffer below 4 symbols.
THEIR_LIMIT = (1 << 27) - 1000
THEIR_MINIMUM = 4

GOLDEN = "89bcec98030000004900371c71c3ff8f000099e30500aaaaf5d33077269ab74e"


def lists(tables: IndexedTables) -> tuple[list[list[int]], list[int], list[int]]:
    return tables.cdfs.tolist(), tables.cdf_lengths.tolist(), tables.offsets.tolist()


@st.composite
def cases(draw: st.DrawFn) -> tuple[IndexedTables, np.ndarray, np.ndarray]:
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    count = draw(st.integers(1, 6))
    lengths = rng.integers(3, draw(st.sampled_from([4, 10, 300])), count)
    cdfs = rng.integers(-5, 70000, (count, 300)).astype(np.int32)
    for row, length in zip(cdfs, lengths, strict=True):
        inner = np.sort(rng.choice(np.arange(1, 1 << 16), length - 2, replace=False))
        row[:length] = [0, *inner, 1 << 16]
    tables = IndexedTables(cdfs, lengths, rng.integers(-200, 200, count))
    n = draw(st.integers(THEIR_MINIMUM, 200))
    indexes = rng.integers(0, count, n).astype(np.int32)
    symbols = tables.offsets[indexes] + rng.integers(-10, 310, n)
    far = rng.random(n) < draw(st.sampled_from([0.0, 0.1, 1.0]))
    magnitudes = 2.0 ** rng.uniform(0, 27, n) * rng.choice([-1, 1], n)
    symbols = np.where(far, np.clip(magnitudes, -THEIR_LIMIT, THEIR_LIMIT), symbols).astype(np.int32)
    return tables, symbols, indexes


@given(cases())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_same_bytes_as_compressai_both_ways(
    compressai_ans: Any, case: tuple[IndexedTables, np.ndarray, np.ndarray]
) -> None:
    tables, symbols, indexes = case
    theirs = compressai_ans.RansEncoder().encode_with_indexes(symbols.tolist(), indexes.tolist(), *lists(tables))
    ours = encode_with_indexes(symbols, indexes, tables)
    assert ours == theirs
    assert np.array_equal(decode_with_indexes(theirs, indexes, tables), symbols)
    decoded = compressai_ans.RansDecoder().decode_with_indexes(ours, indexes.tolist(), *lists(tables))
    assert decoded == symbols.tolist()


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(-(2**31) + 1000, 2**31 - 1000)), max_size=60))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_beyond_compressai(indexed_tables: IndexedTables, items: list[tuple[int, int]]) -> None:
    indexes, symbols = np.array(items, np.int64).reshape(-1, 2).T
    data = encode_with_indexes(symbols, indexes, indexed_tables)
    assert np.array_equal(decode_with_indexes(data, indexes, indexed_tables), symbols)


def test_escapes_end_at_32_bits() -> None:
    tables = IndexedTables(np.array([[0, 40000, 65536]]), np.array([3]), np.array([0]))
    extremes = np.array([-(1 << 31), (1 << 31) - 1, 0, 1, -1])
    data = encode_with_indexes(extremes, np.zeros(5, int), tables)
    assert np.array_equal(decode_with_indexes(data, np.zeros(5, int), tables), extremes)
    for offset, symbol in ((1, -(1 << 31)), (-(1 << 31), (1 << 31) - 1), ((1 << 31) - 1, -(1 << 31))):
        shifted = IndexedTables(np.array([[0, 40000, 65536]]), np.array([3]), np.array([offset]))
        with pytest.raises(OutOfRangeError, match=r"symbols\[0, 1\]"):
            encode_with_indexes([offset, symbol], [0, 0], shifted)
    # An escape whose symbol would leave int32: coded with offset 0, decoded with a large one.
    high = IndexedTables(np.array([[0, 40000, 65536]]), np.array([3]), np.array([(1 << 31) - 2]))
    with pytest.raises(CorruptBitstreamError):
        decode_with_indexes(encode_with_indexes([5], [0], tables), [0], high)


def test_exact_bytes() -> None:
    """Written once by CompressAI 1.2.8; must never change."""
    cdfs = np.array([[0, 100, 60000, 65000, 65536, 0], [0, 1, 2, 65535, 65536, 0], [0, 9, 99, 999, 9999, 65536]])
    tables = IndexedTables(cdfs, np.array([5, 5, 6]), np.array([-1, 0, 7]))
    symbols = np.array([0, 0, 1, -1, 2, 2, 2, 0, -5, 300, 7, 8, 9, 10, 11, 7, -100000, 123456789, 0, 0])
    indexes = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 2, 2, 1, 0, 0, 0])
    assert encode_with_indexes(symbols, indexes, tables).hex() == GOLDEN
    assert decode_with_indexes(bytes.fromhex(GOLDEN), indexes, tables).tolist() == symbols.tolist()


def test_many_streams_equal_single_ones(indexed_tables: IndexedTables) -> None:
    rng = np.random.default_rng(1)
    indexes = rng.integers(0, 12, (7, 4, 50)).astype(np.int32)
    symbols = (indexed_tables.offsets[indexes] + rng.integers(-3, 90, indexes.shape)).astype(np.int64)
    strings = encode_many(symbols.reshape(7, -1), indexes.reshape(7, -1), indexed_tables)
    assert strings == [encode_with_indexes(s, i, indexed_tables) for s, i in zip(symbols, indexes, strict=True)]
    assert np.array_equal(decode_many(strings, indexes.reshape(7, -1), indexed_tables), symbols.reshape(7, -1))
    assert np.array_equal(decode_with_indexes(strings[3], indexes[3], indexed_tables), symbols[3])
    strings[4] = strings[4][:-4]
    with pytest.raises(CorruptBitstreamError) as caught:
        decode_many(strings, indexes.reshape(7, -1), indexed_tables)
    assert caught.value.field == "strings[4]"


def test_nothing_is_eight_bytes(indexed_tables: IndexedTables) -> None:
    assert encode_with_indexes([], [], indexed_tables) == bytes([0, 0, 0, 128, 0, 0, 0, 0])
    assert decode_with_indexes(bytes([0, 0, 0, 128, 0, 0, 0, 0]), [], indexed_tables).size == 0
    assert encode_many(np.empty((0, 5), int), np.empty((0, 5), int), indexed_tables) == []
    assert decode_many([], np.empty((0, 5), int), indexed_tables).shape == (0, 5)
    for data in (b"", b"\0" * 4, b"\0" * 8, b"\xff" * 8, bytes([1, 0, 0, 128, 0, 0, 0, 0]), b"\0" * 9):
        with pytest.raises(CorruptBitstreamError):
            decode_with_indexes(data, [], indexed_tables)


def test_without_strict_a_prefix_of_the_symbols_can_be_read(indexed_tables: IndexedTables) -> None:
    symbols = np.arange(40) - 8
    indexes = np.arange(40) % 12
    data = encode_with_indexes(symbols, indexes, indexed_tables)
    with pytest.raises(CorruptBitstreamError):
        decode_with_indexes(data, indexes[:25], indexed_tables)
    assert np.array_equal(decode_with_indexes(data, indexes[:25], indexed_tables, strict=False), symbols[:25])
    with pytest.raises(CorruptBitstreamError):
        decode_with_indexes(data[:12], indexes, indexed_tables, strict=False)


def test_bad_arguments(indexed_tables: IndexedTables) -> None:
    empty = bytes([0, 0, 0, 128, 0, 0, 0, 0])
    for indexes in ([-1], [12], [2**40], [0.5], np.array([2**63], np.uint64)):
        with pytest.raises(InvalidInputError):
            encode_with_indexes([0], indexes, indexed_tables)
        with pytest.raises(InvalidInputError):
            decode_with_indexes(empty, indexes, indexed_tables)
    for symbols in ([0, 0], [0.5], [1 << 31], []):
        with pytest.raises(InvalidInputError):
            encode_with_indexes(symbols, [0], indexed_tables)
    with pytest.raises(InvalidInputError):
        decode_many([empty], np.zeros((2, 3), int), indexed_tables)
    with pytest.raises(InvalidInputError):
        decode_many([empty], np.zeros(3, int), indexed_tables)


def test_kernels_release_the_gil() -> None:
    for kernel in (compressai_format._room, compressai_format._encode, compressai_format._decode):
        assert kernel.targetoptions["nogil"]
