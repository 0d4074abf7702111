"""How a 4-D feature tensor lies in a picture: a table of small classes, open to your own.

    register_packing(Mine(), "my_model")          # refuses a name that is taken

A packing moves samples and does no arithmetic. Its name travels with the unit, so a name means one layout for ever.
A packing that needs numbers has them in its name, after a colon: "channel_tiles:16x16".
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import InvalidInputError
from mpcompress.picture.engine import Picture

__all__ = [
    "MODEL_TYPES",
    "PACKINGS",
    "ChannelTiles",
    "LatentTiles",
    "Packing",
    "TokensByChannels",
    "packing",
    "register_packing",
]

Shape = tuple[int, int, int, int]
Samples = NDArray[np.uint16]


class Packing(ABC):
    """A layout. `name`: 1 to 32 characters of [a-z0-9_], and what `bind` reads after a colon."""

    name: str

    def bind(self, argument: str) -> Packing:
        """This layout with the numbers that follow the colon of its name. Raises InvalidInputError if it has none."""
        raise InvalidInputError(f"packing {self.name} takes no {argument!r}", field="packing")

    def for_grid(self, token_res: tuple[int, int] | None, tokens: int) -> Packing:
        """This layout for features of `tokens` tokens, patches on a grid (H, W). Most layouts know no grid."""
        del token_res, tokens
        return self

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


class ChannelTiles(Packing):
    """(N, layers, L, C), patch tokens on a grid (H, W): each channel is a tile of H x W, prefix tokens fill rows below.

    Neighbouring tokens are alike and neighbouring channels are not, so this takes a third fewer bits than a row per
    token (docs/vtm.md). Layers follow each other, N on top of each other.
    """

    def __init__(self, grid: tuple[int, int] | None = None) -> None:
        self.grid = grid
        self.name = f"channel_tiles:{grid[0]}x{grid[1]}" if grid else "channel_tiles"

    def bind(self, argument: str) -> Packing:
        """See `Packing.bind`: "16x16"."""
        sides = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", argument)
        if sides is None:
            raise InvalidInputError(f"channel_tiles takes a grid like 16x16, not {argument!r}", field="packing")
        return ChannelTiles((int(sides[1]), int(sides[2])))

    def for_grid(self, token_res: tuple[int, int] | None, tokens: int) -> Packing:
        """See `Packing.for_grid`. Without a grid: its own, or the largest square."""
        side = math.isqrt(tokens)
        return ChannelTiles(token_res or self.grid or (side, side))

    def picture_shape(self, shape: Shape) -> tuple[int, int]:
        """See `Packing.picture_shape`."""
        crops, layers, _, _ = shape
        height, columns, below = self._layout(shape)
        return crops * layers * (height + below), columns

    def pack(self, samples: Samples) -> Picture:
        """See `Packing.pack`. What prefix tokens leave of the last row repeats its last sample."""
        height, width = self._grid
        prefix = samples.shape[2] - height * width
        tile_rows, columns, below = self._layout(_shape(samples))
        maps = samples.reshape(-1, *samples.shape[2:])
        tiles = maps[:, prefix:].transpose(0, 2, 1).reshape(len(maps), tile_rows // height, -1, height, width)
        picture = [tiles.transpose(0, 1, 3, 2, 4).reshape(len(maps), tile_rows, columns)]
        if below:
            rest = maps[:, :prefix].reshape(len(maps), -1)
            rest = np.pad(rest, ((0, 0), (0, below * columns - rest.shape[1])), mode="edge")
            picture.append(rest.reshape(len(maps), below, columns))
        packed: Picture = np.concatenate(picture, axis=1).reshape(-1, columns)
        return packed

    def unpack(self, picture: Picture, shape: Shape) -> Samples:
        """See `Packing.unpack`."""
        crops, layers, tokens, channels = shape
        height, width = self._grid
        tile_rows, columns, below = self._layout(shape)
        maps = picture.reshape(crops * layers, tile_rows + below, columns)
        tiles = maps[:, :tile_rows].reshape(len(maps), tile_rows // height, height, columns // width, width)
        patches = tiles.transpose(0, 1, 3, 2, 4).reshape(len(maps), channels, height * width).transpose(0, 2, 1)
        prefix = tokens - height * width
        rest = maps[:, tile_rows:].reshape(len(maps), -1)[:, : prefix * channels]
        together: Samples = np.concatenate([rest.reshape(len(maps), prefix, channels), patches], axis=1)
        return together.reshape(shape)

    @property
    def _grid(self) -> tuple[int, int]:
        if self.grid is None:
            raise InvalidInputError("packing channel_tiles needs a grid: channel_tiles:16x16", field="packing")
        return self.grid

    def _layout(self, shape: Shape) -> tuple[int, int, int]:
        """Rows of the tiles, columns, and rows of the prefix tokens, of one layer."""
        height, width = self._grid
        prefix = shape[2] - height * width
        if prefix < 0:
            said = f"{shape[2]} tokens are fewer than a grid of {height} x {width}"
            raise InvalidInputError(said, field="params.token_res")
        rows, columns = near_square(shape[3])
        return rows * height, columns * width, -(-prefix * shape[3] // (columns * width))


class LatentTiles(Packing):
    """(N, C, H, W): the channels as tiles of H x W, row by row, as near to a square as C divides; N on top."""

    name = "latent_tiles"

    def canonical(self, shape: tuple[int, ...]) -> Shape:
        """See `Packing.canonical`."""
        return _four({3: (1, *shape), 4: shape}.get(len(shape)), shape, "(C, H, W) or (N, C, H, W)")

    def picture_shape(self, shape: Shape) -> tuple[int, int]:
        """See `Packing.picture_shape`."""
        rows, columns = near_square(shape[1])
        return shape[0] * rows * shape[2], columns * shape[3]

    def pack(self, samples: Samples) -> Picture:
        """See `Packing.pack`."""
        batch, channels, height, width = samples.shape
        rows, columns = near_square(channels)
        tiles = samples.reshape(batch, rows, columns, height, width).transpose(0, 1, 3, 2, 4)
        return tiles.reshape(batch * rows * height, columns * width)

    def unpack(self, picture: Picture, shape: Shape) -> Samples:
        """See `Packing.unpack`."""
        batch, channels, height, width = shape
        rows, columns = near_square(channels)
        return picture.reshape(batch, rows, height, columns, width).transpose(0, 1, 3, 2, 4).reshape(shape)


def near_square(count: int) -> tuple[int, int]:
    """(rows, columns) with rows * columns = count, rows the larger divisor not above the root."""
    rows = next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
    return rows, count // rows


def _shape(samples: Samples) -> Shape:
    first, second, third, fourth = samples.shape
    return first, second, third, fourth


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
    base, colon, argument = MODEL_TYPES.get(name, name).partition(":")
    layout = PACKINGS.get(base)
    if layout is None:
        known = ", ".join(sorted({*PACKINGS, *MODEL_TYPES}))
        raise InvalidInputError(f"unknown packing {name!r}; known: {known}", field=field)
    return layout.bind(argument) if colon else layout


register_packing(TokensByChannels())
register_packing(ChannelTiles())
register_packing(LatentTiles())
