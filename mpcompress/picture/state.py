"""What a unit of a picture codec says besides its bitstreams, read without trust.

The keys are the fields of the wire's PictureState: pack_shape (height, width), bit_depth, packing, trun_low, trun_high,
format, strip_heights (absent: one strip), picture_crc32, encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpcompress.errors import CorruptBitstreamError, InvalidInputError
from mpcompress.picture.engine import PictureFormat, check_sides
from mpcompress.picture.packing import Packing, packing
from mpcompress.picture.quantize import Bounds
from mpcompress.picture.strips import MAX_STRIPS

__all__ = ["PictureState"]

_FORMATS: dict[object, PictureFormat] = {"vvc": "vvc", "hevc": "hevc"}


@dataclass(frozen=True, kw_only=True)
class PictureState:
    """A checked state; see the module for the fields. `heights` has at least one entry."""

    height: int
    width: int
    bit_depth: int
    packing: Packing
    bounds: Bounds
    format: PictureFormat
    heights: tuple[int, ...]
    crc32: int
    encoder: str

    def to_dict(self) -> dict[str, Any]:
        """The pstate."""
        pstate: dict[str, Any] = {
            "pack_shape": (self.height, self.width),
            "bit_depth": self.bit_depth,
            "packing": self.packing.name,
            "trun_low": list(self.bounds.low),
            "trun_high": list(self.bounds.high),
            "format": self.format,
            "picture_crc32": self.crc32,
            "encoder": self.encoder,
        }
        if len(self.heights) > 1:
            pstate["strip_heights"] = list(self.heights)
        return pstate

    @classmethod
    def read(cls, pstate: Mapping[str, Any], shape: tuple[int, ...]) -> PictureState:
        """Checks a pstate against the shape of the features it belongs to.

        Raises:
            CorruptBitstreamError: with the field, for what no encoder writes.
        """
        try:
            layout = packing(str(pstate["packing"]))
            canonical = layout.canonical(shape)
            height, width = layout.picture_shape(canonical)
            check_sides(height, width)
            bounds = Bounds.of(pstate["trun_low"], pstate["trun_high"])
            bounds.shaped(canonical)
        except KeyError as error:
            raise CorruptBitstreamError(f"the unit has no {error.args[0]}", field="unit.pstate") from error
        except InvalidInputError as error:
            raise CorruptBitstreamError(f"the unit's state: {error.message}", field="unit.pstate") from error
        if tuple(pstate.get("pack_shape") or (height, width)) != (height, width):
            said = f"a picture of {pstate['pack_shape']} for features of {shape}, which make {(height, width)}"
            raise CorruptBitstreamError(said, field="unit.pstate.pack_shape")
        heights = tuple(pstate.get("strip_heights") or (height,))
        if not (len(heights) <= MAX_STRIPS and all(type(rows) is int and rows > 0 for rows in heights)):
            raise CorruptBitstreamError("strip heights that no encoder writes", field="unit.pstate.strip_heights")
        if sum(heights) != height:
            said = f"strips of {sum(heights)} rows for a picture of {height}"
            raise CorruptBitstreamError(said, field="unit.pstate.strip_heights")
        form = _FORMATS.get(pstate.get("format"))
        if form is None:
            raise CorruptBitstreamError(f"unknown format {pstate.get('format')!r}", field="unit.pstate.format")
        return cls(
            height=height,
            width=width,
            bit_depth=_integer(pstate, "bit_depth", 8, 16),
            packing=layout,
            bounds=bounds,
            format=form,
            heights=heights,
            crc32=_integer(pstate, "picture_crc32", 0, 0xFFFFFFFF, default=0),
            encoder=str(pstate.get("encoder", ""))[:128],
        )


def _integer(pstate: Mapping[str, Any], key: str, low: int, high: int, default: int | None = None) -> int:
    value = pstate.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise CorruptBitstreamError(f"{key} {value!r} is not in {low} to {high}", field=f"unit.pstate.{key}")
    return value
