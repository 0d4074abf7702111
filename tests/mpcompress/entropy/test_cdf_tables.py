"""Tables refuse what a coder could not survive, and quantisation is exact, cheap and repeatable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcompress.entropy import CdfTables, IndexedTables, quantize_pmf
from mpcompress.errors import CodecFileError, InvalidInputError

GOOD = {"freqs": [200, 56, 1, 254, 1], "lengths": [2, 3], "offsets": [0, -4], "precision": 8}


def test_good_tables_are_kept_and_frozen() -> None:
    tables = CdfTables(**{k: np.array(v) if isinstance(v, list) else v for k, v in GOOD.items()})
    assert (tables.count, tables.precision) == (2, 8)
    assert (tables.freqs.dtype, tables.lengths.dtype, tables.offsets.dtype) == (np.uint16, np.int32, np.int32)
    for array in (tables.freqs, tables.lengths, tables.offsets, tables.packed):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"freqs": [200, 56, 0, 255, 1]}, "freqs"),
        ({"freqs": [200, 56, 1, 254, 2]}, "freqs"),
        ({"freqs": [201, 56, 1, 253, 1]}, "freqs"),
        ({"freqs": [200, 56, -1, 256, 1]}, "freqs"),
        ({"freqs": [200, 56, 1, 254 + (1 << 16), 1]}, "freqs"),
        ({"freqs": [200, 56, 1, 254]}, "freqs"),
        ({"freqs": [200.0, 56.0, 1.0, 254.0, 1.0]}, "freqs"),
        ({"freqs": [[200, 56, 1, 254, 1]]}, "freqs"),
        ({"lengths": [3, 2]}, "freqs"),
        ({"lengths": [1, 4]}, "lengths"),
        ({"lengths": [2, 2**31 + 3]}, "lengths"),
        ({"lengths": [], "offsets": []}, "lengths"),
        ({"lengths": [2, -3]}, "lengths"),
        ({"offsets": [0]}, "lengths"),
        ({"offsets": [0, (1 << 30) + 1]}, "offsets"),
        ({"offsets": [0, -(1 << 31)]}, "offsets"),
        ({"precision": 7}, "precision"),
        ({"precision": 17}, "precision"),
        ({"precision": 9}, "freqs"),
    ],
)
def test_bad_tables_are_refused(change: dict[str, object], field: str) -> None:
    arrays = {k: np.array(v) if isinstance(v, list) else v for k, v in (GOOD | change).items()}
    with pytest.raises(CodecFileError) as caught:
        CdfTables(**arrays)
    assert caught.value.field == field


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1.0)), min_size=2, max_size=256).filter(lambda p: sum(p) > 0),
    st.integers(8, 16),
)
def test_quantized_frequencies_add_up_and_follow_the_probabilities(weights: list[float], precision: int) -> None:
    p = np.array(weights) / sum(weights)
    freqs = quantize_pmf(p, precision).astype(np.int64)
    assert freqs.sum() == 1 << precision
    assert freqs.min() >= 1
    assert np.array_equal(freqs, quantize_pmf(p.copy(), precision))
    larger = p[:, None] > p[None, :] + 2.0 ** (1 - precision)
    assert not np.any(larger & (freqs[:, None] < freqs[None, :]))


def test_quantization_costs_almost_nothing() -> None:
    for scale in (0.5, 1.0, 10.0, 100.0):
        reach = int(6 * scale)
        p = np.exp(-np.abs(np.arange(-reach, reach + 1)) / scale)
        p /= p.sum()
        excess_bits = float((p * np.log2(p / (quantize_pmf(p, 16) / 65536))).sum())
        assert -1e-12 <= excess_bits < 5e-4


def test_from_pmfs_refuses_what_is_no_distribution() -> None:
    for pmf in ([], [0.0], [np.nan, 1.0], [np.inf, 1.0], [-1.0, 2.0]):
        with pytest.raises(InvalidInputError):
            CdfTables.from_pmfs([pmf], [0])
    with pytest.raises(InvalidInputError):
        CdfTables.from_pmfs([], [])
    with pytest.raises(InvalidInputError):
        CdfTables.from_pmfs([np.ones(256)], [0], precision=8)
    with pytest.raises(InvalidInputError):
        CdfTables.from_pmfs([[1.0]], [0], escape_mass=1.0)


INDEXED = {"cdfs": [[0, 9, 65536, 0], [0, 1, 2, 65536]], "cdf_lengths": [3, 4], "offsets": [0, -1]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cdfs": [[0, 9, 65536, 0], [0, 2, 2, 65536]]}, "cdfs"),
        ({"cdfs": [[0, 9, 65536, 0], [0, 70000, 2, 65536]]}, "cdfs"),
        ({"cdfs": [[1, 9, 65536, 0], [0, 1, 2, 65536]]}, "cdfs"),
        ({"cdfs": [[0, 9, 65536, 0], [0, 1, 2, 65535]]}, "cdfs"),
        ({"cdfs": [[0, 9, 65536, 0], [0, -1, 2, 65536]]}, "cdfs"),
        ({"cdfs": [[0, 9, 65536, 2**40], [0, 1, 2, 65536]]}, "cdfs"),
        ({"cdfs": [0, 9, 65536]}, "cdfs"),
        ({"cdf_lengths": [2, 4]}, "cdf_lengths"),
        ({"cdf_lengths": [3, 5]}, "cdf_lengths"),
        ({"cdf_lengths": [-3, 4]}, "cdf_lengths"),
        ({"cdf_lengths": [3]}, "cdf_lengths"),
        ({"offsets": [0, 2**31]}, "offsets"),
        ({"offsets": [0]}, "cdf_lengths"),
        ({"cdfs": np.empty((0, 4), np.int32), "cdf_lengths": [], "offsets": []}, "cdf_lengths"),
    ],
)
def test_bad_indexed_tables_are_refused(change: dict[str, object], field: str) -> None:
    def arrays(values: dict[str, object]) -> dict[str, np.ndarray]:
        return {k: np.asarray(v) if np.size(v) else np.zeros(np.shape(v), np.int32) for k, v in values.items()}

    assert IndexedTables(**arrays(INDEXED)).count == 2
    with pytest.raises(CodecFileError) as caught:
        IndexedTables(**arrays(INDEXED | change))
    assert caught.value.field == field
