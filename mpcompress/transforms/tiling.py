"""How a grid of tokens is cut into tiles, and the DCT of one tile. A sequence is a grid of one row.

(16, 16) ──► one tile         (37, 37), tiles of at most 16 ──► 13 + 12 + 12 each way: nine tiles, none a sliver
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.transforms.scratch import Scratch

LARGEST_GRID_TILE = 16
LARGEST_SEQUENCE_TILE = 64

FloatArray = NDArray[np.float32]


def split_side(side: int, largest: int) -> tuple[int, ...]:
    """Cuts `side` tokens into the fewest tiles of at most `largest`: sizes differ by at most 1, larger ones first."""
    count = -(-side // largest)
    short, longer = divmod(side, count)
    return (short + 1,) * longer + (short,) * (count - longer)


def natural_tile(height: int, width: int) -> tuple[int, int]:
    """Sides of the largest tile that a (height, width) grid is cut into when the format alone bounds it."""
    if height == 1:
        return 1, split_side(width, LARGEST_SEQUENCE_TILE)[0]
    return split_side(height, LARGEST_GRID_TILE)[0], split_side(width, LARGEST_GRID_TILE)[0]


@dataclass(frozen=True)
class Tile:
    """A rectangle of tokens."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Layout:
    """Where the coefficients of one sample are: `prefix` vectors, then tile after tile in raster order.

    Args:
        prefix: prefix tokens P.
        height: rows of the grid.
        width: columns of the grid.
        largest: (height, width) of the largest tile.
    """

    prefix: int
    height: int
    width: int
    largest: tuple[int, int]

    @property
    def positions(self) -> int:
        """Tokens of one sample."""
        return self.prefix + self.height * self.width

    def sizes(self) -> Counter[tuple[int, int]]:
        """How many tiles of each (height, width) there are: four sizes at most."""
        heights = Counter(split_side(self.height, self.largest[0]))
        widths = Counter(split_side(self.width, self.largest[1]))
        return Counter({(h, w): heights[h] * widths[w] for h in heights for w in widths})

    def tiles(self) -> list[Tile]:
        """Tiles in raster order."""
        tiles = []
        top = 0
        for height in split_side(self.height, self.largest[0]):
            left = 0
            for width in split_side(self.width, self.largest[1]):
                tiles.append(Tile(top, left, height, width))
                left += width
            top += height
        return tiles


@lru_cache(maxsize=2 * LARGEST_SEQUENCE_TILE)
def dct_matrix(side: int) -> FloatArray:
    """Orthonormal DCT-II, float32 (side, side): frequencies in rows, tokens in columns."""
    frequency, token = np.arange(side)[:, None], np.arange(side)[None, :]
    exact = np.cos(np.pi * frequency * (2 * token + 1) / (2 * side)) * np.sqrt(2.0 / side)
    exact[0] = np.sqrt(1.0 / side)
    matrix: FloatArray = exact.astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def dct2(tokens: NDArray[Any]) -> FloatArray:
    """2-D DCT over the first two axes of (h, w, K)."""
    return _both_axes(tokens, Scratch(), inverse=False)


def idct2(coefficients: NDArray[Any]) -> FloatArray:
    """Inverse of `dct2`."""
    return _both_axes(coefficients, Scratch(), inverse=True)


def _both_axes(values: NDArray[Any], scratch: Scratch, *, inverse: bool) -> FloatArray:
    """(h, w, K) to (h, w, K), in buffers of `scratch` unless nothing is to be done."""
    height, width, depth = values.shape
    rows, columns = dct_matrix(height), dct_matrix(width)
    if width > 1:
        values = np.matmul(columns.T if inverse else columns, values, out=scratch.take("columns", height, width, depth))
    if height > 1:
        target = scratch.take("rows", height, width * depth)
        np.matmul(rows.T if inverse else rows, values.reshape(height, width * depth), out=target)
        values = target.reshape(height, width, depth)
    return values


def forward_tiles(tokens: FloatArray, layout: Layout, scratch: Scratch, out: FloatArray) -> FloatArray:
    """(P + H*W, K) tokens in raster order to (P + H*W, K) coefficients in the order of the layout, into `out`."""
    depth = tokens.shape[1]
    out[: layout.prefix] = tokens[: layout.prefix]
    grid = tokens[layout.prefix :].reshape(layout.height, layout.width, depth)
    begin = layout.prefix
    for tile in layout.tiles():
        patch = grid[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
        end = begin + tile.height * tile.width
        out[begin:end] = _both_axes(patch, scratch, inverse=False).reshape(-1, depth)
        begin = end
    return out


def inverse_tiles(coefficients: FloatArray, layout: Layout, scratch: Scratch, out: FloatArray) -> FloatArray:
    """Inverse of `forward_tiles`, into `out`."""
    depth = coefficients.shape[1]
    out[: layout.prefix] = coefficients[: layout.prefix]
    grid = out[layout.prefix :].reshape(layout.height, layout.width, depth)
    begin = layout.prefix
    for tile in layout.tiles():
        end = begin + tile.height * tile.width
        block = coefficients[begin:end].reshape(tile.height, tile.width, depth)
        patch = _both_axes(block, scratch, inverse=True)
        grid[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = patch
        begin = end
    return out
