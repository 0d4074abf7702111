"""Decodes H.265 and H.266 pictures with PyAV: in this process, or as a script in one that is thrown away.

    python -I pyav.py FORMAT [MAX_SAMPLES STREAM RAW]...

writes the samples of each stream to its RAW, and a JSON line of its frames to stdout.
As a script it imports av and nothing else (not even numpy), so that it starts quickly and runs in little memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

REMEDY = "pip install 'mpcompress[vvc]' brings PyAV"
# Names of pixel formats whose first plane is the picture: bits of a sample.
DEPTHS = {
    "gray": 8,
    "gray10le": 10,
    "gray12le": 12,
    "yuv420p": 8,
    "yuv420p10le": 10,
    "yuv420p12le": 12,
}


class Frame(NamedTuple):
    """A decoded frame. `samples`: its first plane, 1 byte each at depth 8, else 2, little-endian."""

    pixel_format: str
    height: int
    width: int
    samples: bytes


class UndecodableError(ValueError):
    """FFmpeg refuses the stream."""


def require() -> None:
    """Raises CodecUnavailableError if PyAV is not installed."""
    from mpcompress.errors import CodecUnavailableError

    try:
        import av  # noqa: F401
    except ImportError as error:
        raise CodecUnavailableError(f"PyAV is not installed: {REMEDY}") from error


def decode_frames(name: str, stream: bytes, max_samples: int) -> list[Frame]:
    """Decodes a whole stream: "vvc" or "hevc", Annex B. Samples of the first frame only.

    Args:
        name: the format.
        stream: anything.
        max_samples: larger frames are refused before they are allocated.

    Raises:
        UndecodableError: FFmpeg refuses the stream.
    """
    import av

    try:
        # Which class of context comes back follows from the name.
        context: Any = av.CodecContext.create(name, "r")
        context.thread_count = 1
        context.options = {"max_pixels": str(max_samples), "err_detect": "explode"}
        frames = context.decode(av.Packet(stream)) + context.decode(None)
    except (av.FFmpegError, MemoryError, EOFError, OSError, ValueError) as error:
        raise UndecodableError(str(error)) from error
    return [
        Frame(frame.format.name, frame.height, frame.width, b"" if index else _first_plane(frame))
        for index, frame in enumerate(frames)
    ]


def _first_plane(frame: Any) -> bytes:
    plane = frame.planes[0]
    width = frame.width * (1 if DEPTHS.get(frame.format.name) == 8 else 2)
    data, stride = memoryview(plane), plane.line_size
    return b"".join(bytes(data[row * stride : row * stride + width]) for row in range(frame.height))


def main() -> None:
    """The script: see the head of this file."""
    name, *words = sys.argv[1:]
    for max_samples, source, target in zip(words[::3], words[1::3], words[2::3], strict=True):
        try:
            frames = decode_frames(name, Path(source).read_bytes(), int(max_samples))
        except UndecodableError as error:
            sys.stderr.write(f"{error}\n")
            raise SystemExit(1) from error
        if frames:
            Path(target).write_bytes(frames[0].samples)
        # The number of frames matters; more than two are as wrong as two.
        sys.stdout.write(json.dumps([frame[:3] for frame in frames[:2]]) + "\n")


if __name__ == "__main__":
    main()
