import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompress.transforms.klt_engine import split_all
from mpcompress.transforms.klt_haar import merge, predict
from mpcompress.transforms.klt_pyramid import kind_count, kind_of, make_plan, with_far
from mpcompress.transforms.scratch import Scratch

SIDES = st.integers(1, 40)


def merged(plan, root, details) -> np.ndarray:
    low = root
    for level, (d0, d1, d2) in zip(plan.levels, details, strict=True):
        out = np.full((level.h, level.w, root.shape[2]), np.nan, np.float32)
        merge(low, d0, d1, d2, level.y_low, level.x_low, out)
        low = out
    return low


@given(height=SIDES, width=SIDES)
@settings(deadline=None, max_examples=60)
def test_every_grid_comes_back_with_its_energy(height, width):
    x = np.random.default_rng(height * 100 + width).normal(size=(height, width, 3)).astype(np.float32)
    plan = make_plan(0, height, width, 0, 3)
    root, details = split_all(x, plan, Scratch())
    energy = float(np.square(root).sum()) + sum(float(np.square(part).sum()) for parts in details for part in parts)
    assert energy == pytest.approx(float(np.square(x).sum()), rel=1e-4)
    assert np.allclose(merged(plan, root, details), x, atol=1e-5)


@given(height=SIDES, width=SIDES)
@settings(deadline=None, max_examples=30)
def test_details_of_constant_features_are_zero_and_of_a_ramp_predicted(height, width):
    plan = make_plan(0, height, width, 0, 3)
    root, details = split_all(np.ones((height, width, 2), np.float32), plan, Scratch())
    assert np.allclose(root, (height * width) ** 0.5, rtol=1e-5)
    assert all(np.allclose(part, 0, atol=1e-5) for parts in details for part in parts)
    if width % 8 == 0 and height % 8 == 0 and plan.levels[-1].ph > 2 and plan.levels[-1].pw > 2:
        ramp = np.tile(np.arange(width, dtype=np.float32)[None, :, None], (height, 1, 2))
        scratch = Scratch()
        _, details = split_all(ramp, plan, scratch)
        level = plan.levels[-1]
        low = scratch.take("level 0 low", level.ph, level.pw, 2)
        # left - right of a ramp of 1 is -1 per row of two; A[left] - A[right] over two nodes is -4.
        predict(low, level.norm, np.float32(0.125), np.float32(0), details[-1][0], details[-1][1], np.float32(-1))
        assert np.allclose(details[-1][0][:, 1:-1], 0, atol=1e-3)


@given(height=SIDES, width=SIDES, prefix=st.integers(0, 3), known=st.integers(0, 2), depth=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_rows_are_those_of_the_tokens_and_see_only_earlier_rows(height, width, prefix, known, depth):
    plan = make_plan(prefix, height, width, known, depth)
    assert plan.rows == prefix + height * width
    assert plan.kind.shape == (plan.rows + 1,)
    assert (plan.neighbours < np.arange(plan.rows + 1)[:, None] + (np.arange(plan.rows + 1) == 0)[:, None]).all()
    assert plan.neighbours.min() >= 0
    assert plan.kind.max() <= kind_count(known, depth) - 1
    for level in plan.levels:
        for orientation in range(3):
            down, across = level.shape(orientation)
            assert level.first[orientation + 1] - level.first[orientation] == down * across


def test_neighbours_by_hand():
    """3 x 5: finest level 2 x 3 nodes, of which 2 x 2 have left - right and 1 x 3 top - bottom."""
    plan = make_plan(1, 3, 5, 1, 4)
    finest = plan.levels[-1]
    assert (finest.h, finest.w, finest.ph, finest.pw) == (3, 5, 2, 3)
    first, second, third, end = finest.first
    assert (second - first, third - second, end - third) == (4, 3, 2)
    corner = first + 3
    up_left = [first + 2, first + 1, first, 0]
    assert plan.neighbours[corner, :4].tolist() == up_left
    assert plan.neighbours[third + 1, 4:6].tolist() == [first + 1, second + 1]
    assert plan.neighbours[second + 2, 4:6].tolist() == [0, 0]
    assert plan.neighbours[2].tolist() == [0] * 6 + [1] + [0] * 3
    assert plan.kind[[1, 2, first, second, third]].tolist() == [0, 1, 2, 3, 4]
    assert kind_of(1, 0, 2) == 4


def test_far_tokens_are_the_last_rows():
    plan = with_far(make_plan(0, 4, 4, 0, 2), 3, 0, 2)
    assert plan.rows == 19
    assert plan.kind[-3:].tolist() == [kind_count(0, 2) - 1] * 3
    assert plan.neighbours[-3:, 0].tolist() == [0, 17, 18]


def test_large_grids_are_laid_out_quickly_and_not_kept():
    assert make_plan(0, 1, 65535, 0, 8).rows == 65535
    assert make_plan(0, 1, 65535, 0, 8) is not make_plan(0, 1, 65535, 0, 8)
    assert make_plan(1, 16, 16, 1, 4) is make_plan(1, 16, 16, 1, 4)
