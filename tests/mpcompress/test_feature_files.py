import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mpcompress.errors import InvalidInputError
from mpcompress.feature_files import open_features
from mpcompress.transforms.tensor_file import write_tensor_file

ONE = np.arange(12, dtype=np.float32).reshape(4, 3)
TWO = np.stack([ONE + 100, ONE + 200])


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "a.npy", ONE.astype(np.float16))
    np.savez(tmp_path / "b.npz", x=TWO, y=ONE)
    (tmp_path / "deeper").mkdir()
    save_file({"z": TWO, "f16": ONE.astype(np.float16)}, tmp_path / "deeper" / "c.safetensors")
    (tmp_path / "note.txt").write_text("not features")
    return tmp_path


def test_folders_are_searched_and_samples_counted_apart(folder):
    found = open_features(folder)
    names = [
        "a.npy",
        "b.npz:x[0]",
        "b.npz:x[1]",
        "b.npz:y",
        "c.safetensors:f16",
        "c.safetensors:z[0]",
        "c.safetensors:z[1]",
    ]
    assert [tensor.name for tensor in found] == names
    for _ in range(2):
        values = [tensor.read() for tensor in found]
        assert all(value.dtype == np.float32 for value in values)
        for value, expected in zip(values, (ONE, *TWO, ONE, ONE, *TWO), strict=True):
            assert np.array_equal(value, expected)
    assert {tensor.shape for tensor in found} == {(4, 3)}


def test_bfloat16_in_safetensors(tmp_path):
    header = b'{"h":{"dtype":"BF16","shape":[4,3],"data_offsets":[0,24]}}'
    data = len(header).to_bytes(8, "little") + header + ONE.astype(ml_dtypes.bfloat16).tobytes()
    (tmp_path / "h.safetensors").write_bytes(data)
    (tensor,) = open_features(tmp_path / "h.safetensors")
    assert np.array_equal(tensor.read(), ONE)


def test_arrays_lists_and_one_shot_iterators(tmp_path):
    assert [tensor.shape for tensor in open_features([ONE, TWO])] == [(4, 3)] * 3
    found = open_features((ONE + shift for shift in range(3)), spool=tmp_path)
    for _ in range(2):
        assert [tensor.read()[0, 0] for tensor in found] == [0, 1, 2]
    with pytest.raises(InvalidInputError, match="spool"):
        open_features(iter([ONE]))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3),
        np.zeros((1, 2, 3, 4)),
        np.zeros((0, 3)),
        np.zeros((2, 2), complex),
        np.array([["a"]]),
        np.zeros((2, 2), bool),
    ],
)
def test_arrays_that_are_no_features_are_refused(array):
    with pytest.raises(InvalidInputError):
        open_features([array])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", b""),
        ("a.npy", b"\x93NUMPY garbage"),
        ("a.npz", b"PK\x03\x04 garbage"),
        ("a.safetensors", b"short"),
        ("a.safetensors", b"\xff" * 40),
        ("a.safetensors", (4).to_bytes(8, "little") + b"none"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"[]"),
        ("a.safetensors", write_tensor_file({"i": np.zeros((2, 2), np.int64)}, {})),
        ("a.pt", b"x"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=name):
        open_features(tmp_path / name)


def test_pickled_arrays_are_not_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidInputError):
        open_features(tmp_path)


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"none\.npy"):
        open_features(tmp_path / "none.npy")


def test_truncated_safetensors_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(write_tensor_file({"h": ONE}, {})[:-4])
    with pytest.raises(InvalidInputError, match=r"a\.safetensors"):
        [tensor.read() for tensor in open_features(path)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(value):
    bad = ONE.copy()
    bad[2, 1] = value
    (tensor,) = open_features([bad])
    with pytest.raises(InvalidInputError, match=r"array 0\[2, 1\]"):
        tensor.read()
