"""float16 to float32 without numpy's conversion: the same bits, infinity and NaN told."""

import numpy as np
import pytest

from mpcompress.transforms.half import widen

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
