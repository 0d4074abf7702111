import dataclasses
import json

import numpy as np
import pytest

from mpcompress.codec import QpRange
from mpcompress.entropy.tables import CdfTables
from mpcompress.errors import CodecFileError
from mpcompress.transforms.klt_codec import KltCodec
from mpcompress.transforms.klt_model import KltModel
from mpcompress.transforms.klt_symbols import interpolate
from mpcompress.transforms.tensor_file import read_tensor_file, write_tensor_file


@pytest.fixture
def model(grid_codec) -> KltModel:
    return grid_codec.model


def test_a_file_holds_the_model(model):
    data = model.to_bytes()
    again = KltModel.from_bytes(data)
    assert again.to_bytes() == data
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
    changed.flat[-1] += 1 if array.dtype.kind == "i" else array.dtype.type(0.01)
    return changed


ARRAYS = ["mean", "prefix_mean", "basis", "scale_tile", "scale_dc", "scale_shift", "scale_prefix", "centroid"]


@pytest.mark.parametrize("name", ARRAYS)
def test_the_fingerprint_changes_with_every_array_that_decoding_reads(model, name):
    changed = dataclasses.replace(model, **{name: nudged(getattr(model, name))})
    assert changed.fingerprint() != model.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"base_log2": -100},
        {"row_cutoff": -121},
        {"row_shift": 3},
        {"prefix_qp_offset_eighths": -95},
        {"token_res": (5, 7)},
        {"token_res": None},
    ],
)
def test_the_fingerprint_changes_with_every_number_that_decoding_reads(model, change):
    assert dataclasses.replace(model, **change).fingerprint() != model.fingerprint()


def test_the_fingerprint_changes_with_the_tables(model):
    freqs = model.tables.freqs.copy()
    low, high = int(np.argmin(freqs[:5])), int(np.argmax(freqs[:5]))
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
        {"rounding": (0.1, 0.2)},
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
    kept, metadata = read_tensor_file(model.to_bytes())
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
        {"bitstream_version": 2},
        {"base_log2": 1.5},
        {"base_log2": "1"},
        {"base_log2": 100000},
        {"row_shift": 9},
        {"row_shift": -1},
        {"row_cutoff": None},
        {"precision": 7},
        {"precision": True},
        {"qp_eighths": [1, 2]},
        {"qp_eighths": [300, 100, 200]},
        {"qp_eighths": [0, 100000, 200]},
        {"token_res": [0, 5]},
        {"token_res": 5},
        {"tile": [17, 5]},
        {"tile": [1, 65]},
        {"tile": [5, 7]},
        {"rounding": [0.9, 0.1]},
        {"rounding": [NAN, 0.1]},
        {"domain_bound": NAN},
        {"card": 3},
        {"prefix_qp_offset_eighths": 1000},
        {"id": ...},
    ],
)
def test_damaged_headers_are_refused(model, header):
    with pytest.raises(CodecFileError):
        KltModel.from_bytes(changed_file(model, header=header))


@pytest.mark.parametrize(
    "tensors",
    [
        {"mean": None},
        {"mean": np.zeros(11, np.float32)},
        {"mean": np.zeros(12, np.float64)},
        {"mean": np.full(12, np.nan, np.float32)},
        {"basis": np.zeros((12,), np.float16)},
        {"basis": np.full((12, 12), np.inf, np.float16)},
        {"basis": np.full((12, 12), 3, np.float16)},
        {"basis": np.zeros((11, 12), np.float16)},
        {"energy": np.zeros(12, np.float32)},
        {"scale_tile": np.zeros((7, 5, 12), np.int32)},
        {"scale_shift": np.zeros(3, np.int16)},
        {"scale_prefix": np.zeros((3, 12), np.int16)},
        {"centroid": np.zeros((0, 6), np.float32)},
        {"table_freqs": np.ones(10, np.uint16)},
        {"table_freqs": np.ones(10, np.float32)},
        {"unexpected": np.zeros(1)},
    ],
)
def test_damaged_tensors_are_refused(model, tensors):
    with pytest.raises(CodecFileError):
        KltModel.from_bytes(changed_file(model, tensors=tensors))


def test_files_that_are_none_are_refused(model):
    data = model.to_bytes()
    rng = np.random.default_rng(0)
    for bad in (b"", b"PK\x03\x04", data[:100], data[:-1], data + b"x", b"\xff" * 64, write_tensor_file({}, {})):
        with pytest.raises(CodecFileError):
            KltModel.from_bytes(bad)
    for _ in range(50):
        flipped = bytearray(data)
        flipped[rng.integers(2000)] ^= 1 << int(rng.integers(8))
        try:
            KltModel.from_bytes(bytes(flipped))
        except CodecFileError:
            continue


def test_arrays_of_a_model_cannot_be_changed(model):
    with pytest.raises(ValueError, match="read-only"):
        model.scale_tile[0, 0, 0] = 1


def test_scales_interpolate_in_integers():
    table = np.array([0, 100, -31, 7], np.int16).reshape(1, 4, 1)
    assert interpolate(table, 1, 4).ravel().tolist() == [0, 100, -31, 7]
    assert interpolate(table, 1, 2).ravel().tolist() == [0, -31]
    # Frequencies 0, 4/3 and 8/3 of the table's: (100 * 2 - 31) // 3 and (-31 + 7 * 2) // 3, rounded down.
    assert interpolate(table, 1, 3).ravel().tolist() == [0, 56, -6]
    assert interpolate(table, 1, 1).ravel().tolist() == [0]
