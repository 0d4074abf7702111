"""One bitstream in, one frame of samples out, whoever made the stream.

                own stream ─► PyAV in this process ──────────┐
    anyone's ─► one slice? ─► PyAV in a process thrown away ─┼─► one frame, right size and depth? ─► samples
                              DecoderApp, where PyAV cannot ─┘

Own streams are those this process encoded. A decoder in C that is fed bytes from a network belongs in a process that
may crash; the price is 0.2 s of CPU to start it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from mpcompress.errors import CodecUnavailableError, CorruptBitstreamError
from mpcompress.picture import pyav
from mpcompress.picture.annexb import check_one_picture
from mpcompress.picture.cancel import CancelToken, raise_if_cancelled
from mpcompress.picture.engine import Picture, PictureFormat
from mpcompress.picture.process import Limits, run
from mpcompress.picture.scratch import open_scratch
from mpcompress.picture.vtm_tools import VtmTools

__all__ = ["OWN_STREAMS", "OwnStreams", "PictureDecoder"]


class OwnStreams:
    """Remembers the digests of the last streams this process encoded."""

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._digests: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, stream: bytes) -> None:
        """Notes a stream as our own."""
        with self._lock:
            self._digests[hashlib.sha256(stream).digest()] = None
            while len(self._digests) > self._capacity:
                self._digests.popitem(last=False)

    def forget(self) -> None:
        """From now on every stream is a stranger's."""
        with self._lock:
            self._digests.clear()

    def __contains__(self, stream: bytes) -> bool:
        with self._lock:
            return hashlib.sha256(stream).digest() in self._digests


OWN_STREAMS = OwnStreams()


class PictureDecoder:
    """Decodes with PyAV where that is installed and knows the depth, else with DecoderApp.

    Args:
        vtm: where DecoderApp may be; None: wherever VTM_HOME points.
    """

    def __init__(self, vtm: VtmTools | None = None) -> None:
        self._vtm = vtm or VtmTools.find()

    def require(self, form: PictureFormat, bit_depth: int) -> None:
        """Raises CodecUnavailableError, with the remedy, if nothing here decodes such pictures."""
        if not _pyav_decodes(bit_depth):
            self._require_decoder_app(form, bit_depth)

    def decode(
        self,
        stream: bytes,
        *,
        form: PictureFormat,
        height: int,
        width: int,
        bit_depth: int,
        cancel: CancelToken | None = None,
    ) -> Picture:
        """Decodes a stream to (height, width) samples; raises what `decode_strips` raises."""
        strips = self.decode_strips(
            [stream], form=form, heights=[height], width=width, bit_depth=bit_depth, cancel=cancel
        )
        return strips[0]

    def decode_strips(
        self,
        streams: Sequence[bytes],
        *,
        form: PictureFormat,
        heights: Sequence[int],
        width: int,
        bit_depth: int,
        cancel: CancelToken | None = None,
    ) -> list[Picture]:
        """Decodes streams of `heights` rows each; a stranger's streams share one process.

        Raises:
            CorruptBitstreamError: one that is not exactly one picture of its size and depth.
            CodecUnavailableError: no decoder here.
            CodecCrashedError: the decoder ran past its limits.
            CodingCancelledError: `cancel` was set.
        """
        raise_if_cancelled(cancel)
        for stream in streams:
            check_one_picture(stream, form)
        if not _pyav_decodes(bit_depth):
            self._require_decoder_app(form, bit_depth)
            return [
                self._with_decoder_app(stream, height, width, bit_depth, cancel)
                for stream, height in zip(streams, heights, strict=True)
            ]
        # Encoders with a smallest frame or 4:2:0 extend it by some samples, and FFmpeg counts aligned lines.
        max_samples = [(height + 128) * (width + 128) for height in heights]
        if all(stream in OWN_STREAMS for stream in streams):
            decoded = [_decode_here(stream, form, most) for stream, most in zip(streams, max_samples, strict=True)]
        else:
            decoded = _decode_elsewhere(streams, form, max_samples, cancel)
        return [_the_frame(frames, height, width, bit_depth) for frames, height in zip(decoded, heights, strict=True)]

    def _with_decoder_app(
        self, stream: bytes, height: int, width: int, bit_depth: int, cancel: CancelToken | None
    ) -> Picture:
        raw_bytes = height * width * (1 if bit_depth == 8 else 2)
        raw, _ = self._vtm.decode(stream, raw_bytes=raw_bytes, bit_depth=bit_depth, cancel=cancel)
        return _samples(raw, bit_depth).reshape(height, width)

    def _require_decoder_app(self, form: PictureFormat, bit_depth: int) -> None:
        reason = f"no decoder here for {form} pictures of {bit_depth} bits: {pyav.REMEDY}"
        if form != "vvc":
            raise CodecUnavailableError(reason)
        try:
            _ = self._vtm.decoder
        except CodecUnavailableError as error:
            raise CodecUnavailableError(f"{reason} (depths 8, 10, 12); else: {error.message}") from error


