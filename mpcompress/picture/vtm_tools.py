"""EncoderApp and DecoderApp of the VVC test model (VTM): where they are, and running them under limits.

The programs are the user's own build (https://vcgit.hhi.fraunhofer.de/jvet/VVCSoftware_VTM): nothing of VTM is part of
this project.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mpcompress.errors import CodecCrashedError, CodecUnavailableError, CorruptBitstreamError, InvalidInputError
from mpcompress.picture.cancel import CancelToken
from mpcompress.picture.process import Finished, Limits, run
from mpcompress.picture.scratch import open_scratch

__all__ = ["HOME_VARIABLE", "VtmTools", "encode_limits"]

HOME_VARIABLE = "VTM_HOME"
_CONFIG = "cfg/encoder_intra_vtm.cfg"
_REMEDY = (
    "build EncoderApp and DecoderApp of VTM 20 or newer and give the repository's folder as vtm_path or in the "
    f"environment variable {HOME_VARIABLE} (docs/vtm.md)"
)
# VTM as it is usually built takes up to 12 bits; both programs say so when they are asked for more.
_USUAL_DEPTH = 12
_LOW_DEPTHS = re.compile(r"RExt__HIGH_BIT_DEPTH_SUPPORT must|enable RExt__HIGH_BIT_DEPTH|High bit depth support must")
_HIGH_DEPTHS = "more than 12 bits need a VTM that was built with RExt__HIGH_BIT_DEPTH_SUPPORT=1 (docs/vtm.md)"
# Samples of all planes per luma sample.
_PLANES = {"400": 1.0, "420": 1.5, "422": 2.0, "444": 3.0}
# What a bitstream of unknown size may decode to.
_ANY_RAW_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class VtmTools:
    """A folder with VTM: bin/EncoderAppStatic or bin/EncoderApp, likewise DecoderApp, and cfg/encoder_intra_vtm.cfg."""

    folder: Path | None

    @classmethod
    def find(cls, repo_dir: str | os.PathLike[str] | None = None) -> VtmTools:
        """VTM in `repo_dir`, else where VTM_HOME points; whether its programs are there shows on use."""
        place = repo_dir or os.environ.get(HOME_VARIABLE)
        return cls(folder=Path(place).resolve() if place else None)

    @property
    def encoder(self) -> Path:
        """EncoderApp. Raises CodecUnavailableError."""
        return self._program("EncoderApp")

    @property
    def decoder(self) -> Path:
        """DecoderApp. Raises CodecUnavailableError."""
        return self._program("DecoderApp")

    @property
    def config(self) -> Path:
        """The all-intra configuration. Raises CodecUnavailableError."""
        path = self._folder() / _CONFIG
        if not path.is_file():
            raise CodecUnavailableError(f"no {_CONFIG} in {self._folder()}: {_REMEDY}")
        return path

    def _folder(self) -> Path:
        if self.folder is None:
            raise CodecUnavailableError(f"no VTM here: {_REMEDY}")
        return self.folder

    def _program(self, name: str) -> Path:
        folder = self._folder()
        for candidate in (f"bin/{name}Static", f"bin/{name}"):
            path = folder / candidate
            if path.is_file() and os.access(path, os.X_OK):
                return path
        raise CodecUnavailableError(f"no bin/{name}Static or bin/{name} in {folder}: {_REMEDY}")

    def banner(self) -> str:
        """Name and version, "VTM 23.13": read once per program file. Raises CodecUnavailableError."""
        path = self.encoder
        return _banner(str(path), path.stat().st_mtime_ns)

    def encode(
        self,
        raw: bytes,
        *,
        width: int,
        height: int,
        qp: int,
        bit_depth: int,
        chroma_format: str = "400",
        options: Sequence[str] = (),
        cancel: CancelToken | None = None,
    ) -> tuple[bytes, Finished]:
        """Encodes one raw frame (planar, 1 byte a sample at depth 8, else 2, little-endian).

        Returns:
            The bitstream, and how the encoder ended.

        Raises:
            InvalidInputError: `raw` does not hold exactly one frame. EncoderApp would read a shorter one for ever.
            CodecUnavailableError, CodecCrashedError, CodingCancelledError.
        """
        if chroma_format not in _PLANES:
            raise InvalidInputError(f"chroma format {chroma_format!r} is none of {', '.join(_PLANES)}")
        frame_bytes = _PLANES[chroma_format] * width * height * (1 if bit_depth == 8 else 2)
        if min(width, height) < 1 or len(raw) != frame_bytes:
            raise InvalidInputError(f"{len(raw)} bytes of samples; {width} x {height} needs {frame_bytes:g}")
        with open_scratch() as scratch:
            source, target = scratch.put("picture", raw), scratch.put("stream", b"")
            argv = [str(self.encoder), "-c", str(self.config), "-i", source, "-o", "", "-b", target, "-q", str(qp)]
            argv += ["--ConformanceWindowMode=1", "-wdt", str(width), "-hgt", str(height), "-f", "1", "-fr", "1"]
            argv += [f"--{which}BitDepth={bit_depth}" for which in ("Internal", "Input", "Output")]
            argv += [f"--InputChromaFormat={chroma_format}", *options]
            limits = encode_limits(width * height, qp)
            ended = run(argv, limits=limits, what="the VTM encoder", cancel=cancel, pass_fds=scratch.pass_fds)
            stream = scratch.take("stream", limits.file_bytes)
        if bit_depth > _USUAL_DEPTH:
            _check_depth(ended)
        if ended.returncode or not stream:
            raise CodecCrashedError(f"the VTM encoder gave {len(stream)} bytes and ended with {ended.how}")
        return stream, ended

    def decode(
        self, stream: bytes, *, bit_depth: int, raw_bytes: int | None = None, cancel: CancelToken | None = None
    ) -> tuple[bytes, Finished]:
        """Decodes a bitstream, which may be anything, to raw frames of `raw_bytes` in all (None: any number).

        Raises:
            CorruptBitstreamError: the decoder fails or crashes on it, or gives another number of bytes.
            CodecUnavailableError, CodecCrashedError, CodingCancelledError.
        """
        if not stream:
            raise CorruptBitstreamError("the VTM bitstream is empty")
        with open_scratch() as scratch:
            source, target = scratch.put("stream", stream), scratch.put("picture", b"")
            limits = decode_limits(_ANY_RAW_BYTES if raw_bytes is None else raw_bytes)
            argv = [str(self.decoder), "-b", source, "-o", target, "-d", str(bit_depth)]
            ended = run(argv, limits=limits, what="the VTM decoder", cancel=cancel, pass_fds=scratch.pass_fds)
            raw = scratch.take("picture", limits.file_bytes)
        if bit_depth > _USUAL_DEPTH:
            _check_depth(ended)
        if ended.returncode:
            raise CorruptBitstreamError(f"the VTM decoder refuses the bitstream: {ended.how}")
        if len(raw) != raw_bytes if raw_bytes is not None else not raw:
            raise CorruptBitstreamError(f"the VTM bitstream decodes to {len(raw)} bytes, not {raw_bytes or 'a frame'}")
        return raw, ended


def _check_depth(ended: Finished) -> None:
    """Raises CodecUnavailableError if a program ended because it was built for fewer bits."""
    if ended.returncode and _LOW_DEPTHS.search(ended.output + ended.errors):
        raise CodecUnavailableError(_HIGH_DEPTHS)


def encode_limits(samples: int, qp: int) -> Limits:
    """Limits of encoding a frame: several times what the slowest content was measured to take at that QP."""
    # 330 CPU s per megasample at QP 22, and half as much again for each 12 QP less, is the worst seen (docs/vtm.md).
    cpu_s = 30 + 4 * 330 * samples / 1e6 * max(0.5, 1.5 ** ((22 - qp) / 12))
    return Limits(
        # A machine with ten jobs per core still finishes; only what sleeps meets this limit before the other.
        wall_s=60 + 10 * cpu_s,
        cpu_s=int(cpu_s),
        memory_bytes=(1 << 30) + 600 * samples,
        file_bytes=(1 << 20) + 8 * samples,
    )


def decode_limits(raw_bytes: int) -> Limits:
    """Limits of decoding to `raw_bytes`."""
    cpu_s = 10 + 60 * raw_bytes / 1e6
    return Limits(
        wall_s=30 + 10 * cpu_s,
        cpu_s=int(cpu_s),
        # VTM takes 0.15 GB and 11 times the raw bytes.
        memory_bytes=(1 << 30) + 60 * raw_bytes,
        # One byte more than right can be written, so that too much is seen as too much.
        file_bytes=2 * raw_bytes + 1,
    )


@lru_cache(maxsize=8)
def _banner(program: str, _modified_ns: int) -> str:
    limits = Limits(wall_s=60, cpu_s=10, memory_bytes=1 << 30, file_bytes=1 << 20)
    # An option it does not know makes it print its banner and fail; without any it prints pages of help as well.
    ended = run([program, "--version"], limits=limits, what="the VTM encoder")
    version = re.search(r"Encoder Version (\S+)", ended.output + ended.errors)
    return f"VTM {version[1][:64]}" if version else "VTM of unknown version"
