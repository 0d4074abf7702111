"""How a 4-D feature tensor lies in a picture: a table of small classes, open to your own.

    PACKINGS["mine"] = Mine()          # or register_packing(Mine()), which refuses a name that is taken

A packing moves samples and does no arithmetic. Its name travels with the unit, so a name means one layout for ever.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import InvalidInputError
from mpcompress.picture.engine import Picture

__all__ = ["MODEL_TYPES", "PACKINGS", "LatentTiles", "Packing", "TokensByChannels", "packing", "register_packing"]

Shape = tuple[int, int, int, int]
Samples = NDArray[np.uint16]


class Packing(ABC):
    """A layout. `name`: 1 to 32 characters of [a-z0-9_]."""

    name: str

    def canonical(self, shape: tuple[int, ...]) -> Shape:
        """The 4-D shape of a tensor of lower rank: (L, C) and (B, L, C) are features of one layer.

        Raises:
            InvalidInputError: a rank this layout does not take, or an empty side.
        """
        forms = {2: (1, 1, *shape), 3: (*shape[:1], 1, *shape[1:]), 4: shape}
        return _four(forms.get(len(shape)), shape, "(L, C), (B, L, C) or (N, layers, L, C)")

    @abstractmethod
    def picture_shape(self, shape: Shape) -> tuple[int, int]:
        """(height, width) of the picture of a tensor. Raises InvalidInputError if it has no such layout."""

    @abstractmethod
    def pack(self, samples: Samples) -> Picture:
        """4-D samples to a picture."""

    @abstractmethod
    def unpack(self, picture: Picture, shape: Shape) -> Samples:
        """A picture of `picture_shape(shape)` back to 4-D samples."""


class TokensByChannels(Packing):
    """(N, layers, L, C): a row per token and a column per channel, layers side by side, N on top of each other."""

    name = "tokens_by_channels"

    def picture_shape(self, shape: Shape) -> tuple[int, int]:
        """See `Packing.picture_shape`."""
        crops, layers, tokens, channels = shape
        return crops * tokens, layers * channels

    def pack(self, samples: Samples) -> Picture:
        """See `Packing.pack`."""
        crops, layers, tokens, channels = samples.shape
        return samples.transpose(0, 2, 1, 3).reshape(crops * tokens, layers * channels)

    def unpack(self, picture: Picture, shape: Shape) -> Samples:
        """See `Packing.unpack`."""
        crops, layers, tokens, channels = shape
        return picture.reshape(crops, tokens, layers, channels).transpose(0, 2, 1, 3)


class LatentTiles(Packing):
    """(N, C, H, W): the channels as tiles of H x W, row by row, as near to a square as C divides; N on top."""

    name = "latent_tiles"

    def canonical(self, shape: tuple[int, ...]) -> Shape:
        """See `Packing.canonical`."""
        return _four({3: (1, *shape), 4: shape}.get(len(shape)), shape, "(C, H, W) or (N, C, H, W)")

    def picture_shape(self, shape: Shape) -> tuple[int, int]:
        """See `Packing.picture_shape`."""
        rows, columns = self._grid(shape[1])
        return shape[0] * rows * shape[2], columns * shape[3]

    def pack(self, samples: Samples) -> Picture:
        """See `Packing.pack`."""
        batch, channels, height, width = samples.shape
        rows, columns = self._grid(channels)
        tiles = samples.reshape(batch, rows, columns, height, width).transpose(0, 1, 3, 2, 4)
        return tiles.reshape(batch * rows * height, columns * width)

    def unpack(self, picture: Picture, shape: Shape) -> Samples:
        """See `Packing.unpack`."""
        batch, channels, height, width = shape
        rows, columns = self._grid(channels)
        return picture.reshape(batch, rows, height, columns, width).transpose(0, 1, 3, 2, 4).reshape(shape)

    @staticmethod
    def _grid(channels: int) -> tuple[int, int]:
        rows = next(rows for rows in range(math.isqrt(channels), 0, -1) if channels % rows == 0)
        return rows, channels // rows


def _four(form: tuple[int, ...] | None, shape: tuple[int, ...], known: str) -> Shape:
    if form is None or min(form) < 1:
        raise InvalidInputError(f"features of shape {shape}; this packing takes {known}", field="tensors[0].shape")
    first, second, third, fourth = form
    return first, second, third, fourth


PACKINGS: dict[str, Packing] = {}

# What configurations call a model -> its packing.
MODEL_TYPES = {
    "dinov2": TokensByChannels.name,
    "llama3": TokensByChannels.name,
    "sd3": LatentTiles.name,
}


def register_packing(layout: Packing, *model_types: str) -> None:
    """Adds a packing, and the model types that shall use it. Raises ValueError for names that are taken."""
    for taken in (PACKINGS.keys() & {layout.name}, MODEL_TYPES.keys() & set(model_types)):
        if taken:
            raise ValueError(f"packing or model type {', '.join(taken)} is already registered")
    PACKINGS[layout.name] = layout
    MODEL_TYPES.update(dict.fromkeys(model_types, layout.name))


def packing(name: str, field: str = "packing") -> Packing:
    """A packing by its name or a model type. Raises InvalidInputError for an unknown one."""
    layout = PACKINGS.get(MODEL_TYPES.get(name, name))
    if layout is None:
        known = ", ".join(sorted({*PACKINGS, *MODEL_TYPES}))
        raise InvalidInputError(f"unknown packing {name!r}; known: {known}", field=field)
    return layout


register_packing(TokensByChannels())
register_packing(LatentTiles())
