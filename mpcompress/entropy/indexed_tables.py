"""The tables of a CompressAI entropy model, checked and packed once instead of turned into lists at every call."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mpcompress.entropy.tables import MAX_TABLES, frozen, pack
from mpcompress.errors import CodecFileError

__all__ = ["PRECISION", "IndexedTables"]

PRECISION = 16
"""Bits of a frequency in CompressAI's streams."""


@dataclass(frozen=True, eq=False)
class IndexedTables:
    """T cumulative distributions, as `EntropyModel` holds them after ``update()``.

    Row t covers the symbols ``offsets[t], ..., offsets[t] + cdf_lengths[t] - 3`` and, last, the escape.

    Args:
        cdfs: int32 (T, W); row t rises strictly from 0 to 2^16 in its first cdf_lengths[t] entries, then padding.
        cdf_lengths: int32 (T,), each in [3, W]: a frequency of 2^16 would not fit CompressAI's 16 bits.
        offsets: int32 (T,), smallest symbol of each table.

    Raises:
        CodecFileError: arrays that break these rules; they may come from an untrusted file.
    """

    cdfs: npt.NDArray[np.int32]
    cdf_lengths: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]
    packed: npt.NDArray[np.int32] = field(init=False, repr=False)
    """What kernels read: see `mpcompress.entropy.tables.pack`."""

    def __post_init__(self) -> None:
        cdfs = np.asarray(self.cdfs)
        if cdfs.ndim != 2:
            raise CodecFileError(f"cdfs must be (T, W), not {cdfs.shape}", field="cdfs")
        count, width = cdfs.shape
        rows = frozen(cdfs.ravel(), np.int32, "cdfs").reshape(cdfs.shape)
        lengths = frozen(self.cdf_lengths, np.int32, "cdf_lengths")
        offsets = frozen(self.offsets, np.int32, "offsets")
        if not 1 <= count <= MAX_TABLES or lengths.size != count or offsets.size != count:
            message = f"{count} cdfs with {lengths.size} lengths and {offsets.size} offsets"
            raise CodecFileError(message, field="cdf_lengths")
        if lengths.min() < 3 or lengths.max() > min(width, (1 << PRECISION) + 1):
            raise CodecFileError(f"a length is outside [3, {width}]", field="cdf_lengths")
        used = np.arange(width) < lengths[:, None]
        if np.any(rows[:, 0] != 0) or np.any(rows[np.arange(count), lengths - 1] != 1 << PRECISION):
            raise CodecFileError(f"a cdf does not go from 0 to 2^{PRECISION}", field="cdfs")
        if np.any((np.diff(rows.astype(np.int64), axis=1) <= 0) & used[:, 1:]):
            raise CodecFileError("a cdf does not rise strictly", field="cdfs")

        packed = pack([row[:length] for row, length in zip(rows, lengths, strict=True)], offsets, PRECISION)
        for name, value in (("cdfs", rows), ("cdf_lengths", lengths), ("offsets", offsets), ("packed", packed)):
            object.__setattr__(self, name, value)

    @property
    def count(self) -> int:
        """Number of tables T."""
        return int(self.cdf_lengths.size)
