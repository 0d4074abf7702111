"""Means, energies, and which tokens are far."""

from itertools import pairwise

import numpy as np
import pytest

from mpcompress.transforms.klt_domain import bands_of
from mpcompress.transforms.klt_encoder import DEAD_ZONE, Encoder
from mpcompress.transforms.klt_engine import Engine
from mpcompress.transforms.klt_far import find_far, most_far, subtract_means
from mpcompress.transforms.klt_sample import Sample
from mpcompress.transforms.klt_statistics import Steps, statistics_at


@pytest.mark.parametrize("means", [1, 7])
@pytest.mark.parametrize("channels", [1, 13, 48])
def test_means_are_subtracted_and_energies_summed(means, channels):
    rng = np.random.default_rng(channels)
    x, mean = (rng.normal(size=(n, channels)).astype(np.float32) for n in (7, means))
    out, energy = np.empty_like(x), np.empty(7, np.float32)
    subtract_means(x, mean, out, energy)
    assert np.array_equal(out, x - mean)
    assert np.allclose(energy, np.square(x - mean).sum(1), rtol=1e-5)


def test_far_tokens_are_far_from_the_others_and_from_what_is_typical():
    energy = np.ones(100, np.float32)
    energy[[3, 70]] = 50, 1000
    assert find_far(energy, 1.0).tolist() == [3, 70]
    assert find_far(energy, 10.0).tolist() == [70]
    assert find_far(energy, 100.0).size == 0
    energy[: most_far(100) + 1] = 1000
    assert find_far(energy, 1.0).size == 0
    energy[3] = np.inf
    assert find_far(energy, 1e30).tolist() == [3]


def test_observers_see_the_energies_of_bands(shipped):
    codec, features = shipped
    model, x = codec.model, features[0].astype(np.float32)
    steps = Steps.of(model, 200, model.prefix_qp_offset_eighths, 0)
    sample = Sample(x, 1, 16, 16, np.zeros(0, np.int64))
    groups = []
    found = Encoder(Engine(model)).quantise(sample, steps, statistics_at(model, steps), DEAD_ZONE, groups.append)
    bounds = bands_of(model.components)
    left = 0.0
    for group in groups:
        square = np.square(group.x, dtype=np.float64)
        expected = [square[:, a:b].sum() for a, b in pairwise(bounds)]
        assert np.allclose(group.bands, expected, rtol=1e-5)
        left += group.energy - square.sum() + np.square(group.x - group.field[1:], dtype=np.float64).sum()
    assert found.error == pytest.approx(left, rel=1e-4)
