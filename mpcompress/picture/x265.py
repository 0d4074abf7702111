"""Engine `x265`: H.265 in this process, through PyAV. The fastest, and the widest choice of machines."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from mpcompress.errors import CodecCrashedError, CodecUnavailableError
from mpcompress.picture import pyav
from mpcompress.picture.cancel import CancelToken
from mpcompress.picture.engine import Picture, PictureEngine, pad, register_engine

__all__ = ["X265Engine"]

# x265 refuses smaller frames.
_MIN_SIDE = 16


class X265Engine(PictureEngine):
    """libx265, monochrome, constant QP, one thread. Takes a tenth of a second, so `cancel` counts before it only."""

    name = "x265"
    format = "hevc"
    depths = (8, 10, 12)
    speeds = ("placebo", "veryslow", "slower", "slow", "medium", "fast", "faster", "veryfast")
    default_speed = "veryslow"

    def require(self) -> None:
        """See `PictureEngine.require`."""
        pyav.require()
        import av

        if "libx265" not in av.codec.codecs_available:
            raise CodecUnavailableError("this build of PyAV has no libx265; PyPI's wheels have it: pip install av")

    def banner(self) -> str:
        """See `PictureEngine.banner`."""
        self.require()
        import av

        return f"libx265 in PyAV {av.__version__}"

    def qp_range(self, bit_depth: int) -> tuple[int, int]:
        """See `PictureEngine.qp_range`."""
        return 0, 51

    def _encode(self, picture: Picture, bit_depth: int, qp: int, speed: str, cancel: CancelToken | None) -> bytes:
        import av

        rows, columns = (max(_MIN_SIDE, side) for side in picture.shape)
        pixel_format = {8: "gray", 10: "gray10le", 12: "gray12le"}[bit_depth]
        samples: Any = pad(picture, rows, columns).astype(np.uint8 if bit_depth == 8 else np.uint16, copy=False)
        # No pools: one thread. No info: x265 would write its name and options, 2 kB, into every stream.
        parameters = f"qp={qp}:keyint=1:pools=none:frame-threads=1:log-level=none:info=0:repeat-headers=1"
        try:
            context = av.CodecContext.create("libx265", "w")
            context.width, context.height, context.pix_fmt = columns, rows, pixel_format
            context.time_base = Fraction(1, 1)
            context.options = {"preset": speed, "x265-params": parameters}
            packets = context.encode(av.VideoFrame.from_ndarray(samples, format=pixel_format)) + context.encode(None)
        except av.FFmpegError as error:
            raise CodecCrashedError(f"libx265 failed on a picture of {rows} x {columns}: {error}") from error
        return b"".join(bytes(packet) for packet in packets)


register_engine(X265Engine.name, X265Engine)
