"""Contexts are integers that cannot overflow, whatever a stream or a codec file says."""

import math

import numpy as np
import pytest

from mpcompress.transforms import klt_context as kc
from mpcompress.transforms.klt_statistics import Steps, statistics_at


def test_the_sum_of_a_context_fits_int32():
    largest = (kc.LEVEL_LIMIT << kc.WEIGHT_SHIFT) + kc.FEATURES * kc.WEIGHT_LIMIT * kc.FEATURE_LIMIT
    assert 2 * kc.EVIDENCE_LIMIT <= kc.FEATURE_LIMIT  # features 4 and 5 are sums of two symbols' evidence
    assert largest < 2**31


def test_what_kernels_read_is_within_the_limits(shipped):
    model = shipped[0].model
    for patch in (-3000, -400, 0, 400, 3000):
        for gain in (-1920, 0, 1920):
            found = statistics_at(model, Steps(patch, -384, gain))
            level, weight, own, last, evidence, worth, _, _ = found.kernel
            assert np.abs(level).max() <= kc.LEVEL_LIMIT
            assert np.abs(weight).max() <= kc.WEIGHT_LIMIT
            assert own.min() >= 0
            assert own.max() < kc.CLASSES
            assert 0 <= last.min() <= last.max() <= model.components
            assert np.abs(evidence).max() <= kc.EVIDENCE_LIMIT
            assert worth.min() >= 0
            assert np.array_equal(found.known[:, kc.ZERO_SAYS], evidence[own, 0])
            assert np.array_equal(found.known[:, kc.WORTH], worth[own])


@pytest.mark.parametrize("worth", [0, 1, 64])
def test_features_are_clipped(worth):
    mean = getattr(kc.mean_evidence, "py_func", kc.mean_evidence)
    assert mean(10**9, worth) == kc.FEATURE_LIMIT
    assert mean(-(10**9), worth) == -kc.FEATURE_LIMIT
    assert mean(-1, 0) == -1  # rounded down
    assert mean(0, worth) == 0


def test_logarithms_are_the_rounded_ones():
    table = kc.log2_table()
    assert table[0] == 0
    for n in (1, 2, 3, 17, 1000, 4095):
        assert table[n] == round(48 * math.log2(n))
    assert table.size == 4096


def test_evidence_of_large_symbols_is_bounded():
    evidence = np.zeros((kc.CLASSES, kc.MAGNITUDES), np.int16)
    of = getattr(kc.evidence_of, "py_func", kc.evidence_of)
    assert of(2**28, 0, -8000, evidence, kc.log2_table()) == kc.EVIDENCE_LIMIT
    assert of(17, 0, 8000, evidence, kc.log2_table()) == -kc.EVIDENCE_LIMIT
    assert of(-4095, 0, 500, evidence, kc.log2_table()) == 576 - 500
