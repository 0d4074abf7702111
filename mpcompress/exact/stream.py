"""One stream per sample: a checksum of its symbols, then one rANS stream of z's and y's symbols in decoding order.

The checksum is the CRC-32, little-endian, of the symbols as little-endian int32. A decoder that came to other symbols,
whatever the reason, notices: CorruptBitstreamError instead of noise.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpcompress.entropy import CdfTables, encode
from mpcompress.errors import CorruptBitstreamError, NonFiniteError, OutOfRangeError
from mpcompress.exact.fixed import LATENT_BITS, round_shift
from mpcompress.exact.kernels import decode_step, dequantise, open_streams, quantise
from mpcompress.latent_codecs._checks import first_index, shape_text

__all__ = ["CHECKSUM_BYTES", "LatentReader", "LatentWriter", "to_fixed"]

CHECKSUM_BYTES = 4

Int32 = npt.NDArray[np.int32]

_LATENT_LIMIT = 1 << 22  # the code of a symbol this far outside its table has less than 64 bits


def to_fixed(x: Tensor, name: str) -> Tensor:
    """A latent as int64 with `LATENT_BITS`.

    Raises:
        NonFiniteError, OutOfRangeError: a value that no symbol stands for.
    """
    bad = ~(x.abs() <= _LATENT_LIMIT)
    if bool(bad.any()):
        where = first_index(bad)
        if not bool(torch.isfinite(x[where])):
            raise NonFiniteError(f"{name} holds NaN or infinity, first at {where} of {shape_text(x.shape)}")
        raise OutOfRangeError(f"{name} at {where} of {shape_text(x.shape)} is beyond +-{_LATENT_LIMIT}")
    return torch.round(x.to(torch.float64) * 2.0**LATENT_BITS).to(torch.int64)


class LatentWriter:
    """Collects the symbols of a batch; `LatentCoder` of an encoder.

    Args:
        tables: of z's channels, then of the scales.
        y: (B, H * W, C), int64 with `LATENT_BITS`.
    """

    def __init__(self, tables: CdfTables, y: Tensor) -> None:
        self._tables, self._y = tables, y.contiguous().numpy()
        self._symbols: list[Int32] = []
        self._rows: list[Int32] = []

    def hyper(self, z: Tensor, medians: Tensor) -> Tensor:
        """Code z (B, h, w, C), int64 with `LATENT_BITS`; returns its symbols."""
        symbols = round_shift(z - medians, LATENT_BITS)
        self._symbols.append(symbols.flatten(1).to(torch.int32).numpy())
        self._rows.append(_channels(z.shape))
        return symbols

    def step(self, rows: Tensor, means: Tensor, squares: Tensor, channels: slice) -> Tensor:
        """See `LatentCoder.step`."""
        symbols = np.empty((len(means), means[0].numel()), np.int32)
        values = torch.empty_like(means, memory_format=torch.contiguous_format)
        place = squares.numpy(), channels.start, means.contiguous().numpy()
        quantise(self._y, *place, LATENT_BITS, symbols, values.numpy())
        self._symbols.append(symbols)
        self._rows.append(rows.flatten(1).numpy())
        return values

    def streams(self) -> list[bytes]:
        """One stream per sample."""
        symbols, rows = (np.concatenate(parts, axis=1) for parts in (self._symbols, self._rows))
        return [
            _checksum(values) + encode(values, chosen, self._tables)
            for values, chosen in zip(symbols, rows, strict=True)
        ]


class LatentReader:
    """Reads the symbols of a batch of streams; `LatentCoder` of a decoder.

    Raises:
        CorruptBitstreamError: a stream that is too short.
    """

    def __init__(self, tables: CdfTables, streams: Sequence[bytes]) -> None:
        self._tables = tables
        self._checksums = [stream[:CHECKSUM_BYTES] for stream in streams]
        bodies = [stream[CHECKSUM_BYTES:] for stream in streams]
        self._data = np.frombuffer(b"".join(bodies), np.uint8)
        self._bounds = np.array([0, *accumulate(map(len, bodies))], np.int64)
        self._states = np.empty((len(streams), 2), np.int64)
        open_streams(self._data, self._bounds, self._states)
        self._symbols: list[Int32] = []

    def hyper(self, size: tuple[int, int], channels: int) -> Tensor:
        """Symbols of z, (B, h, w, C), int64."""
        shape = (len(self._checksums), *size, channels)
        return torch.from_numpy(self._read(_channels(shape))).view(shape).to(torch.int64)

    def step(self, rows: Tensor, means: Tensor, squares: Tensor, channels: slice) -> Tensor:
        """See `LatentCoder.step`. Raises CorruptBitstreamError when a stream ends."""
        symbols = self._read(rows.flatten(1).numpy())
        values = torch.empty_like(means, memory_format=torch.contiguous_format)
        dequantise(symbols, means.contiguous().numpy(), LATENT_BITS, values.numpy())
        return values

    def close(self) -> None:
        """Raises CorruptBitstreamError unless every stream ended here and gave the encoder's symbols."""
        symbols = np.concatenate(self._symbols, axis=1)
        for number, (values, checksum) in enumerate(zip(symbols, self._checksums, strict=True)):
            size = int(self._bounds[number + 1] - self._bounds[number])
            if tuple(self._states[number]) != (size, 1 << 16):
                raise CorruptBitstreamError(
                    f"{size} bytes are not the code of {values.size} symbols", field=_field(number)
                )
            if _checksum(values) != checksum:
                raise CorruptBitstreamError("the symbols are not the encoder's", field=_field(number))

    def _read(self, rows: Int32) -> Int32:
        out = np.empty(rows.shape, np.int32)
        ended = decode_step(self._data, self._bounds, self._states, rows, self._tables.packed, out)
        if ended >= 0:
            raise CorruptBitstreamError("the stream ends before its symbols", field=_field(ended))
        self._symbols.append(out)
        return out


def _channels(shape: Sequence[int]) -> Int32:
    """Rows of z's symbols (B, h, w, C): their channels, (B, h * w * C)."""
    samples, height, width, channels = shape
    return np.tile(np.arange(channels, dtype=np.int32), (samples, height * width))


def _checksum(symbols: Int32) -> bytes:
    return zlib.crc32(symbols.astype("<i4", copy=False).tobytes()).to_bytes(CHECKSUM_BYTES, "little")


def _field(number: int) -> str:
    return f"strings[{number}]"
