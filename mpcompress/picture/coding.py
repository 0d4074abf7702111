"""A picture through an engine and back: strips in parallel, each verified by decoding it."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from mpcompress.errors import CodecCrashedError, CorruptBitstreamError
from mpcompress.picture.cancel import CancelToken
from mpcompress.picture.decode import OWN_STREAMS, PictureDecoder
from mpcompress.picture.engine import Picture, PictureEngine, PictureFormat
from mpcompress.picture.strips import cores, plan_strips

__all__ = ["CodedPicture", "PictureJob", "Progress", "decode_picture", "encode_picture", "picture_crc32"]

Progress = Callable[[int, int], None]
"""Called with (strips done, strips in all) as strips finish, from the calling thread."""


@dataclass(frozen=True, kw_only=True)
class CodedPicture:
    """An encoded picture. `decoded` is what it decodes to, (H, W)."""

    streams: list[bytes]
    heights: tuple[int, ...]
    decoded: Picture


@dataclass(frozen=True, kw_only=True)
class PictureJob:
    """How to encode: see `PictureEngine.encode` and `plan_strips`. `speed` empty: the engine's default."""

    bit_depth: int
    qp: int
    speed: str = ""
    strips: int = 0
    parallel: int = 0


class _Either:
    """A cancel token: the caller's, or one for the strips when another strip has failed."""

    def __init__(self, caller: CancelToken | None) -> None:
        self._caller = caller
        self.failed = threading.Event()

    def is_set(self) -> bool:
        return self.failed.is_set() or (self._caller is not None and self._caller.is_set())


def encode_picture(
    engine: PictureEngine,
    picture: Picture,
    job: PictureJob,
    *,
    decoder: PictureDecoder,
    cancel: CancelToken | None = None,
    progress: Progress | None = None,
) -> CodedPicture:
    """Encodes a picture (H, W) of uint16 samples.

    Raises:
        InvalidInputError, CodecUnavailableError, CodecCrashedError, CodingCancelledError: of the first strip that
            fails; no process of another strip is left.
    """
    decoder.require(engine.format, job.bit_depth)
    heights = plan_strips(picture, bit_depth=job.bit_depth, qp=job.qp, requested=job.strips, parallel=job.parallel)
    bands = np.split(picture, np.cumsum(heights)[:-1])
    either = _Either(cancel)

    def work(band: Picture) -> tuple[bytes, Picture]:
        stream = engine.encode(band, bit_depth=job.bit_depth, qp=job.qp, speed=job.speed, cancel=either)
        return stream, _verified(stream, band, engine, job.bit_depth, decoder, either)

    if len(bands) == 1:
        results = [work(bands[0])]
        if progress is not None:
            progress(1, 1)
    else:
        results = _in_parallel(work, bands, job.parallel or cores(), either.failed, progress)
    return CodedPicture(
        streams=[stream for stream, _ in results],
        heights=heights,
        decoded=np.concatenate([decoded for _, decoded in results]),
    )


def _in_parallel(
    work: Callable[[Picture], tuple[bytes, Picture]],
    bands: Sequence[Picture],
    parallel: int,
    failed: threading.Event,
    progress: Progress | None,
) -> list[tuple[bytes, Picture]]:
    with ThreadPoolExecutor(min(parallel, len(bands)), thread_name_prefix="strip") as pool:
        futures = [pool.submit(work, band) for band in bands]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                if progress is not None:
                    progress(done, len(bands))
        finally:
            # After an error of any kind the others stop; after success there are none.
            failed.set()
            for future in futures:
                future.cancel()
    return [future.result() for future in futures]


def _verified(
    stream: bytes,
    band: Picture,
    engine: PictureEngine,
    bit_depth: int,
    decoder: PictureDecoder,
    cancel: CancelToken,
) -> Picture:
    """Decodes what the engine wrote: exactly one picture of the right size, or the engine is at fault."""
    OWN_STREAMS.add(stream)
    height, width = band.shape
    try:
        return decoder.decode(
            stream, form=engine.format, height=height, width=width, bit_depth=bit_depth, cancel=cancel
        )
    except CorruptBitstreamError as error:
        raise CodecCrashedError(f"{engine.name} wrote a bitstream that does not decode: {error.message}") from error


def decode_picture(
    streams: Sequence[bytes],
    *,
    form: PictureFormat,
    heights: Sequence[int],
    width: int,
    bit_depth: int,
    crc32: int,
    decoder: PictureDecoder,
    cancel: CancelToken | None = None,
) -> Picture:
    """Decodes the strips of a picture to (sum of heights, width); `crc32` as `picture_crc32` gives it, 0 unchecked.

    Raises:
        CorruptBitstreamError: a strip that is not one picture of its size, or samples with another CRC-32.
        CodecUnavailableError, CodecCrashedError, CodingCancelledError.
    """
    bands = decoder.decode_strips(streams, form=form, heights=heights, width=width, bit_depth=bit_depth, cancel=cancel)
    picture = np.concatenate(bands)
    if crc32 and picture_crc32(picture) != crc32:
        raise CorruptBitstreamError("the decoded samples have another CRC-32 than the encoder's", field="payload")
    return picture


def picture_crc32(picture: Picture) -> int:
    """CRC-32 (as in zlib) of the samples, little-endian, 2 bytes each, row by row."""
    return zlib.crc32(np.ascontiguousarray(picture, dtype="<u2").tobytes())
