"""What goes into the encoder of family `klt`, what comes out, and what an observer sees on the way."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Coding", "Group", "Observer", "Product", "Reconstruction", "Sample", "Symbols"]

T = TypeVar("T")
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """What is to be coded: x float32 (prefix + height * width, C), and its far tokens among the patches.

    `centred` are the patches less their means, where `Encoder.centred` has just computed them and none are far.
    """

    x: FloatArray
    prefix: int
    height: int
    width: int
    far: NDArray[np.int64]
    centred: FloatArray | None = None


@dataclass(frozen=True)
class Symbols:
    """Symbols of one sample in the order of the stream, and what they leave.

    Args:
        index: int32 (n,), row * K + k.
        classes: uint16 (n,).
        values: int32 (n,).
        error: sum of squared differences of the decoded features, before they are rounded to a dtype and filtered.
        cross: sum of products of these differences and what the filter would add; 0 without one.
        power: sum of squares of what the filter would add.
    """

    index: NDArray[np.int32]
    classes: NDArray[np.uint16]
    values: NDArray[np.int32]
    error: float
    cross: float = 0.0
    power: float = 0.0


@dataclass(frozen=True)
class Reconstruction:
    """Patches of a sample less their means, as they are and as a decoder has them before its filter.

    Args:
        centred: (h, w, C), less what the coding was aimed with.
        grid: (h, w, C), as decoded.
        head: (C,), the first prefix token as decoded, less its mean; None without one that the codec knows.
    """

    centred: FloatArray
    grid: FloatArray
    head: FloatArray | None


class Group(NamedTuple):
    """What an observer sees of rows of one kind; a tuple, as it is made for every group.

    Args:
        kind: of the rows.
        first: row of the first.
        x: (n, depth) coefficients after the prediction from coarser levels.
        field: (n + 1, depth) as decoded; row 0 is zero.
        energy: sum of squares of all K coefficients of the rows.
        bands: of those in x, by bands of components, see `klt_domain.bands_of`.
        begin: first symbol of the group.
        end: and one past its last.
    """

    kind: int
    first: int
    x: FloatArray
    field: FloatArray
    energy: float
    bands: list[float]
    begin: int
    end: int


Observer = Callable[[Group], None]


class Product(NamedTuple):
    """Rows (n, C) that an encoder wants the first `depth` components (n, depth) of, in a basis.

    `turn` says when, in an order that all shapes share: whoever is at a later turn waits for those at an earlier one.
    """

    turn: tuple[int, int]
    slot: int
    depth: int
    rows: FloatArray


Coding = Generator[Product, FloatArray, T]
"""Work on an item that stops for every product of few rows, so that items can share one; see `klt_together`."""
