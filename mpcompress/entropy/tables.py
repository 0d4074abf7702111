"""Integer frequency tables: what a calibrated codec stores and its coder reads. No numba here."""

from __future__ import annotations

import heapq
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcompress.errors import CodecFileError, InvalidInputError

__all__ = ["CDF_BEGIN", "LUT_BITS", "MAX_TABLES", "CdfTables", "frozen", "pack", "quantize_pmf"]

LUT_BITS = 8
"""The first bits of a slot, which index the table that starts the search for its symbol."""

CDF_BEGIN = 2 + (1 << LUT_BITS)
"""Where a table's cumulative frequencies begin in its block of a packed array."""

MAX_TABLES = 1 << 12
"""Most tables of one set; with at most 2^16 symbols each, positions in a packed array fit int32."""

_OFFSET_LIMIT = 1 << 30  # |offset| + length below it keeps every escape distance of an int32 symbol below 2^32 - 1


@dataclass(frozen=True, eq=False)
class CdfTables:
    """T tables of symbol frequencies, checked when made and never changed.

    Table t gives ``freqs[begin:begin + lengths[t]]`` (begin = sum of the lengths before it) to the symbols
    ``offsets[t], offsets[t] + 1, ...`` and, last, to the escape that announces any other int32 symbol.

    Args:
        freqs: uint16 (sum of lengths,), each >= 1; every table's sum to 2^precision.
        lengths: int32 (T,), each >= 2, escape included.
        offsets: int32 (T,), smallest symbol of each table, within +-2^30.
        precision: bits, 8 to 16.

    Raises:
        CodecFileError: arrays that break these rules; they may come from an untrusted file.
    """

    freqs: npt.NDArray[np.uint16]
    lengths: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]
    precision: int
    packed: npt.NDArray[np.int32] = field(init=False, repr=False)
    """What kernels read: see `pack`."""

    def __post_init__(self) -> None:
        precision = operator.index(self.precision)
        if not 8 <= precision <= 16:
            raise CodecFileError(f"precision is {precision}, not 8 to 16 bits", field="precision")
        freqs = frozen(self.freqs, np.uint16, "freqs")
        lengths = frozen(self.lengths, np.int32, "lengths")
        offsets = frozen(self.offsets, np.int32, "offsets")
        if not 1 <= lengths.size <= MAX_TABLES or offsets.size != lengths.size:
            raise CodecFileError(f"{lengths.size} lengths with {offsets.size} offsets", field="lengths")
        total = 1 << precision
        if lengths.min() < 2 or lengths.max() > total:
            raise CodecFileError(f"a table has fewer than 2 or more than {total} symbols", field="lengths")
        if freqs.size != int(lengths.sum(dtype=np.int64)):
            raise CodecFileError(f"{freqs.size} frequencies, lengths add up to another number", field="freqs")
        if np.abs(offsets.astype(np.int64)).max() > _OFFSET_LIMIT:
            raise CodecFileError("an offset is outside +-2^30", field="offsets")
        if freqs.min() < 1:
            raise CodecFileError("a frequency is 0", field="freqs")
        ends = np.cumsum(lengths, dtype=np.int64)
        sums = np.add.reduceat(freqs.astype(np.int64), ends - lengths)
        if np.any(sums != total):
            wrong = int(np.flatnonzero(sums != total)[0])
            raise CodecFileError(f"table {wrong} adds up to {sums[wrong]}, not 2^{precision}", field="freqs")

        cdfs = [np.concatenate([[0], np.cumsum(part, dtype=np.int64)]) for part in np.split(freqs, ends[:-1])]
        packed = pack(cdfs, offsets, precision)
        for name, value in (("freqs", freqs), ("lengths", lengths), ("offsets", offsets), ("packed", packed)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "precision", precision)

    @property
    def count(self) -> int:
        """Number of tables T."""
        return int(self.lengths.size)

    @classmethod
    def from_pmfs(
        cls, pmfs: Sequence[npt.ArrayLike], offsets: npt.ArrayLike, *, precision: int = 16, escape_mass: float = 0.0
    ) -> CdfTables:
        """Quantise probabilities, at calibration time.

        Args:
            pmfs: per table, weights >= 0 of the symbols from its offset on; need not add up to 1.
            offsets: smallest symbol of each table, integers.
            precision: bits, 8 to 16.
            escape_mass: probability of a symbol outside the range; it gets one slot at least.

        Raises:
            InvalidInputError: weights that are no distribution, or more symbols than slots.
        """
        if not 0.0 <= escape_mass < 1.0:
            raise InvalidInputError(f"escape_mass is {escape_mass}, not in [0, 1)", field="escape_mass")
        tables = []
        for pmf in pmfs:
            weights = np.asarray(pmf, np.float64).ravel()
            total = float(weights.sum()) if weights.size else 0.0
            if not 0.0 < total < math.inf:
                raise InvalidInputError("a table's weights do not add up to a positive number", field="pmfs")
            shares = np.append(weights / total * (1.0 - escape_mass), escape_mass)
            tables.append(quantize_pmf(shares, precision))
        if not tables:
            raise InvalidInputError("no tables", field="pmfs")
        lengths = np.array([table.size for table in tables], np.int32)
        return cls(np.concatenate(tables), lengths, np.asarray(offsets), precision)


