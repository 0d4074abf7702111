"""Engine `vtm`: the reference encoder of H.266, the best rate and minutes per megasample."""

from __future__ import annotations

import os

import numpy as np

from mpcompress.picture.cancel import CancelToken
from mpcompress.picture.engine import Picture, PictureEngine, register_engine
from mpcompress.picture.vtm_tools import VtmTools

__all__ = ["SPEED_OPTIONS", "VtmEngine"]

# Options on top of the all-intra configuration. What each costs and gains: docs/vtm.md.
SPEED_OPTIONS: dict[str, tuple[str, ...]] = {
    "reference": (),
    "fast": ("--MaxMTTHierarchyDepthISliceL=2",),
    "faster": (
        "--MaxMTTHierarchyDepthISliceL=1",
        "--MTS=0",
        "--ISP=0",
        "--MIP=0",
        "--LFNST=0",
        "--MRL=0",
    ),
}


class VtmEngine(PictureEngine):
    """EncoderApp of a VTM that the user built, at `vtm_path` or in VTM_HOME; each frame in its own process."""

    name = "vtm"
    format = "vvc"
    # More than 12 need a build with RExt__HIGH_BIT_DEPTH_SUPPORT: whether this one is shows on use.
    depths = tuple(range(8, 17))
    speeds = tuple(SPEED_OPTIONS)
    default_speed = "reference"

    def __init__(self, vtm_path: str | os.PathLike[str] | None = None) -> None:
        self.tools = VtmTools.find(vtm_path)

    def require(self) -> None:
        """See `PictureEngine.require`."""
        _ = self.tools.encoder, self.tools.config

    def banner(self) -> str:
        """See `PictureEngine.banner`."""
        return self.tools.banner()

    def qp_range(self, bit_depth: int) -> tuple[int, int]:
        """See `PictureEngine.qp_range`."""
        return -6 * (bit_depth - 8), 63

    def _encode(self, picture: Picture, bit_depth: int, qp: int, speed: str, cancel: CancelToken | None) -> bytes:
        height, width = picture.shape
        stream, _ = self.tools.encode(
            picture.astype(np.uint8 if bit_depth == 8 else "<u2").tobytes(),
            width=width,
            height=height,
            qp=qp,
            bit_depth=bit_depth,
            options=SPEED_OPTIONS[speed],
            cancel=cancel,
        )
        return stream


register_engine(VtmEngine.name, VtmEngine)
