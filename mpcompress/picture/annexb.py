"""Looks into an Annex B bitstream far enough to know that it holds one picture, before a decoder sees it."""

from __future__ import annotations

from collections.abc import Iterator

from mpcompress.errors import CorruptBitstreamError
from mpcompress.picture.engine import PictureFormat

__all__ = ["check_one_picture", "nal_types"]

_START = b"\0\0\1"


def nal_types(stream: bytes, form: PictureFormat) -> Iterator[int]:
    """nal_unit_type of every NAL unit (H.266 7.3.1.2, H.265 7.3.1.2)."""
    place = stream.find(_START)
    while 0 <= place < len(stream) - 4:
        yield stream[place + 4] >> 3 if form == "vvc" else stream[place + 3] >> 1 & 63
        place = stream.find(_START, place + 3)


def check_one_picture(stream: bytes, form: PictureFormat) -> None:
    """Raises CorruptBitstreamError unless `stream` begins with a NAL unit and holds one coded slice.

    Every encoder here codes a picture as one slice, so two slices are two pictures.
    """
    if not stream:
        raise CorruptBitstreamError("the bitstream is empty")
    if not stream.startswith((_START, b"\0" + _START)):
        raise CorruptBitstreamError("the bitstream does not begin with a start code: it is no H.265 or H.266 stream")
    # Coded slices are types 0 to 11 of H.266 and 0 to 31 of H.265.
    slices = sum(kind < (12 if form == "vvc" else 32) for kind in nal_types(stream, form))
    if slices != 1:
        raise CorruptBitstreamError(f"the bitstream holds {slices} coded slices, not one")
