"""float16 to float32 and back without numpy's conversions: the same bits, infinity and NaN told."""

import numpy as np
import pytest

from mpcompress.transforms.half import narrow, widen

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def test_every_finite_half_is_itself():
    finite = EVERY[np.isfinite(EVERY)]
    out = np.empty(finite.shape, np.float32)
    assert widen(finite, out)
    assert np.array_equal(out.view(np.uint32), finite.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("bad", EVERY[~np.isfinite(EVERY)][::97])
def test_what_is_not_finite_is_told(bad):
    h = np.array([[1, -2], [bad, 65504]], np.float16)
    assert not widen(h, np.empty(h.shape, np.float32))


def test_any_strides():
    h = EVERY[:96].reshape(4, 6, 4).transpose(2, 0, 1)[:, ::2]
    out = np.empty(h.shape, np.float32)
    assert widen(h, out)
    assert np.array_equal(out, h.astype(np.float32))


def test_narrowed_as_numpy_rounds():
    finite = EVERY[np.isfinite(EVERY)].astype(np.float32)
    halves = np.sort(finite)
    between = (halves[1:].astype(np.float64) + halves[:-1]) / 2  # ties, exact in float32
    near = [np.nextafter(between.astype(np.float32), np.float32(side)) for side in (-np.inf, np.inf)]
    x = np.concatenate([finite, between.astype(np.float32), *near, np.float32([1e-9, -1e-9, 1e-45, 0.0, -0.0])])
    out = np.empty(x.shape, np.float16)
    narrow(x, out)
    assert np.array_equal(out.view(np.uint16), x.astype(np.float16).view(np.uint16))


def test_narrowed_values_are_clipped():
    out = np.empty((2, 3), np.float16)
    narrow(np.float32([[65504, 65519, 65520], [-1e30, 3e38, -65600]]), out)
    assert out.tolist() == [[65504, 65504, 65504], [-65504, 65504, -65504]]
