"""Damaged streams: an error or other symbols, never a crash, an endless loop or an index out of bounds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from mpcompress.entropy import CdfTables, IndexedTables, decode, encode
from mpcompress.entropy.compressai_format import decode_with_indexes, encode_with_indexes
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


def test_own_format(laplace_tables: CdfTables) -> None:
    rng = np.random.default_rng(11)
    rows = rng.integers(0, 40, 150).astype(np.uint8)
    symbols = np.rint(rng.standard_cauchy(150) * 2.0 ** (rows / 8 - 2)).astype(np.int32)
    data = encode(symbols, rows, laplace_tables)
    refused = 0
    for bad in damaged(data, rng, 1500):
        try:
            decoded = decode(bad, rows, laplace_tables)
        except CorruptBitstreamError:
            refused += 1
        else:
            # Accepted bytes are exactly those that an encoder writes for what they decode to.
            assert encode(decoded, rows, laplace_tables) == bad
    assert refused > 4400  # 3 of 65536 slip through by chance, and some damage is none
    for end in range(len(data)):
        with pytest.raises(CorruptBitstreamError):
            decode(data[:end], rows, laplace_tables)
    for extra in (b"\0", b"\0\0", b"\xff\xff", b"\0\0\1\0", data):
        with pytest.raises(CorruptBitstreamError):
            decode(data + extra, rows, laplace_tables)


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


def test_megabytes_of_ones_end_soon(laplace_tables: CdfTables, indexed_tables: IndexedTables) -> None:
    """Escapes upon escapes: the loops end with the symbols, whatever follows."""
    data = b"\xff" * (1 << 24)
    for n in (0, 1, 1000):
        with pytest.raises(CorruptBitstreamError):
            decode(data, np.zeros(n, np.uint8), laplace_tables)
        with pytest.raises(CorruptBitstreamError):
            decode_with_indexes(data, np.zeros(n, np.int32), indexed_tables)
    with pytest.raises(CorruptBitstreamError):
        decode(b"\xff" * 8, np.zeros(1 << 22, np.uint8), laplace_tables)
    with pytest.raises(CorruptBitstreamError):
        decode_with_indexes(b"\x7f" * 8, np.zeros(1 << 22, np.int32), indexed_tables)
