"""Engine `vvenc`: libvvenc in the ffmpeg program that imageio-ffmpeg brings. H.266 at a fiftieth of VTM's time."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mpcompress.errors import CodecCrashedError, CodecUnavailableError
from mpcompress.picture.cancel import CancelToken
from mpcompress.picture.engine import Picture, PictureEngine, pad, register_engine
from mpcompress.picture.process import Limits, run
from mpcompress.picture.scratch import open_scratch

__all__ = ["VvencEngine"]

# libvvenc refuses smaller frames, and codes 4:2:0 only: even sides, and flat chroma that costs a few bytes.
_MIN_SIDE = 16
_REMEDY = "pip install 'mpcompress[vvc]' brings one with imageio-ffmpeg"


def _ffmpeg() -> str:
    """Path of the bundled ffmpeg. Raises CodecUnavailableError."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise CodecUnavailableError(f"vvenc needs an ffmpeg with libvvenc: {_REMEDY}") from error
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise CodecUnavailableError(f"imageio-ffmpeg has no ffmpeg for this platform: {error}") from error


@lru_cache(maxsize=4)
def _version(program: str) -> str:
    """What `ffmpeg -version` prints: its version and how it was configured; asked once."""
    limits = Limits(wall_s=60, cpu_s=10, memory_bytes=4 << 30, file_bytes=1 << 20)
    return run([program, "-version"], limits=limits, what="ffmpeg", tail_bytes=1 << 16).output


class VvencEngine(PictureEngine):
    """libvvenc, constant QP, perceptual tools off, one thread, in a process of its own."""

    name = "vvenc"
    format = "vvc"
    depths = (10,)
    speeds = ("slower", "slow", "medium", "fast", "faster")
    default_speed = "medium"

    def require(self) -> None:
        """See `PictureEngine.require`."""
        if "libvvenc" not in _version(_ffmpeg()):
            raise CodecUnavailableError(f"{_ffmpeg()} was built without libvvenc: {_REMEDY}")

    def banner(self) -> str:
        """See `PictureEngine.banner`."""
        self.require()
        # "ffmpeg version n9.0.2-17-g2a571b6068 Copyright ..."
        return f"libvvenc in ffmpeg {_version(_ffmpeg()).split()[2]}"[:128]

    def qp_range(self, bit_depth: int) -> tuple[int, int]:
        """See `PictureEngine.qp_range`."""
        return 0, 63

    def _encode(self, picture: Picture, bit_depth: int, qp: int, speed: str, cancel: CancelToken | None) -> bytes:
        height, width = (max(_MIN_SIDE, side + side % 2) for side in picture.shape)
        luma = pad(picture, height, width).astype("<u2", copy=False)
        chroma = np.full(luma.size // 2, 1 << (bit_depth - 1), dtype="<u2")
        samples = height * width
        limits = Limits(
            wall_s=60 + 1000 * samples / 1e6,
            cpu_s=int(20 + 200 * samples / 1e6),
            memory_bytes=(4 << 30) + 600 * samples,
            file_bytes=(1 << 20) + 8 * samples,
        )
        with open_scratch() as scratch:
            source, target = scratch.put("picture", luma.tobytes() + chroma.tobytes()), scratch.put("stream", b"")
            argv = [_ffmpeg(), "-hide_banner", "-nostdin", "-loglevel", "error", "-y"]
            argv += ["-f", "rawvideo", "-pix_fmt", "yuv420p10le", "-s", f"{width}x{height}", "-r", "1", "-i", source]
            argv += ["-frames:v", "1", "-c:v", "libvvenc", "-preset", speed, "-qp", str(qp), "-qpa", "0"]
            # To a file: libvvenc prints its warnings to stdout.
            argv += ["-threads", "1", "-f", "vvc", target]
            ended = run(argv, limits=limits, what="ffmpeg", cancel=cancel, pass_fds=scratch.pass_fds)
            stream = scratch.take("stream", limits.file_bytes)
        if ended.returncode or not stream:
            hint = "; its output buffer holds about a byte per sample, so a larger qp may help" if qp < 22 else ""
            raise CodecCrashedError(f"libvvenc gave {len(stream)} bytes and ended with {ended.how}{hint}")
        return stream


register_engine(VvencEngine.name, VvencEngine)