def _pyav_decodes(bit_depth: int) -> bool:
    if bit_depth not in pyav.DEPTHS.values():
        return False
    try:
        pyav.require()
    except CodecUnavailableError:
        return False
    return True


def _decode_here(stream: bytes, form: PictureFormat, max_samples: int) -> list[pyav.Frame]:
    try:
        return pyav.decode_frames(form, stream, max_samples)
    except pyav.UndecodableError as error:
        raise CorruptBitstreamError(f"the {form} decoder refuses the bitstream: {error}") from error


def _decode_elsewhere(
    streams: Sequence[bytes], form: PictureFormat, max_samples: Sequence[int], cancel: CancelToken | None
) -> list[list[pyav.Frame]]:
    """Decodes in a process of its own; the frames of each stream, as `pyav.decode_frames` gives them."""
    samples = sum(max_samples)
    limits = Limits(
        wall_s=60 + 300 * samples / 1e6,
        cpu_s=int(20 + 30 * samples / 1e6),
        memory_bytes=(2 << 30) + 100 * samples,
        file_bytes=2 * max(max_samples),
    )
    with open_scratch() as scratch:
        argv = [sys.executable, "-I", pyav.__file__, form]
        for index, (stream, most) in enumerate(zip(streams, max_samples, strict=True)):
            argv += [str(most), scratch.put(f"stream{index}", stream), scratch.put(f"picture{index}", b"")]
        ended = run(
            argv,
            limits=limits,
            what=f"the {form} decoder",
            cancel=cancel,
            pass_fds=scratch.pass_fds,
            # Enough for a line per strip.
            tail_bytes=1 << 14,
        )
        raws = [scratch.take(f"picture{index}", limits.file_bytes) for index in range(len(streams))]
    if ended.returncode:
        raise CorruptBitstreamError(f"the {form} decoder refuses the bitstream: {ended.how}")
    # One line per stream. Only the first frame of a stream has samples.
    lines = [json.loads(line) for line in ended.output.splitlines()]
    if len(lines) != len(streams):
        raise CorruptBitstreamError(f"the {form} decoder answered for {len(lines)} of {len(streams)} bitstreams")
    return [
        [pyav.Frame(name, height, width, raw) for name, height, width in frames]
        for frames, raw in zip(lines, raws, strict=True)
    ]


def _the_frame(frames: list[pyav.Frame], height: int, width: int, bit_depth: int) -> Picture:
    """The samples of the only frame, cropped to its picture."""
    if len(frames) != 1:
        raise CorruptBitstreamError(f"the bitstream decodes to {len(frames)} frames, not one")
    frame = frames[0]
    rows, columns = frame.height, frame.width
    if pyav.DEPTHS.get(frame.pixel_format) != bit_depth:
        raise CorruptBitstreamError(f"the bitstream holds {frame.pixel_format} samples, not {bit_depth} bits of luma")
    allowed = {(height, width), (max(16, height), max(16, width))}
    if frame.pixel_format.startswith("yuv420"):
        allowed.add((max(16, height + height % 2), max(16, width + width % 2)))
    if (rows, columns) not in allowed:
        raise CorruptBitstreamError(f"the bitstream holds {rows} x {columns} samples, not {height} x {width}")
    if len(frame.samples) != rows * columns * (1 if bit_depth == 8 else 2):
        raise CorruptBitstreamError("the decoder wrote another number of samples than it says")
    return np.ascontiguousarray(_samples(frame.samples, bit_depth).reshape(rows, columns)[:height, :width])


def _samples(raw: bytes, bit_depth: int) -> Picture:
    return np.frombuffer(raw, dtype=np.uint8 if bit_depth == 8 else "<u2").astype(np.uint16)
