"""Packings move every sample to one place and back."""

import numpy as np
import pytest

from mpcompress.errors import InvalidInputError
from mpcompress.picture.packing import MODEL_TYPES, PACKINGS, Packing, packing, register_packing

CASES = [
    ("dinov2", (1, 1, 17, 64), (17, 64)),
    ("dinov2", (2, 3, 5, 4), (10, 12)),
    ("llama3", (3, 2, 4, 8), (12, 16)),
    ("sd3", (1, 16, 12, 20), (48, 80)),
    ("sd3", (2, 16, 3, 5), (24, 20)),
    ("sd3", (1, 8, 4, 4), (8, 16)),
    ("sd3", (1, 7, 2, 3), (2, 21)),
    ("channel_tiles:4x4", (1, 1, 17, 6), (9, 12)),
    ("channel_tiles:3x5", (2, 2, 16, 6), (28, 15)),
    ("channel_tiles:2x8", (1, 1, 16, 7), (2, 56)),
]


@pytest.mark.parametrize(("name", "shape", "picture_shape"), CASES)
def test_there_and_back(name, shape, picture_shape):
    layout = packing(name)
    samples = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    picture = layout.pack(samples)
    assert layout.picture_shape(shape) == picture.shape == picture_shape
    assert set(picture.ravel()) == set(samples.ravel())
    np.testing.assert_array_equal(layout.unpack(picture, shape), samples)


def test_tiles_hold_one_channel_each():
    samples = np.broadcast_to(np.arange(6, dtype=np.uint16), (1, 1, 16, 6))
    picture = packing("channel_tiles:4x4").pack(samples)
    np.testing.assert_array_equal(picture[:4, :4], 0)
    np.testing.assert_array_equal(picture[4:, 8:], 5)


@pytest.mark.parametrize(
    ("name", "shape", "canonical"),
    [("dinov2", (5, 4), (1, 1, 5, 4)), ("dinov2", (2, 5, 4), (2, 1, 5, 4)), ("sd3", (16, 3, 2), (1, 16, 3, 2))],
)
def test_lower_ranks(name, shape, canonical):
    assert packing(name).canonical(shape) == canonical


@pytest.mark.parametrize(
    ("name", "shape"), [("dinov2", (5,)), ("dinov2", (1, 1, 1, 5, 4)), ("sd3", (5, 4)), ("dinov2", (0, 4))]
)
def test_shapes_without_a_layout(name, shape):
    with pytest.raises(InvalidInputError, match="shape"):
        packing(name).canonical(shape)


@pytest.mark.parametrize("name", ["vgg", "", "dinov2:4x4", "channel_tiles:4", "channel_tiles:0x4", "channel_tiles:x"])
def test_unknown_names(name):
    with pytest.raises(InvalidInputError):
        packing(name)


@pytest.mark.parametrize("name", ["channel_tiles", "channel_tiles:5x4"])
def test_a_grid_that_does_not_fit(name):
    with pytest.raises(InvalidInputError, match="grid"):
        packing(name).picture_shape((1, 1, 17, 6))


def test_the_grid_of_a_request():
    assert packing("channel_tiles").for_grid((2, 8), 17).name == "channel_tiles:2x8"
    assert packing("channel_tiles").for_grid(None, 17).name == "channel_tiles:4x4"
    assert packing("channel_tiles:2x8").for_grid(None, 17).name == "channel_tiles:2x8"
    assert packing("dinov2").for_grid((4, 4), 17) is packing("dinov2")


def test_a_packing_of_your_own(monkeypatch):
    monkeypatch.setattr("mpcompress.picture.packing.PACKINGS", dict(PACKINGS))
    monkeypatch.setattr("mpcompress.picture.packing.MODEL_TYPES", dict(MODEL_TYPES))

    class Columns(Packing):
        name = "columns"

        def picture_shape(self, shape):
            return shape[3], shape[0] * shape[1] * shape[2]

        def pack(self, samples):
            return samples.reshape(-1, samples.shape[3]).T

        def unpack(self, picture, shape):
            return picture.T.reshape(shape)

    register_packing(Columns(), "mine")
    assert packing("mine").name == "columns"
    for taken in ((Columns(),), (type("Other", (Columns,), {"name": "other"})(), "mine")):
        with pytest.raises(ValueError, match="already"):
            register_packing(*taken)
