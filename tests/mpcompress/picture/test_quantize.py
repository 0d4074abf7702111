"""Truncation and quantisation."""

import numpy as np
import pytest

from mpcompress.errors import InvalidInputError, NonFiniteError
from mpcompress.picture.quantize import QUANTIZERS, Bounds, check_finite

UNIFORM = QUANTIZERS["uniform"]


class ConfigurationList:
    """List-like, as configuration libraries have them."""

    def __init__(self, *values):
        self.values = values

    def __iter__(self):
        return iter(self.values)


@pytest.mark.parametrize("depth", range(8, 17))
def test_every_level_comes_back(depth):
    levels = np.arange(1 << depth, dtype=np.uint16).reshape(1, 1, 1, -1)
    bounds = Bounds.of(-20, 20)
    features = UNIFORM.dequantize(levels, bounds, depth)
    np.testing.assert_array_equal(UNIFORM.quantize(features, bounds, depth), levels)


def test_saturates():
    x = np.array([-25.0, -20.0, 0.0, 20.0, 25.0, 3e38], dtype=np.float32).reshape(1, 1, 1, 6)
    assert UNIFORM.quantize(x, Bounds.of(-20, 20), 10).ravel().tolist() == [0, 0, 512, 1023, 1023, 1023]


def test_rounds_to_nearest():
    x = np.array([0.4, 0.6, 1.4, 1.6]).reshape(1, 1, 1, 4)
    assert UNIFORM.quantize(x, Bounds.of(0, 255), 8).ravel().tolist() == [0, 1, 1, 2]


def test_float16_input_is_computed_in_float64():
    x = np.linspace(-6, 4, 4096).astype(np.float16).reshape(1, 1, 64, 64)
    bounds = Bounds.of(-6.176, 4.668)
    np.testing.assert_array_equal(UNIFORM.quantize(x, bounds, 10), UNIFORM.quantize(x.astype(np.float64), bounds, 10))


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda values: ConfigurationList(*values)])
def test_bounds_for_each_layer(kind):
    bounds = Bounds.of(kind([-1, -2, -10, -20]), kind([1, 2, 10, 20]))
    x = np.full((1, 4, 2, 4), 1.0)
    assert UNIFORM.quantize(x, bounds, 8)[0, :, 0, 0].tolist() == [255, 191, 140, 134]


@pytest.mark.parametrize(
    ("low", "high"),
    [(1, 1), (2, 1), (float("nan"), 1), (0, float("inf")), ([0, 0], [1]), ([], []), ("a", 1), (None, 1)],
)
def test_bad_bounds(low, high):
    with pytest.raises(InvalidInputError):
        Bounds.of(low, high)


def test_two_bounds_do_not_fit_four_layers():
    with pytest.raises(InvalidInputError, match="2 bounds for 4 layers"):
        UNIFORM.quantize(np.zeros((1, 4, 2, 2)), Bounds.of([-1, -1], [1, 1]), 8)


def test_measured_bounds_enclose_the_tensor():
    x = np.random.default_rng(0).normal(size=(1, 3, 5, 7)).astype(np.float32)
    bounds = Bounds.measured(x)
    assert (bounds.low[0], bounds.high[0]) == (float(x.min()), float(x.max()))
    assert Bounds.measured(x, per_layer=True).low == tuple(x.min(axis=(0, 2, 3)).tolist())


@pytest.mark.parametrize("constant", [0.0, 3.25, -1e30])
def test_a_constant_tensor_comes_back(constant):
    x = np.full((1, 1, 2, 2), constant, dtype=np.float32)
    bounds = Bounds.measured(x)
    np.testing.assert_array_equal(UNIFORM.dequantize(UNIFORM.quantize(x, bounds, 10), bounds, 10), x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_bad_value_is_named(bad):
    x = np.zeros((2, 3), dtype=np.float32)
    x[1, 2] = bad
    with pytest.raises(NonFiniteError, match=r"\(1, 2\)"):
        check_finite(x)
