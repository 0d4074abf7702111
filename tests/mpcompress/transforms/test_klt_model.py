import dataclasses
import json

import numpy as np
import pytest

from mpcompress._numba import njit, types
from mpcompress.codec import QpRange
from mpcompress.entropy.primitives import MAX_ESCAPE_INTERVALS, TABLES_TYPE, collect
from mpcompress.entropy.tables import CdfTables
from mpcompress.errors import CodecFileError
from mpcompress.transforms.klt_codec import KltCodec
from mpcompress.transforms.klt_model import KltModel
from mpcompress.transforms.klt_model_file import read_model, write_model
from mpcompress.transforms.tensor_file import read_tensor_file, write_tensor_file


@pytest.fixture
def model(grid_codec) -> KltModel:
    return grid_codec.model


def test_a_file_holds_the_model(model):
    data = write_model(model)
    again = read_model(data)
    assert write_model(again) == data
    assert again.fingerprint() == model.fingerprint()
    for field in dataclasses.fields(KltModel):
        one, other = getattr(model, field.name), getattr(again, field.name)
        if isinstance(one, np.ndarray):
            assert np.array_equal(one, other)
            assert one.dtype == other.dtype
        elif field.name != "tables":
            assert one == other
    assert KltCodec(again, data).codec_file() == data


def nudged(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    if array.dtype.kind == "i":
        changed.flat[-1] += -1 if changed.flat[-1] > 0 else 1
    else:
        changed.flat[-1] *= array.dtype.type(0.99)
        changed.flat[-1] += array.dtype.type(1e-3)
    return changed


ARRAYS = (
    *("mean", "far_mean", "slope", "feedback", "basis", "predictor", "predictor_scale", "base", "weight_kind"),
    *("weight_level", "weight_component", "evidence", "worth", "centroid"),
)


@pytest.mark.parametrize("name", ARRAYS)
def test_the_fingerprint_changes_with_every_array_that_decoding_reads(model, name):
    changed = dataclasses.replace(model, **{name: nudged(getattr(model, name))})
    assert changed.fingerprint() != model.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"base_log2": -100},
        {"cutoff": -121},
        {"prefix_qp_offset_eighths": -95},
        {"token_res": (5, 7)},
        {"token_res": None},
    ],
)
def test_the_fingerprint_changes_with_every_number_that_decoding_reads(model, change):
    assert dataclasses.replace(model, **change).fingerprint() != model.fingerprint()


def test_the_fingerprint_changes_with_the_tables(model):
    freqs = model.tables.freqs.copy()
    first = freqs[: model.tables.lengths[0]]
    low, high = int(np.argmin(first)), int(np.argmax(first))
    freqs[low] += 1
    freqs[high] -= 1
    tables = CdfTables(freqs, model.tables.lengths, model.tables.offsets, model.tables.precision)
    assert dataclasses.replace(model, tables=tables).fingerprint() != model.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"description": "other"},
        {"card": {"a": 1}},
        {"qp": QpRange(minimum=8, maximum=300, default=200)},
        {"rate": 0.2},
        {"domain_bound": 7.0},
        {"domain_typical": 7.0},
        {"token_res": (9, 5)},
    ],
)
def test_the_fingerprint_ignores_what_decoding_does_not_read(model, change):
    assert dataclasses.replace(model, **change).fingerprint() == model.fingerprint()


def test_the_fingerprint_ignores_what_only_encoders_read(model):
    assert dataclasses.replace(model, energy=nudged(model.energy)).fingerprint() == model.fingerprint()


def changed_file(model: KltModel, tensors: dict | None = None, header: dict | None = None) -> bytes:
    """The model's file with some tensors and header entries replaced; None removes one."""
    kept, metadata = read_tensor_file(write_model(model))
    kept.update(tensors or {})
    values = {**json.loads(metadata["mpcompress"]), **(header or {})}
    values = {key: value for key, value in values.items() if value is not Ellipsis}
    kept = {key: value for key, value in kept.items() if value is not None}
    return write_tensor_file(kept, {"mpcompress": json.dumps(values)})


NAN = float("nan")


@pytest.mark.parametrize(
    "header",
    [
        {"family": "vtm"},
        {"family": ...},
        {"bitstream_version": 1},
        {"bitstream_version": 5},
        {"bitstream_version": 6},
        {"bitstream_version": "4"},
        {"bitstream_version": [4]},
        {"base_log2": 1.5},
        {"base_log2": "1"},
        {"base_log2": 100000},
        {"cutoff": None},
        {"rate": 2.0},
        {"rate": "much"},
        {"precision": 7},
        {"precision": True},
        {"qp_eighths": [1, 2]},
        {"qp_eighths": [300, 100, 200]},
        {"qp_eighths": [0, 100000, 200]},
        {"token_res": [0, 5]},
        {"token_res": 5},
        {"mean_grid": [5, 7, 1]},
        {"mean_grid": [5, 5]},
        {"mean_grid": [65535, 65535]},
        {"domain_bound": NAN},
        {"card": 3},
        {"prefix_qp_offset_eighths": 1000},
        {"id": ...},
    ],
)
def test_damaged_headers_are_refused(model, header):
    with pytest.raises(CodecFileError):
        read_model(changed_file(model, header=header))


