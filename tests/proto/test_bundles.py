"""Bundles: who reads them, and how many bytes may travel together."""

import pytest

from mpcompress_proto.bundles import KEY, MAX_BUNDLE, MAX_BUNDLE_BYTES, METADATA, Pace, accepted


@pytest.mark.parametrize(
    ("said", "most"),
    [("64", 64), ("65", 64), ("999999", 64), ("2", 2), ("1", 1), ("0", 1), ("007", 7)]
    + [(nonsense, 1) for nonsense in ("", "-5", "1e9", " 8", "9" * 7, "9" * 5000, "\u0665", b"64", "yes")],
)
def test_what_the_other_side_says_is_bounded(said, most):
    assert accepted([("other", "3"), (KEY, said)]) == most


def test_who_says_nothing_gets_no_bundles():
    assert accepted(None) == accepted([]) == accepted([("other", "64")]) == 1
    assert accepted(METADATA) == MAX_BUNDLE


def test_the_room_is_what_leaves_in_a_moment():
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.room == 0  # nothing is known yet
    pace.leaves(1000)
    now[0] = 0.001
    pace.left()
    assert pace.room == pytest.approx(10_000, abs=1)
    # An item alone: the time until the next is there says nothing of the line.
    now[0] = 100.0
    pace.leaves(200_000)
    now[0] += 1.0
    pace.left()
    assert pace.room == pytest.approx(2000, abs=1)
    pace.leaves(200_000)
    pace.left()
    assert pace.room == MAX_BUNDLE_BYTES
