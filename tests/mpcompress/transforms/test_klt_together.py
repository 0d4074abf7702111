"""Items that share matrix products get the bits that they get alone."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompress.codec import CodingParams
from mpcompress.errors import CodingCancelledError, InvalidInputError, NonFiniteError, OutOfRangeError
from mpcompress.transforms.klt_basis import Bases, group_starts
from mpcompress.transforms.klt_products import PANEL, multiply, multiply_rows, new_tile, to_panels
from mpcompress.transforms.klt_together import SHARED_ELEMENTS, shares


class Waited:
    """A cancel token that nobody sets, or somebody has set."""

    def __init__(self, given_up: bool = False) -> None:
        self.given_up = given_up

    def is_set(self) -> bool:
        return self.given_up


@pytest.fixture
def products(monkeypatch):
    """Rows of every item in each product of items that are coded in step."""
    seen = []
    forward_few = Bases.forward_few

    def spy(self, slot, rows, depths):
        seen.append([len(part) for part in rows])
        return forward_few(self, slot, rows, depths)

    monkeypatch.setattr(Bases, "forward_few", spy)
    return seen


def bases_of(channels: int, components: int) -> Bases:
    """One basis, random, with a group for every 512 channels or so."""
    rng = np.random.default_rng(channels)
    starts = group_starts(channels)
    group = np.sort(np.arange(components) % (len(starts) - 1)).astype(np.uint8)
    rng.shuffle(group)
    stored = rng.integers(-127, 128, (1, components, max(np.diff(starts)))).astype(np.int8)
    return Bases(stored, group[None], starts)


def multiplied(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return multiply(x, to_panels(matrix), len(matrix))


@given(
    width=st.integers(1, 70),
    members=st.integers(1, 2 * PANEL + 5),
    rows=st.integers(1, 19),
    before=st.integers(0, 9),
    after=st.integers(0, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_a_row_has_its_bits_wherever_it_lies(width, members, rows, before, after, seed):
    rng = np.random.default_rng(seed)
    x, matrix = rng.normal(size=(rows, width)).astype(np.float32), rng.normal(size=(members, width)).astype(np.float32)
    others = [(rng.normal(size=(n, width)) * 10.0 ** rng.integers(-30, 30)).astype(np.float32) for n in (before, after)]
    around = multiplied(np.concatenate([others[0], x, others[1]]), matrix)[before : before + rows]
    each = np.concatenate([multiplied(row[None], matrix) for row in x])
    assert np.array_equal(around, each)
    assert np.array_equal(multiplied(x, matrix), each)
    assert np.array_equal(multiplied(np.ascontiguousarray(x[::-1]), matrix)[::-1], each)
    for member in range(0, members, 7):
        assert np.array_equal(multiplied(x, matrix[member : member + 1])[:, 0], each[:, member])
    exact = x.astype(np.float64) @ matrix.T.astype(np.float64)
    assert np.allclose(each, exact, atol=1e-6 * width * float(np.abs(x).max() * np.abs(matrix).max()))


@pytest.mark.parametrize("rows", range(1, 18))
def test_products_write_what_is_asked_for_and_nothing_else(rows):
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, 40)).astype(np.float32)
    matrix = rng.normal(size=(PANEL + 9, 11)).astype(np.float32)
    members = np.flatnonzero(rng.random(3 * PANEL) < 0.4)[: PANEL + 9]
    depths = np.sort(rng.integers(0, 3 * PANEL + 1, rows))[::-1].copy()
    y = np.full((rows + 1, 3 * PANEL), np.nan, np.float32)
    multiply_rows(x, depths, 17, to_panels(matrix), members, y, new_tile())
    exact = np.full_like(y, np.nan)
    exact[:rows, members] = x[:, 17:28] @ matrix[: members.size].T
    assert np.isnan(y[rows]).all()
    for row, depth in enumerate(depths):
        assert np.allclose(y[row, :depth], exact[row, :depth], atol=1e-4, equal_nan=True)
    others = np.setdiff1d(np.arange(3 * PANEL), members)
    assert np.isnan(y[:, others]).all()


@pytest.mark.parametrize(("channels", "components"), [(12, 12), (384, 131), (1024, 40), (1100, 900)])
def test_bases_give_each_what_it_gets_alone(channels, components):
    bases = bases_of(channels, components)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(65, channels)).astype(np.float32)
    begins = [0, 1, 4, 9, 64]
    for depth in (components, components // 2 + 1, 3):
        rows, depths = [x[a:b] for a, b in pairwise(begins)], [depth // 2, depth, 0, depth - depth // 3]
        whole = bases.forward(0, x, depth)
        found = bases.forward_few(0, rows, depths)
        for part, own, deep, begin in zip(found, rows, depths, begins[:-1], strict=True):
            assert part.shape == (len(own), deep)
            assert part.flags.c_contiguous
            assert np.array_equal(part, bases.forward(0, own, deep))
            assert np.array_equal(part, whole[begin : begin + len(own), :deep])
        for group, (start, end) in enumerate(pairwise(bases.starts)):
            members = np.flatnonzero(bases.group[0] == group)
            matrix = bases.rows[bases.place[0, members], : end - start]
            assert np.allclose(
                whole[:, members[members < depth]], (x[:, start:end] @ matrix.T)[:, members < depth], atol=1e-5
            )


@given(sizes=st.lists(st.integers(0, SHARED_ELEMENTS + SHARED_ELEMENTS // 8), max_size=40))
@settings(deadline=None)
def test_shares_are_small_and_leave_nobody_out(sizes):
    found = list(shares(sizes))
    assert sorted(number for share in found for number in share) == list(range(len(sizes)))
    for share in found:
        assert 1 <= len(share) <= 16
        assert len(share) == 1 or sum(sizes[number] for number in share) <= SHARED_ELEMENTS
        for place, number in enumerate(share, 1):
            assert len(share) == 1 or place * sizes[number] <= SHARED_ELEMENTS
    for one, other in pairwise(found):
        assert max(one) < min(other)


def begun(codec, tensors, params, tokens=None):
    tokens = tokens or [Waited()] * len(tensors)
    return codec.begin_compress_mixed([{"h": x} for x in tensors], params, tokens)


def check_same(codec, tools, tensors, given_params):
    """Together and alone: equal strings, states and reports; and what is coded together decodes."""
    params = [codec.resolve([tools.spec_of(x)], own) for x, own in zip(tensors, given_params, strict=True)]
    together = [code() for code in begun(codec, tensors, params)]
    backwards = [code() for code in begun(codec, tensors[::-1], params[::-1])][::-1]
    for x, own, coded, again in zip(tensors, params, together, backwards, strict=True):
        (alone,) = codec.compress([{"h": x}], own)
        assert coded == alone
        assert again == alone


def test_further_passes_share_products_with_first_ones(shipped, tools, products):
    codec, features = shipped
    tensors = [*features, features[0][:105], features[1][1:65]]
    grids = [(16, 16)] * len(features) + [(8, 13), (8, 8)]
    efforts = [2, 1, 2, 1, 2, 2]
    params = [
        CodingParams(qp_eighths=280, token_res=grid, prefix_tokens=len(x) % 2, family=(("effort", effort),))
        for x, grid, effort in zip(tensors, grids, efforts, strict=True)
    ]
    products.clear()
    check_same(codec, tools, tensors, params)
    assert max(len(rows) for rows in products) > 2


def test_items_of_all_kinds_share_products_and_keep_their_bits(grid_codec, tools, products):
    rng = np.random.default_rng(11)
    tensors, params = [], []
    dtypes = ("float32", "float16", ml_dtypes.bfloat16)
    asked = (
        {},
        {"qp_eighths": 60},
        {"qp_eighths": 250, "family": (("effort", 0),)},
        {"qp_eighths": 120, "family": (("effort", 2),)},
        {"target_bpfp": 2.0},
        {"target_nmse": 0.02},
        {"family": (("prefix_qp_offset_eighths", -100),)},
    )
    for number in range(22):
        height, width, prefix = (int(rng.integers(1, most)) for most in (18, 18, 5))
        x = tools.smooth(rng, height, width, prefix)
        if number % 5 == 1:
            x = np.stack([x, 2 * x, -x])
        if number % 7 == 2:
            x[..., -1, :] += 300  # a far token
        if number % 7 == 3:
            x = x * np.float32(50)  # unlike the calibration set: a second trial, with a gain
        tensors.append(x.astype(dtypes[number % 3]))
        params.append(CodingParams(token_res=(height, width), prefix_tokens=prefix, **asked[number % len(asked)]))
    products.clear()
    check_same(grid_codec, tools, tensors, params)
    assert max(len(rows) for rows in products) == 16  # roots of all in a share
    assert any(len(set(rows)) > 1 for rows in products)  # more rows of one than of another
    assert max(max(rows) for rows in products) == 8


def test_sequences_of_any_length_share_products(sequence_codec, tools, products):
    rng = np.random.default_rng(12)
    tensors = [tools.smooth(rng, 1, int(length)) for length in rng.integers(1, 300, size=16)]
    check_same(sequence_codec, tools, tensors, [CodingParams()] * 16)
    assert products[0] == [1] * 16


def test_real_features_of_several_grids_share_products(shipped, tools, products):
    codec, features = shipped
    grids = [(16, 16), (3, 4), (16, 16), (7, 11), (16, 2), (1, 1), (9, 9)]
    tensors = [features[n % 4][: 1 + h * w] for n, (h, w) in enumerate(grids)]
    tensors.append(features[:2])
    params = [CodingParams(token_res=grid, qp_eighths=192) for grid in [*grids, (16, 16)]]
    check_same(codec, tools, tensors, params)
    assert max(map(len, products)) > 4


def test_large_items_are_coded_alone(grid_codec, tools, products):
    large = tools.smooth(np.random.default_rng(0), 1, SHARED_ELEMENTS // 12 + 1)
    params = grid_codec.resolve(
        [tools.spec_of(large)], CodingParams(token_res=(1, len(large)), prefix_tokens=0, qp_eighths=300)
    )
    assert len(begun(grid_codec, [large] * 2, [params] * 2)) == 2
    assert not products


@pytest.mark.parametrize(
    ("value", "error"), [(np.nan, NonFiniteError), (np.inf, NonFiniteError), (3e38, OutOfRangeError)]
)
def test_a_bad_item_fails_its_batch_and_leaves_nothing_behind(grid_codec, tools, value, error):
    rng = np.random.default_rng(4)
    good = [tools.smooth(rng, 7, 5, 2) for _ in range(4)]
    bad = [x.copy() for x in good]
    bad[2][20, 7] = value
    params = [grid_codec.resolve([tools.spec_of(good[0])], CodingParams())] * 4
    before = [code() for code in begun(grid_codec, good, params)]
    with pytest.raises(error, match=r"h\[20, 7\]") as caught:
        begun(grid_codec, bad, params)
    assert isinstance(caught.value, InvalidInputError)
    assert [code() for code in begun(grid_codec, good, params)] == before


def test_cancelled_items_are_left_out(grid_codec, tools, products):
    rng = np.random.default_rng(4)
    tensors = [tools.smooth(rng, 7, 5, 2) for _ in range(4)]
    tensors[1][0] = np.nan  # nobody looks at it
    params = [grid_codec.resolve([tools.spec_of(tensors[0])], CodingParams())] * 4
    stages = begun(grid_codec, tensors, params, [Waited(), Waited(True), Waited(), Waited(True)])
    assert max(map(len, products)) == 2
    for number in (1, 3):
        with pytest.raises(CodingCancelledError):
            stages[number]()
    for number in (0, 2):
        assert stages[number]() == grid_codec.compress([{"h": tensors[number]}], params[number])[0]