def quantize_pmf(pmf: npt.ArrayLike, precision: int) -> npt.NDArray[np.uint16]:
    """Turn probabilities (n,), n >= 2, into frequencies >= 1 that add up to 2^precision and cost the fewest bits.

    Rounds, then moves single slots where that loses least or gains most; ties go to the lowest index, so equal inputs
    give equal tables.
    """
    p = np.asarray(pmf, np.float64)
    total = 1 << precision
    if p.ndim != 1 or not 2 <= p.size <= total or not np.all(np.isfinite(p)) or p.min() < 0:
        raise InvalidInputError(f"a table needs 2 to {total} finite weights >= 0", field="pmfs")
    freqs: npt.NDArray[Any] = np.clip(np.rint(p * total), 1, total - 1).astype(np.int64)
    surplus = int(freqs.sum()) - total
    step = -1 if surplus > 0 else 1

    def loss(i: int) -> float:
        """Bits per symbol that changing freqs[i] by `step` costs; below 0 when it gains."""
        after = int(freqs[i]) + step
        return float(p[i]) * math.log2(int(freqs[i]) / after) if after >= 1 else math.inf

    heap = [(loss(i), i) for i in range(p.size)] if surplus else []
    heapq.heapify(heap)
    for _ in range(abs(surplus)):
        _, i = heap[0]
        freqs[i] += step
        heapq.heapreplace(heap, (loss(i), i))
    return freqs.astype(np.uint16)


def pack(cdfs: Sequence[npt.NDArray[Any]], offsets: npt.NDArray[np.int32], precision: int) -> npt.NDArray[np.int32]:
    """Lay T tables out in the one int32 array that kernels read.

    ``[precision, position of each table's block]``, then the blocks: smallest symbol, number of symbols without the
    escape, 2^LUT_BITS search starts (the last symbol that begins at or before a slot with these first bits), and the
    cumulative frequencies from 0 to 2^precision.

    Args:
        cdfs: per table, int (n + 2,) for n symbols and the escape, checked.
        offsets: int32 (T,).
        precision: bits, at least LUT_BITS.
    """
    slots = np.arange(1 << LUT_BITS) << (precision - LUT_BITS)
    sizes = [CDF_BEGIN + cdf.size for cdf in cdfs]
    blocks = 1 + len(cdfs) + np.concatenate([[0], np.cumsum(sizes[:-1])])
    parts: list[Any] = [[precision], blocks]
    for cdf, offset in zip(cdfs, offsets, strict=True):
        parts += [[offset, cdf.size - 2], np.searchsorted(cdf[:-1], slots, side="right") - 1, cdf]
    return frozen(np.concatenate(parts).astype(np.int64), np.int32, "tables")


def frozen(values: npt.ArrayLike, dtype: npt.DTypeLike, name: str) -> npt.NDArray[Any]:
    """A read-only copy as a 1-D array of `dtype`; CodecFileError when that would change a value."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise CodecFileError(f"{name} must be a 1-D array of integers", field=name)
    converted = array.astype(dtype)
    if array.size and not np.array_equal(converted, array):
        raise CodecFileError(f"{name} does not fit {np.dtype(dtype)}", field=name)
    converted.flags.writeable = False
    return converted
