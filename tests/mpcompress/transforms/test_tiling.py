from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dctn

from mpcompress.transforms.scratch import Scratch
from mpcompress.transforms.tiling import (
    Layout,
    dct2,
    dct_matrix,
    forward_tiles,
    idct2,
    inverse_tiles,
    natural_tile,
    split_side,
)


@pytest.mark.parametrize(
    ("side", "largest", "parts"),
    [
        (16, 16, (16,)),
        (37, 16, (13, 12, 12)),
        (17, 16, (9, 8)),
        (1, 16, (1,)),
        (33, 16, (11, 11, 11)),
        (5, 1, (1,) * 5),
    ],
)
def test_sides_split_evenly(side, largest, parts):
    assert split_side(side, largest) == parts


@given(st.integers(1, 5000), st.integers(1, 64))
def test_any_side_splits_into_the_fewest_equal_tiles(side, largest):
    parts = split_side(side, largest)
    assert sum(parts) == side
    assert len(parts) == -(-side // largest)
    assert max(parts) <= largest
    assert max(parts) - min(parts) <= 1


def test_natural_tiles():
    assert natural_tile(16, 16) == (16, 16)
    assert natural_tile(37, 14) == (13, 14)
    assert natural_tile(1, 100) == (1, 50)
    assert natural_tile(1, 20) == (1, 20)


@pytest.mark.parametrize("shape", [(16, 16, 3), (1, 7, 2), (9, 1, 2), (1, 1, 4), (5, 12, 3)])
def test_dct_is_scipys_orthonormal_one(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert np.allclose(dct2(x), dctn(x, axes=(0, 1), norm="ortho"), atol=1e-5)
    assert np.allclose(idct2(dct2(x)), x, atol=1e-5)


def test_dct_matrices_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        dct_matrix(8)[0, 0] = 0


@given(st.integers(0, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 16), st.integers(1, 16))
def test_tiles_cover_the_grid_once_and_invert(prefix, height, width, largest_height, largest_width):
    layout = Layout(prefix, height, width, (largest_height, largest_width))
    seen = np.zeros((height, width), int)
    for tile in layout.tiles():
        seen[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
    assert (seen == 1).all()
    assert layout.sizes() == Counter((tile.height, tile.width) for tile in layout.tiles())
    tokens = np.random.default_rng(0).normal(size=(layout.positions, 2)).astype(np.float32)
    scratch = Scratch()
    coefficients = forward_tiles(tokens, layout, scratch, np.empty_like(tokens))
    assert np.allclose(inverse_tiles(coefficients, layout, scratch, np.empty_like(tokens)), tokens, atol=1e-4)
