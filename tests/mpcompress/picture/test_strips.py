"""When a frame is cut, and where."""

import numpy as np
import pytest

from mpcompress.errors import InvalidInputError
from mpcompress.picture.strips import FLOOR_BYTES, expected_bytes, plan_strips


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 1024, (height, width)).astype(np.uint16)


def test_a_small_stream_is_not_cut(smooth):
    picture = smooth(512, 64)
    assert expected_bytes(picture, 10, 45) < 2 * FLOOR_BYTES
    assert plan_strips(picture, bit_depth=10, qp=45, parallel=8) == (512,)


def test_each_strip_is_expected_above_the_floor():
    picture = noise(512, 64)
    heights = plan_strips(picture, bit_depth=10, qp=22, parallel=4)
    assert 1 < len(heights) <= 4
    assert sum(heights) == 512
    assert expected_bytes(picture, 10, 22) / len(heights) > FLOOR_BYTES


def test_never_more_than_may_run_at_once():
    assert len(plan_strips(noise(512, 512), bit_depth=10, qp=10, parallel=3)) == 3


def test_never_thinner_than_some_rows():
    assert len(plan_strips(noise(64, 4096), bit_depth=10, qp=10, parallel=64)) == 2


@pytest.mark.parametrize(("rows", "requested", "heights"), [(70, 3, (16, 24, 30)), (64, 2, (32, 32)), (9, 1, (9,))])
def test_cuts_lie_between_blocks(rows, requested, heights):
    assert plan_strips(noise(rows, 16), bit_depth=10, qp=30, requested=requested) == heights


@pytest.mark.parametrize("requested", [-1, 65, 10])
def test_strips_nobody_can_cut(requested):
    with pytest.raises(InvalidInputError, match="strips"):
        plan_strips(noise(64, 16), bit_depth=10, qp=30, requested=requested)


@pytest.mark.parametrize("qp", [22, 37])
def test_the_expectation_is_near_what_vtm_writes(golden, qp):
    height, width = golden.picture.shape
    if min(height, width) < 16:
        pytest.skip("headers are most of it")
    expected = expected_bytes(golden.picture, golden.about["bit_depth"], qp)
    assert 0.6 < (expected + 90) / len(golden.stream(qp)) < 1.7
