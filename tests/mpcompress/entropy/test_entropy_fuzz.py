"""Damaged streams: an error or other symbols, never a crash, an endless loop or an index out of bounds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from mpcompress.entropy import CdfTables, IndexedTables, decode, encode
from mpcompress.entropy.compressai_format import decode_with_indexes, encode_with_indexes
from mpcompress.entropy.ending import Ending
from mpcompress.errors import CorruptBitstreamError


def damaged(data: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """`count` streams each with flipped bits, with a run overwritten, and of random bytes."""
    size = len(data)
    for _ in range(count):
        flipped = bytearray(data)
        for bit in rng.integers(0, 8 * size, rng.integers(1, 9)):
            flipped[bit >> 3] ^= 1 << (bit & 7)
        yield bytes(flipped)
        begin, end = np.sort(rng.integers(0, size + 1, 2))
        yield data[:begin] + bytes([rng.choice([0, 255])]) * (end - begin) + data[end:]
        yield rng.bytes(int(rng.integers(0, 2 * size)))


@pytest.mark.parametrize("ending", ["long", "short"])
@pytest.mark.parametrize("n", [5, 150])
def test_own_format(laplace_tables: CdfTables, fine_tables: CdfTables, ending: Ending, n: int) -> None:
    tables = laplace_tables if ending == "long" else fine_tables
    rng = np.random.default_rng(11)
    rows = rng.integers(0, 40, n).astype(np.uint8)
    symbols = np.rint(rng.standard_cauchy(n) * 2.0 ** (rows / 8 - 2)).astype(np.int32)
    data = encode(symbols, rows, tables, ending)
    accepted = 0
    extended = [data + extra for extra in (b"\0", b"\0\0", b"\xff\xff", b"\0\0\1\0", data)]
    padded = [extra + data for extra in (b"\0", b"\0\0", b"\0" * 4, b"\1", b"\1\0")]
    cut = [data[:end] for end in range(len(data))]
    for bad in (*damaged(data, rng, 1500), *cut, *extended, *padded):
        try:
            decoded = decode(bad, rows, tables, ending)
        except CorruptBitstreamError:
            continue
        # Accepted bytes are exactly those that an encoder writes for what they decode to.
        assert encode(decoded, rows, tables, ending) == bad
        accepted += bad != data
    assert accepted < 30  # of 4500


def test_short_endings_of_every_size(fine_tables: CdfTables) -> None:
    """Of all streams of two bytes, what decodes is what an encoder writes."""
    rows = np.array([3, 30, 12, 30], np.uint8)
    found = set()
    for value in range(1 << 16):
        data = value.to_bytes(2, "big").lstrip(b"\0")
        try:
            decoded = decode(data, rows, fine_tables, "short")
        except CorruptBitstreamError:
            continue
        assert encode(decoded, rows, fine_tables, "short") == data
        found.add(tuple(decoded.tolist()))
    assert len(found) > 100


def test_compressai_format(indexed_tables: IndexedTables) -> None:
    rng = np.random.default_rng(12)
    indexes = rng.integers(0, 12, 150).astype(np.int32)
    symbols = np.rint(rng.standard_cauchy(150) * indexed_tables.cdf_lengths[indexes] / 8).astype(np.int32)
    data = encode_with_indexes(symbols, indexes, indexed_tables)
    refused = 0
    for bad in damaged(data, rng, 1500):
        decode_loosely(bad, indexes, indexed_tables)
        try:
            decoded = decode_with_indexes(bad, indexes, indexed_tables)
        except CorruptBitstreamError:
            refused += 1
        else:
            assert encode_with_indexes(decoded, indexes, indexed_tables) == bad
    assert refused > 4400
    for end in range(len(data)):
        with pytest.raises(CorruptBitstreamError):
            decode_with_indexes(data[:end], indexes, indexed_tables)
    for extra in (b"\0", b"\0" * 4, b"\xff" * 4, data):
        with pytest.raises(CorruptBitstreamError):
            decode_with_indexes(data + extra, indexes, indexed_tables)


def decode_loosely(data: bytes, indexes: np.ndarray, tables: IndexedTables) -> None:
    with contextlib.suppress(CorruptBitstreamError):
        assert decode_with_indexes(data, indexes, tables, strict=False).size == indexes.size


def test_megabytes_of_ones_end_soon(
    laplace_tables: CdfTables, fine_tables: CdfTables, indexed_tables: IndexedTables
) -> None:
    """Escapes upon escapes: the loops end with the symbols, whatever follows."""
    own: list[tuple[CdfTables, Ending]] = [(laplace_tables, "long"), (fine_tables, "short")]
    data = b"\xff" * (1 << 24)
    for n in (0, 1, 1000):
        for tables, ending in own:
            with pytest.raises(CorruptBitstreamError):
                decode(data, np.zeros(n, np.uint8), tables, ending)
        with pytest.raises(CorruptBitstreamError):
            decode_with_indexes(data, np.zeros(n, np.int32), indexed_tables)
    for size in (0, 1, 2, 3, 4, 8, 9):
        for tables, ending in own:
            with pytest.raises(CorruptBitstreamError):
                decode(b"\xff" * size, np.zeros(1 << 22, np.uint8), tables, ending)
    with pytest.raises(CorruptBitstreamError):
        decode_with_indexes(b"\x7f" * 8, np.zeros(1 << 22, np.int32), indexed_tables)