@pytest.mark.parametrize(
    "tensors",
    [
        {"mean": None},
        {"mean": np.zeros((37, 11), np.float16)},
        {"mean": np.zeros((37, 12), np.float32)},
        {"mean": np.full((37, 12), np.nan, np.float16)},
        {"basis": np.zeros((12,), np.int8)},
        {"basis": np.zeros((14, 12, 12), np.int8)},
        {"basis_group": np.ones((13, 12), np.uint8)},
        {"slot": np.full(13, 13, np.int16)},
        {"slot": np.full(13, -1, np.int16)},
        {"slope": np.full((3, 2), 0.6, np.float32)},
        {"slope": np.zeros((17, 2), np.float32)},
        {"feedback": np.full((13, 2), 0.5, np.float32)},
        {"far_mean": np.full(12, 1e30, np.float32)},
        {"predictor_scale": np.full((2, 12), 2, np.float32)},
        {"energy": np.full((13, 8), -1, np.float32)},
        {"base": np.zeros((13, 12), np.int32)},
        {"evidence": np.full((96, 17), 1024, np.int16)},
        {"worth": np.full(96, -1, np.int16)},
        {"centroid": np.zeros((96, 17), np.float32)},
        {"points": np.zeros(3, np.float32)},
        {"table_freqs": np.ones(10, np.uint16)},
        {"table_freqs": np.ones(10, np.float32)},
        {"unexpected": np.zeros(1)},
    ],
)
def test_damaged_tensors_are_refused(model, tensors):
    with pytest.raises(CodecFileError):
        read_model(changed_file(model, tensors=tensors))


def test_files_that_are_none_are_refused(model):
    data = write_model(model)
    rng = np.random.default_rng(0)
    for bad in (b"", b"PK\x03\x04", data[:100], data[:-1], data + b"x", b"\xff" * 64, write_tensor_file({}, {})):
        with pytest.raises(CodecFileError):
            read_model(bad)
    for _ in range(50):
        flipped = bytearray(data)
        flipped[rng.integers(2000)] ^= 1 << int(rng.integers(8))
        try:
            read_model(bytes(flipped))
        except CodecFileError:
            continue


def test_a_file_of_version_1_says_what_to_do(model):
    with pytest.raises(CodecFileError, match="version 1; this release reads 2, 3, 4, 5: calibrate again"):
        read_model(changed_file(model, header={"bitstream_version": 1}))


def test_a_file_says_how_its_streams_end(model):
    older = read_model(changed_file(model, header={"bitstream_version": 2}))
    assert (model.bitstream_version, model.ending) == (4, "short")
    assert (older.bitstream_version, older.ending) == (2, "long")
    assert write_model(older) == changed_file(model, header={"bitstream_version": 2})
    assert older.fingerprint() != model.fingerprint()


def test_short_endings_need_the_precision_they_are_made_for(model):
    halved = np.maximum(model.tables.freqs // 2, 1).astype(np.int64)
    ends = np.cumsum(model.tables.lengths)
    for end, size in zip(ends, model.tables.lengths, strict=True):
        part = halved[end - size : end]
        part[np.argmax(part)] += (1 << 15) - part.sum()
    tensors = {"table_freqs": halved.astype(model.tables.freqs.dtype)}
    assert read_model(changed_file(model, tensors, {"precision": 15, "bitstream_version": 2})).tables.precision == 15
    with pytest.raises(CodecFileError, match="precision of 15 bits"):
        read_model(changed_file(model, tensors, {"precision": 15}))


def test_tables_that_would_unbound_a_decoders_memory_are_refused(model):
    lengths, offsets = np.full(96, 4, np.int32), np.full(96, -1, np.int32)
    likely_one = np.tile(np.array([1000, 20000, 44000, 536], np.uint16), 96)
    no_minus_one = np.full(96, 0, np.int32)
    for freqs, first in ((likely_one, offsets), (np.full(384, 16384, np.uint16), no_minus_one)):
        tables = {"table_freqs": freqs, "table_lengths": lengths, "table_offsets": first}
        with pytest.raises(CodecFileError):
            read_model(changed_file(model, tensors=tables))


def test_arrays_of_a_model_cannot_be_changed(model):
    with pytest.raises(ValueError, match="read-only"):
        model.base[0, 0] = 1


@njit(types.int64(TABLES_TYPE, types.int64, types.int64, types.uint32[::1], types.uint32[::1]))
def _intervals(tables, row, symbol, starts, freqs):
    return collect(starts, freqs, 0, tables, row, symbol)


@pytest.mark.parametrize("row", [0, 5, 20, 60, 95])
def test_costs_are_those_of_the_coder(model, row):
    for size in range(17):
        starts, freqs = np.empty((2, MAX_ESCAPE_INTERVALS), np.uint32)
        count = _intervals(model.tables.packed, row, size, starts, freqs)
        assert -np.log2(freqs[:count] / 65536).sum() == pytest.approx(float(model.cost[row, size]), abs=1e-3)
