"""The seam between features and picture encoders: one frame of samples in, one bitstream out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import CodecUnavailableError, InvalidInputError
from mpcompress.picture.cancel import CancelToken, raise_if_cancelled

__all__ = ["MAX_SAMPLES", "MAX_SIDE", "Picture", "PictureEngine", "PictureFormat", "engine", "register_engine"]

Picture = NDArray[np.uint16]
PictureFormat = Literal["vvc", "hevc"]

# What the decoders take. A 64-megasample frame is hours of VTM: more is a mistake in the packing, not a wish.
MAX_SIDE = 65535
MAX_SAMPLES = 1 << 26


class PictureEngine(ABC):
    """An intra encoder for one grey frame.

    Attributes:
        name: "vtm", "vvenc", ...; also the codec family.
        format: the bitstream it writes.
        depths: sample depths it takes, bits.
        speeds: its encoder presets, slowest first.
        default_speed: one of them.
        default_qp: where its useful range has its middle.
    """

    name: str
    format: PictureFormat
    depths: tuple[int, ...]
    speeds: tuple[str, ...]
    default_speed: str
    default_qp: int = 32

    @abstractmethod
    def require(self) -> None:
        """Raises CodecUnavailableError, with the remedy, if this engine cannot run here."""

    @abstractmethod
    def banner(self) -> str:
        """Name and version, short: every unit carries it. At most 128 characters. Raises CodecUnavailableError."""

    @abstractmethod
    def qp_range(self, bit_depth: int) -> tuple[int, int]:
        """Smallest and largest QP at a depth."""

    @abstractmethod
    def _encode(self, picture: Picture, bit_depth: int, qp: int, speed: str, cancel: CancelToken | None) -> bytes:
        """As `encode`, with arguments that were checked."""

    def available(self) -> str:
        """Empty if the engine can run here, else the reason and the remedy."""
        try:
            self.require()
        except CodecUnavailableError as error:
            return error.message
        return ""

    def check(self, *, bit_depth: int, qp: int, speed: str) -> None:
        """Raises InvalidInputError for parameters this engine does not take."""
        if bit_depth not in self.depths:
            known = ", ".join(map(str, self.depths))
            raise InvalidInputError(f"{self.name} takes samples of {known} bits, not {bit_depth}", field="bit_depth")
        low, high = self.qp_range(bit_depth)
        if not low <= qp <= high:
            raise InvalidInputError(f"{self.name} takes qp {low} to {high}, not {qp}", field="params.qp_eighths")
        if speed not in self.speeds:
            known = ", ".join(self.speeds)
            raise InvalidInputError(f"{self.name} has no speed {speed!r}; it has {known}", field="params.picture.speed")

    def encode(
        self, picture: Picture, *, bit_depth: int, qp: int, speed: str = "", cancel: CancelToken | None = None
    ) -> bytes:
        """Encodes one frame.

        Args:
            picture: samples, (H, W), 0 to 2^bit_depth - 1.
            bit_depth: bits of a sample.
            qp: the encoder's own quantisation parameter.
            speed: one of `speeds`; empty: the default.
            cancel: gives up when set, within a fraction of a second.

        Returns:
            A raw bitstream (Annex B) of one picture. It decodes to the frame, perhaps extended at its bottom and right.

        Raises:
            InvalidInputError: a picture or parameter the engine does not take.
            CodecUnavailableError: the engine is not installed.
            CodecCrashedError: it crashed, hung or wrote nothing.
            CodingCancelledError: `cancel` was set.
        """
        speed = speed or self.default_speed
        self.check(bit_depth=bit_depth, qp=qp, speed=speed)
        check_picture(picture, bit_depth)
        self.require()
        raise_if_cancelled(cancel)
        return self._encode(np.ascontiguousarray(picture), bit_depth, qp, speed, cancel)


def check_sides(height: int, width: int, field: str = "tensors[0].shape") -> None:
    """Raises InvalidInputError for a picture nobody can code."""
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and height * width <= MAX_SAMPLES):
        raise InvalidInputError(
            f"a picture of {height} x {width} samples; sides are 1 to {MAX_SIDE}, samples at most {MAX_SAMPLES}",
            field=field,
        )


def check_picture(picture: Picture, bit_depth: int) -> None:
    """Raises InvalidInputError unless `picture` is a frame of samples of that depth."""
    if picture.ndim != 2 or picture.dtype != np.uint16:
        raise InvalidInputError(f"a picture is a uint16 array (H, W), not {picture.dtype} {picture.shape}")
    check_sides(picture.shape[0], picture.shape[1])
    if int(picture.max()) >> bit_depth:
        raise InvalidInputError(f"a sample of {int(picture.max())} does not fit {bit_depth} bits")


def pad(picture: Picture, height: int, width: int) -> Picture:
    """Extends a picture at its bottom and right by its own edge."""
    rows, columns = picture.shape
    if (rows, columns) == (height, width):
        return picture
    return np.pad(picture, ((0, height - rows), (0, width - columns)), mode="edge")


_ENGINES: dict[str, Callable[..., PictureEngine]] = {}


def register_engine(name: str, make: Callable[..., PictureEngine]) -> None:
    """Adds an engine: `make(**options)` gives one. Raises ValueError for a known name."""
    if name in _ENGINES:
        raise ValueError(f"picture engine {name!r} is already registered")
    _ENGINES[name] = make


def engine(name: str, **options: object) -> PictureEngine:
    """Makes an engine by name. Raises InvalidInputError for an unknown one."""
    # Here, not above: the engines' modules import this one.
    from mpcompress.picture import vtm, vvenc, x265  # noqa: F401

    if name not in _ENGINES:
        raise InvalidInputError(f"unknown picture engine {name!r}; known: {', '.join(sorted(_ENGINES))}")
    return _ENGINES[name](**options)
