from __future__ import annotations

import math

import numpy as np
import pytest

from mpcompress.errors import InvalidInputError
from mpcompress.metrics import bpfp, cosine, mse, nmse, psnr

X = np.array([[1.0, 2.0], [3.0, 6.0]])


def test_by_hand() -> None:
    y = X + np.array([[1, -1], [2, 0]])
    assert mse(X, y) == 6 / 4
    assert nmse(X, y) == (6 / 4) / 3.5
    assert psnr(X, y) == pytest.approx(10 * math.log10(25 / 1.5))
    assert psnr(X, y, peak=1023) == pytest.approx(10 * math.log10(1023**2 / 1.5))
    assert cosine([1, 0], [1, 1]) == pytest.approx(math.sqrt(0.5))
    assert cosine([1, 2], [-2, -4]) == pytest.approx(-1)
    assert bpfp(12336, 257 * 384) == 1.0


def test_equal_tensors() -> None:
    assert (mse(X, X), nmse(X, X), psnr(X, X)) == (0, 0, math.inf)
    assert cosine(X, X) == pytest.approx(1, abs=1e-15)


def test_sending_the_mean_scores_one() -> None:
    x = np.random.default_rng(0).normal(3, 7, (257, 384))
    assert nmse(x, np.full_like(x, x.mean())) == pytest.approx(1)


def test_constant_and_zero_references() -> None:
    assert nmse([2, 2], [2, 2]) == 0
    assert nmse([2, 2], [2, 3]) == math.inf
    assert psnr([2, 2], [2, 3]) == -math.inf
    assert cosine([0, 0], [0, 0]) == 1
    assert cosine([0, 0], [1, 0]) == 0


def test_low_precision_input_is_summed_in_float64() -> None:
    # In float16 the sum of squares overflows beyond 65504, and increments are lost long before.
    x = np.full((1000, 100), 100, dtype=np.float16)
    assert mse(x, x + np.float16(1)) == 1
    assert cosine(x, -x) == pytest.approx(-1)
    assert cosine(np.full(3, 1e30, np.float32), np.full(3, 1e-30, np.float32)) == pytest.approx(1)


@pytest.mark.parametrize("measure", [mse, nmse, psnr, cosine])
def test_what_cannot_be_compared_is_refused(measure) -> None:
    with pytest.raises(InvalidInputError, match="shapes differ"):
        measure([1, 2], [1, 2, 3])
    with pytest.raises(InvalidInputError, match="nothing to compare"):
        measure(np.zeros((0, 384)), np.zeros((0, 384)))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="elements"):
        bpfp(10, 0)
    with pytest.raises(InvalidInputError, match="nbytes"):
        bpfp(-1, 10)
    with pytest.raises(InvalidInputError, match="peak"):
        psnr([1, 2], [1, 3], peak=0)
